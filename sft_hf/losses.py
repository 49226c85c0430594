"""Losses by name, each a sum and a denominator instead of a mean.

    loss = make_loss("auto", problem_type="single_label_classification", label_smoothing_factor=0.1)
    (loss(logits, labels) / loss.denominator(all_labels)).backward()    # once for each micro-batch

`all_labels` are those of the whole global batch: every micro-batch of every rank. The denominator needs
labels alone, so it is known before the first forward pass, and the gradient is the same however the batch is
cut: 1 x 8, 4 x 2, two ranks, a short last batch, items with different numbers of labels. A mean of means has
none of these properties (transformers#47688).

    problem_type                 losses                     labels
    single_label_classification  cross_entropy, focal, bce  ids (batch,), or probabilities (batch, classes)
    multi_label_classification   bce, focal                 between 0 and 1 (batch, classes)
    regression                   mse, huber                 (batch,) or (batch, targets), NaN where unknown
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from sft_hf.errors import ArgumentError

IGNORE_INDEX = -100


@dataclass(frozen=True, eq=False)
class Loss(ABC):
    """A loss as a sum over items and the denominator that turns the sum into a mean."""

    @abstractmethod
    def denominator(self, labels: Tensor) -> Tensor:
        """Return what the sum is divided by, from labels alone, a float32 scalar; 0 if no label is valid."""

    @abstractmethod
    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the sum over the items, a float32 scalar for logits of any dtype; 0 if no label is valid."""


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
        valid = labels != IGNORE_INDEX
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
        smoothing = self.label_smoothing_factor
        weights = _weights_for(logits, class_weights=self.class_weights)
        terms = _focal_terms(functional.log_softmax(logits.float(), dim=1), gamma=self.focal_gamma)
        if labels.is_floating_point():
            targets = _smooth(labels.float(), factor=smoothing, outcomes=logits.shape[1])
            return (targets * _weighted(terms, weights=weights)).sum()
        hard = functional.nll_loss(-terms, labels.long(), weights, ignore_index=IGNORE_INDEX, reduction="sum")
        if smoothing == 0:
            return hard
        uniform = _weighted(terms, weights=weights).mean(dim=1) * (labels != IGNORE_INDEX)
        return (1 - smoothing) * hard + smoothing * uniform.sum()


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
        return torch.tensor(float(labels.numel()), device=labels.device)

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        _require_same_shape(logits, labels)
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
            return torch.tensor(float(labels.shape[0]), device=labels.device)
        return (labels != IGNORE_INDEX).sum().float()

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        num_classes, valid = logits.shape[1], torch.ones(len(logits), device=logits.device)
        if not labels.is_floating_point():
            valid = labels != IGNORE_INDEX
            labels = functional.one_hot(labels.long() * valid, num_classes)
        _require_same_shape(logits, labels)
        targets = _smooth(labels.float(), factor=self.label_smoothing_factor, outcomes=num_classes)
        weights = _weights_for(logits, class_weights=self.class_weights)
        terms = _weighted(self._terms(logits.float(), targets), weights=weights)
        return (terms.mean(dim=1) * valid).sum()


@dataclass(frozen=True, eq=False)
class SquaredError(Loss):
    """Squared error; over its denominator it is the mean over every known target.

    Logits are `(batch, targets)`, labels the same or `(batch,)` if there is one target. A NaN label counts
    neither in the sum nor in the denominator. Raises `ValueError` if the shapes differ.
    """

    def denominator(self, labels: Tensor) -> Tensor:
        return (~labels.isnan()).sum().float()

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        logits, labels = (tensor.unsqueeze(1) if tensor.dim() == 1 else tensor for tensor in (logits, labels))
        _require_same_shape(logits, labels)
        return self._terms(torch.where(labels.isnan(), 0.0, logits.float() - labels.float())).sum()

    def _terms(self, errors: Tensor) -> Tensor:
        return errors.square()


@dataclass(frozen=True, eq=False)
class Huber(SquaredError):
    """Huber's loss: half the squared error up to `huber_delta`, linear beyond; in units of the label.

    Huber 1964, Robust Estimation of a Location Parameter. Shapes and ignore value are those of
    `SquaredError`.
    """

    huber_delta: float = 1.0

    def _terms(self, errors: Tensor) -> Tensor:
        zeros = torch.zeros_like(errors)
        return functional.huber_loss(errors, zeros, reduction="none", delta=self.huber_delta)


