"""Metrics as streaming accumulators: `update` on every batch, `merge` across ranks, `compute` once.

    metrics = SingleLabelMetrics(num_labels=3)
    metrics.update(logits, labels, example_id=ids)     # (batch, 3), (batch,), (batch,)
    metrics.merge(metrics_of_another_rank)             # pickled and sent over
    metrics.compute()                                  # {"accuracy": 0.91, "balanced_accuracy": 0.88, ...}

What is kept is one float32 score for each example and class, under the example's id. Samplers repeat examples
to give every rank equally many; here an example counts once, whoever has seen it and however often, so the
numbers do not depend on the batch size or on the number of ranks.
"""

import logging
import warnings
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from sft_hf.errors import ArgumentError

logger = logging.getLogger(__name__)

IGNORE_INDEX = -100
NUM_CALIBRATION_BINS = 15


class EvaluateModules:
    """Modules of the `evaluate` library, whose numbers are reported beside ours.

    A name is the path of a script, or of a folder `name` that holds `name.py`, or else a module on the Hub.
    Raises `ArgumentError` for a Hub module without `trust_remote_code`, because loading one downloads code
    and runs it. `HF_EVALUATE_OFFLINE=1` keeps `evaluate` to modules downloaded before; `HF_HUB_OFFLINE` does
    not.
    """

    def __init__(self, names: Sequence[str], *, trust_remote_code: bool = False):
        self.names = tuple(names)
        self._modules: dict[tuple[str, str | None], Any] = {}
        remote = [name for name in self.names if _local_script(name) is None]
        if remote and not trust_remote_code:
            raise ArgumentError(
                f"No script on this machine is called {', '.join(remote)}, so `evaluate` would download code "
                "from the Hub and run it. Allow that with --trust_remote_code, or give the path of a script."
            )

    def compute(
        self,
        predictions: Sequence,
        references: Sequence,
        *,
        reserved: Collection[str] = (),
        config_name: str | None = None,
    ) -> dict[str, float]:
        """Return the numbers of every module, under the module's own keys.

        Predictions and references are lists of class ids, of 0/1 vectors or of floats. `config_name` picks a
        variant of the modules, such as `multilabel`. What is not a finite number is left out. Raises
        `ArgumentError` for a key that is `reserved` or that two modules share.
        """
        results: dict[str, float] = {}
        for name in self.names:
            module = self._load(name, config_name=config_name)
            output = module.compute(predictions=predictions, references=references)
            # Some modules, wer among them, return a bare number.
            numbers = _finite_numbers(output if isinstance(output, dict) else {Path(name).stem: output})
            if not numbers:
                logger.warning("The evaluate module %s returned no finite number: %s", name, output)
            _refuse_taken_keys(numbers, taken={*reserved, *results}, module_name=name)
            results |= numbers
        return results

    def _load(self, name: str, *, config_name: str | None) -> Any:
        if (name, config_name) not in self._modules:
            import evaluate

            script = _local_script(name)
            # In memory, because ranks that share a disk would wait for each other's cache file.
            self._modules[name, config_name] = evaluate.load(
                name if script is None else str(script), config_name, keep_in_memory=True
            )
        return self._modules[name, config_name]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_modules": {}}


class Metrics(ABC):
    """What accumulates predictions and labels, and turns them into numbers.

    `main` is the metric by which the best model is kept, and `lower_is_better` names those that improve by
    falling.
    """

    lower_is_better: ClassVar[frozenset[str]] = frozenset(
        {"loss", "log_loss", "expected_calibration_error", "mse", "rmse", "mae"}
    )
    main: ClassVar[str]
    extra: EvaluateModules | None = None

    @property
    @abstractmethod
    def names(self) -> frozenset[str]:
        """Every name that `compute` can return, and `loss`; --metric_for_best_model chooses among them."""

    @abstractmethod
    def update(self, predictions: np.ndarray, labels: np.ndarray, *, example_id: np.ndarray) -> None:
        """Add a batch of predictions `(batch, ...)`, labels `(batch, ...)` and example ids `(batch,)`."""

    @abstractmethod
    def merge(self, other: "Metrics") -> None:
        """Take over the examples of another rank; one that both have seen counts once."""

    @abstractmethod
    def compute(self) -> dict[str, float]:
        """Return plain floats under plain keys; an undefined metric is left out, so nothing is NaN."""

    def tune(self) -> np.ndarray | None:
        """Choose on this split whatever the metrics leave to choose (thresholds); None where there is nothing."""
        return None


