"""Losses of whole images, which weigh a class by its overlap and not by its pixels: Dice and Lovasz-softmax.

    loss = Dice()
    loss(logits, labels) / loss.denominator(labels)     # (8, 11, 64, 64) and (8, 64, 64): a mean over 8 images

Each image has a loss of its own, so that a batch can be cut between any two. Taken over a batch, both would be ratios of
sums over pixels, and no sum of parts gives these back.
"""

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from sft_hf.losses.base import Loss, is_valid


@dataclass(frozen=True, eq=False)
class ImageLoss(Loss):
    """A loss of each image: the mean over the classes in its labels.

    Logits are `(batch, classes, height, width)`, labels class ids `(batch, height, width)`. A pixel that is -100
    counts nowhere, and an image of nothing else counts neither in the sum nor in the denominator, the number of
    images. A class that is only predicted lowers the score of those whose pixels it takes. Raises `ValueError`
    if the sizes differ.

    Until the backward pass an image keeps its probabilities in float32, and for each pixel and class in it 5 bytes
    (Dice) or 13 (Lovasz).
    """

    def denominator(self, labels: Tensor) -> Tensor:
        return is_valid(labels).flatten(1).any(dim=1).sum().float()

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        _require_same_size(logits, labels)
        losses = []
        for image, ids in zip(logits, labels.long(), strict=True):
            # Positions and not a mask, whose backward pass takes twice as long.
            valid = is_valid(ids).flatten().nonzero()[:, 0]
            losses.append(self._image_loss(image.flatten(1).index_select(1, valid).float(), ids.flatten()[valid]))
        return torch.stack(losses).sum()

    def _image_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of one image from logits `(classes, pixels)` and labels `(pixels,)` that are all valid."""
        present = labels.unique()
        probabilities = logits.softmax(dim=0).index_select(0, present)
        losses = self._class_losses(probabilities, labels == present[:, None])
        return losses.sum() / max(len(present), 1)

    @abstractmethod
    def _class_losses(self, probabilities: Tensor, is_class: Tensor) -> Tensor:
        """Return `(present,)` from probabilities and truth `(present, pixels)` of the classes in an image."""


@dataclass(frozen=True, eq=False)
class Dice(ImageLoss):
    """One minus the soft Dice coefficient, `2 sum(p t) / (sum(p^2) + sum(t^2))` over the pixels of an image.

    Milletari et al. 2016, section 3, https://arxiv.org/abs/1606.04797; t is 1 in the pixels of the class, else 0.
    Nothing is added to the fraction to smooth it. The class has a pixel, so the divisor is at least 1, and a
    constant would make the loss of small objects smaller than that of large ones.
    """

    def _class_losses(self, probabilities: Tensor, is_class: Tensor) -> Tensor:
        overlaps = (probabilities * is_class).sum(dim=1)
        return 1 - 2 * overlaps / (probabilities.square().sum(dim=1) + is_class.sum(dim=1))


@dataclass(frozen=True, eq=False)
class LovaszSoftmax(ImageLoss):
    """The Lovasz extension of the Jaccard loss, one minus intersection over union, to probabilities.

    Berman et al. 2018, https://arxiv.org/abs/1705.08790. Where every probability is 0 or 1 it is the
    Jaccard loss.
    """

    def _class_losses(self, probabilities: Tensor, is_class: Tensor) -> Tensor:
        errors, order = torch.where(is_class, 1 - probabilities, probabilities).sort(dim=1, descending=True)
        return (errors * _jaccard_steps(is_class.gather(1, order)).to(errors)).sum(dim=1)


def _jaccard_steps(is_class: Tensor) -> Tensor:
    """Return `(classes, pixels)`: by how much the Jaccard loss grows when one more pixel, in this order, is wrong.

    Of a class of G pixels, i of which are wrong and n others too, the loss is `1 - (G - i) / (G + n)`. The steps are
    worked out, because in a large image float32 does not tell two neighbouring losses well apart.
    """
    wrong_inside, wrong_outside = is_class.cumsum(dim=1), (~is_class).cumsum(dim=1)
    sizes = is_class.sum(dim=1, keepdim=True)
    intersections, unions = sizes - wrong_inside, sizes + wrong_outside
    # Outside of the class the union was smaller by one before; the clamp is for pixels inside of it alone.
    return torch.where(is_class, 1 / unions, intersections / (unions * (unions - 1).clamp(min=1)))


def _require_same_size(logits: Tensor, labels: Tensor) -> None:
    if logits.dim() != 4 or labels.shape != (len(logits), *logits.shape[2:]):
        raise ValueError(
            f"Logits are {tuple(logits.shape)} and labels {tuple(labels.shape)}, "
            "expected (batch, classes, height, width) and (batch, height, width)."
        )