# The first loss of each problem type is what "auto" means.
_LOSSES: dict[str, dict[str, type[Loss]]] = {
    "single_label_classification": {
        "cross_entropy": CrossEntropy,
        "focal": SoftmaxFocal,
        "bce": OneHotBinaryCrossEntropy,
    },
    "multi_label_classification": {"bce": BinaryCrossEntropy, "focal": SigmoidFocal},
    "regression": {"mse": SquaredError, "huber": Huber},
}


def make_loss(
    name: str,
    *,
    problem_type: str,
    class_weights: Tensor | Sequence[float] | None = None,
    label_smoothing_factor: float = 0.0,
    focal_gamma: float = 2.0,
    huber_delta: float = 1.0,
) -> Loss:
    """Return the loss called `name`: auto, cross_entropy, focal, bce, mse or huber.

    `class_weights` are `(classes,)`; `focal_gamma` and `huber_delta` are read by their own loss alone. Raises
    `ArgumentError` for a name that does not fit the problem type, for a value out of range, and for class
    weights or label smoothing in regression.
    """
    loss_class = _loss_class(name, problem_type=problem_type)
    if issubclass(loss_class, SquaredError):
        _refuse_for_regression(class_weights=class_weights, label_smoothing_factor=label_smoothing_factor)
        _require(huber_delta > 0, flag="huber_delta", value=huber_delta, expected="above 0")
        return Huber(huber_delta=huber_delta) if loss_class is Huber else loss_class()
    smoothable = 0 <= label_smoothing_factor < 1
    _require(smoothable, flag="label_smoothing_factor", value=label_smoothing_factor, expected="from 0 to below 1")
    _require(focal_gamma >= 0, flag="focal_gamma", value=focal_gamma, expected="0 or above")
    options = {"focal_gamma": focal_gamma} if name == "focal" else {}
    weights = None if class_weights is None else _checked_weights(class_weights)
    return loss_class(class_weights=weights, label_smoothing_factor=label_smoothing_factor, **options)


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


def _loss_class(name: str, *, problem_type: str) -> type[Loss]:
    if problem_type not in _LOSSES:
        raise ArgumentError(f"--problem_type is {problem_type!r}, expected one of {', '.join(_LOSSES)}.")
    fitting = _LOSSES[problem_type]
    if name == "auto":
        return next(iter(fitting.values()))
    if name not in fitting:
        raise ArgumentError(
            f"--loss {name} does not fit the problem type {problem_type}. "
            f"These do: auto, {', '.join(fitting)}. Change --loss."
        )
    return fitting[name]


def _require(holds: bool, *, flag: str, value: float, expected: str) -> None:
    if not holds:
        raise ArgumentError(f"--{flag} is {value}, expected a number {expected}.")


def _refuse_for_regression(*, class_weights: Tensor | Sequence[float] | None, label_smoothing_factor: float) -> None:
    if label_smoothing_factor != 0:
        raise ArgumentError(
            f"--label_smoothing_factor is {label_smoothing_factor}, but the problem type is regression, "
            "whose targets are not probabilities. Set it to 0."
        )
    if class_weights is not None:
        raise ArgumentError("--class_weights is set, but the problem type is regression, which has no classes.")


def _checked_weights(class_weights: Tensor | Sequence[float]) -> Tensor:
    weights = torch.as_tensor(class_weights, dtype=torch.float32)
    if weights.dim() != 1 or not weights.isfinite().all() or (weights < 0).any():
        raise ArgumentError(
            f"--class_weights is {weights.tolist()}, expected one finite number of 0 or above for each class."
        )
    return weights


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
        return torch.tensor(float(probabilities[:, 0].numel()), device=probabilities.device)
    weights = _weights_for(probabilities, class_weights=class_weights)
    return _weighted(probabilities.float(), weights=weights).sum()


def _smooth(targets: Tensor, *, factor: float, outcomes: int) -> Tensor:
    return targets * (1 - factor) + factor / outcomes


def _focal_terms(log_probabilities: Tensor, *, gamma: float) -> Tensor:
    # expm1 keeps 1 - p exact near p = 1; the clamp keeps the gradient of the power finite at p = 1 if gamma <
    # 1.
    complement = (-torch.expm1(log_probabilities)).clamp_min(1e-12)
    return -(complement**gamma) * log_probabilities


def _require_same_shape(logits: Tensor, labels: Tensor) -> None:
    # (batch, 1) against (batch,) would broadcast to (batch, batch) and give a plausible number.
    if logits.shape != labels.shape:
        raise ValueError(f"Logits are {tuple(logits.shape)} and labels {tuple(labels.shape)}: the shapes differ.")
