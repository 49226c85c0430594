"""What a metric is: an accumulator of batches, and of the scores of single examples in particular.

metrics.update(predictions, labels, example_id=ids)
metrics.merge(metrics_of_another_rank)
metrics.compute()       # {"accuracy": 0.91, ...}, for every evaluation's log
metrics.details()       # {"iou": {"cat": 0.8, "dog": 0.7}}, for the report
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import ClassVar

import numpy as np

from sft_hf.errors import DivergedError
from sft_hf.metrics.evaluate_modules import EvaluateModules, finite_numbers


class Metrics(ABC):
    """What accumulates predictions and labels, and turns them into numbers.

    `main` is the metric by which the best model is kept, `keys` are all that may be reported, and `lower_is_better`
    names those that improve by falling.
    """

    lower_is_better: ClassVar[frozenset[str]] = frozenset(
        {"loss", "log_loss", "expected_calibration_error", "mse", "rmse", "mae"}
    )
    main: ClassVar[str]
    keys: frozenset[str]
    extra: EvaluateModules | None = None

    @property
    def names(self) -> frozenset[str]:
        """What --metric_for_best_model chooses among: `keys` and `loss`; those of `extra` are known when it has run."""
        return self.keys | {"loss"}

    @abstractmethod
    def update(self, predictions: Sequence, labels: Sequence, *, example_id: np.ndarray) -> None:
        """Add a batch: one prediction, one label and one id `(batch,)` for each example; an id counts once."""

    @abstractmethod
    def merge(self, other: "Metrics") -> None:
        """Take over the examples of another rank."""

    @abstractmethod
    def compute(self) -> dict[str, float]:
        """Return plain floats under plain keys; an undefined metric is left out, so nothing is NaN."""

    def details(self) -> dict[str, dict[str, float]]:
        """Return numbers for each class, `{"iou": {"cat": 0.8}}`: for results.json and the model card, not for a log."""
        return {}

    def tune(self) -> np.ndarray | None:
        """Choose on this split whatever the metrics leave to choose (thresholds); None where there is nothing."""
        return None


class ScoreMetrics(Metrics):
    """Metrics of a few scores for each example, kept by example id.

    `extra` adds the numbers of `evaluate` modules.
    """

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
        refuse_examples(self._impossible(labels), example_id, problem="Impossible labels")
        self._batches.append((example_id, predictions, labels))

    def merge(self, other: "Metrics") -> None:
        """Take over the examples of another rank; one that both have seen counts once, with these scores."""
        self._batches.extend(other._batches)

    def compute(self) -> dict[str, float]:
        """Return the metrics; none if nothing was added, or nothing that counts.

        Raises DivergedError with up to five example ids if predictions are not finite.
        """
        if not self._batches:
            return {}
        example_id, predictions, labels = self._examples()
        infinite = ~np.isfinite(predictions).all(axis=1)
        refuse_examples(infinite, example_id, problem="Predictions that are not finite", error=DivergedError)
        counted = self._counted(labels)
        predictions, labels = predictions[counted], labels[counted]
        if len(labels) == 0:
            return {}
        extra = {} if self.extra is None else self._compute_extra(predictions, labels)
        numbers = finite_numbers(self._compute(predictions, labels)) | extra
        first = [self.main] if self.main in numbers else []
        return {name: numbers[name] for name in dict.fromkeys([*first, *numbers])}

    def _examples(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return ids, predictions and labels of every example, each once, in the order of the ids."""
        example_id, predictions, labels = map(np.concatenate, zip(*self._batches, strict=True))
        example_id, first = np.unique(example_id, return_index=True)
        return example_id, predictions[first], labels[first]

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


def mean_or_nan(values: Iterable[float]) -> float:
    values = list(values)
    return float(np.mean(values)) if values else np.nan


def refuse_examples(
    refused: np.ndarray, example_id: np.ndarray, *, problem: str, error: type[Exception] = ValueError
) -> None:
    """Raise `error`, with how many examples are refused and the ids of the first five."""
    if refused.any():
        ids = ", ".join(str(one) for one in example_id[refused][:5])
        raise error(f"{problem} in {refused.sum()} of {len(refused)} examples, with the example ids {ids}.")
