"""Metrics of numbers.

metrics = RegressionMetrics(num_targets=2)
metrics.update(predictions, labels, example_id=ids)    # (batch, 2), (batch, 2), (batch,)
metrics.compute()                                      # {"mse": 3.0, "rmse": 1.73, "mae": 1.67, "r2": 0.4, ...}
"""

import warnings
from collections.abc import Sequence

import numpy as np

from sft_hf.metrics.base import ScoreMetrics, mean_or_nan
from sft_hf.metrics.evaluate_modules import EvaluateModules


class RegressionMetrics(ScoreMetrics):
    """Metrics of predictions against labels, both `(batch, num_targets)`; a label that is NaN is ignored.

    With one target, `(batch,)` will do. `mse`, `mae` and `rmse`, the root of `mse`, are taken over every
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


def _correlations(targets: Sequence[tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
    """Return r2, pearson and spearman of pairs of predictions and labels `(examples,)`."""
    from scipy.stats import pearsonr, spearmanr
    from sklearn.metrics import r2_score

    targets = [(prediction, label) for prediction, label in targets if len(label) and np.ptp(label) > 0]
    scores = {"r2": mean_or_nan(r2_score(label, prediction) for prediction, label in targets)}
    if all(np.ptp(prediction) > 0 for prediction, _ in targets):
        with warnings.catch_warnings():
            # Nearly constant predictions, as at the start of training, are no reason to alarm the user.
            warnings.simplefilter("ignore")
            scores["pearson"] = mean_or_nan(pearsonr(*target).statistic for target in targets)
            scores["spearman"] = mean_or_nan(spearmanr(*target).statistic for target in targets)
    return scores
