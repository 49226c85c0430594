"""Mixup and CutMix: train on blends of two pictures, and on the same blend of their labels.

    method = Mixup(mixup_alpha=0.2).prepare(labels=labels)
    method.wrap_batch({"pixel_values": ..., "labels": tensor([2, 0]), "example_id": tensor([17, 4])}, step=0, seed=42)
    -> labels [[0.1, 0.0, 0.9], [0.9, 0.0, 0.1]]

Pictures are mixed before they are normalised, on the scale of 0 to 255. Normalising is linear, so that is the same.
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

from torch.nn import functional
from torchvision.transforms import v2

from sft_hf.data.labels import MULTI_LABEL, SINGLE_LABEL, Labels
from sft_hf.errors import ArgumentError
from sft_hf.method import Method
from sft_hf.seeding import seeded


@dataclass(frozen=True)
class Mixup(Method):
    """The flags; with both on, one of the two is drawn for each batch."""

    _argument_group_name: ClassVar[str] = "mixup"

    mixup_alpha: float = field(
        default=0.0,
        metadata={"help": "Blend pairs of pictures, by a share from Beta(alpha, alpha); 0.2 is usual, 0 is off."},
    )
    cutmix_alpha: float = field(
        default=0.0,
        metadata={
            "help": "Paste a rectangle of another picture, its area from Beta(alpha, alpha); 1.0 is usual, 0 is off."
        },
    )

    def __post_init__(self):
        for name, alpha in (("mixup_alpha", self.mixup_alpha), ("cutmix_alpha", self.cutmix_alpha)):
            if not alpha >= 0:
                raise ArgumentError(f"--{name} is {alpha}, expected 0 (off) or a number above it.")

    def prepare(self, *, labels: Labels) -> Method:
        """What mixes the batches of these labels; itself, doing nothing, where both are off."""
        if self.mixup_alpha == self.cutmix_alpha == 0:
            return self
        if labels.problem_type not in (SINGLE_LABEL, MULTI_LABEL):
            given = " ".join(f"--{name} {alpha}" for name, alpha in vars(self).items() if alpha)
            raise ArgumentError(f"{given} blends classes, but the problem type is {labels.problem_type}. Set it to 0.")
        return MixedBatches(self.mixup_alpha, self.cutmix_alpha, labels.num_labels)


@dataclass(frozen=True)
class MixedBatches(Method):
    """Mixes each training batch with itself, moved on by one example.

    mixup: Zhang et al. 2018, https://arxiv.org/abs/1710.09412. CutMix: Yun et al. 2019, https://arxiv.org/abs/1905.04899; the share
    of a label is the area that is left of its picture, exactly. Examples are in random order, so the next one is a random partner.
    """

    mixup_alpha: float
    cutmix_alpha: float
    num_labels: int

    def wrap_batch(self, batch: dict[str, Any], *, step: int, seed: int) -> dict[str, Any]:
        """`pixel_values` (batch, 3, height, width) and `labels`, ids (batch,) or floats (batch, num_labels), as float32 blends.

        Labels become `(batch, num_labels)`; a batch of one example has nobody to mix with, and keeps its picture. What is drawn is a
        function of `seed`, the optimizer step, and the ids of the batch's examples in their order: not of workers or a resume, but
        partners are of one micro-batch of one rank, so other batch sizes mix others.
        """
        pixels, labels = batch["pixel_values"].float(), batch["labels"]
        if labels.ndim == 1:
            labels = functional.one_hot(labels, self.num_labels)
        labels = labels.float()
        if len(labels) > 1:
            with seeded(seed, step, *batch["example_id"].tolist()):
                pixels, labels = self._mix(pixels, labels)
        return {**batch, "pixel_values": pixels, "labels": labels}

    @cached_property
    def _mix(self) -> v2.Transform:
        kinds = ((v2.MixUp, self.mixup_alpha), (v2.CutMix, self.cutmix_alpha))
        return v2.RandomChoice([kind(alpha=alpha, num_classes=self.num_labels) for kind, alpha in kinds if alpha])
