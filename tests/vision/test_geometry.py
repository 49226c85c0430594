"""Whatever an image processor does to a picture: 8-bit pixels, one scale and one offset for each channel give the same."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from transformers import (
    BatchFeature,
    CLIPImageProcessor,
    ConvNextImageProcessor,
    DeiTImageProcessor,
    DetrImageProcessor,
    EfficientNetImageProcessor,
    ImageGPTImageProcessor,
    MobileNetV2ImageProcessor,
    MobileViTImageProcessor,
    PerceiverImageProcessor,
    PoolFormerImageProcessor,
    SegformerImageProcessor,
    Siglip2ImageProcessor,
    TimmWrapperImageProcessor,
    ViTImageProcessor,
)

from sft_hf.errors import ArgumentError, ModelError
from sft_hf.vision.geometry import Geometry, Steps, with_image_size, without_crop

SQUARE = {"height": 32, "width": 32}
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def timm_processor(architecture: str = "test_resnet", **settings) -> TimmWrapperImageProcessor:
    there = timm.get_pretrained_cfg(architecture).to_dict()
    return TimmWrapperImageProcessor(pretrained_cfg={**there, "input_size": (3, 32, 32), **settings})


PROCESSORS = {
    "ViT": lambda: ViTImageProcessor(size=SQUARE),
    "MobileNetV2": lambda: MobileNetV2ImageProcessor(size={"shortest_edge": 37}, crop_size=SQUARE),
    "ConvNext": lambda: ConvNextImageProcessor(size={"shortest_edge": 32}),
    "EfficientNet": lambda: EfficientNetImageProcessor(
        size=SQUARE, rescale_factor=1 / 127.5, rescale_offset=True, image_mean=IMAGENET_MEAN, image_std=[0.5] * 3
    ),
    "Segformer": lambda: SegformerImageProcessor(size=SQUARE),
    "CLIP": lambda: CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=SQUARE),
    "MobileViT": lambda: MobileViTImageProcessor(size={"shortest_edge": 36}, crop_size=SQUARE),
    "PoolFormer": lambda: PoolFormerImageProcessor(size={"shortest_edge": 32}, crop_size=SQUARE),
    "DeiT": lambda: DeiTImageProcessor(size={"height": 37, "width": 37}, crop_size=SQUARE),
    "no resize": lambda: MobileNetV2ImageProcessor(do_resize=False, crop_size=SQUARE),
    "timm, crop": timm_processor,
    "timm, squash": lambda: timm_processor(crop_mode="squash", mean=IMAGENET_MEAN, std=IMAGENET_STD),
}
WITH_STEPS = {"ViT", "MobileNetV2", "EfficientNet", "Segformer", "CLIP", "DeiT", "MobileViT"}
SIZES = [(40, 24), (24, 41), (10, 9), (333, 21), (32, 32)]  # (10, 9) is smaller than every crop


@pytest.fixture(scope="module")
def processors() -> dict:
    return {name: make() for name, make in PROCESSORS.items()}


def noise(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(width * height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def plain(colour: tuple[int, int, int]) -> Image.Image:
    return Image.new("RGB", (40, 30), colour)


def by_processor(processor, image: Image.Image) -> torch.Tensor:
    return processor(images=image, return_tensors="pt")["pixel_values"][0]


# ---- the parts of a processor ----


@pytest.mark.parametrize("name", PROCESSORS)
def test_pixels_and_normalize_are_the_processor(name, processors):
    """Pitfall 22 among them: timm's has no size and no mean that could be read."""
    processor = processors[name]
    geometry = Geometry.of(processor)
    for size in SIZES:
        pixels = geometry.pixels(noise(*size))
        assert (pixels.dtype, tuple(pixels.shape)) == (torch.uint8, (3, 32, 32))
        expected = by_processor(processor, noise(*size))
        torch.testing.assert_close(geometry.normalize(pixels[None])[0], expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("ViT", [51 / 255 * 2 - 1] * 3),
        ("CLIP", [(0.2 - 0.48145466) / 0.26862954, (0.2 - 0.4578275) / 0.26130258, (0.2 - 0.40821073) / 0.27577711]),
        # Rescaled to -1..1, normalised, and divided by the standard deviation once more.
        ("EfficientNet", [(-0.6 - mean) / 0.5 / 0.5 for mean in IMAGENET_MEAN]),
        ("MobileViT", [0.2] * 3),
        ("timm, squash", [(0.2 - mean) / std for mean, std in zip(IMAGENET_MEAN, IMAGENET_STD, strict=True)]),
    ],
)
def test_normalize_by_hand(name, values, processors):
    """Of the value 51, a fifth of 255, in every channel."""
    normalized = Geometry.of(processors[name]).normalize(torch.full((2, 3, 4, 4), 51, dtype=torch.uint8))
    torch.testing.assert_close(normalized[1, :, 2, 2], torch.tensor(values), rtol=0, atol=1e-5)
    assert normalized.dtype == torch.float32
    assert normalized.is_contiguous(memory_format=torch.channels_last)


