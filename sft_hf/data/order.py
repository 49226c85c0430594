"""In which order examples are trained on and evaluated: a function of seed, epoch and rank, and of nothing else.

What is drawn when an example is read, its augmentation, is a function of seed, epoch and example. A worker is told the epoch by
the key under which it reads: `epoch * number of rows + row`, so that neither the number of workers nor a resume matters
(pitfall 44).
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
from datasets import Dataset, IterableDataset
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import IterableDataset as TorchIterableDataset
from torch.utils.data import Sampler

from sft_hf import hub
from sft_hf.data.columns import EXAMPLE_ID
from sft_hf.errors import DataError

REPEATED_ID = -1  # the example_id of an example that stands in for none and does not count


class ReadExamples(TorchDataset):
    """Rows that become examples when they are read: `read(row, epoch)` in the dataloader's workers."""

    def __init__(self, rows: Dataset, read: Callable[[dict[str, Any], int], dict[str, Any]]):
        self.rows, self.read = rows, read

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: int) -> dict[str, Any]:
        epoch, row = divmod(key, len(self.rows))
        return self.read(self.rows[row], epoch)


class TrainingStream(TorchIterableDataset):
    """The micro-batches of one rank of a stream: of every global batch its part, cut as those of a map-style set are.

    Every rank reads the same rows, whose order is a function of seed and epoch, and makes examples of its own alone. The last
    global batch of an epoch is as short as it has to be; a micro-batch that would be empty, while others of its step are not, is one
    repeated example with REPEATED_ID for its `example_id`. So all ranks make the same number of whole steps.
    """

    def __init__(
        self,
        rows: IterableDataset,
        collate: Callable[[list[dict[str, Any]]], dict[str, Any]],
        *,
        read: Callable[[dict[str, Any], int], dict[str, Any]] | None = None,
        batch_size: int,
        num_micro_batches: int = 1,
        rank: int = 0,
        world_size: int = 1,
    ):
        self.rows, self.collate, self.read = rows, collate, read
        self.batch_size, self.num_micro_batches = batch_size, num_micro_batches
        self.rank, self.world_size = rank, world_size
        self.num_skipped = 0  # micro-batches that a resumed epoch passes over: nothing is read for them but their rows

    def set_epoch(self, epoch: int) -> None:
        """The Trainer says which epoch begins, also after a resume; workers that live on hear it too."""
        self.rows.set_epoch(epoch)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        rows, number, first = hub.read_stream(self.rows), 0, None
        while block := list(islice(rows, self.batch_size * self.world_size)):
            first, start = block[0], self.batch_size * self.rank
            yield self._batch(block[start : start + self.batch_size], first, number)
            number += 1
        if first is None:
            raise DataError("The train split has no usable row.")
        for missing in range(number, -(-number // self.num_micro_batches) * self.num_micro_batches):
            yield self._batch([], first, missing)

    def _batch(self, own: list[dict[str, Any]], other: dict[str, Any], number: int) -> dict[str, Any]:
        if number < self.num_skipped:
            return {}
        examples = [self._example(row) for row in own] or [{**self._example(other), EXAMPLE_ID: REPEATED_ID}]
        return self.collate(examples)

    def _example(self, row: dict[str, Any]) -> dict[str, Any]:
        return row if self.read is None else self.read(row, self.rows.epoch)


class EvaluationStream(TorchIterableDataset):
    """The examples of one rank of a stream: every world_size-th row, since every reader numbers the rows by itself."""

    def __init__(
        self,
        rows: IterableDataset,
        *,
        read: Callable[[dict[str, Any], int], dict[str, Any]] | None = None,
        rank: int = 0,
        world_size: int = 1,
    ):
        self.rows, self.read, self.rank, self.world_size = rows, read, rank, world_size

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for row in hub.read_stream(self.rows):
            if row[EXAMPLE_ID] % self.world_size == self.rank:
                yield row if self.read is None else self.read(row, 0)


class Shuffled(Sampler[int]):
    """Every row once, in an order drawn from seed and epoch."""

    def __init__(self, num_rows: int, *, seed: int):
        self.num_rows, self.seed, self.epoch = num_rows, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """The Trainer says which epoch begins, also after a resume."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_rows

    def __iter__(self) -> Iterator[int]:
        return iter(np.random.default_rng((self.seed, self.epoch)).permutation(self.num_rows).tolist())


class KeyedByEpoch(Sampler[int]):
    """The rows of another sampler as keys that tell the epoch too, for ReadExamples."""

    def __init__(self, sampler: Sampler[int]):
        self.sampler, self.epoch = sampler, 0

    def set_epoch(self, epoch: int) -> None:
        """Pass on which epoch begins."""
        self.epoch = epoch
        if hasattr(self.sampler, "set_epoch"):
            self.sampler.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[int]:
        return (self.epoch * len(self.sampler) + row for row in self.sampler)


class GroupedByLength(Sampler[int]):
    """A shuffled order in which the examples of one global batch have similar lengths.

    The whole set is shuffled, cut into windows of 50 batches, sorted by length inside each, and the batches are shuffled again. The
    very longest batch comes first, so that a batch that does not fit into memory fails at once.
    """

    WINDOW = 50

    def __init__(self, lengths: list[int], *, batch_size: int, seed: int):
        self.lengths, self.batch_size, self.seed, self.epoch = np.asarray(lengths), batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """The Trainer says which epoch begins, also after a resume."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = np.random.default_rng((self.seed, self.epoch))
        order = generator.permutation(len(self.lengths))
        window = self.WINDOW * self.batch_size
        windows = [order[start : start + window] for start in range(0, len(order), window)]
        order = np.concatenate([part[np.argsort(-self.lengths[part], kind="stable")] for part in windows])
        batches = [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]
        last = batches.pop() if len(batches[-1]) < self.batch_size else None  # a short batch stays the last one
        batches = [batches[index] for index in generator.permutation(len(batches))]
        if batches:
            longest = max(range(len(batches)), key=lambda index: self.lengths[batches[index]].max())
            batches.insert(0, batches.pop(longest))
        batches += [] if last is None else [last]
        return iter(np.concatenate(batches).tolist())


def longest_first(dataset: Dataset) -> Sequence[int]:
    """The rows of a set, those of the longest examples first; as they stand where no lengths are known."""
    if "length" not in dataset.column_names:
        return range(len(dataset))
    lengths = dataset["length"][:]
    return sorted(range(len(dataset)), key=lambda row: -lengths[row])


def longest_first_by(batch_size: int, dataset: Dataset) -> list[list[int]]:
    """The rows of a set in batches of one size, the last one as short as it has to be."""
    order = longest_first(dataset)
    return [list(order[start : start + batch_size]) for start in range(0, len(dataset), batch_size)]


class EvaluationBatches(Sampler[list[int]]):
    """The batches of one rank: every world_size-th batch of the whole set, which has the longest examples first.

    Every rank makes the same number of steps, since sharded models need all ranks in each; a rank without a batch of its
    own repeats one, and `num_own` says from which step on the results do not count.
    """

    def __init__(self, batches: list[list[int]], *, rank: int, world_size: int):
        self.batches = batches[rank::world_size]
        self.num_own = len(self.batches)
        num_steps = -(-len(batches) // world_size)
        self.batches += batches[:1] * (num_steps - self.num_own)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)
