"""In which order examples are trained on and evaluated: a function of seed, epoch and rank, and of nothing else.

What is drawn when an example is read, its augmentation, is a function of seed, epoch and example. A worker is told the epoch by
the key under which it reads: `epoch * number of rows + row`, so that neither the number of workers nor a resume matters
(pitfall 44).
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import Sampler


class ReadExamples(TorchDataset):
    """Rows that become examples when they are read: `read(row, epoch)` in the dataloader's workers."""

    def __init__(self, rows: Dataset, read: Callable[[dict[str, Any], int], dict[str, Any]]):
        self.rows, self.read = rows, read

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: int) -> dict[str, Any]:
        epoch, row = divmod(key, len(self.rows))
        return self.read(self.rows[row], epoch)


class ReadStream:
    """The same for the rows of a stream, which has no keys: workers share the number of the epoch."""

    def __init__(self, read: Callable[[dict[str, Any], int], dict[str, Any]]):
        self.read, self.epoch = read, torch.zeros(1, dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """The Trainer says which epoch begins, also after a resume."""
        self.epoch[0] = epoch

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return self.read(row, int(self.epoch[0]))


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


class EvaluationBatches(Sampler[list[int]]):
    """The batches of one rank: every world_size-th batch of the whole set, longest examples first.

    Every rank makes the same number of steps, since sharded models need all ranks in each; a rank without a batch of its
    own repeats one, and `num_own` says from which step on the results do not count.
    """

    def __init__(self, dataset: Dataset, batch_size: int, *, rank: int, world_size: int):
        order = range(len(dataset))
        if "length" in dataset.column_names:
            lengths = dataset["length"][:]
            order = sorted(order, key=lambda row: -lengths[row])
        batches = [list(order[start : start + batch_size]) for start in range(0, len(dataset), batch_size)]
        self.batches = batches[rank::world_size]
        self.num_own = len(self.batches)
        num_steps = -(-len(batches) // world_size)
        self.batches += batches[:1] * (num_steps - self.num_own)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class EveryNth:
    """A picklable filter: the rows of one rank."""

    def __init__(self, rank: int, world_size: int):
        self.rank, self.world_size = rank, world_size

    def __call__(self, example: dict) -> bool:
        return example["example_id"] % self.world_size == self.rank
