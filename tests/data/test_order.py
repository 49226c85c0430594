"""The order of training and evaluation, worked out by hand."""

import pickle
from dataclasses import dataclass

import pytest
from datasets import Dataset
from torch.utils.data import DataLoader, SequentialSampler

from sft_hf.data.order import (
    EvaluationBatches,
    EveryNth,
    GroupedByLength,
    KeyedByEpoch,
    ReadExamples,
    ReadStream,
    Shuffled,
)

ROWS = Dataset.from_dict({"number": [10, 20, 30, 40, 50]})


@dataclass(frozen=True)
class Read:
    """A picklable reader, to whose workers the epoch has to come."""

    def __call__(self, row: dict, epoch: int) -> dict:
        return {"number": row["number"] + epoch}


def numbers(batches) -> list[int]:
    return [example["number"] for batch in batches for example in batch]


def test_evaluation_batches_of_all_ranks_hold_each_example_once():
    dataset = Dataset.from_dict({"length": [3, 9, 5, 1, 7]})
    ranks = [EvaluationBatches(dataset, 2, rank=rank, world_size=2) for rank in range(2)]
    assert [list(rank) for rank in ranks] == [[[1, 4], [3]], [[2, 0], [1, 4]]]  # longest first; rank 1 repeats one
    assert [rank.num_own for rank in ranks] == [2, 1]


def test_grouping_by_length_is_a_function_of_seed_and_epoch():
    lengths = [index % 17 for index in range(100)]
    sampler = GroupedByLength(lengths, batch_size=8, seed=1)
    first, again = list(sampler), list(GroupedByLength(lengths, batch_size=8, seed=1))
    sampler.set_epoch(1)
    second = list(sampler)
    assert first == again != second
    assert sorted(first) == sorted(second) == list(range(100))
    batches = [[lengths[row] for row in first[start : start + 8]] for start in range(0, 96, 8)]
    assert all(max(batch) - min(batch) <= 2 for batch in batches)
    assert max(batches[0]) == 16
    assert batches[1:] != sorted(batches[1:], reverse=True)


def test_every_nth_row_of_a_stream_is_one_ranks():
    keep = pickle.loads(pickle.dumps(EveryNth(1, 3)))
    assert [row for row in range(8) if keep({"example_id": row})] == [1, 4, 7]


def test_shuffled_has_every_row_once_in_an_order_of_seed_and_epoch():
    sampler = Shuffled(20, seed=3)
    first, again = list(sampler), list(sampler)
    sampler.set_epoch(1)
    second = list(sampler)
    assert first == again == list(Shuffled(20, seed=3))
    assert sorted(first) == sorted(second) == list(range(20)) != first
    assert len({tuple(first), tuple(second), tuple(Shuffled(20, seed=4))}) == 3
    assert len(sampler) == 20


def test_a_key_tells_the_row_and_the_epoch():
    """Row 4 of epoch 2 of 5 rows is read under the key 2 * 5 + 4."""
    examples = ReadExamples(ROWS, Read())
    assert len(examples) == 5
    assert [examples[key]["number"] for key in (4, 9, 14)] == [50, 51, 52]


def test_keys_are_those_of_the_sampler_and_of_the_epoch_that_it_was_told():
    shuffled = Shuffled(5, seed=0)
    keys = KeyedByEpoch(shuffled)
    assert list(keys) == list(Shuffled(5, seed=0))
    keys.set_epoch(3)
    other = Shuffled(5, seed=0)
    other.set_epoch(3)
    assert list(keys) == [15 + row for row in other]
    assert len(keys) == 5
    plain = KeyedByEpoch(SequentialSampler(ROWS))  # it has no epoch of its own
    plain.set_epoch(1)
    assert list(plain) == [5, 6, 7, 8, 9]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_pitfall_44_workers_are_told_the_epoch(num_workers):
    """What they draw must not depend on how many batches each of them has made before."""
    keys = KeyedByEpoch(Shuffled(5, seed=1))
    loader = DataLoader(
        ReadExamples(ROWS, Read()),
        sampler=keys,
        batch_size=2,
        num_workers=num_workers,
        collate_fn=list,
        persistent_workers=num_workers > 0,
    )
    for epoch in (0, 1, 5):
        keys.set_epoch(epoch)
        order = Shuffled(5, seed=1)
        order.set_epoch(epoch)
        assert numbers(loader) == [10 * (row + 1) + epoch for row in order]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_pitfall_44_a_stream_is_told_the_epoch_too(num_workers):
    reader = ReadStream(Read())
    stream = ROWS.to_iterable_dataset().map(reader)
    options = {"num_workers": num_workers, "persistent_workers": num_workers > 0}
    loader = DataLoader(stream, batch_size=2, collate_fn=list, **options)
    assert numbers(loader) == [10, 20, 30, 40, 50]
    reader.set_epoch(2)
    assert numbers(loader) == [12, 22, 32, 42, 52]
