"""What a loss is: a sum over items and its denominator, or several of both.

loss = LossSum({"cross_entropy": CrossEntropy(), "dice": Dice()})
loss.denominators(labels)       # {"cross_entropy": 262144.0, "dice": 8.0}: pixels and images
loss.sums(logits, labels)       # {"cross_entropy": 90213.7, "dice": 4.1}
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn

from torch import Tensor

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

    def denominators(self, labels: Tensor) -> dict[str, Tensor]:
        """Return by name what each of `sums` is divided by; a single loss has one sum, of the `items`."""
        return {"items": self.denominator(labels)}

    def sums(self, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return the sums by name; the loss of a global batch is the sum of each over its denominator."""
        return {"items": self(logits, labels)}


@dataclass(frozen=True, eq=False)
class LossSum(Loss):
    """Losses that are added, each over a denominator of its own, such as pixels for one and images for another.

    `sums` and `denominators` go by the names of the `parts`. There is no one sum and no one denominator: over
    parts of a global batch they could not be added up, so asking for them raises `TypeError`.
    """

    parts: Mapping[str, Loss]

    def denominators(self, labels: Tensor) -> dict[str, Tensor]:
        return {name: part.denominator(labels) for name, part in self.parts.items()}

    def sums(self, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {name: part(logits, labels) for name, part in self.parts.items()}

    def denominator(self, labels: Tensor) -> NoReturn:
        raise TypeError(f"{'+'.join(self.parts)} has a denominator for each part: call denominators().")

    def __call__(self, logits: Tensor, labels: Tensor) -> NoReturn:
        raise TypeError(f"{'+'.join(self.parts)} has a sum for each part: call sums().")


def is_valid(labels: Tensor) -> Tensor:
    """Return where class ids of any integer type are not -100."""
    return labels.long() != IGNORE_INDEX  # compared as uint8, -100 would be 156


def require_same_shape(logits: Tensor, labels: Tensor) -> None:
    # (batch, 1) against (batch,) would broadcast to (batch, batch) and give a plausible number.
    if logits.shape != labels.shape:
        raise ValueError(f"Logits are {tuple(logits.shape)} and labels {tuple(labels.shape)}: the shapes differ.")
