"""Training pictures: randomly cropped, flipped and distorted, as a function of (seed, epoch, example_id) and of nothing else.

    augment = ImageAugmentation(size=(224, 224), policy="trivial", fill=(124, 116, 104))
    augment(open_image(row["image"]), seed=42, epoch=3, example_id=17)      # uint8 (3, 224, 224), the same in every process

Neither the number of workers and ranks, nor the order, nor a resume changes a pixel (pitfall 44). The crop is drawn on the size in
the file's header, so that a JPEG is decoded no larger than needed, and all that follows runs on the small 8-bit tensor.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from torchvision.transforms import InterpolationMode, v2

from sft_hf.errors import ArgumentError, DataError
from sft_hf.losses import IGNORE_INDEX
from sft_hf.seeding import seeded
from sft_hf.vision.decoding import cropped, size_of

POLICIES = {"trivial": v2.TrivialAugmentWide, "randaugment": v2.RandAugment, "autoaugment": v2.AutoAugment}


@dataclass(frozen=True)
class ImageAugmentation:
    """A random resized crop (Szegedy et al. 2015, https://arxiv.org/abs/1409.4842), a flip, a policy and random erasing.

    `size` is (height, width); `crop_scale` the share of the picture's area in the crop, whose aspect ratio is between 3/4 and 4/3;
    `fill` the RGB colour of what a policy turns or moves into the picture, and of what is erased. Policies: light has none; trivial
    is TrivialAugmentWide (Mueller and Hutter 2021, https://arxiv.org/abs/2103.10158), randaugment two operations of magnitude 9
    (Cubuk et al. 2019, https://arxiv.org/abs/1909.13719), autoaugment the one found on ImageNet (Cubuk et al. 2018,
    https://arxiv.org/abs/1805.09501). Erasing: Zhong et al. 2017, https://arxiv.org/abs/1708.04896.
    """

    size: tuple[int, int]
    policy: Literal["light", "trivial", "randaugment", "autoaugment"]
    random_erasing: float = 0.0
    interpolation: Image.Resampling = Image.Resampling.BILINEAR
    fill: tuple[int, int, int] = (0, 0, 0)
    crop_scale: tuple[float, float] = (0.35, 1.0)
    flip: bool = True

    def __post_init__(self):
        assert self.policy == "light" or self.policy in POLICIES, f"{self.policy} is not an augmentation"
        if not 0 <= self.random_erasing <= 1:
            raise ArgumentError(f"--random_erasing is {self.random_erasing}, expected a probability from 0 to 1.")

    def __call__(self, image: Image.Image, *, seed: int, epoch: int, example_id: int) -> Tensor:
        """Pixels `(3, height, width)`, uint8, of a lazily opened picture. Raises UnreadableImage."""
        with seeded(seed, epoch, example_id):
            box = self._crop_box(*size_of(image))
            pixels = _resampled(cropped(image, box, at_least=self.size[::-1]), self.size, self.interpolation)
            if self.flip and torch.rand(()) < 0.5:
                pixels = pixels.flip(-1)
            return self._distort(pixels)

    def _crop_box(self, width: int, height: int) -> tuple[int, int, int, int]:
        # torchvision asks its input for the size alone, and a tensor on meta holds no more.
        crop = self._crop.make_params([torch.empty(1, height, width, device="meta")])
        return crop["left"], crop["top"], crop["left"] + crop["width"], crop["top"] + crop["height"]

    @cached_property
    def _crop(self) -> v2.RandomResizedCrop:
        return v2.RandomResizedCrop(self.size, scale=self.crop_scale)

    @cached_property
    def _distort(self) -> v2.Transform:
        transforms = []
        if self.policy in POLICIES:
            transforms.append(POLICIES[self.policy](interpolation=InterpolationMode.BILINEAR, fill=list(self.fill)))
        if self.random_erasing:
            transforms.append(v2.RandomErasing(self.random_erasing, value=self.fill))
        return v2.Compose(transforms) if transforms else v2.Identity()


@dataclass(frozen=True)
class JointAugmentation:
    """The same random scale, window and flip for a picture and its mask; distorted colours for the picture.

    Evaluation squashes the whole picture to `size` (height, width), or each part of `window` (height, width; pixels of the picture) of
    it. At a scale of s a window is squashed that covers 1/s of that height and width, at a random place; s is uniform in `scale`.
    Where the window is larger than the picture, what is around it gets `fill` (RGB) and, in the mask, -100. `photometric` changes
    brightness, contrast, saturation and hue, each with probability 1/2, by as much as in SSD (Liu et al. 2016,
    https://arxiv.org/abs/1512.02325).
    """

    size: tuple[int, int]
    scale: tuple[float, float] = (0.5, 2.0)
    flip: bool = True
    photometric: bool = True
    fill: tuple[int, int, int] = (0, 0, 0)
    interpolation: Image.Resampling = Image.Resampling.BILINEAR
    window: tuple[int, int] | None = None

    def __call__(
        self, image: Image.Image, mask: np.ndarray | Image.Image, *, seed: int, epoch: int, example_id: int
    ) -> tuple[Tensor, Tensor]:
        """Pixels `(3, height, width)`, uint8, and class ids `(height, width)`, int16, of a lazily opened picture and its mask.

        The mask's class ids, or -100, are `(height, width)` of the upright picture; each id of the result is one of them or -100.
        Raises UnreadableImage, and DataError if the picture and its mask differ in size.
        """
        width, height = size_of(image)
        mask = np.asarray(mask)
        if mask.shape != (height, width):
            shape = " x ".join(str(side) for side in mask.shape[::-1])
            raise DataError(f"example {example_id}: the picture is {width} x {height} pixels and its mask {shape}.")
        with seeded(seed, epoch, example_id):
            box, (left, top, right, bottom) = self._window(width, height)
            size = bottom - top, right - left
            seen = _resampled(cropped(image, box, at_least=size[::-1]), size, self.interpolation)
            pixels = torch.tensor(self.fill, dtype=torch.uint8).view(3, 1, 1).repeat(1, *self.size)
            pixels[:, top:bottom, left:right] = self._distort(seen)
            classes = torch.full(self.size, IGNORE_INDEX, dtype=torch.int16)
            classes[top:bottom, left:right] = torch.from_numpy(_nearest(mask, box, size))
            if self.flip and torch.rand(()) < 0.5:
                pixels, classes = pixels.flip(-1), classes.flip(-1)
        return pixels, classes

    def _window(self, width: int, height: int) -> tuple[tuple[int, int, int, int], tuple[int, int, int, int]]:
        """What part of the picture is seen, and where in the result it lies: (left, top, right, bottom) of both."""
        drawn, *offsets = torch.rand(3).tolist()
        scale = self.scale[0] + drawn * (self.scale[1] - self.scale[0])
        window = self.window or (height, width)
        (left, right), place_across = _span(width, min(window[1], width) / scale, self.size[1], offsets[0])
        (top, bottom), place_down = _span(height, min(window[0], height) / scale, self.size[0], offsets[1])
        return (left, top, right, bottom), (place_across[0], place_down[0], place_across[1], place_down[1])

    @cached_property
    def _distort(self) -> v2.Transform:
        if not self.photometric:
            return v2.Identity()
        ranges = {"brightness": 0.125, "contrast": 0.5, "saturation": 0.5, "hue": 0.05}
        jitters = [v2.RandomApply([v2.ColorJitter(**{name: value})], p=0.5) for name, value in ranges.items()]
        # Pillow takes half the time for these.
        return v2.Compose([v2.ToPILImage(), *jitters, v2.PILToTensor()])


def _resampled(part: Image.Image, size: tuple[int, int], interpolation: Image.Resampling) -> Tensor:
    """A picture at `size` (height, width), as a uint8 tensor (3, height, width).

    torch's antialiased filters are Pillow's, to one step of 255, and take a half (bilinear) to a third (bicubic) of the time.
    """
    mode = {Image.Resampling.BILINEAR: "bilinear", Image.Resampling.BICUBIC: "bicubic"}.get(interpolation)
    if mode is None:
        return v2.functional.pil_to_tensor(part.resize(size[::-1], interpolation))
    pixels = v2.functional.pil_to_tensor(part)
    return functional.interpolate(pixels[None], size, mode=mode, antialias=True)[0]


def _span(side: int, seen: float, target: int, offset: float) -> tuple[tuple[int, int], tuple[int, int]]:
    """From where to where a window of `seen` pixels reaches on one side of the picture, and where on the result's this part lies."""
    if seen <= side:
        part = max(round(seen), 1)
        start = round(offset * (side - part))
        return (start, start + part), (0, target)
    part = max(round(target * side / seen), 1)
    place = round(offset * (target - part))
    return (0, side), (place, place + part)


def _nearest(mask: np.ndarray, box: tuple[int, int, int, int], size: tuple[int, int]) -> np.ndarray:
    """The mask's pixels that lie under the centres of the result's, `size` (height, width)."""
    left, top, right, bottom = box
    rows = top + (np.arange(size[0]) + 0.5) * ((bottom - top) / size[0])
    columns = left + (np.arange(size[1]) + 0.5) * ((right - left) / size[1])
    return mask[rows.astype(np.intp)[:, None], columns.astype(np.intp)].astype(np.int16)