def test_normalize_is_linear_so_that_pictures_are_mixed_before_it(processors):
    geometry = Geometry.of(processors["Segformer"])
    first, second = (geometry.pixels(noise(*size))[None] for size in SIZES[:2])
    mixed = geometry.normalize(0.3 * first + 0.7 * second)
    expected = 0.3 * geometry.normalize(first) + 0.7 * geometry.normalize(second)
    torch.testing.assert_close(mixed, expected, rtol=0, atol=1e-5)


def test_a_processor_that_wants_blue_first(processors):
    geometry, red = Geometry.of(processors["MobileViT"]), plain((255, 0, 0))
    assert geometry.channels == (2, 1, 0)
    pixels = geometry.pixels(red)
    assert pixels[:, 16, 16].tolist() == [255, 0, 0]  # pixels are RGB, also for the augmentation
    assert geometry.normalize(pixels[None])[0, :, 16, 16].tolist() == [0, 0, 1]
    assert Geometry.of(processors["ViT"]).channels == (0, 1, 2)


def test_the_fill_is_the_colour_that_becomes_zero(processors):
    fill = Geometry.of(processors["Segformer"]).fill
    assert fill == (124, 116, 104)  # 255 times ImageNet's mean
    assert by_processor(processors["Segformer"], plain(fill)).abs().max() < 0.01
    assert Geometry.of(processors["MobileViT"]).fill == (0, 0, 0)


def test_the_interpolation_is_the_processors():
    assert Geometry.of(ViTImageProcessor(size=SQUARE, resample=0)).interpolation == Image.Resampling.NEAREST
    assert Geometry.of(CLIPImageProcessor()).interpolation == Image.Resampling.BICUBIC
    assert Geometry.of(timm_processor(interpolation="bilinear")).interpolation == Image.Resampling.BILINEAR


def test_a_processor_is_measured_once_and_travels_to_the_workers(processors):
    geometry = Geometry.of(processors["CLIP"])
    assert Geometry.of(processors["CLIP"]) is geometry
    for name in ("CLIP", "ConvNext"):  # by steps, and by the processor
        geometry = Geometry.of(processors[name])
        there = pickle.loads(pickle.dumps(geometry))
        assert torch.equal(there.pixels(noise(40, 24)), geometry.pixels(noise(40, 24)))


class InFloat:
    """Resizes after it has rescaled, so that pixels are no whole numbers."""

    def __call__(self, images, return_tensors):
        values = torch.from_numpy(np.array(images)).permute(2, 0, 1)[None] / 255
        return BatchFeature({"pixel_values": torch.nn.functional.interpolate(values, (16, 16), mode="bilinear")})


def test_pixels_between_whole_numbers_stay_there():
    processor = InFloat()
    geometry = Geometry.of(processor)
    assert not geometry.in_8_bits
    pixels = geometry.pixels(noise(40, 24))
    assert pixels.dtype == torch.float32
    torch.testing.assert_close(
        geometry.normalize(pixels[None])[0], by_processor(processor, noise(40, 24)), rtol=0, atol=1e-4
    )


class Squared(InFloat):
    def __call__(self, images, return_tensors):
        return BatchFeature({"pixel_values": super().__call__(images, return_tensors)["pixel_values"] ** 2})


def test_a_processor_that_is_not_linear_is_refused():
    with pytest.raises(ModelError, match="Squared does more to a picture than to resample, crop and normalise it"):
        Geometry.of(Squared())


@pytest.mark.parametrize(
    ("processor", "made"),
    [
        (Siglip2ImageProcessor(), r"pixel_values, .*of the shape \(256, 768\)"),
        (
            ImageGPTImageProcessor(clusters=np.zeros((4, 3)), size={"height": 8, "width": 8}),
            r"input_ids .*shape \(0,\)",
        ),
    ],
)
def test_a_processor_that_makes_no_pictures_is_refused(processor, made):
    with pytest.raises(
        ModelError, match=rf"{type(processor).__name__} makes {made}; expected pixel_values \(3, height, wid"
    ):
        Geometry.of(processor)


@pytest.mark.parametrize(
    ("processor", "sizes"),
    [
        (ViTImageProcessor(size={"shortest_edge": 32}), r"\(32, 48\), \(48, 32\)"),
        (ViTImageProcessor(do_resize=False), r"\(64, 96\), \(96, 64\)"),
    ],
)
def test_pictures_of_several_sizes_need_one(processor, sizes):
    with pytest.raises(ModelError, match=rf"several sizes \(\[{sizes}\]\).*Give one with --image_size"):
        Geometry.of(processor)
    assert Geometry.of(with_image_size(processor, (32, 32))).size == (32, 32), "the advice helps"


# ---- steps ----


def test_steps_stand_in_for_the_processor_where_they_are_equal(processors):
    assert {name for name in PROCESSORS if Geometry.of(processors[name]).steps} == WITH_STEPS
    # Settings of this one look like a plain resize, but it crops.
    assert Steps.of(processors["ConvNext"], Image.Resampling.BICUBIC) == Steps((32,), None, InterpolationMode.BICUBIC)


