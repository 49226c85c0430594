"""What an image processor does to a picture, taken apart: its geometry on 8-bit pixels, and one scale and offset for each channel.

    geometry = Geometry.of(processor)
    pixels = geometry.pixels(image)               # a PIL picture -> (3, 224, 224), uint8, in a dataloader's worker
    geometry.normalize(batch_of_pixels)           # (batch, 3, 224, 224), float32, on the model's device

Rescaling and normalising are linear in each channel, whatever the processor calls its settings (transformers' and timm's
differ, EfficientNet's normalises twice), so both numbers are measured: on a black and on a white picture. Pixels stay 8-bit on
their way from the worker to the device, a quarter of the bytes; and what is done to them in between (mixup) is linear too.
"""

import copy
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import pil_modes_mapping
from torchvision.transforms.v2 import functional

from sft_hf.errors import ArgumentError, ModelError

PROBE_SIZE = (96, 64)  # width, height of the pictures that a processor is measured on
GREY = 51
SMALLEST_DIFFERENCE = 1e-4  # between processed pictures that count as equal, in standard deviations of a pixel
DEFAULT_INTERPOLATION = Image.Resampling.BILINEAR


@dataclass(frozen=True, eq=False)
class Geometry:
    """The parts of an image processor: `pixel_values = scale * pixels[channels] + offset`, with RGB between 0 and 255."""

    processor: Any
    size: tuple[int, int]  # height, width of what the model gets
    scale: Tensor  # (3,)
    offset: Tensor  # (3,)
    channels: tuple[int, int, int]  # (2, 1, 0) where the model wants blue first (MobileViT)
    interpolation: Image.Resampling
    in_8_bits: bool  # whether the processor's resampled pixels are whole numbers
    steps: "Steps | None" = None  # the same geometry by torchvision alone, a tenth of the processor's time

    @classmethod
    @lru_cache(maxsize=8)
    def of(cls, processor: Any) -> "Geometry":
        """Measure a processor. Raises ModelError if its pictures differ in size, or are not linear in the pixels."""
        processor = getattr(processor, "image_processor", processor)  # of one that reads texts too (OneFormer)
        black, grey, white = (
            _processed(processor, Image.new("RGB", PROBE_SIZE, (value,) * 3)) for value in (0, GREY, 255)
        )
        offset, scale = _centre(black), (_centre(white) - _centre(black)) / 255
        if (_centre(grey) - offset - GREY * scale).abs().max() > SMALLEST_DIFFERENCE:
            raise ModelError(
                f"{type(processor).__name__} does more to a picture than to resample, crop and normalise it."
            )
        geometry = cls(
            processor=processor,
            size=tuple(black.shape[1:]),
            scale=scale,
            offset=offset,
            channels=tuple(int(_centre(_processed(processor, image)).argmax()) for image in _primaries()),
            interpolation=_interpolation(processor),
            in_8_bits=True,
        )
        noise = np.random.default_rng(0).integers(0, 256, (*PROBE_SIZE[::-1], 3), dtype=np.uint8)
        wide = Image.fromarray(noise)
        tall = Image.fromarray(np.ascontiguousarray(noise.transpose(1, 0, 2)))
        sizes = {tuple(_processed(processor, image).shape[1:]) for image in (wide, tall)}
        if sizes != {geometry.size}:
            raise ModelError(
                f"{type(processor).__name__} makes pictures of several sizes ({sorted(sizes)}), which do not fit into one "
                "batch. Give one with --image_size."
            )
        if not geometry._reproduces(wide):
            geometry = replace(geometry, in_8_bits=False)
        steps = Steps.of(processor, geometry.interpolation)
        quicker = replace(geometry, steps=steps)
        probes = (wide, tall, wide.resize((301, 227)), wide.resize((17, 23)))
        is_same = steps is not None and all(torch.equal(quicker.pixels(one), geometry.pixels(one)) for one in probes)
        return quicker if is_same else geometry

    @property
    def fill(self) -> tuple[int, int, int]:
        """The colour that becomes zero, the mean of what the model was trained on."""
        mean = (-self.offset / self.scale)[list(self.channels)].round().clamp(0, 255)
        return tuple(int(value) for value in mean)

    def pixels(self, image: Image.Image) -> Tensor:
        """A picture as the evaluation and `transformers.pipeline` see it, before it is normalised: `(3, height, width)`."""
        if self.steps is not None:
            return self.steps(image)
        processed = _processed(self.processor, image)
        pixels = ((processed - self.offset.view(3, 1, 1)) / self.scale.view(3, 1, 1))[list(self.channels)]
        return pixels.round().to(torch.uint8) if self.in_8_bits else pixels

    def normalize(self, pixels: Tensor) -> Tensor:
        """`(batch, 3, height, width)` pixels of any type to `pixel_values`, float32, channels last."""
        if self.channels != (0, 1, 2):
            pixels = pixels[:, list(self.channels)]
        pixels = pixels.to(dtype=torch.float32, memory_format=torch.channels_last)
        scale, offset = (part.to(pixels.device).view(1, 3, 1, 1) for part in (self.scale, self.offset))
        return torch.addcmul(offset, pixels, scale)

    def _reproduces(self, image: Image.Image) -> bool:
        pixels = self.pixels(image)[None]
        difference = (self.normalize(pixels)[0] - _processed(self.processor, image)).abs().max()
        return bool(difference < SMALLEST_DIFFERENCE)


