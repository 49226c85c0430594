"""Metrics as streaming accumulators: `update` on every batch, `merge` across ranks, `compute` once.

    metrics = SingleLabelMetrics(num_labels=3)
    metrics.update(logits, labels, example_id=ids)     # (batch, 3), (batch,), (batch,)
    metrics.merge(metrics_of_another_rank)             # pickled and sent over
    metrics.compute()                                  # {"accuracy": 0.91, "balanced_accuracy": 0.88, ...}

What is kept is one float32 score for each example and class, under the example's id, for segmentation one
confusion matrix of all pixels, for transcripts the number of edits in each. Samplers repeat examples to give every
rank equally many; here an example counts once, however often it is seen, so the numbers do not depend on the batch
size or on the number of ranks.
"""

from sft_hf.metrics.base import Metrics, ScoreMetrics
from sft_hf.metrics.classification import MultiLabelMetrics, SingleLabelMetrics
from sft_hf.metrics.evaluate_modules import EvaluateModules
from sft_hf.metrics.regression import RegressionMetrics
from sft_hf.metrics.segmentation import SegmentationMetrics
from sft_hf.metrics.transcription import TranscriptionMetrics

__all__ = [
    "EvaluateModules",
    "Metrics",
    "MultiLabelMetrics",
    "RegressionMetrics",
    "ScoreMetrics",
    "SegmentationMetrics",
    "SingleLabelMetrics",
    "TranscriptionMetrics",
]
