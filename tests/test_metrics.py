"""Metrics: scikit-learn's values, values by hand, nothing counted twice, nothing undefined reported."""

import math
import pickle
import textwrap
from functools import partial

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from sft_hf.errors import ArgumentError
from sft_hf.metrics import (
    EvaluateModules,
    Metrics,
    MultiLabelMetrics,
    RegressionMetrics,
    SingleLabelMetrics,
)

KINDS = {
    "single": partial(SingleLabelMetrics, 4),
    "multi": partial(MultiLabelMetrics, 3),
    "regression": partial(RegressionMetrics, 2),
}


def data(kind, size=200):
    """Return predictions, labels and example ids `(size, ...)` of a mediocre model."""
    generator = np.random.default_rng(0)
    if kind == "single":
        labels = generator.choice(4, size, p=[0.5, 0.3, 0.15, 0.05])
        return np.eye(4)[labels] + generator.normal(size=(size, 4)), labels, np.arange(size)
    if kind == "multi":
        labels = (generator.random((size, 3)) < [0.5, 0.2, 0.02]).astype(float)
        return 2 * labels - 1 + generator.normal(size=(size, 3)), labels, np.arange(size)
    labels = generator.normal(size=(size, 2))
    return labels + generator.normal(size=(size, 2)), labels, np.arange(size)


def filled(metrics, predictions, labels, example_id=None):
    metrics.update(predictions, labels, example_id=np.arange(len(labels)) if example_id is None else example_id)
    return metrics


def computed(kind, **options):
    return filled(KINDS[kind](**options), *data(kind)).compute()


# Accumulation


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


def test_lower_is_better():
    assert {"loss", "log_loss", "expected_calibration_error", "mse", "rmse", "mae"} == Metrics.lower_is_better


@pytest.mark.parametrize("kind", KINDS)
def test_predictions_that_are_not_finite_are_refused_with_their_ids(kind):
    predictions, labels, _ = data(kind)
    predictions[10:17, 0] = [math.nan, math.inf, -math.inf, math.nan, math.nan, math.nan, math.nan]
    metrics = filled(KINDS[kind](), predictions, labels, np.arange(1000, 1200))
    with pytest.raises(ValueError, match=r"not finite in 7 of 200 .*ids 1010, 1011, 1012, 1013, 1014\.$"):
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


# Regression


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


# Modules of evaluate


@pytest.fixture
def module(tmp_path):
    """Return what writes an evaluate module that reports given results, and returns its folder."""

    def write(name, result, feature='datasets.Value("int64")'):
        script = f"""
            import datasets
            import evaluate

            class Module(evaluate.Metric):
                def _info(self):
                    return evaluate.MetricInfo(
                        description="", citation="", inputs_description="",
                        features=datasets.Features(predictions={feature}, references={feature}),
                    )

                def _compute(self, predictions, references):
                    return {result}
        """
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.py").write_text(textwrap.dedent(script))
        return str(tmp_path / name)

    return write


def test_pitfall_21_a_hub_module_needs_permission_before_anything_is_loaded():
    with pytest.raises(ArgumentError, match=r"accuracy.*download code.*run it.*--trust_remote_code"):
        EvaluateModules(["accuracy"])
    assert EvaluateModules(["accuracy"], trust_remote_code=True).names == ("accuracy",)


def test_pitfall_21_a_folder_without_the_script_is_a_hub_name(tmp_path, monkeypatch):
    """`evaluate` asks the Hub for it, so a folder that only has the name is no permission."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "accuracy").mkdir()
    with pytest.raises(ArgumentError, match="--trust_remote_code"):
        EvaluateModules(["accuracy"])


def test_numbers_of_modules_stand_beside_ours(module):
    """Modules get class ids; what is no finite number is left out, a bare one is called like the module."""
    results = "{'hits': sum(p == r for p, r in zip(predictions, references)), 'nan': float('nan'), 'ids': [1]}"
    names = [module("hits", results), module("bare", "0.25")]
    metrics = filled(SingleLabelMetrics(2, extra=EvaluateModules(names)), np.eye(2)[[0, 1, 1]], np.array([0, 1, 0]))
    numbers = metrics.compute()
    sent = pickle.loads(pickle.dumps(metrics))
    assert sent.extra._modules == {}
    assert sent.compute() == numbers
    assert (numbers["hits"], numbers["bare"], type(numbers["hits"])) == (2, 0.25, float)
    assert "nan" not in numbers
    assert "ids" not in numbers


def test_modules_get_vectors_for_several_labels_and_values_for_regression(module):
    vectors = module("vectors", "{'first': predictions[0][1]}", 'datasets.Sequence(datasets.Value("int64"))')
    multi = MultiLabelMetrics(2, extra=EvaluateModules([vectors]))
    assert filled(multi, np.array([[-1, 1]]), np.array([[0, 1]])).compute()["first"] == 1
    values = module("values", "{'sum': sum(predictions)}", 'datasets.Value("float64")')
    regression = RegressionMetrics(extra=EvaluateModules([values]))
    labels = np.array([0.0, 1.0, math.nan])
    assert filled(regression, np.array([1.5, 2.0, 9.0]), labels).compute()["sum"] == 3.5


def test_keys_that_are_taken_are_refused(module):
    names = [
        module("ours", "{'accuracy': 1.0}"),
        module("one", "{'hits': 1.0}"),
        module("two", "{'hits': 1.0}"),
    ]
    metrics = SingleLabelMetrics(2, extra=EvaluateModules(names[:1]))
    with pytest.raises(ArgumentError, match="ours reports accuracy, which is reported already"):
        filled(metrics, np.eye(2), np.arange(2)).compute()
    with pytest.raises(ArgumentError, match="two reports hits"):
        EvaluateModules(names[1:]).compute([0], [0])
