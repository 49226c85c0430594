"""Metrics of classes: scikit-learn's values, values by hand."""

import math
import pickle

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from metrics.examples import KINDS, computed, data, filled
from sft_hf.metrics import MultiLabelMetrics, SingleLabelMetrics

# Single label


def test_single_label_metrics_are_those_of_scikit_learn():
    predictions, labels, _ = data("single")
    predicted = predictions.argmax(axis=1)
    probabilities = np.exp(predictions) / np.exp(predictions).sum(axis=1, keepdims=True)
    assert computed("single") == pytest.approx(
        {
            "accuracy": sklearn_metrics.accuracy_score(labels, predicted),
            "balanced_accuracy": sklearn_metrics.balanced_accuracy_score(labels, predicted),
            "f1_macro": sklearn_metrics.f1_score(labels, predicted, average="macro"),
            "f1_micro": sklearn_metrics.f1_score(labels, predicted, average="micro"),
            "f1_weighted": sklearn_metrics.f1_score(labels, predicted, average="weighted"),
            "mcc": sklearn_metrics.matthews_corrcoef(labels, predicted),
            "roc_auc": sklearn_metrics.roc_auc_score(labels, probabilities, multi_class="ovr"),
            "log_loss": sklearn_metrics.log_loss(labels, probabilities),
            "expected_calibration_error": calibration_error_bin_by_bin(probabilities, labels),
        },
        abs=1e-6,
    )


def calibration_error_bin_by_bin(probabilities, labels):
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    error = 0.0
    for low, high in zip(np.arange(15) / 15, np.arange(1, 16) / 15, strict=True):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            error += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
    return error


def test_calibration_error_by_hand():
    """Four examples at 80 percent, two of them right: off by 0.3."""
    logits = np.tile([math.log(4), 0.0], (4, 1))
    numbers = filled(SingleLabelMetrics(2), logits, np.array([0, 0, 1, 1])).compute()
    assert numbers["expected_calibration_error"] == pytest.approx(0.3, abs=1e-6)


def test_untrained_logits_have_the_log_loss_ln_classes():
    numbers = filled(SingleLabelMetrics(10), np.zeros((5, 10)), np.arange(5)).compute()
    assert numbers["log_loss"] == pytest.approx(math.log(10))


def test_binary_roc_auc_survives_certainty():
    """In float32, probabilities from 1 - 1e-13 on are all 1.0; the logits still rank them."""
    logits = np.array([[0.0, 40.0], [0.0, 50.0], [0.0, 30.0], [0.0, -5.0]])
    numbers = filled(SingleLabelMetrics(2), logits, np.array([1, 1, 0, 0])).compute()
    assert numbers["roc_auc"] == 1


def test_multi_class_roc_auc_takes_the_classes_that_occur():
    """Class 2 of three has no positives; scikit-learn alone would fail or give NaN."""
    predictions, labels, _ = data("single")
    kept = labels < 3
    numbers = filled(SingleLabelMetrics(4), predictions[kept], labels[kept]).compute()
    probabilities = np.exp(predictions) / np.exp(predictions).sum(axis=1, keepdims=True)
    expected = [sklearn_metrics.roc_auc_score(labels[kept] == c, probabilities[kept, c]) for c in range(3)]
    assert numbers["roc_auc"] == pytest.approx(np.mean(expected))


def test_predicted_classes_without_labels_lower_f1_macro_but_not_balanced_accuracy():
    """Class 2 is predicted once and never right: F1 of 1, 2/3 and 0; recall of 1 and 1/2."""
    numbers = filled(SingleLabelMetrics(4), np.eye(4)[[0, 1, 2]], np.array([0, 1, 1])).compute()
    assert numbers["f1_macro"] == pytest.approx((1 + 2 / 3 + 0) / 3)
    assert numbers["balanced_accuracy"] == 0.75


def test_a_single_class_leaves_out_what_is_undefined():
    numbers = filled(SingleLabelMetrics(2), np.eye(2)[[0, 0]], np.array([0, 0])).compute()
    assert numbers["accuracy"] == 1
    assert not {"mcc", "roc_auc"} & numbers.keys()


