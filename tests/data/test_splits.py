"""The hold-out keeps shares, classes and groups, and is the same everywhere."""

import logging
import subprocess
import sys

import numpy as np
import pytest

from sft_hf.data.splits import FRACTION_FLAG, GROUP_FLAG, hold_out, overlapping_rows
from sft_hf.errors import DataError


def check_partition(held_out, num_rows):
    """Both sides are sorted, and together every row once."""
    for side in (held_out.train, held_out.validation):
        assert (np.diff(side) > 0).all()
        assert len(side) > 0
    assert sorted([*held_out.train, *held_out.validation]) == list(range(num_rows))


@pytest.mark.parametrize(("num_rows", "fraction", "number"), [(100, 0.1, 10), (7, 0.5, 4), (5, 0.01, 1), (3, 0.99, 2)])
def test_the_fraction_is_met_and_no_side_is_empty(num_rows, fraction, number):
    held_out = hold_out(num_rows=num_rows, fraction=fraction, seed=0)
    check_partition(held_out, num_rows)
    assert len(held_out.validation) == number


def test_pitfall_15_the_same_rows_in_every_call_and_process():
    call = "hold_out(num_rows=60, fraction=0.2, seed=7, stratify=[i % 3 for i in range(60)], groups=[str(i // 4) for i in range(60)])"
    code = f"from sft_hf.data.splits import hold_out; print({call}.validation.tolist())"
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert there == str(eval(call).validation.tolist()) == str(eval(call).validation.tolist())
    other = hold_out(num_rows=60, fraction=0.2, seed=8)
    assert other.validation.tolist() != hold_out(num_rows=60, fraction=0.2, seed=7).validation.tolist()


def test_classes_keep_their_shares():
    labels = [0] * 80 + [1] * 15 + [2] * 5
    held_out = hold_out(num_rows=100, fraction=0.2, seed=3, stratify=labels)
    check_partition(held_out, 100)
    assert np.bincount(np.array(labels)[held_out.validation]).tolist() == [16, 3, 1]


def test_shares_below_one_row_go_to_random_classes_and_add_up():
    labels = np.repeat(np.arange(50), 4)
    first, second = (hold_out(num_rows=200, fraction=0.1, seed=seed, stratify=labels.tolist()) for seed in (1, 2))
    for held_out in (first, second):
        assert len(held_out.validation) == 20
        assert np.bincount(labels[held_out.validation]).max() == 1
    assert first.validation.tolist() != second.validation.tolist()


@pytest.mark.parametrize("seed", range(10))
def test_every_class_appears_in_train_and_a_single_row_stays_there(seed):
    labels = np.array([0] * 10 + [1] * 2 + [2] + [3] * 2)
    held_out = hold_out(num_rows=15, fraction=0.6, seed=seed, stratify=labels.tolist())
    check_partition(held_out, 15)
    assert set(labels[held_out.train]) == {0, 1, 2, 3}
    assert 2 not in labels[held_out.validation]
    assert len(held_out.validation) == 9


def test_unlabelled_rows_are_a_class_of_their_own():
    labels = [None] * 50 + [0] * 30 + [1] * 20
    held_out = hold_out(num_rows=100, fraction=0.1, seed=0, stratify=labels)
    assert [sum(labels[row] == label for row in held_out.validation) for label in (None, 0, 1)] == [5, 3, 2]


def test_label_sets_keep_their_shares_and_rare_ones_share_one():
    common = [[1.0, 0.0, 0.0]] * 60 + [[1.0, 1.0, 0.0]] * 30
    rare = [[0.0, 0.0, 1.0], [0.0, 1.0, 1.0], [1.0, 0.0, 1.0], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0]] * 2
    labels = common + rare
    held_out = hold_out(num_rows=100, fraction=0.1, seed=0, stratify=labels)
    check_partition(held_out, 100)
    counts = [sum(low <= row < high for row in held_out.validation) for low, high in ((0, 60), (60, 90), (90, 100))]
    assert counts == [6, 3, 1]


@pytest.mark.parametrize("seed", range(10))
def test_every_label_of_a_multi_label_set_appears_in_train(seed):
    labels = np.zeros((20, 5))
    labels[:, 0] = 1
    labels[[0, 1], 1] = 1
    labels[[2, 3], 2] = 1
    labels[4, [3, 4]] = 1
    held_out = hold_out(num_rows=20, fraction=0.7, seed=seed, stratify=labels.tolist())
    assert labels[held_out.train].any(axis=0).all()
    assert len(held_out.validation) == 14