class ScoreMetrics(Metrics):
    """Metrics of a few scores for each example, kept by example id.

    `keys` are all metrics that may be reported; `extra` adds the numbers of `evaluate` modules to them.
    """

    keys: ClassVar[frozenset[str]]

    def __init__(self, num_columns: int, *, extra: EvaluateModules | None = None):
        self.num_columns = num_columns
        self.extra = extra
        self._batches: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def update(self, predictions: np.ndarray, labels: np.ndarray, *, example_id: np.ndarray) -> None:
        """Add a batch of predictions `(batch, columns)`, their labels and example ids `(batch,)`.

        Raises `ValueError` for a wrong shape, and for an impossible label with up to five example ids.
        """
        # Copied, because the caller may use its buffers again.
        example_id, predictions = np.array(example_id), np.array(predictions, dtype=np.float32)
        labels = self._prepared_labels(np.array(labels))
        if predictions.ndim == 1 and self.num_columns == 1:
            predictions = predictions[:, np.newaxis]
        if predictions.shape != (len(labels), self.num_columns) or example_id.shape != (len(labels),):
            raise ValueError(
                f"Predictions are {predictions.shape} and example ids {example_id.shape}, "
                f"expected ({len(labels)}, {self.num_columns}) and ({len(labels)},)."
            )
        _refuse(self._impossible(labels), example_id, problem="Impossible labels")
        self._batches.append((example_id, predictions, labels))

    def merge(self, other: "Metrics") -> None:
        """Take over the examples of another rank; one that both have seen counts once, with these scores."""
        self._batches.extend(other._batches)

    def compute(self) -> dict[str, float]:
        """Return the metrics; none if nothing was added, or nothing that counts.

        Raises `ValueError` with up to five example ids if predictions are not finite.
        """
        if not self._batches:
            return {}
        example_id, predictions, labels = self._examples()
        _refuse(~np.isfinite(predictions).all(axis=1), example_id, problem="Predictions that are not finite")
        counted = self._counted(labels)
        predictions, labels = predictions[counted], labels[counted]
        if len(labels) == 0:
            return {}
        extra = {} if self.extra is None else self._compute_extra(predictions, labels)
        numbers = _finite_numbers(self._compute(predictions, labels)) | extra
        first = [self.main] if self.main in numbers else []
        return {name: numbers[name] for name in dict.fromkeys([*first, *numbers])}

    def _examples(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return ids, predictions and labels of every example, each once, in the order of the ids."""
        example_id, predictions, labels = map(np.concatenate, zip(*self._batches, strict=True))
        example_id, first = np.unique(example_id, return_index=True)
        return example_id, predictions[first], labels[first]

    @property
    def names(self) -> frozenset[str]:
        """See `Metrics`; those of `extra` are known only when it has run."""
        return self.keys | {"loss"}

    @abstractmethod
    def _prepared_labels(self, labels: np.ndarray) -> np.ndarray:
        """Return labels in the shape and type they are kept in."""

    @abstractmethod
    def _impossible(self, labels: np.ndarray) -> np.ndarray:
        """Return `(batch,)`, true where a label cannot be."""

    @abstractmethod
    def _counted(self, labels: np.ndarray) -> np.ndarray:
        """Return `(batch,)`, false where the label is to be ignored."""

    @abstractmethod
    def _compute(self, predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]: ...

    @abstractmethod
    def _compute_extra(self, predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]: ...


class SingleLabelMetrics(ScoreMetrics):
    """Metrics of logits `(batch, num_labels)` against class ids `(batch,)`, where -100 is ignored.

    Averages over classes take the classes that occur in labels or predictions, with 0 for a class without a
    correct prediction; `balanced_accuracy` takes those in the labels. `roc_auc` is that of class 1 if there
    are two classes, otherwise the mean of one class against the rest over the classes that have both.
    `log_loss` is the mean negative log-likelihood, in nats. `expected_calibration_error` has 15 bins of equal
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
        return _single_label_scores(predicted, labels) | {
            "roc_auc": _single_label_roc_auc(log_probabilities, labels),
            "log_loss": -log_likelihoods.mean(dtype=np.float64),
            "expected_calibration_error": _calibration_error(confidences, predicted == labels),
        }

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
            "mean_average_precision": _mean(average_precision_score(*c) for c in columns if c[0].any()),
            "exact_match": (predicted == positives).all(axis=1).mean(),
            "roc_auc": _mean(roc_auc_score(*c) for c in columns if c[0].any() and not c[0].all()),
            "log_loss": (np.logaddexp(0, predictions) - labels * predictions).mean(dtype=np.float64),
        }

    def _compute_extra(self, predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        predicted = (_sigmoid(predictions) >= self.thresholds).astype(int).tolist()
        references = labels.astype(int).tolist()
        return self.extra.compute(
            predicted, references, reserved=self.names | self.lower_is_better, config_name="multilabel"
        )


class RegressionMetrics(ScoreMetrics):
    """Metrics of predictions against labels, both `(batch, num_targets)`; a label that is NaN is ignored.

    With one target, `(batch,)` will do.     `mse`, `mae` and `rmse`, the root of `mse`, are taken over every
    known target, as in the loss. `r2`, `pearson` and `spearman` are means over the targets whose labels vary;
    the correlations are left out if the predictions of such a target are constant, because they are undefined
    then.
    """

    main = "mse"
    keys = frozenset({"mse", "rmse", "mae", "r2", "pearson", "spearman"})

    def __init__(self, num_targets: int = 1, *, extra: EvaluateModules | None = None):
        super().__init__(num_targets, extra=extra)

    def _prepared_labels(self, labels: np.ndarray) -> np.ndarray:
        labels = labels[:, np.newaxis] if labels.ndim == 1 else labels
        if labels.ndim != 2 or labels.shape[1] != self.num_columns:
            raise ValueError(f"Labels are {labels.shape}, expected (batch, {self.num_columns}).")
        return labels.astype(np.float32)

    def _impossible(self, labels: np.ndarray) -> np.ndarray:
        return np.isinf(labels).any(axis=1)

    def _counted(self, labels: np.ndarray) -> np.ndarray:
        return ~np.isnan(labels).all(axis=1)

    def _compute(self, predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        # In double precision, because r2 and the correlations subtract means that may be large.
        predictions, labels = predictions.astype(np.float64), labels.astype(np.float64)
        known = ~np.isnan(labels)
        errors = predictions[known] - labels[known]
        mse = np.square(errors).mean()
        columns = zip(predictions.T, labels.T, known.T, strict=True)
        return {"mse": mse, "rmse": np.sqrt(mse), "mae": np.abs(errors).mean()} | _correlations(
            [(prediction[known], label[known]) for prediction, label, known in columns]
        )

    def _compute_extra(self, predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        known = ~np.isnan(labels).any(axis=1)
        columns = predictions[known], labels[known]
        if self.num_columns == 1:
            return self.extra.compute(*(c[:, 0].tolist() for c in columns), reserved=self.names | self.lower_is_better)
        lists = (column.tolist() for column in columns)
        return self.extra.compute(*lists, reserved=self.names | self.lower_is_better, config_name="multilist")


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


def _single_label_roc_auc(log_probabilities: np.ndarray, labels: np.ndarray) -> float:
    from sklearn.metrics import roc_auc_score

    occurring = np.unique(labels)
    if len(occurring) < 2:
        return np.nan
    if log_probabilities.shape[1] == 2:
        # The log-odds, because probabilities near 1 are rounded to ties.
        return roc_auc_score(labels, log_probabilities[:, 1] - log_probabilities[:, 0])
    return _mean(roc_auc_score(labels == label, log_probabilities[:, label]) for label in occurring)


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


def _correlations(targets: Sequence[tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
    """Return r2, pearson and spearman of pairs of predictions and labels `(examples,)`."""
    from scipy.stats import pearsonr, spearmanr
    from sklearn.metrics import r2_score

    targets = [(prediction, label) for prediction, label in targets if len(label) and np.ptp(label) > 0]
    scores = {"r2": _mean(r2_score(label, prediction) for prediction, label in targets)}
    if all(np.ptp(prediction) > 0 for prediction, _ in targets):
        with warnings.catch_warnings():
            # Nearly constant predictions, as at the start of training, are no reason to alarm the user.
            warnings.simplefilter("ignore")
            scores["pearson"] = _mean(pearsonr(*target).statistic for target in targets)
            scores["spearman"] = _mean(spearmanr(*target).statistic for target in targets)
    return scores


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    from scipy.special import expit

    return expit(logits)


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return float(np.mean(values)) if values else np.nan


def _finite_numbers(values: dict[str, Any]) -> dict[str, float]:
    scalars = {key: float(value) for key, value in values.items() if np.isscalar(value) or np.ndim(value) == 0}
    return {key: value for key, value in scalars.items() if np.isfinite(value)}


def _refuse(refused: np.ndarray, example_id: np.ndarray, *, problem: str) -> None:
    if refused.any():
        ids = ", ".join(str(one) for one in example_id[refused][:5])
        raise ValueError(f"{problem} in {refused.sum()} of {len(refused)} examples, with the example ids {ids}.")


def _refuse_taken_keys(numbers: dict[str, float], *, taken: Collection[str], module_name: str) -> None:
    if both := sorted(numbers.keys() & taken):
        raise ArgumentError(
            f"The evaluate module {module_name} reports {', '.join(both)}, which is reported already. "
            "Remove the module."
        )


def _local_script(name: str) -> Path | None:
    """Return the script that `evaluate` would find on this machine under a name, if there is one."""
    path = Path(name)
    script = path if path.suffix == ".py" else path / f"{path.name}.py"
    return script.absolute() if script.is_file() else None
