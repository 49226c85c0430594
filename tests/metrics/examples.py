"""What the tests of several kinds of metrics share: predictions of a mediocre model, and filled accumulators."""

from functools import partial

import numpy as np

from sft_hf.metrics import MultiLabelMetrics, RegressionMetrics, SingleLabelMetrics

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
