"""Batches that hold as much as fits, worked out by hand."""

import logging

import numpy as np
import pytest
from accelerate.data_loader import BatchSamplerShard

from sft_hf.data.token_batches import Lengths, TokenBatches, evaluation_batches, padding, say_batches
from sft_hf.errors import ArgumentError


def tokens(*lengths: float) -> Lengths:
    return Lengths(np.array(lengths), "tokens", "--max_length")


def shares(batches: TokenBatches, world_size: int) -> list[list[list[int]]]:
    """What accelerate hands to each rank."""
    return [list(BatchSamplerShard(batches, world_size, rank)) for rank in range(world_size)]


SKEWED = tokens(*np.random.default_rng(0).integers(1, 40, 300) ** 2 // 16 + 1)  # 1 to 96, most of them short


def test_a_batch_holds_as_many_as_fit_padded_to_its_longest():
    batches = TokenBatches(tokens(3, 9, 5, 1, 7), 10, seed=0)
    first, *others = list(batches)
    assert first == [1]  # of 9 tokens there is room for one, and the longest come first
    assert sorted(others) == [[2, 0], [3], [4]]  # 5 + 5 with its padding are full
    assert len(batches) == 4


def test_the_last_two_batches_share_evenly():
    """A single short text would be a whole step of its own."""
    batches = list(TokenBatches(tokens(*[2] * 11), 20, seed=0))
    assert sorted(map(len, batches)) == [5, 6]  # not 10 and 1
    batches = list(TokenBatches(tokens(*[2] * 19), 20, seed=0))
    assert sorted(map(len, batches)) == [9, 10]


def test_lengths_within_a_sixteenth_count_as_the_longest_of_them():
    """Examples of equal length are drawn anew in each epoch; of seconds no two are equal."""
    seconds = Lengths(np.linspace(20, 20.9, 40), "seconds", "--max_duration_seconds")
    batches = TokenBatches(seconds, 210, seed=0)
    assert [len(batch) for batch in batches] == [10] * 4
    first = {frozenset(batch) for batch in batches}
    batches.set_epoch(1)
    assert first.isdisjoint(frozenset(batch) for batch in batches)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_an_epoch_is_a_function_of_seed_and_number_with_as_many_batches_and_each_row_once(world_size):
    epochs = []
    for epoch in range(4):
        batches, again = (TokenBatches(SKEWED, 100, seed=3, world_size=world_size) for _ in range(2))
        again.set_epoch(9)
        for each in (batches, again):
            each.set_epoch(epoch)
        epochs.append(list(batches))
        assert epochs[-1] == list(again)
        assert len(epochs[-1]) == len(batches)
        assert sorted(row for batch in epochs[-1] for row in batch) == list(range(300))
        assert all(len(batch) * SKEWED.values[batch].max() <= 100 for batch in epochs[-1])
    assert len(batches) % world_size == 0
    assert len({tuple(map(tuple, epoch)) for epoch in epochs}) == 4
    assert list(TokenBatches(SKEWED, 100, seed=4, world_size=world_size)) != epochs[0]
    longest = [SKEWED.values[batch].max() for batch in epochs[1]]
    assert longest[0] == max(longest)
    assert longest != sorted(longest, reverse=True)


def test_ranks_work_on_like_lengths_at_the_same_time():
    lengths = np.array([8, 8, 4, 4, 4, 2, 2, 2, 2, 1, 1])

    def together(world_size: int) -> list[list[list[int]]]:
        ranks = shares(TokenBatches(tokens(*lengths), 8, seed=1, world_size=world_size), world_size)
        return [[lengths[batch].tolist() for batch in step] for step in zip(*ranks, strict=True)]

    # 8 | 8 | 4 4 | 4 2 | 2 2 2 1 | 1 as far as they fit, and the last two evenly: six.
    first, *others = together(2)
    assert first == [[8], [8]]
    assert sorted(others) == [[[2, 2, 2], [1, 1]], [[4, 4], [4, 2]]]
    # Four ranks need eight: the largest in two, and once more.
    assert together(4) == [[[8], [8], [4], [4]], [[4, 2], [2, 2], [2], [1, 1]]]


@pytest.mark.parametrize("num_rows", range(1, 12))
@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_no_rank_is_left_without_a_batch_and_no_row_is_lost(num_rows, world_size):
    """What is left for fewer rows than ranks comes last, and `num_left` says which of it are repeats."""
    for budget in (4, 9, 100):
        batches = TokenBatches(tokens(*[4] * num_rows), budget, seed=num_rows, world_size=world_size)
        ranks = shares(batches, world_size)
        assert len({len(rank) for rank in ranks}) == 1
        assert all(batch for rank in ranks for batch in rank)
        if batches.num_left:
            for rank in ranks[batches.num_left :]:
                assert rank.pop() == ranks[0][-1]
        assert sorted(row for rank in ranks for batch in rank for row in batch) == list(range(num_rows))
        assert not batches.num_left or num_rows < world_size or budget == 4


def test_rows_as_keys_that_tell_the_epoch():
    """Pitfall 44."""
    batches = TokenBatches(tokens(3, 9, 5, 1, 7), 10, seed=0, tells_epoch=True)
    batches.set_epoch(2)
    assert next(iter(batches)) == [11]
    assert sorted(key for batch in batches for key in batch) == [10, 11, 12, 13, 14]


def test_an_example_that_does_not_fit_is_named_with_what_can_be_changed():
    with pytest.raises(ArgumentError) as caught:
        TokenBatches(tokens(3, 11, 5), 10, seed=0)
    assert str(caught.value) == (
        "--tokens_per_batch 10: the longest training example has 11 tokens. Give at least as many, or make examples shorter with "
        "--max_length."
    )


def test_evaluation_goes_by_exact_lengths_longest_first():
    assert evaluation_batches(tokens(3, 9, 5, 1, 7, 3), 10) == [[1], [4], [2, 0], [5, 3]]
    assert evaluation_batches(tokens(3, 12, 5), 10) == [[1], [2, 0]]  # none is dropped: 12 are alone


def test_padding_is_said_beside_that_of_plain_grouping(caplog):
    caplog.set_level(logging.INFO, logger="sft_hf")
    lengths = tokens(3, 9, 5, 1, 7)
    assert padding([[1], [4], [2, 0], [3]], lengths.values) == pytest.approx(1 - 25 / 27)
    say_batches(TokenBatches(lengths, 10, seed=0), lengths, 10, batch_size=2, num_micro_batches=1)
    # In batches of two: 9, 7 | 5, 3 | 1, of 18 + 10 + 1 tokens.
    assert caplog.messages == [
        "--tokens_per_batch 10: 4 batches of 1 to 2 examples an epoch, of whose tokens 7.4 % are padding; of batches of 2, grouped by "
        "length, it would be 13.8 %"
    ]
