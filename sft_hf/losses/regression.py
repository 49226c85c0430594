"""Losses of numbers: squared error and Huber's.

loss = Huber(huber_delta=2.0)
loss(logits, labels) / loss.denominator(labels)     # a label that is NaN is not known and does not count
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from sft_hf.losses.base import Loss, require_same_shape


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
        require_same_shape(logits, labels)
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
