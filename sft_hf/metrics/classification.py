"""Metrics of classes: one for each example, or any number of them.

metrics = SingleLabelMetrics(num_labels=3)
metrics.update(logits, labels, example_id=ids)     # (batch, 3), (batch,), (batch,)
metrics.compute()                                  # {"accuracy": 0.91, "balanced_accuracy": 0.88, ...}
"""

from collections.abc import Sequence

import numpy as np

from sft_hf.losses import IGNORE_INDEX
from sft_hf.metrics.base import ScoreMetrics, mean_or_nan
from sft_hf.metrics.evaluate_modules import EvaluateModules

NUM_CALIBRATION_BINS = 15
TOP_5_ABOVE = 10  # classes; among fewer, five guesses are half of all there are


class SingleLabelMetrics(ScoreMetrics):
    """Metrics of logits `(batch, num_labels)` against class ids `(batch,)`, where -100 is ignored.

    Averages over classes take the classes that occur in labels or predictions, with 0 for a class without a
    correct prediction; `balanced_accuracy` takes those in the labels. `roc_auc` is that of class 1 if there
    are two classes, otherwise the mean of one class against the rest over the classes that have both.
    `log_loss` is the mean negative log-likelihood, in nats. `top5_accuracy`, with more than ten classes, is the share of
    examples whose class is among the five of the highest logits; of equal ones the lower id is the higher, as it is for
    `accuracy`. `expected_calibration_error` has 15 bins of equal
    width over the highest probability (Guo et al. 2017, https://arxiv.org/abs/1706.04599). `mcc` is Matthews'
    correlation coefficient.
    """

    main = "accuracy"
    keys = frozenset(
        {
            "accuracy",
            "balanced_accuracy",
            "f1_macro",
            "f1_micro",
            "f1_weighted",
            "mcc",
            "roc_auc",
            "log_loss",
            "expected_calibration_error",
        }
    )

    def __init__(self, num_labels: int, *, extra: EvaluateModules | None = None):
        super().__init__(num_labels, extra=extra)
        if num_labels > TOP_5_ABOVE:
            self.keys = self.keys | {"top5_accuracy"}

    def _prepared_labels(self, labels: np.ndarray) -> np.ndarray:
        if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
            raise ValueError(f"Labels are {labels.dtype} {labels.shape}, expected integers (batch,).")
        return labels.astype(np.int64)

    def _impossible(self, labels: np.ndarray) -> np.ndarray:
        return ((labels < 0) & (labels != IGNORE_INDEX)) | (labels >= self.num_columns)

    def _counted(self, labels: np.ndarray) -> np.ndarray:
        return labels != IGNORE_INDEX

    def _compute(self, predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        from scipy.special import log_softmax

        predicted, log_probabilities = predictions.argmax(axis=1), log_softmax(predictions, axis=1)
        log_likelihoods = log_probabilities[np.arange(len(labels)), labels]
        confidences = np.exp(log_probabilities.max(axis=1))
        top5 = {"top5_accuracy": _top_accuracy(predictions, labels, top=5)} if "top5_accuracy" in self.keys else {}
        return (
            _single_label_scores(predicted, labels)
            | top5
            | {
                "roc_auc": _single_label_roc_auc(log_probabilities, labels),
                "log_loss": -log_likelihoods.mean(dtype=np.float64),
                "expected_calibration_error": _calibration_error(confidences, predicted == labels),
            }
        )

    def _compute_extra(self, predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        predicted = predictions.argmax(axis=1).tolist()
        return self.extra.compute(predicted, labels.tolist(), reserved=self.names | self.lower_is_better)


class MultiLabelMetrics(ScoreMetrics):
    """Metrics of logits `(batch, num_labels)` against labels `(batch, num_labels)` that are 0 or 1.

    A label is predicted where its probability reaches its threshold. F1 and `exact_match`, the share of
    examples with every label right, are taken at `thresholds`; the F1 that end in `_at_half` always at 0.5.
    `f1_macro` takes all labels, `mean_average_precision` the mean over those with positives, and `roc_auc`
    over those with positives and negatives. `log_loss` is the mean over examples and labels, in nats.
    """

    main = "f1_micro"
    keys = frozenset(
        {
            "f1_micro",
            "f1_macro",
            "f1_weighted",
            "f1_micro_at_half",
            "f1_macro_at_half",
            "mean_average_precision",
            "exact_match",
            "roc_auc",
            "log_loss",
        }
    )

    def __init__(self, num_labels: int, *, extra: EvaluateModules | None = None):
        super().__init__(num_labels, extra=extra)
        self.thresholds = 0.5

    @property
    def thresholds(self) -> np.ndarray:
        """Probabilities `(num_labels,)` from which a label is predicted; one number sets all of them."""
        return self._thresholds

    @thresholds.setter
    def thresholds(self, thresholds: np.ndarray | Sequence[float] | float) -> None:
        thresholds = np.asarray(thresholds, dtype=np.float64)
        self._thresholds = np.broadcast_to(thresholds, (self.num_columns,)).copy()

    def tune(self) -> np.ndarray:
        """Tune the thresholds and use them from here on."""
        self.thresholds = self.tune_thresholds()
        return self.thresholds

    def tune_thresholds(self, *, minimum_positives: int = 10) -> np.ndarray:
        """Return thresholds `(num_labels,)` that give each label its highest F1 on the examples seen so far.

        A label with fewer than `minimum_positives` positives would fit its threshold to noise; it takes the
        single threshold that gives all labels together the highest micro F1. Tune on other examples than are
        reported. Nothing is set: assign the result to `thresholds`.
        """
        if not self._batches:
            return self.thresholds.copy()
        _, predictions, labels = self._examples()
        probabilities, positives = _sigmoid(predictions), labels.astype(bool)
        shared = _best_threshold(probabilities.ravel(), positives.ravel())
        return np.array(
            [
                _best_threshold(scores, positive) if positive.sum() >= minimum_positives else shared
                for scores, positive in zip(probabilities.T, positives.T, strict=True)
            ]
        )

    def _prepared_labels(self, labels: np.ndarray) -> np.ndarray:
        if labels.ndim != 2 or labels.shape[1] != self.num_columns:
            raise ValueError(f"Labels are {labels.shape}, expected (batch, {self.num_columns}).")
        return labels.astype(np.float32)

    def _impossible(self, labels: np.ndarray) -> np.ndarray:
        return ~np.isin(labels, (0, 1)).all(axis=1)

    def _counted(self, labels: np.ndarray) -> np.ndarray:
        return np.ones(len(labels), dtype=bool)

    def _compute(self, predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        from sklearn.metrics import average_precision_score, roc_auc_score

        positives, probabilities = labels.astype(bool), _sigmoid(predictions)
        predicted = probabilities >= self.thresholds
        at_half = _multi_label_f1(probabilities >= 0.5, positives)
        columns = list(zip(positives.T, predictions.T, strict=True))
        return _multi_label_f1(predicted, positives) | {
            "f1_micro_at_half": at_half["f1_micro"],
            "f1_macro_at_half": at_half["f1_macro"],
            "mean_average_precision": mean_or_nan(average_precision_score(*c) for c in columns if c[0].any()),
            "exact_match": (predicted == positives).all(axis=1).mean(),
            "roc_auc": mean_or_nan(roc_auc_score(*c) for c in columns if c[0].any() and not c[0].all()),
            "log_loss": (np.logaddexp(0, predictions) - labels * predictions).mean(dtype=np.float64),
        }

    def _compute_extra(self, predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        predicted = (_sigmoid(predictions) >= self.thresholds).astype(int).tolist()
        references = labels.astype(int).tolist()
        return self.extra.compute(
            predicted, references, reserved=self.names | self.lower_is_better, config_name="multilabel"
        )


def _single_label_scores(predicted: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef, recall_score

    averages = ("macro", "micro", "weighted")
    scores = {f"f1_{a}": f1_score(labels, predicted, average=a, zero_division=0) for a in averages}
    occurring = np.unique(labels)
    # Like balanced_accuracy_score, which warns about predicted classes that no label has.
    recall = recall_score(labels, predicted, labels=occurring, average="macro", zero_division=0)
    scores |= {"accuracy": accuracy_score(labels, predicted), "balanced_accuracy": recall}
    if len(occurring) > 1:
        scores["mcc"] = matthews_corrcoef(labels, predicted)
    return scores


def _top_accuracy(predictions: np.ndarray, labels: np.ndarray, *, top: int) -> float:
    of_label = predictions[np.arange(len(labels)), labels][:, np.newaxis]
    is_lower_id = np.arange(predictions.shape[1]) < labels[:, np.newaxis]
    above = (predictions > of_label) | ((predictions == of_label) & is_lower_id)
    return (above.sum(axis=1) < top).mean()


def _single_label_roc_auc(log_probabilities: np.ndarray, labels: np.ndarray) -> float:
    from sklearn.metrics import roc_auc_score

    occurring = np.unique(labels)
    if len(occurring) < 2:
        return np.nan
    if log_probabilities.shape[1] == 2:
        # The log-odds, because probabilities near 1 are rounded to ties.
        return roc_auc_score(labels, log_probabilities[:, 1] - log_probabilities[:, 0])
    return mean_or_nan(roc_auc_score(labels == label, log_probabilities[:, label]) for label in occurring)


def _calibration_error(confidences: np.ndarray, correct: np.ndarray) -> float:
    bins = np.ceil(confidences * NUM_CALIBRATION_BINS).astype(int) - 1
    gaps = correct.astype(np.float64) - confidences
    return np.abs(np.bincount(bins.clip(0, NUM_CALIBRATION_BINS - 1), weights=gaps)).sum() / len(gaps)


def _multi_label_f1(predicted: np.ndarray, positives: np.ndarray) -> dict[str, float]:
    # Counted here, because scikit-learn takes a single label for two classes: its micro F1 is then the
    # accuracy.
    hits, support = (predicted & positives).sum(axis=0), positives.sum(axis=0)
    sizes = predicted.sum(axis=0) + support
    scores = 2 * hits / np.maximum(sizes, 1)
    return {
        "f1_micro": 2 * hits.sum() / max(sizes.sum(), 1),
        "f1_macro": scores.mean(),
        "f1_weighted": (scores * support).sum() / max(support.sum(), 1),
    }


def _best_threshold(probabilities: np.ndarray, positives: np.ndarray) -> float:
    """Return the threshold of highest F1 over `(examples,)`, half-way to the next lower probability."""
    if not positives.any():
        return 0.5
    order = np.argsort(-probabilities, kind="stable")
    # Below the last probability comes 0. Of float32 neighbours only a double holds the middle.
    descending = np.append(probabilities[order], 0).astype(np.float64)
    scores = 2 * np.cumsum(positives[order]) / (np.arange(1, len(order) + 1) + positives.sum())
    # A threshold cannot cut between equal probabilities.
    scores[descending[:-1] == descending[1:]] = 0
    best = scores.argmax()
    return descending[best : best + 2].mean()


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    from scipy.special import expit

    return expit(logits)
