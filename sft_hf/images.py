"""What the tasks that read pictures share: finding, checking, reading, normalising and batching them.

{"image": {"bytes": b"...", "path": "cat/1.jpg"}}  ->  {"pixel_values": uint8 (3, 224, 224)}      in a dataloader's worker
                                                   ->  float32 (batch, 3, 224, 224)               on the device
"""

import logging
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from datasets import Dataset, IterableDataset
from PIL import Image
from transformers import PreTrainedModel

from sft_hf.arguments import ModelArguments
from sft_hf.data.columns import require_column
from sft_hf.data.paths import as_encoded_images, short_name
from sft_hf.data.rows import map_rows, refuse_or_skip
from sft_hf.data.sources import EXAMPLE_ID
from sft_hf.errors import ArgumentError, DataError
from sft_hf.pretrained import load_image_processor
from sft_hf.task import AnyDataset, Batch, Columns, Task
from sft_hf.vision.decoding import UnreadableImage, check_image, digest, in_memory, open_image, to_rgb
from sft_hf.vision.geometry import Geometry, with_image_size

logger = logging.getLogger(__name__)
# Models that interpolate their positions to whatever picture comes; the size in their configuration is that of pretraining.
OF_ANY_SIZE = ("dinov2", "dinov2_with_registers")
DIGEST = "digest_of_the_picture"  # the column in which example_keys wait


@dataclass(frozen=True)
class Images(Task):
    """A task whose one input is a picture."""

    own_data: ClassVar[str] = "--dataset_name FOLDER"

    image_column_name: str | None = field(default=None, metadata={"help": "Default: found by type and usual names."})
    image_size: list[int] | None = field(
        default=None, metadata={"help": "Height and width, or one number for both; default: the model's."}
    )
    horizontal_flip: bool = field(
        default=True, metadata={"help": "Whether --augmentation mirrors pictures; not for digits, text and maps."}
    )
    on_bad_example: Literal["error", "skip"] = field(
        default="error", metadata={"help": "What files that cannot be decoded do: end the run, or be left out."}
    )

    def __post_init__(self):
        if self.image_size is not None and (len(self.image_size) not in (1, 2) or min(self.image_size) < 1):
            given = " ".join(map(str, self.image_size))
            raise ArgumentError(f"--image_size {given}: expected height and width, or one number for both.")

    @property
    def given_image_size(self) -> tuple[int, int] | None:
        """Height and width of --image_size."""
        return None if self.image_size is None else (self.image_size[0], self.image_size[-1])

    def decodable(self, dataset: AnyDataset, columns: Columns, *, split: str) -> AnyDataset:
        """Encoded pictures, all of which decode; the others end the run or are left out, as --on_bad_example says."""
        (column,) = columns.inputs
        require_column(dataset.column_names, column, split=split, flag="--image_column_name")
        dataset = as_encoded_images(dataset, column, place=columns.place)
        if isinstance(dataset, IterableDataset):
            return dataset.filter(_Decodes(column)) if self.on_bad_example == "skip" else dataset
        scans = map_rows(dataset.select_columns([column]), _Scan(column), f"checking the pictures of {split}")
        # Added before rows are chosen: a later column would copy all that is in them.
        dataset = dataset.add_column(DIGEST, [scan["digest"] for scan in scans])
        reasons = [scan["reason"] for scan in scans]
        return refuse_or_skip(dataset, reasons, self.on_bad_example, what=f"{split}: pictures that cannot be decoded")

    def example_keys(self, dataset: Dataset, columns: Columns) -> list[str]:
        """A digest of each encoded picture: the same file in two splits is found, not the same scene."""
        return dataset[DIGEST][:]

    def load_processor(self, model_args: ModelArguments, train: AnyDataset, columns: Columns) -> Any:
        """The model's image processor, with --image_size."""
        processor = load_image_processor(model_args)
        return with_image_size(processor, self.given_image_size) if self.given_image_size else processor

    def on_device(self, batch: Batch, processor: Any, *, dtype: torch.dtype) -> Batch:
        """Pixels become `pixel_values`."""
        return {**batch, "pixel_values": Geometry.of(processor).normalize(batch["pixel_values"]).to(dtype)}

    def describe_inputs(self, row: dict, columns: Columns) -> dict[str, Any]:
        """The file's name, and its folder's, where it has one; --push_examples publishes it."""
        return {name: short_name(row[name]["path"]) for name in columns.inputs}

    def pipeline_inputs(self, example: dict, columns: Columns, processor: Any) -> Image.Image:
        """The upright 8-bit RGB picture."""
        (column,) = columns.inputs
        return to_rgb(open_image(example[column]))


def in_channels_last(model: PreTrainedModel) -> PreTrainedModel:
    """The memory format in which convolutions are fastest; a bare loop went from 20.5 to 28.9 pictures a second (pitfall 36)."""
    return model.to(memory_format=torch.channels_last)


def adopt_image_size(config: Any, size: tuple[int, int] | None, geometry: Geometry) -> None:
    """Tell a configuration the size of its pictures, where it has one and the model is bound to it."""
    if config.model_type == "timm_wrapper":
        config.pretrained_cfg = {**(getattr(config, "pretrained_cfg", None) or {}), "input_size": [3, *geometry.size]}
        if size and config.pretrained_cfg.get("fixed_input_size"):
            config.model_args = {**(config.model_args or {}), "img_size": list(size)}
        return
    part = getattr(config, "vision_config", config)  # where CLIP and SigLIP keep it
    there = getattr(part, "image_size", None)
    if size is None or there is None or config.model_type in OF_ANY_SIZE:
        return
    if config.model_type == "sft_hf_mlp" and size[0] != size[1]:
        raise ArgumentError(f"--image_size {size[0]} {size[1]}: the pictures of a {config.model_type} are square.")
    part.image_size = size[0] if isinstance(there, int) and size[0] == size[1] else list(size)


def read_image(row: dict, column: str) -> Image.Image:
    """The lazily opened picture of a row; DataError with the row's id for one that is none."""
    try:
        return open_image(row[column])
    except UnreadableImage as error:
        raise unreadable(row, error) from None


def unreadable(row: dict, error: UnreadableImage) -> DataError:
    """What a picture that went bad after it was checked, or that a stream brought, says."""
    return DataError(f"example {row[EXAMPLE_ID]}: {error}. --on_bad_example skip leaves such pictures out.")


def stacked_pixels(examples: list[dict]) -> Batch:
    """`pixel_values` (batch, 3, height, width), as the examples have them, and `example_id` (batch,)."""
    return {
        "pixel_values": torch.stack([example["pixel_values"] for example in examples]),
        EXAMPLE_ID: torch.tensor([example[EXAMPLE_ID] for example in examples]),
    }


@dataclass(frozen=True)
class _Scan:
    """What is wrong with a picture, None for nothing, and the digest by which it is found again: one reading for both."""

    column: str

    def __call__(self, row: dict) -> dict:
        try:
            value = in_memory(row[self.column])
        except UnreadableImage as error:
            return {"reason": str(error), "digest": None}
        reason = check_image(value)
        return {"reason": reason, "digest": None if reason else digest(value)}


@dataclass(frozen=True)
class _Decodes:
    """A picklable filter for streams."""

    column: str

    def __call__(self, row: dict) -> bool:
        reason = check_image(row[self.column])
        if reason:
            logger.warning("left out: %s", reason)
        return reason is None