@pytest.mark.parametrize("name", sorted(WITH_STEPS))
def test_steps_are_the_processor_bit_by_bit(name, processors):
    geometry, generator = Geometry.of(processors[name]), np.random.default_rng(0)
    by_the_processor = replace(geometry, steps=None)
    for width, height in generator.integers(5, 120, (20, 2)):
        picture = noise(width, height)
        assert torch.equal(geometry.pixels(picture), by_the_processor.pixels(picture)), (width, height)


def test_steps_that_are_off_by_one_are_not_taken(monkeypatch):
    right = Steps.__call__
    monkeypatch.setattr(Steps, "__call__", lambda self, image: right(self, image) ^ 1)
    processor = ViTImageProcessor(size=SQUARE)
    geometry = Geometry.of(processor)
    assert geometry.steps is None
    torch.testing.assert_close(
        geometry.normalize(geometry.pixels(noise(40, 24))[None])[0], by_processor(processor, noise(40, 24))
    )


# ---- other sizes ----


@pytest.mark.parametrize(
    ("processor", "size", "expected"),
    [
        (ViTImageProcessor(), (48, 64), {"size": {"height": 48, "width": 64}}),
        (
            MobileNetV2ImageProcessor(size={"shortest_edge": 256}, crop_size={"height": 224, "width": 224}),
            (112, 112),
            {"size": {"shortest_edge": 128}, "crop_size": {"height": 112, "width": 112}},
        ),
        (
            DeiTImageProcessor(size={"height": 256, "width": 256}, crop_size={"height": 224, "width": 224}),
            (112, 56),
            {"size": {"height": 128, "width": 64}, "crop_size": {"height": 112, "width": 56}},
        ),
        (CLIPImageProcessor(), (48, 96), {"size": {"shortest_edge": 96}, "crop_size": {"height": 48, "width": 96}}),
        (ConvNextImageProcessor(), (48, 48), {"size": {"shortest_edge": 48}}),
        (PoolFormerImageProcessor(), (48, 64), {"crop_size": {"height": 48, "width": 64}}),
        (DetrImageProcessor(), (48, 64), {"size": {"height": 48, "width": 64}}),
    ],
)
def test_another_size_is_cropped_from_as_much_more_as_before(processor, size, expected):
    before = processor.to_dict()
    other = with_image_size(processor, size)
    assert Geometry.of(other).size == size
    assert processor.to_dict() == before
    settings = {name: dict(value) for name, value in other.to_dict().items() if name in expected}
    assert {name: {key: side for key, side in value.items() if side} for name, value in settings.items()} == expected


def test_another_size_of_a_timm_processor_keeps_the_rest():
    processor = timm_processor(crop_pct=0.8, mean=IMAGENET_MEAN, std=IMAGENET_STD, interpolation="bicubic")
    other = with_image_size(processor, (48, 64))
    assert other.data_config == {**processor.data_config, "input_size": (3, 48, 64)}
    assert processor.data_config["input_size"] == (3, 32, 32)
    assert Geometry.of(other).size == (48, 64)


def test_a_size_that_the_processor_does_not_make():
    with pytest.raises(ArgumentError, match=r"--image_size 48 64: the pictures of ConvNextImageProcessor are square"):
        with_image_size(ConvNextImageProcessor(), (48, 64))
    # It crops first and resizes afterwards.
    with pytest.raises(ArgumentError, match=r"--image_size 64 64: PerceiverImageProcessor makes pictures of 56 x 56"):
        with_image_size(PerceiverImageProcessor(), (64, 64))


@pytest.mark.parametrize("name", ["MobileNetV2", "MobileViT", "DeiT", "Segformer"])
def test_pitfall_43_without_crop_the_whole_picture_is_seen(name, processors, tmp_path):
    """Twice as wide as high, with a white left quarter that a crop of the middle loses."""
    pixels = np.zeros((32, 64, 3), dtype=np.uint8)
    pixels[:, :16] = 255
    picture = Image.fromarray(pixels)
    whole = without_crop(processors[name], (32, 32))
    whole.save_pretrained(tmp_path)
    for processor in (whole, type(whole).from_pretrained(tmp_path)):
        geometry = Geometry.of(processor)
        assert geometry.size == (32, 32)
        seen = geometry.pixels(picture)
        assert seen[:, :, :6].min() > 250
        assert seen[:, :, 10:].max() < 5
        torch.testing.assert_close(
            geometry.normalize(seen[None])[0], by_processor(processor, picture), rtol=0, atol=1e-4
        )
    if name == "MobileNetV2":
        assert Geometry.of(processors[name]).pixels(picture)[:, :, :4].max() == 0


@pytest.mark.parametrize("name", ["ConvNext", "PoolFormer", "timm, crop"])
def test_processors_that_always_crop_make_no_masks(name, processors):
    with pytest.raises(ModelError, match="always crops pictures, and a mask is of the whole one"):
        without_crop(processors[name], (32, 32))