def test_groups_stay_whole_and_the_fraction_is_met():
    groups = [f"speaker {index % 20}" for index in range(200)]
    held_out = hold_out(num_rows=200, fraction=0.1, seed=0, groups=groups)
    check_partition(held_out, 200)
    sides = [{groups[row] for row in side} for side in (held_out.train, held_out.validation)]
    assert not sides[0] & sides[1]
    assert len(held_out.validation) == 20


def test_groups_of_different_sizes_come_as_near_as_they_can():
    groups = ["a"] * 90 + ["b"] * 7 + ["c"] * 2 + ["d"]
    held_out = hold_out(num_rows=100, fraction=0.1, seed=0, groups=groups)
    assert {groups[row] for row in held_out.validation} == {"b", "c", "d"}
    assert len(hold_out(num_rows=97, fraction=0.07, seed=0, groups=groups[:97]).validation) == 7


def test_groups_keep_the_shares_of_the_classes():
    generator = np.random.default_rng(0)
    groups = np.repeat(np.arange(100), 10)
    labels = (generator.random(1000) < np.repeat(generator.random(100), 10)).astype(int)
    held_out = hold_out(num_rows=1000, fraction=0.2, seed=0, stratify=labels.tolist(), groups=groups.tolist())
    assert len(held_out.validation) == 200
    assert abs(labels[held_out.validation].mean() - labels.mean()) < 0.02


@pytest.mark.parametrize("seed", range(5))
def test_the_only_group_of_a_class_stays_in_train(seed):
    groups = ["a", "a", "b", "b", "c", "c"]
    labels = [0, 0, 0, 1, 0, 0]
    held_out = hold_out(num_rows=6, fraction=0.34, seed=seed, stratify=labels, groups=groups)
    assert "b" not in {groups[row] for row in held_out.validation}
    assert len(held_out.validation) == 2


def test_rows_without_a_group_are_groups_of_their_own():
    groups = [None] * 10 + ["a"] * 10 + [float("nan")] * 10
    held_out = hold_out(num_rows=30, fraction=0.2, seed=0, groups=groups)
    assert len(held_out.validation) == 6


def test_far_from_the_fraction_is_a_warning(caplog):
    with caplog.at_level(logging.WARNING):
        held_out = hold_out(num_rows=100, fraction=0.1, seed=0, groups=["a"] * 50 + ["b"] * 50)
    assert len(held_out.validation) == 50
    assert caplog.messages == [f"Validation has 50 of 100 rows instead of 10: {GROUP_FLAG} keeps 2 groups whole."]


@pytest.mark.parametrize("fraction", [0, 1, 1.5, -0.1, float("nan")])
def test_a_fraction_outside_zero_and_one(fraction):
    with pytest.raises(DataError, match=f"{FRACTION_FLAG} {fraction}: expected a share between 0 and 1, such as 0.1"):
        hold_out(num_rows=10, fraction=fraction, seed=0)


def test_too_few_rows():
    with pytest.raises(DataError, match="1 training rows are too few to hold any out"):
        hold_out(num_rows=1, fraction=0.5, seed=0)
    with pytest.raises(DataError, match=f"each is the only one of a class.*{FRACTION_FLAG}"):
        hold_out(num_rows=3, fraction=0.5, seed=0, stratify=[0, 1, 2])


def test_too_few_groups():
    with pytest.raises(DataError, match=f"{GROUP_FLAG}: all 4 training rows are of one group"):
        hold_out(num_rows=4, fraction=0.5, seed=0, groups=["a"] * 4)
    with pytest.raises(DataError, match=f"{GROUP_FLAG}: each of the 2 groups is the only one of some class"):
        hold_out(num_rows=4, fraction=0.5, seed=0, groups=["a", "a", "b", "b"], stratify=[0, 0, 1, 1])


def test_overlapping_rows_name_every_copy():
    assert overlapping_rows(["a", "b", "a", "c"], ["a", "x", "c"]) == [0, 2, 3]
    assert overlapping_rows(["a", "A", "a "], ["a"]) == [0]
    assert overlapping_rows([("a", "b"), ("ab", ""), None], [("a", "b"), None]) == [0]
    assert overlapping_rows((text for text in ["a", "\ud800"]), iter(["\ud800"])) == [1]
    assert overlapping_rows([], ["a"]) == overlapping_rows(["a"], []) == []
