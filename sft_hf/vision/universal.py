"""Mask-classification models (MaskFormer, Mask2Former, OneFormer) as semantic segmenters: their targets, loss and answers.

They predict a set of masks with a class each, and bring a loss of their own, over a matching of predicted to true masks (Cheng et
al. 2021, https://arxiv.org/abs/2107.06278). Their targets are one binary mask for each class that occurs in a picture.

OneFormer (Jain et al. 2022, https://arxiv.org/abs/2211.06220) reads its task as a text. Of its loss all is there but the contrast of
queries and texts: it needs a text encoder that `config.is_training` adds to the model, and with which transformers.pipeline
cannot run it.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import OneFormerProcessor, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES,
    MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING_NAMES,
)

from sft_hf.errors import ModelError
from sft_hf.losses import IGNORE_INDEX, Loss

SUPPORTED = ("maskformer", "mask2former", "oneformer")
TASK = "the task is semantic"  # the text that OneFormer reads beside a picture


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


def with_tokenizer(image_processor: Any, tokenizer: Any) -> OneFormerProcessor:
    """OneFormer's processor, so that the tokenizer is saved with the model; transformers.pipeline needs it for the task.

    Its checkpoints were trained with texts filled up with zeros, the pipeline fills them with the padding token: here that is
    token 0. The class names that the image processor would fetch from the Hub are those of other data.
    """
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(0)
    image_processor.class_info_file = image_processor.repo_path = None
    return OneFormerProcessor(image_processor, tokenizer)


def task_inputs(processor: Any, config: PretrainedConfig) -> Tensor | None:
    """The tokens `(1, task_seq_len)` of OneFormer's task, as transformers.pipeline makes them; None for other models."""
    if config.model_type != "oneformer":
        return None
    return processor.tokenizer(
        TASK, padding="max_length", max_length=config.task_seq_len, return_tensors="pt"
    ).input_ids


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
        return torch.full((), float(len(labels)), device=labels.device)

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        raise NotImplementedError("The model computes it: see loss_sums.")


def loss_sums(model: PreTrainedModel, batch: dict[str, Any]) -> tuple[Any, dict[str, Tensor]]:
    """The outputs and, where the batch has masks, the model's own loss times the number of pictures."""
    pixel_values = batch["pixel_values"]
    inputs = {name: batch[name] for name in ("pixel_values", "task_inputs") if name in batch}
    if "labels" not in batch:
        return model(**inputs), {}
    masks, ids = zip(*(targets(_resized(mask, pixel_values.shape[-2:])) for mask in batch["labels"]), strict=True)
    outputs = model(**inputs, mask_labels=list(masks), class_labels=list(ids))
    return outputs, {"items": outputs.loss.squeeze() * len(pixel_values)}


def _resized(mask: Tensor, size: tuple[int, int]) -> Tensor:
    return functional.interpolate(mask[None, None].float(), size=size, mode="nearest-exact")[0, 0]


def answers(processor: Any, outputs: Any, sizes: list[tuple[int, int]]) -> list[Tensor]:
    """Class ids `(height, width)` of each picture at its own size."""
    with torch.no_grad():
        return processor.post_process_semantic_segmentation(outputs, target_sizes=sizes)
