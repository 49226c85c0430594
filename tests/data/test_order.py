"""The order of training and evaluation, worked out by hand."""

from dataclasses import dataclass

import pytest
from datasets import Dataset
from torch.utils.data import DataLoader, SequentialSampler

from sft_hf.data.order import (
    EvaluationBatches,
    EvaluationStream,
    GroupedByLength,
    KeyedByEpoch,
    ReadExamples,
    Shuffled,
    TrainingStream,
    longest_first_by,
)
from sft_hf.errors import DataError

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
    batches = longest_first_by(2, dataset)
    ranks = [EvaluationBatches(batches, rank=rank, world_size=2) for rank in range(2)]
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


def test_every_nth_row_of_an_evaluated_stream_is_one_ranks():
    rows = Dataset.from_dict({"example_id": list(range(8))}).to_iterable_dataset(num_shards=3)
    ranks = [EvaluationStream(rows, rank=rank, world_size=3) for rank in range(3)]
    assert [[row["example_id"] for row in rank] for rank in ranks] == [[0, 3, 6], [1, 4, 7], [2, 5]]


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


def ids(examples: list[dict]) -> list[int]:
    """A picklable collator."""
    return [example["example_id"] for example in examples]


def training_stream(num_rows: int, **options) -> TrainingStream:
    rows = Dataset.from_dict({"example_id": list(range(num_rows))}).to_iterable_dataset(num_shards=min(3, num_rows))
    return TrainingStream(rows, ids, **options)


def test_each_rank_has_its_part_of_every_global_batch_of_a_stream():
    """11 rows, global batches of 6: what map-style sets give each rank, without what would fill up the last one."""
    parts = {
        world_size: [
            list(training_stream(11, batch_size=6 // world_size, rank=rank, world_size=world_size))
            for rank in range(world_size)
        ]
        for world_size in (1, 2, 3)
    }
    assert parts[1] == [[[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10]]]
    assert parts[2] == [[[0, 1, 2], [6, 7, 8]], [[3, 4, 5], [9, 10]]]
    assert parts[3] == [[[0, 1], [6, 7]], [[2, 3], [8, 9]], [[4, 5], [10]]]


@pytest.mark.parametrize(
    ("num_rows", "parts"),
    [
        (8, [[[0], [2], [4], [6]], [[1], [3], [5], [7]]]),
        (9, [[[0], [2], [4], [6], [8], [-1]], [[1], [3], [5], [7], [-1], [-1]]]),
        (11, [[[0], [2], [4], [6], [8], [10]], [[1], [3], [5], [7], [9], [-1]]]),
        (1, [[[0], [-1]], [[-1], [-1]]]),
    ],
)
def test_all_ranks_make_whole_steps_of_a_stream(num_rows, parts):
    """Two micro-batches a step: without its second one the Trainer would leave a step undone and its gradient to the next."""
    options = {"batch_size": 1, "num_micro_batches": 2, "world_size": 2}
    rows = Dataset.from_dict({"example_id": list(range(num_rows))}).to_iterable_dataset()
    assert [list(TrainingStream(rows, ids, rank=rank, **options)) for rank in range(2)] == parts


def test_a_stream_without_a_row_is_an_error():
    rows = ROWS.add_column("example_id", list(range(5))).to_iterable_dataset().filter(lambda row: False)
    with pytest.raises(DataError, match="The train split has no usable row"):
        next(iter(TrainingStream(rows, ids, batch_size=2)))


def test_a_rank_makes_examples_of_its_own_rows_alone_and_of_none_that_are_skipped():
    read = []
    options = {"read": lambda row, epoch: read.append(row["example_id"]) or row, "batch_size": 2, "world_size": 2}
    stream = training_stream(11, rank=1, **options)
    stream.num_skipped = 1
    assert list(stream) == [{}, [6, 7], [10]]
    assert read == [6, 7, 10]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_pitfall_44_a_stream_is_told_the_epoch_too(num_workers):
    rows = ROWS.add_column("example_id", list(range(5))).to_iterable_dataset()
    stream = TrainingStream(rows, list, read=Read(), batch_size=2)
    options = {"num_workers": num_workers, "persistent_workers": num_workers > 0}
    loader = DataLoader(stream, batch_size=None, **options)
    assert numbers(loader) == [10, 20, 30, 40, 50]
    stream.set_epoch(2)
    assert numbers(loader) == [12, 22, 32, 42, 52]
