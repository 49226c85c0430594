"""The order of training and evaluation, worked out by hand."""

import pickle

from datasets import Dataset

from sft_hf.data.order import EvaluationBatches, EveryNth, GroupedByLength


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
