"""The losses by name, as `--loss` gives it.

make_loss("cross_entropy+dice", problem_type="semantic_segmentation", class_weights=[1.0, 3.0])
-> LossSum({"cross_entropy": CrossEntropy(...), "dice": Dice()})
"""

from collections.abc import Iterable, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from sft_hf.errors import ArgumentError
from sft_hf.losses.base import Loss, LossSum
from sft_hf.losses.classification import (
    BinaryCrossEntropy,
    CrossEntropy,
    OneHotBinaryCrossEntropy,
    SigmoidFocal,
    SoftmaxFocal,
)
from sft_hf.losses.regression import Huber, SquaredError
from sft_hf.losses.segmentation import Dice, LovaszSoftmax

# The first loss of each problem type is what "auto" means.
_LOSSES: dict[str, dict[str, type[Loss]]] = {
    "single_label_classification": {
        "cross_entropy": CrossEntropy,
        "focal": SoftmaxFocal,
        "bce": OneHotBinaryCrossEntropy,
    },
    "multi_label_classification": {"bce": BinaryCrossEntropy, "focal": SigmoidFocal},
    "regression": {"mse": SquaredError, "huber": Huber},
    "semantic_segmentation": {
        "cross_entropy": CrossEntropy,
        "dice": Dice,
        "focal": SoftmaxFocal,
        "lovasz": LovaszSoftmax,
    },
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
    """Return the loss called `name`, or a `LossSum` of several that are joined by `+`.

    `class_weights` are `(classes,)`. Each option is read by those losses alone that have it: of a sum, class weights
    and label smoothing reach cross_entropy and focal, and leave dice and lovasz as they are. Raises `ArgumentError`
    for a name that does not fit the problem type or that stands twice, for a value out of range, and for class
    weights or label smoothing that no part of the loss has.
    """
    parts = _loss_classes(name, problem_type=problem_type)
    if class_weights is not None:
        _require_option("class_weights", "set", parts=parts, problem_type=problem_type)
        class_weights = _checked_weights(class_weights)
    if label_smoothing_factor != 0:
        _require_option("label_smoothing_factor", label_smoothing_factor, parts=parts, problem_type=problem_type)
    smoothable = 0 <= label_smoothing_factor < 1
    _require(smoothable, flag="label_smoothing_factor", value=label_smoothing_factor, expected="from 0 to below 1")
    _require(focal_gamma >= 0, flag="focal_gamma", value=focal_gamma, expected="0 or above")
    _require(huber_delta > 0, flag="huber_delta", value=huber_delta, expected="above 0")
    options = {
        "class_weights": class_weights,
        "label_smoothing_factor": label_smoothing_factor,
        "focal_gamma": focal_gamma,
        "huber_delta": huber_delta,
    }
    losses = {
        part: loss_class(**{option: value for option, value in options.items() if option in _options(loss_class)})
        for part, loss_class in parts.items()
    }
    return LossSum(losses) if len(losses) > 1 else next(iter(losses.values()))


def _loss_classes(name: str, *, problem_type: str) -> dict[str, type[Loss]]:
    """Return the classes of the losses in `name`, by their own names."""
    if problem_type not in _LOSSES:
        raise ArgumentError(f"--problem_type is {problem_type!r}, expected one of {', '.join(_LOSSES)}.")
    fitting = _LOSSES[problem_type]
    parts = [next(iter(fitting)) if part == "auto" else part for part in name.split("+")]
    there = f"There are: auto, {', '.join(fitting)}. Change --loss."
    for part in parts:
        if part not in fitting:
            raise ArgumentError(f"--loss {name}: {part!r} does not fit the problem type {problem_type}. {there}")
        if parts.count(part) > 1:
            raise ArgumentError(f"--loss {name}: {part} stands in it more than once. {there}")
    return {part: fitting[part] for part in parts}


def _options(loss_class: type[Loss]) -> set[str]:
    return {field.name for field in fields(loss_class)}


def _require_option(option: str, value: Any, *, parts: Iterable[str], problem_type: str) -> None:
    """Refuse an option that would be read by no part."""
    having = [name for name, loss_class in _LOSSES[problem_type].items() if option in _options(loss_class)]
    if set(having).isdisjoint(parts):
        others = (
            f"these do: {', '.join(having)}" if having else f"nor does any other of the problem type {problem_type}"
        )
        raise ArgumentError(
            f"--{option} is {value}, but --loss {'+'.join(parts)} makes no use of it; {others}. Leave --{option} out."
        )


def _require(holds: bool, *, flag: str, value: float, expected: str) -> None:
    if not holds:
        raise ArgumentError(f"--{flag} is {value}, expected a number {expected}.")


def _checked_weights(class_weights: Tensor | Sequence[float]) -> Tensor:
    weights = torch.as_tensor(class_weights, dtype=torch.float32)
    if weights.dim() != 1 or not weights.isfinite().all() or (weights < 0).any():
        raise ArgumentError(
            f"--class_weights is {weights.tolist()}, expected one finite number of 0 or above for each class."
        )
    return weights


def loss_of_a_head(
    logits: Tensor,
    labels: Tensor,
    *,
    problem_type: str | None,
    num_items_in_batch: Tensor | int | None,
) -> Tensor:
    """Return the loss that a classification head gives by itself, over `num_items_in_batch` where it is known (pitfall 1).

    Logits are `(batch, num_labels)`. Without a problem type it is inferred as transformers does, but not written into the
    configuration, where one batch of float targets would turn the saved model into a multi-label one (pitfall 3).
    """
    inferred = "multi_label_classification" if labels.is_floating_point() else "single_label_classification"
    inferred = "regression" if logits.shape[-1] == 1 else inferred
    loss = make_loss("auto", problem_type=problem_type or inferred)
    denominator = loss.denominator(labels) if num_items_in_batch is None else num_items_in_batch
    return loss(logits, labels) / torch.as_tensor(denominator, device=logits.device).clamp(min=1)