def test_ignored_labels_do_not_count():
    metrics = filled(SingleLabelMetrics(2), np.eye(2)[[0, 1, 0]], np.array([0, -100, 1]))
    assert metrics.compute()["accuracy"] == 0.5
    assert filled(SingleLabelMetrics(2), np.eye(2), np.full(2, -100)).compute() == {}


def test_pitfall_12_the_batch_split_does_not_change_a_number():
    predictions, labels, _ = data("single")
    metrics = SingleLabelMetrics(4)
    for row in range(200):
        metrics.update(predictions[row : row + 1], labels[row : row + 1], example_id=np.array([row]))
    assert metrics.compute() == computed("single")


def test_top5_accuracy_by_hand():
    """Eleven classes, the highest logit at class 10: of the labels 10, 6 and 5 the first two are among the five."""
    metrics = SingleLabelMetrics(11)
    assert "top5_accuracy" in metrics.names
    numbers = filled(metrics, np.tile(np.arange(11.0), (3, 1)), np.array([10, 6, 5])).compute()
    assert numbers["top5_accuracy"] == pytest.approx(2 / 3)
    assert numbers["accuracy"] == pytest.approx(1 / 3)


def test_top5_accuracy_is_that_of_scikit_learn():
    generator = np.random.default_rng(0)
    predictions, labels = generator.normal(size=(100, 20)), generator.integers(0, 20, 100)
    expected = sklearn_metrics.top_k_accuracy_score(labels, predictions, k=5, labels=np.arange(20))
    assert filled(SingleLabelMetrics(20), predictions, labels).compute()["top5_accuracy"] == pytest.approx(expected)


def test_of_equal_logits_the_lower_ids_are_the_first_five():
    """As argmax takes them: of eleven equal logits, ids 0 to 4 are found and id 0 alone is right."""
    numbers = filled(SingleLabelMetrics(11), np.zeros((11, 11)), np.arange(11)).compute()
    assert numbers["top5_accuracy"] == pytest.approx(5 / 11)
    assert numbers["accuracy"] == pytest.approx(1 / 11)


def test_ten_classes_have_no_top5_accuracy():
    metrics = filled(SingleLabelMetrics(10), np.eye(10), np.arange(10))
    assert "top5_accuracy" not in metrics.compute().keys() | metrics.names


# Multi-label


def test_multi_label_metrics_are_those_of_scikit_learn():
    predictions, labels, _ = data("multi")
    probabilities = 1 / (1 + np.exp(-predictions))
    predicted = (probabilities >= 0.5).astype(int)
    f1 = {
        average: sklearn_metrics.f1_score(labels, predicted, average=average, zero_division=0)
        for average in ("micro", "macro", "weighted")
    }
    assert computed("multi") == pytest.approx(
        {
            "f1_micro": f1["micro"],
            "f1_macro": f1["macro"],
            "f1_weighted": f1["weighted"],
            "f1_micro_at_half": f1["micro"],
            "f1_macro_at_half": f1["macro"],
            "mean_average_precision": sklearn_metrics.average_precision_score(labels, probabilities),
            "exact_match": sklearn_metrics.accuracy_score(labels, predicted),
            "roc_auc": sklearn_metrics.roc_auc_score(labels, probabilities),
            "log_loss": np.mean([sklearn_metrics.log_loss(labels[:, c], probabilities[:, c]) for c in range(3)]),
        },
        abs=1e-6,
    )


def test_multi_label_f1_by_hand():
    """Label 0: two hits, one miss, one false alarm. Label 1: nothing to find, one false alarm."""
    labels = np.array([[1, 0], [1, 0], [1, 0], [0, 0]])
    logits = np.array([[1, -1], [1, -1], [-1, 1], [1, -1]])
    numbers = filled(MultiLabelMetrics(2), logits, labels).compute()
    assert numbers["f1_micro"] == pytest.approx(4 / 7)
    assert numbers["f1_macro"] == pytest.approx((2 / 3 + 0) / 2)
    assert numbers["f1_weighted"] == pytest.approx(2 / 3)
    assert numbers["exact_match"] == 0.5


def test_f1_of_a_single_label_is_not_the_accuracy():
    """Two hits and one miss among four: F1 is 0.8, and scikit-learn's micro F1 of one column 0.75."""
    numbers = filled(MultiLabelMetrics(1), np.array([[1], [-1], [-1], [1]]), np.array([[1], [0], [1], [1]]))
    assert numbers.compute()["f1_micro"] == 0.8


