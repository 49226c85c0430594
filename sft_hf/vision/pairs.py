"""A picture and its mask: what a row holds, what is read of it, and how examples become a batch.

ReadPair(...)({"image": {...}, "labels": {...}, "example_id": 17}, epoch)
-> {"pixel_values": uint8 (3, 512, 512), "labels": int16 (512, 512)}                            training: one window, augmented
-> {"pixel_values": uint8 (windows, 3, 512, 512), "boxes": [(0, 0, 400, 266)], "target_size": (400, 266),
    "labels": int16 (400, 266)}                                                evaluation: the mask at its own resolution
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sft_hf.data.sources import EXAMPLE_ID
from sft_hf.errors import DataError
from sft_hf.vision.augmentation import JointAugmentation
from sft_hf.vision.decoding import UnreadableImage, open_image, size_of, to_rgb
from sft_hf.vision.geometry import Geometry
from sft_hf.vision.masks import MaskClasses, check_pair, mask_histogram, read_mask
from sft_hf.vision.windows import window_boxes

logger = logging.getLogger(__name__)
Colors = dict[tuple[int, int, int], int]
NO_MASK = "no mask"


@dataclass(frozen=True)
class ScanPair:
    """A row with the columns `image` and `mask` to the values in its mask and their pixels; `reason` says why it cannot be used."""

    image: str
    mask: str
    colors: Colors | None

    def __call__(self, row: dict) -> dict[str, Any]:
        path = (row[self.mask] or {}).get("path")
        found = {"values": None, "pixels": None, "reason": None, "file": Path(path).name if path else None}
        if row[self.mask] is None:
            return {**found, "reason": NO_MASK}
        try:
            size, mask_size = size_of(open_image(row[self.image])), size_of(open_image(row[self.mask]))
            check_pair(size, mask_size, found["file"] or "the mask")
            counts = mask_histogram(row[self.mask], colors=self.colors)
        except (UnreadableImage, DataError) as error:
            return {**found, "reason": str(error)}
        return {**found, "values": list(counts), "pixels": list(counts.values())}


@dataclass(frozen=True)
class UsablePair:
    """A picklable filter for streams."""

    scan: ScanPair

    def __call__(self, row: dict) -> bool:
        reason = self.scan(row)["reason"]
        if reason:
            logger.warning("left out: %s", reason)
        return reason is None


@dataclass(frozen=True)
class ReadPair:
    """A preprocessed row and the epoch to an example; see the module's text.

    With `augment`, for training, picture and mask have the model's size. Without, `pixel_values` holds a squashed picture for each
    window of `window` (height, width), or for the whole, and the labels keep the mask's own size.
    """

    geometry: Geometry
    classes: MaskClasses
    colors: Colors | None
    augment: JointAugmentation | None
    window: tuple[int, int] | None
    seed: int

    def __call__(self, row: dict, epoch: int) -> dict[str, Any]:
        try:
            return {EXAMPLE_ID: row[EXAMPLE_ID], **self._read(row, epoch)}
        except UnreadableImage as error:
            raise DataError(
                f"example {row[EXAMPLE_ID]}: {error}. --on_bad_example skip leaves such pairs out."
            ) from None

    def _read(self, row: dict, epoch: int) -> dict[str, Any]:
        image = open_image(row["image"])
        mask = self.classes.encode(read_mask(row["labels"], colors=self.colors)) if "labels" in row else None
        if self.augment is not None:
            pixels, labels = self.augment(image, mask, seed=self.seed, epoch=epoch, example_id=row[EXAMPLE_ID])
            return {"pixel_values": pixels, "labels": labels}
        image = to_rgb(image)
        size = image.height, image.width
        boxes = window_boxes(size, self.window)
        windows = [image.crop((left, top, right, bottom)) for top, left, bottom, right in boxes]
        pixels = torch.stack([self.geometry.pixels(window) for window in windows])
        example = {"pixel_values": pixels, "boxes": boxes, "target_size": size}
        return example if mask is None else {**example, "labels": torch.from_numpy(mask)}


@dataclass(frozen=True)
class PairCollator:
    """Training examples to a stacked batch; those of evaluation to one in which all windows lie behind one another.

    There `pixel_values` is (windows of all pictures, 3, height, width), and `boxes`, `target_size` and `labels` are lists, one
    item for each picture. `task_inputs` (1, length) are the tokens that a OneFormer reads beside each picture.
    """

    task_inputs: Tensor | None = None

    def __call__(self, examples: list[dict]) -> dict[str, Any]:
        batch = {name: [example[name] for example in examples] for name in examples[0]}
        is_evaluation = "target_size" in batch
        batch["pixel_values"] = (torch.cat if is_evaluation else torch.stack)(batch["pixel_values"])
        if not is_evaluation:
            batch["labels"] = torch.stack(batch["labels"])
        if self.task_inputs is not None:
            batch["task_inputs"] = self.task_inputs.repeat(len(examples), 1)
        return {**batch, EXAMPLE_ID: torch.tensor(batch[EXAMPLE_ID])}
