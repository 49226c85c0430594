"""Batches of as many examples as fit, padded to their longest: --tokens_per_batch.

lengths 9, 7, 5, 3, 1 and 10 tokens a batch  ->  [9]  [7]  [5, 3]  [1]          number * longest <= 10

Long texts go in small batches and short ones in large. Examples are sorted by length, where lengths within a sixteenth of each other
count as one, by the longest of them, and examples of one length are drawn anew in each epoch: so the batches are others in each epoch,
and as many, which is what the Trainer's steps, epochs, schedules and resumes are computed from.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Sampler

from sft_hf.data.order import GroupedByLength
from sft_hf.errors import ArgumentError

logger = logging.getLogger(__name__)
ALIKE = (
    1 / 16
)  # 1.3 % more tokens on two sets of short texts than by exact lengths, which would leave long texts in one company


@dataclass(frozen=True)
class Lengths:
    """What each example takes, at most, of a batch that is padded to its longest: `values` (examples,) in `unit`, above 0.

    `flag` is the one that makes examples shorter.
    """

    values: np.ndarray
    unit: str
    flag: str


class TokenBatches(Sampler[list[int]]):
    """The micro-batches of an epoch over all ranks, a function of seed and epoch: of each `world_size` in a row a rank has one.

    Those that are worked on at the same time have like lengths; their order is drawn, but that the longest come first, so that a
    batch that does not fit into memory fails at once. Each row stands in one batch. Where each batch holds one row, fewer may be left
    than there are ranks: they come last, `num_left` is their number, and the batches behind them are repeats.
    """

    def __init__(
        self,
        lengths: Lengths,
        tokens_per_batch: int,
        *,
        seed: int,
        world_size: int = 1,
        tells_epoch: bool = False,
    ):
        self.num_rows, self.seed, self.world_size, self.epoch = len(lengths.values), seed, world_size, 0
        self.tells_epoch = tells_epoch  # yield the keys of ReadExamples in place of rows
        longest = lengths.values.max()
        if longest > tokens_per_batch:
            raise ArgumentError(
                f"--tokens_per_batch {tokens_per_batch}: the longest training example has {longest:g} {lengths.unit}. Give at least as "
                f"many, or make examples shorter with {lengths.flag}."
            )
        self._lengths = _alike(lengths.values)
        self._starts = self._cut(np.sort(self._lengths)[::-1], tokens_per_batch)
        self.num_left = len(self._starts) % world_size

    def _cut(self, lengths: np.ndarray, tokens_per_batch: int) -> list[int]:
        """Where, in the order from long to short, batches begin; a multiple of the ranks, as long as any can be cut in two."""
        fit, starts = (tokens_per_batch // lengths).astype(int), [0]
        while (start := starts[-1] + int(fit[starts[-1]])) < self.num_rows:
            starts.append(start)
        if len(starts) > 1:  # the last two share evenly: a text that is left over would be a whole step of its own
            half = -(-(self.num_rows - starts[-2]) // 2)
            starts[-1] = starts[-2] + min(half, int(fit[starts[-2]]))
        while len(starts) % self.world_size:
            sizes = np.diff([*starts, self.num_rows])
            largest = int(sizes.argmax())
            if sizes[largest] == 1:
                break
            starts.insert(largest + 1, starts[largest] + int(sizes[largest] + 1) // 2)
        return starts

    def set_epoch(self, epoch: int) -> None:
        """The Trainer says which epoch begins, also after a resume."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-len(self._starts) // self.world_size) * self.world_size

    def __iter__(self) -> Iterator[list[int]]:
        generator = np.random.default_rng((self.seed, self.epoch))
        order = generator.permutation(self.num_rows)
        order = order[np.argsort(-self._lengths[order], kind="stable")] + self.epoch * self.num_rows * self.tells_epoch
        batches = [batch.tolist() for batch in np.split(order, self._starts[1:])]
        turns = [batches[start : start + self.world_size] for start in range(0, len(batches), self.world_size)]
        last = [turns.pop()] if self.num_left else []
        for turn in last:
            turn += turn[:1] * (self.world_size - len(turn))
        turns = [*turns[:1], *(turns[1 + index] for index in generator.permutation(max(len(turns) - 1, 0))), *last]
        for turn in turns:
            yield from turn


def _alike(lengths: np.ndarray) -> np.ndarray:
    """Lengths, each as the longest of those that count as one with it."""
    classes = np.ceil(np.log(lengths) / np.log1p(ALIKE))
    _, index = np.unique(classes, return_inverse=True)
    longest = np.zeros(index.max() + 1)
    np.maximum.at(longest, index, lengths)
    return longest[index]


def evaluation_batches(lengths: Lengths, tokens_per_batch: int) -> list[list[int]]:
    """The rows of a set, longest first, in batches that fit; an example that is longer than that is alone in one."""
    order = np.argsort(-lengths.values, kind="stable")
    sizes, batches, start = np.maximum(tokens_per_batch // lengths.values[order], 1).astype(int), [], 0
    while start < len(order):
        batches.append(order[start : start + sizes[start]].tolist())
        start += int(sizes[start])
    return batches


def say_batches(
    batches: TokenBatches, lengths: Lengths, tokens_per_batch: int, batch_size: int, num_micro_batches: int
) -> None:
    """How many batches an epoch has, and their padding beside that of `batch_size` examples, `num_micro_batches` in a row of like length."""
    own = list(batches)
    numbers = [len(batch) for batch in own]
    grouped = GroupedByLength(lengths.values.tolist(), batch_size=batch_size * num_micro_batches, seed=batches.seed)
    order = list(grouped)
    plain = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    logger.info(
        "--tokens_per_batch %d: %d batches of %d to %d examples an epoch, of whose %s %.1f %% are padding; of batches of %d, grouped "
        "by length, it would be %.1f %%",
        tokens_per_batch, len(own), min(numbers), max(numbers), lengths.unit, 100 * padding(own, lengths.values),
        batch_size, 100 * padding(plain, lengths.values),
    )  # fmt: skip


def padding(batches: Sequence[Sequence[int]], lengths: np.ndarray) -> float:
    """Which share of what batches hold, padded each to its longest, is padding."""
    padded = sum(len(batch) * float(lengths[batch].max()) for batch in batches)
    return 1 - sum(float(lengths[batch].sum()) for batch in batches) / padded