def test_labels_without_positives_are_left_out_of_rankings():
    predictions, labels, _ = data("multi")
    labels[:, 2] = 0
    numbers = filled(MultiLabelMetrics(3), predictions, labels).compute()
    columns = [0, 1]
    expected = sklearn_metrics.average_precision_score(labels[:, columns], predictions[:, columns])
    assert numbers["mean_average_precision"] == pytest.approx(expected)
    nothing = filled(MultiLabelMetrics(3), predictions, np.zeros_like(labels)).compute()
    assert not {"mean_average_precision", "roc_auc"} & nothing.keys()
    assert nothing["f1_micro"] == 0


def test_multi_label_log_loss_of_extreme_logits_is_finite():
    numbers = filled(MultiLabelMetrics(2), np.array([[1000.0, -1000.0]]), np.array([[0.0, 0.0]])).compute()
    assert numbers["log_loss"] == 500


def test_thresholds_move_f1_but_not_f1_at_half():
    metrics = filled(KINDS["multi"](), *data("multi"))
    before = metrics.compute()
    metrics.thresholds = 0.9
    after = metrics.compute()
    assert metrics.thresholds.tolist() == [0.9] * 3
    assert after["f1_micro"] != before["f1_micro"]
    assert after["f1_micro_at_half"] == before["f1_micro"]
    metrics.thresholds = [0.5, 0.6, 0.7]
    assert pickle.loads(pickle.dumps(metrics)).thresholds.tolist() == [0.5, 0.6, 0.7]


def test_a_threshold_by_hand():
    """Probabilities 0.9, 0.8, 0.3, 0.1 of labels 1, 1, 1, 0: the best is half-way from 0.3 to 0.1."""
    probabilities = np.array([0.8, 0.1, 0.9, 0.3])
    logits = np.log(probabilities / (1 - probabilities))[:, np.newaxis]
    metrics = filled(MultiLabelMetrics(1), logits, np.array([[1], [0], [1], [1]]))
    assert metrics.tune_thresholds(minimum_positives=1) == pytest.approx([0.2])
    metrics.thresholds = metrics.tune_thresholds(minimum_positives=1)
    assert metrics.compute()["f1_micro"] == 1


def f1_at(threshold, probabilities, labels):
    predicted = probabilities >= threshold
    return 2 * (predicted * labels).sum() / (predicted.sum() + labels.sum())


def test_tuned_thresholds_are_the_best_and_rare_labels_share_one():
    predictions, labels, _ = data("multi", size=300)
    assert labels.sum(axis=0)[:2].min() >= 10 > labels.sum(axis=0)[2] > 0
    thresholds = filled(MultiLabelMetrics(3), predictions, labels).tune_thresholds()
    probabilities = 1 / (1 + np.exp(-predictions))
    for label in range(2):
        best = max(f1_at(p, probabilities[:, label], labels[:, label]) for p in probabilities[:, label])
        assert f1_at(thresholds[label], probabilities[:, label], labels[:, label]) == pytest.approx(best)
    everything = probabilities.ravel(), labels.ravel()
    best = max(f1_at(p, *everything) for p in probabilities.ravel())
    assert f1_at(thresholds[2], *everything) == pytest.approx(best)


def test_thresholds_do_not_cut_between_equal_probabilities():
    """Four equal ones, one of them a positive, come together or not at all: 4/7 with them, 2/3 without."""
    metrics = filled(MultiLabelMetrics(1), np.array([[3], [1], [1], [1], [1]]), np.array([[1], [1], [0], [0], [0]]))
    metrics.thresholds = metrics.tune_thresholds(minimum_positives=1)
    assert metrics.compute()["f1_micro"] == pytest.approx(2 / 3)


def test_thresholds_without_positives_stay_at_half():
    metrics = filled(MultiLabelMetrics(2), np.ones((3, 2)), np.zeros((3, 2)))
    assert metrics.tune_thresholds().tolist() == [0.5, 0.5]
    assert MultiLabelMetrics(2).tune_thresholds().tolist() == [0.5, 0.5]
