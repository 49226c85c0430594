"""Losses of classes: cross-entropy, its focal and its binary forms, with class weights and label smoothing.

    loss = CrossEntropy(class_weights=torch.tensor([1.0, 3.0]), label_smoothing_factor=0.1)
    loss(logits, labels) / loss.denominator(labels)

Softmax losses take a class for each item or for each pixel; the class dimension is the second.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from sft_hf.errors import ArgumentError
from sft_hf.losses.base import IGNORE_INDEX, Loss, is_valid, require_same_shape


@dataclass(frozen=True, eq=False)
class CrossEntropy(Loss):
    """Softmax cross-entropy; over its denominator it is `torch.nn.functional.cross_entropy`'s mean.

    Logits are `(batch, classes, ...)`. Labels are class ids `(batch, ...)`, where -100 counts neither in the
    sum nor in the denominator, or floating-point class probabilities `(batch, classes, ...)` such as mixup
    makes.

    With `class_weights` `(classes,)` the denominator is the sum of the labels' weights. For probabilities it
    is their weighted sum, so that one-hot probabilities and class ids give the same loss (torch divides by
    the number of items there, and its two differ). Label smoothing: Szegedy et al. 2016,
    https://arxiv.org/abs/1512.00567.
    """

    class_weights: Tensor | None = None
    label_smoothing_factor: float = 0.0

    def denominator(self, labels: Tensor) -> Tensor:
        if labels.is_floating_point():
            return _probability_denominator(labels, class_weights=self.class_weights)
        valid = is_valid(labels)
        if self.class_weights is None:
            return valid.sum().float()
        # An ignored label looks up class 0, and that weight is multiplied by zero.
        return (self.class_weights.to(labels.device)[labels.long() * valid] * valid).sum()

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(
            logits.float(),
            labels.float() if labels.is_floating_point() else labels.long(),
            weight=_weights_for(logits, class_weights=self.class_weights),
            ignore_index=IGNORE_INDEX,
            reduction="sum",
            label_smoothing=self.label_smoothing_factor,
        )


@dataclass(frozen=True, eq=False)
class SoftmaxFocal(CrossEntropy):
    """Softmax focal loss: `-(1 - p)^gamma log p` of the labelled class.

    Lin et al. 2017, equation 4, https://arxiv.org/abs/1708.02002; the paper's alpha is `class_weights`.
    Shapes, ignore value and denominator are those of `CrossEntropy`, which it equals at `focal_gamma=0`. With
    smoothing or class probabilities, every class adds its focal term in proportion to its probability.
    """

    focal_gamma: float = 2.0

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        log_probabilities = functional.log_softmax(logits.float(), dim=1)
        smoothing, weights = self.label_smoothing_factor, _weights_for(logits, class_weights=self.class_weights)
        if labels.is_floating_point():
            targets = _smooth(labels.float(), factor=smoothing, outcomes=logits.shape[1])
            return (targets * _weighted(self._terms(log_probabilities), weights=weights)).sum()
        valid = is_valid(labels)
        # Of the labelled class alone: terms of every class of every pixel would take six times the logits' memory.
        losses = functional.nll_loss(log_probabilities, labels.long(), ignore_index=IGNORE_INDEX, reduction="none")
        terms = self._terms(-losses)
        hard = (terms if weights is None else terms * weights[labels.long() * valid]).sum()
        if smoothing == 0:
            return hard
        uniform = _weighted(self._terms(log_probabilities), weights=weights).mean(dim=1) * valid
        return (1 - smoothing) * hard + smoothing * uniform.sum()

    def _terms(self, log_probabilities: Tensor) -> Tensor:
        return _focal_terms(log_probabilities, gamma=self.focal_gamma)


@dataclass(frozen=True, eq=False)
class BinaryCrossEntropy(Loss):
    """Sigmoid cross-entropy of every label; over its denominator it is `torch.nn.BCEWithLogitsLoss`'s mean.

    Logits and labels are `(batch, classes)`, labels between 0 and 1. The sum runs over items and labels, and
    the denominator is `batch * classes`. `class_weights` `(classes,)` multiply a label's whole term, whether
    it is 0 or 1 (torch's `weight`, not its `pos_weight`), and leave the denominator alone. Label smoothing
    moves every label towards one half: `t * (1 - s) + s / 2`. Raises `ValueError` if the shapes differ.
    """

    class_weights: Tensor | None = None
    label_smoothing_factor: float = 0.0

    def denominator(self, labels: Tensor) -> Tensor:
        return torch.full((), float(labels.numel()), device=labels.device)

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        require_same_shape(logits, labels)
        targets = _smooth(labels.float(), factor=self.label_smoothing_factor, outcomes=2)
        weights = _weights_for(logits, class_weights=self.class_weights)
        return _weighted(self._terms(logits.float(), targets), weights=weights).sum()

    def _terms(self, logits: Tensor, targets: Tensor) -> Tensor:
        return functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")


@dataclass(frozen=True, eq=False)
class SigmoidFocal(BinaryCrossEntropy):
    """Sigmoid focal loss: `-(1 - p)^gamma log p` of a positive label, `-p^gamma log(1 - p)` of a negative.

    Lin et al. 2017, https://arxiv.org/abs/1708.02002. Shapes, weights, smoothing and denominator are those of
    `BinaryCrossEntropy`, which it equals at `focal_gamma=0`; the paper divides by the number of positives.
    """

    focal_gamma: float = 2.0

    def _terms(self, logits: Tensor, targets: Tensor) -> Tensor:
        positive = _focal_terms(functional.logsigmoid(logits), gamma=self.focal_gamma)
        negative = _focal_terms(functional.logsigmoid(-logits), gamma=self.focal_gamma)
        return targets * positive + (1 - targets) * negative


@dataclass(frozen=True, eq=False)
class OneHotBinaryCrossEntropy(BinaryCrossEntropy):
    """Sigmoid cross-entropy against one-hot targets; over its denominator it is timm's `BinaryCrossEntropy`.

    Wightman et al. 2021, https://arxiv.org/abs/2110.00476. Logits are `(batch, classes)`. Labels are class
    ids `(batch,)`, where -100 counts neither in the sum nor in the denominator, or floating-point targets
    `(batch, classes)`. Class ids do not tell the number of classes, so the denominator is the number of
    items, and the sum over items takes the mean over classes. Label smoothing spreads over the classes, as in
    timm: `t * (1 - s) + s / classes`. `class_weights` `(classes,)` multiply the terms of a class's output.
    """

    def denominator(self, labels: Tensor) -> Tensor:
        if labels.is_floating_point():
            return torch.full((), float(labels.shape[0]), device=labels.device)
        return is_valid(labels).sum().float()

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        num_classes, valid = logits.shape[1], torch.ones(len(logits), device=logits.device)
        if not labels.is_floating_point():
            valid = is_valid(labels)
            labels = functional.one_hot(labels.long() * valid, num_classes)
        require_same_shape(logits, labels)
        targets = _smooth(labels.float(), factor=self.label_smoothing_factor, outcomes=num_classes)
        weights = _weights_for(logits, class_weights=self.class_weights)
        terms = _weighted(self._terms(logits.float(), targets), weights=weights)
        return (terms.mean(dim=1) * valid).sum()


def balanced_class_weights(counts: Sequence[int]) -> Tensor:
    """Return class weights `(classes,)` inversely proportional to the class counts.

    The weight is `n / (classes * count)` over the classes that occur, scikit-learn's "balanced" (King and
    Zeng 2001, Logistic Regression in Rare Events Data), so its mean over the examples is 1. A class that
    never occurs gets 1.0: in training nothing reads it, and a 0 would silence the class in a later
    evaluation.
    """
    counts = torch.as_tensor(counts, dtype=torch.float64)
    seen = counts > 0
    return torch.where(seen, counts.sum() / (seen.sum() * counts), 1.0).float()


def _weights_for(logits: Tensor, *, class_weights: Tensor | None) -> Tensor | None:
    if class_weights is None:
        return None
    if len(class_weights) != logits.shape[1]:
        # A single weight would broadcast without a word.
        raise ArgumentError(
            f"--class_weights holds {len(class_weights)} numbers, expected one for each of {logits.shape[1]} classes."
        )
    return class_weights.to(logits.device)


def _weighted(terms: Tensor, *, weights: Tensor | None) -> Tensor:
    # (batch, classes, ...) times (classes,)
    return terms if weights is None else terms * weights.view(-1, *(1,) * (terms.dim() - 2))


def _probability_denominator(probabilities: Tensor, *, class_weights: Tensor | None) -> Tensor:
    if class_weights is None:
        return torch.full((), float(probabilities[:, 0].numel()), device=probabilities.device)
    weights = _weights_for(probabilities, class_weights=class_weights)
    return _weighted(probabilities.float(), weights=weights).sum()


def _smooth(targets: Tensor, *, factor: float, outcomes: int) -> Tensor:
    return targets * (1 - factor) + factor / outcomes


def _focal_terms(log_probabilities: Tensor, *, gamma: float) -> Tensor:
    # expm1 keeps 1 - p exact near p = 1; the clamp keeps the gradient of the power finite at p = 1 if gamma <
    # 1.
    complement = (-torch.expm1(log_probabilities)).clamp_min(1e-12)
    return -(complement**gamma) * log_probabilities
