"""Mask-classification models (MaskFormer, Mask2Former, OneFormer) as semantic segmenters: their targets, loss and answers.

They predict a set of masks with a class each, and bring a loss of their own, over a matching of predicted to true masks (Cheng et
al. 2021, https://arxiv.org/abs/2107.06278). Their targets are one binary mask for each class that occurs in a picture.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES,
    MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING_NAMES,
)

from sft_hf.errors import ModelError
from sft_hf.losses import IGNORE_INDEX, Loss

SUPPORTED = ("maskformer", "mask2former")


def is_universal(config: PretrainedConfig) -> bool:
    """Whether the model answers with masks and their classes instead of a class for each pixel."""
    kind = config.model_type
    return (
        kind in MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING_NAMES
        and kind not in MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES
    )


def check_supported(config: PretrainedConfig) -> None:
    """Raise ModelError for a model whose targets are others, or whose evaluation is."""
    if config.model_type not in SUPPORTED:
        raise ModelError(
            f"A {config.model_type} is not supported as a semantic segmenter; of the models that answer with masks these are: "
            f"{', '.join(SUPPORTED)}. Any AutoModelForSemanticSegmentation is too. Change --model_name_or_path."
        )


def targets(labels: Tensor) -> tuple[Tensor, Tensor]:
    """The mask `(height, width)` of one picture as binary masks `(classes in it, height, width)` and their class ids.

    A pixel that does not count is in none of the masks; a picture without any gets no mask.
    """
    ids = labels.unique()
    ids = ids[ids != IGNORE_INDEX].long()
    return (labels[None] == ids[:, None, None]).float(), ids


@dataclass(frozen=True, eq=False)
class OwnLoss(Loss):
    """The model's own loss: a mean over the masks of a batch, of which the mean over pictures is taken.

    How a global batch is cut changes it a little where pictures have different numbers of classes.
    """

    def denominator(self, labels: Tensor) -> Tensor:
        return torch.tensor(float(len(labels)), device=labels.device)

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        raise NotImplementedError("The model computes it: see loss_sums.")


def loss_sums(model: PreTrainedModel, batch: dict[str, Any]) -> tuple[Any, dict[str, Tensor]]:
    """The outputs and, where the batch has masks, the model's own loss times the number of pictures."""
    pixel_values = batch["pixel_values"]
    if "labels" not in batch:
        return model(pixel_values=pixel_values), {}
    masks, ids = zip(*(targets(_resized(mask, pixel_values.shape[-2:])) for mask in batch["labels"]), strict=True)
    outputs = model(pixel_values=pixel_values, mask_labels=list(masks), class_labels=list(ids))
    return outputs, {"items": outputs.loss.squeeze() * len(pixel_values)}


def _resized(mask: Tensor, size: tuple[int, int]) -> Tensor:
    return functional.interpolate(mask[None, None].float(), size=size, mode="nearest-exact")[0, 0]


def answers(processor: Any, outputs: Any, sizes: list[tuple[int, int]]) -> list[Tensor]:
    """Class ids `(height, width)` of each picture at its own size."""
    with torch.no_grad():
        return processor.post_process_semantic_segmentation(outputs, target_sizes=sizes)
