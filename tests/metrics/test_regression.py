"""Metrics of numbers: scikit-learn's and scipy's values, values by hand."""

import math

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from metrics.examples import computed, data, filled
from sft_hf.metrics import RegressionMetrics


def test_regression_metrics_are_those_of_scikit_learn_and_scipy():
    from scipy import stats

    predictions, labels, _ = data("regression")
    pairs = list(zip(predictions.T, labels.T, strict=True))
    assert computed("regression") == pytest.approx(
        {
            "mse": sklearn_metrics.mean_squared_error(labels, predictions),
            "rmse": math.sqrt(sklearn_metrics.mean_squared_error(labels, predictions)),
            "mae": sklearn_metrics.mean_absolute_error(labels, predictions),
            "r2": sklearn_metrics.r2_score(labels, predictions),
            "pearson": np.mean([stats.pearsonr(*pair).statistic for pair in pairs]),
            "spearman": np.mean([stats.spearmanr(*pair).statistic for pair in pairs]),
        },
        abs=1e-6,
    )


def test_regression_by_hand_with_unknown_targets():
    """Errors 1, -2 and 2; the mean of their squares is 3."""
    predictions, labels = np.array([[1.0], [0.0], [5.0], [7.0]]), np.array([0.0, 2.0, 3.0, math.nan])
    numbers = filled(RegressionMetrics(), predictions, labels).compute()
    assert numbers["mse"] == 3
    assert numbers["rmse"] == pytest.approx(math.sqrt(3))
    assert numbers["mae"] == pytest.approx(5 / 3)


def test_one_target_may_have_one_dimension():
    flat = filled(RegressionMetrics(), np.array([1.0, 2.0]), np.array([1.0, 4.0])).compute()
    assert flat == filled(RegressionMetrics(), np.array([[1.0], [2.0]]), np.array([[1.0], [4.0]])).compute()


def test_constant_labels_and_predictions_leave_out_what_is_undefined():
    varying, constant = np.array([1.0, 2.0, 4.0]), np.ones(3)
    labels_constant = filled(RegressionMetrics(), varying, constant).compute()
    assert labels_constant.keys() == {"mse", "rmse", "mae"}
    predictions_constant = filled(RegressionMetrics(), constant, varying).compute()
    assert predictions_constant.keys() == {"mse", "rmse", "mae", "r2"}


def test_a_target_with_constant_labels_is_left_out_of_the_mean():
    predictions = np.array([[1.0, 0.0], [2.0, 5.0], [3.0, 1.0]])
    labels = np.array([[2.0, 7.0], [4.0, 7.0], [6.0, math.nan]])
    assert filled(RegressionMetrics(2), predictions, labels).compute()["pearson"] == pytest.approx(1)
