"""Accumulation, the same for every metric of scores: nothing counted twice, nothing undefined reported."""

import math
import pickle

import numpy as np
import pytest

from metrics.examples import KINDS, computed, data, filled
from sft_hf.errors import DivergedError
from sft_hf.metrics import Metrics, SingleLabelMetrics


@pytest.mark.parametrize("kind", KINDS)
def test_batches_ranks_and_repeats_do_not_change_the_numbers(kind):
    """Two ranks see the examples interleaved; the sampler repeats the first five on both."""
    predictions, labels, example_id = data(kind)
    ranks = [KINDS[kind](), KINDS[kind]()]
    for rank, metrics in enumerate(ranks):
        for rows in np.array_split(np.append(np.arange(rank, 200, 2), np.arange(5)), 7):
            metrics.update(predictions[rows], labels[rows], example_id=example_id[rows])
    metrics, other = ranks
    metrics.merge(pickle.loads(pickle.dumps(other)))
    assert metrics.compute() == computed(kind)


def test_an_example_of_two_ranks_counts_once():
    """Three examples, two right; without the ids the repeated mistake would make it 2 of 4."""
    first = filled(SingleLabelMetrics(2), np.eye(2), np.array([0, 1]), np.array(["a", "b"]))
    second = filled(SingleLabelMetrics(2), np.eye(2)[[1, 0]], np.array([1, 1]), np.array(["b", "c"]))
    first.merge(second)
    first.merge(second)
    assert first.compute()["accuracy"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_are_plain_finite_floats_and_the_main_one_is_there(kind):
    numbers = computed(kind)
    assert all(type(value) is float and math.isfinite(value) for value in numbers.values())
    assert KINDS[kind]().main in numbers
    assert set(numbers) == KINDS[kind]().keys


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_added_gives_nothing(kind):
    metrics = KINDS[kind]()
    metrics.merge(KINDS[kind]())
    assert metrics.compute() == {}


def test_scores_are_kept_as_float32_copies():
    predictions, labels, example_id = data("single")
    metrics = filled(SingleLabelMetrics(4), predictions, labels, example_id)
    before = metrics.compute()
    predictions[:] = 0
    assert metrics.compute() == before
    assert metrics._batches[0][1].dtype == np.float32


@pytest.mark.parametrize("kind", KINDS)
def test_scores_have_no_details(kind):
    assert filled(KINDS[kind](), *data(kind)).details() == {}


def test_the_best_model_can_be_chosen_by_any_key_and_by_the_loss():
    metrics = SingleLabelMetrics(2)
    assert metrics.names == metrics.keys | {"loss"}


def test_lower_is_better():
    assert {"loss", "log_loss", "expected_calibration_error", "mse", "rmse", "mae"} == Metrics.lower_is_better


@pytest.mark.parametrize("kind", KINDS)
def test_predictions_that_are_not_finite_are_refused_with_their_ids(kind):
    predictions, labels, _ = data(kind)
    predictions[10:17, 0] = [math.nan, math.inf, -math.inf, math.nan, math.nan, math.nan, math.nan]
    metrics = filled(KINDS[kind](), predictions, labels, np.arange(1000, 1200))
    with pytest.raises(DivergedError, match=r"not finite in 7 of 200 .*ids 1010, 1011, 1012, 1013, 1014\.$"):
        metrics.compute()


@pytest.mark.parametrize(
    ("kind", "label"),
    [("single", 4), ("single", -1), ("multi", 2.0), ("multi", math.nan), ("regression", math.inf)],
)
def test_impossible_labels_are_refused_with_their_ids(kind, label):
    predictions, labels, example_id = data(kind)
    labels[7] = label
    with pytest.raises(ValueError, match=r"Impossible labels in 1 of 200 .*ids 7\.$"):
        filled(KINDS[kind](), predictions, labels, example_id)


@pytest.mark.parametrize("kind", KINDS)
def test_wrong_shapes_are_refused(kind):
    predictions, labels, example_id = data(kind)
    for wrong in [
        (predictions[:, :1], labels, example_id),
        (predictions, labels[:3], example_id),
        (predictions, labels, example_id[:3]),
    ]:
        with pytest.raises(ValueError, match="expected"):
            filled(KINDS[kind](), *wrong)