@dataclass(frozen=True)
class Steps:
    """Resize, then crop the middle: what most processors do, of which a call costs milliseconds more than it computes."""

    resize: tuple[int, ...]  # height and width, or the shorter side
    crop: tuple[int, int] | None
    interpolation: InterpolationMode

    @classmethod
    def of(cls, processor: Any, interpolation: Image.Resampling) -> "Steps | None":
        """What the processor's settings say; None where they say something else. The caller compares the pixels."""
        size, crop = (_sides(getattr(processor, name, None)) for name in ("size", "crop_size"))
        resize = (size["height"], size["width"]) if "height" in size else (size.get("shortest_edge"),)
        crop = (
            (crop["height"], crop["width"]) if getattr(processor, "do_center_crop", None) and "height" in crop else None
        )
        if None in resize or not getattr(processor, "do_resize", False):
            return None
        return cls(resize, crop, _torchvision_modes()[interpolation])

    def __call__(self, image: Image.Image) -> Tensor:
        pixels = functional.pil_to_tensor(image)
        pixels = functional.resize(pixels, list(self.resize), interpolation=self.interpolation, antialias=True)
        if self.crop is None:
            return pixels
        top, left = ((there - wanted) // 2 for there, wanted in zip(pixels.shape[1:], self.crop, strict=True))
        return pixels[:, top : top + self.crop[0], left : left + self.crop[1]]


def _torchvision_modes() -> dict[int, InterpolationMode]:
    """PIL's numbers of interpolations as torchvision's names."""
    return {number: mode for mode, number in pil_modes_mapping.items()}


def _primaries() -> list[Image.Image]:
    return [Image.new("RGB", PROBE_SIZE, colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]


def _processed(processor: Any, image: Image.Image) -> Tensor:
    """ModelError for what is no picture: the patches of NaFlex models, the clusters of ImageGPT."""
    processed = processor(images=image, return_tensors="pt")
    pixels = processed["pixel_values"][0].float() if "pixel_values" in processed else torch.empty(0)
    if pixels.dim() != 3 or len(pixels) != 3:
        raise ModelError(
            f"{type(processor).__name__} makes {', '.join(processed)} of a picture, of the shape {tuple(pixels.shape)}; "
            "expected pixel_values (3, height, width). Choose a model that takes pictures as they are."
        )
    return pixels


def _centre(processed: Tensor) -> Tensor:
    """The channels of the pixel in the middle, where nothing is padded."""
    return processed[:, processed.shape[1] // 2, processed.shape[2] // 2].clone()


def _interpolation(processor: Any) -> Image.Resampling:
    """transformers keeps a number of PIL's or a torchvision mode in `resample`, timm a word (pitfall 22)."""
    if hasattr(processor, "data_config"):
        from timm.data.transforms import str_to_pil_interp

        return Image.Resampling(str_to_pil_interp(processor.data_config["interpolation"]))
    resample = getattr(processor, "resample", None)
    if resample is None:
        return DEFAULT_INTERPOLATION
    return Image.Resampling[resample.name] if hasattr(resample, "name") else Image.Resampling(int(resample))


def with_image_size(processor: Any, size: tuple[int, int]) -> Any:
    """A copy of a processor whose pictures have `size` (height, width), cropped from as much more as before.

    Raises ArgumentError where the processor makes no pictures of that size.
    """
    resized = _resized(processor, *size)
    there = Geometry.of(resized).size
    if there != size:
        raise ArgumentError(
            f"--image_size {size[0]} {size[1]}: {type(processor).__name__} makes pictures of {there[0]} x {there[1]} of it."
        )
    return resized


def _resized(processor: Any, height: int, width: int) -> Any:
    if hasattr(processor, "data_config"):
        return type(processor)(pretrained_cfg={**_timm_settings(processor), "input_size": (3, height, width)})
    processor = copy.deepcopy(processor)
    before = {name: getattr(processor, name, None) for name in ("size", "crop_size")}
    sides = {name: _sides(value) for name, value in before.items()}
    crops = bool(getattr(processor, "do_center_crop", False)) and sides["crop_size"].get("height")
    if crops:
        ratio = (sides["size"].get("shortest_edge") or sides["size"].get("height")) / sides["crop_size"]["height"]
        processor.crop_size = type(before["crop_size"])(height=height, width=width)
        new = {"shortest_edge": round(ratio * max(height, width))}
        if "height" in sides["size"]:
            new = {"height": round(ratio * height), "width": round(ratio * width)}
        processor.size = type(before["size"])(**new)
    elif not _crops_a_share(processor):
        processor.do_resize = True
        processor.size = type(before["size"])(height=height, width=width)
    elif height == width:
        processor.size = type(before["size"])(shortest_edge=height)
    else:
        raise ArgumentError(
            f"--image_size {height} {width}: the pictures of {type(processor).__name__} are square; give one number."
        )
    return processor


def fixed_size(processor: Any) -> tuple[int, int]:
    """Height and width of a processor's pictures; of one that keeps their proportions, a square of its shorter side.

    Raises ModelError where the processor says neither.
    """
    size, crop = (_sides(getattr(processor, name, None)) for name in ("size", "crop_size"))
    sides = crop if getattr(processor, "do_center_crop", False) and "height" in crop else size
    height, width = (sides.get(name, sides.get("shortest_edge")) for name in ("height", "width"))
    if not (height and width):
        raise ModelError(f"{type(processor).__name__} has a size of {size}: give one with --image_size HEIGHT WIDTH.")
    return height, width


def without_crop(processor: Any, size: tuple[int, int]) -> Any:
    """A copy of a processor that squashes the whole picture to `size` (height, width).

    A mask predicted for a crop would be stretched over the whole picture by transformers.pipeline (pitfall 43). Raises
    ModelError for a processor that always crops.
    """
    if not hasattr(processor, "size") or _crops_a_share(processor):
        raise ModelError(
            f"{type(processor).__name__} always crops pictures, and a mask is of the whole one. Choose a model that is made "
            "for segmentation."
        )
    processor = copy.deepcopy(processor)
    kind = type(processor.size)
    processor.size = kind(height=size[0], width=size[1])
    for name in ("do_center_crop", "do_pad", "do_split_image", "keep_aspect_ratio"):
        if getattr(processor, name, None):
            setattr(processor, name, False)
    if getattr(processor, "size_divisor", None):
        processor.size_divisor = 0  # MaskFormer's compares it with a number
    if getattr(processor, "pad_size", None):
        processor.pad_size = None
    return processor


def _crops_a_share(processor: Any) -> bool:
    """ConvNext and PoolFormer resize to size / crop_pct and crop that, with no flag against it."""
    return getattr(processor, "crop_pct", None) is not None


def _timm_settings(processor: Any) -> dict[str, Any]:
    return {key: value for key, value in processor.data_config.items() if value is not None}


def _sides(size: Any) -> dict[str, int]:
    """transformers keeps a size as a mapping or as an object with a None for every side that it does not say."""
    if size is None:
        return {}
    items = size.items() if hasattr(size, "items") else vars(size).items()
    return {name: value for name, value in items if value is not None}
