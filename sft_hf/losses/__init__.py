"""Losses by name, each a sum and a denominator instead of a mean.

    loss = make_loss("auto", problem_type="single_label_classification", label_smoothing_factor=0.1)
    (loss(logits, labels) / loss.denominator(all_labels)).backward()    # once for each micro-batch

`all_labels` are those of the whole global batch: every micro-batch of every rank. The denominator needs
labels alone, so it is known before the first forward pass, and the gradient is the same however the batch is
cut: 1 x 8, 4 x 2, two ranks, a short last batch, items with different numbers of labels. A mean of means has
none of these properties (transformers#47688).

    problem_type                 losses                              labels
    single_label_classification  cross_entropy, focal, bce           ids (batch,), or probabilities (batch, classes)
    multi_label_classification   bce, focal                          between 0 and 1 (batch, classes)
    regression                   mse, huber                          (batch,) or (batch, targets), NaN where unknown
    semantic_segmentation        cross_entropy, dice, focal, lovasz  ids (batch, height, width)

Losses joined by `+` are added, each over its own denominator: `denominators` and `sums` give them by name, and
for a single loss under `items`. An id that is -100 is ignored.
"""

from sft_hf.losses.base import IGNORE_INDEX, Loss, LossSum
from sft_hf.losses.classification import balanced_class_weights
from sft_hf.losses.factory import loss_of_a_head, make_loss

__all__ = ["IGNORE_INDEX", "Loss", "LossSum", "balanced_class_weights", "loss_of_a_head", "make_loss"]
