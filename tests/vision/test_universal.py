"""Mask-classification models: their targets by hand, their own losses, and processors that squash to a fixed size."""

import pytest
import tiny
import torch
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForUniversalSegmentation,
    AutoTokenizer,
    DetrConfig,
    EomtConfig,
    MaskFormerImageProcessor,
    SegformerConfig,
)

from sft_hf.errors import ModelError
from sft_hf.losses import IGNORE_INDEX
from sft_hf.vision import universal
from sft_hf.vision.geometry import Geometry, fixed_size, without_crop

KINDS = ("maskformer", "mask2former", "oneformer")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    for kind in KINDS:
        tiny.save_segmenter(folder / kind, kind)
    return folder


def load(world, kind: str):
    return AutoModelForUniversalSegmentation.from_pretrained(world / kind)


def test_which_models_answer_with_masks(world):
    assert all(universal.is_universal(AutoConfig.from_pretrained(world / kind)) for kind in KINDS)
    assert not universal.is_universal(SegformerConfig())
    for kind in KINDS:
        universal.check_supported(AutoConfig.from_pretrained(world / kind))


@pytest.mark.parametrize("config", [EomtConfig(), DetrConfig()])
def test_models_with_other_targets_are_refused(config):
    with pytest.raises(ModelError) as error:
        universal.check_supported(config)
    assert str(error.value).startswith(f"A {config.model_type} is not supported as a semantic segmenter")
    assert "maskformer, mask2former, oneformer" in str(error.value)


def test_a_target_is_a_mask_for_each_class_that_is_there():
    labels = torch.tensor([[0, 0, 2], [2, IGNORE_INDEX, 2]], dtype=torch.int16)
    masks, ids = universal.targets(labels)
    assert ids.tolist() == [0, 2]
    assert ids.dtype == torch.int64
    assert masks.tolist() == [[[1, 1, 0], [0, 0, 0]], [[0, 0, 1], [1, 0, 1]]]


def test_a_picture_without_a_class_has_no_mask():
    masks, ids = universal.targets(torch.full((2, 3), IGNORE_INDEX))
    assert masks.shape == (0, 2, 3)
    assert ids.shape == (0,)


def batch_of(labels: list[torch.Tensor] | torch.Tensor, kind: str) -> dict:
    torch.manual_seed(0)
    batch = {"pixel_values": torch.rand(len(labels), 3, 64, 64), "labels": labels}
    if kind == "oneformer":
        batch["task_inputs"] = torch.ones(len(labels), 32)
    return batch


@pytest.mark.parametrize("kind", KINDS)
def test_the_sum_is_the_model_s_loss_times_the_pictures(kind, world):
    """Evaluation's masks have sizes of their own: they are resampled to the pictures', by the nearest pixel."""
    model = load(world, kind).eval()
    labels = torch.zeros(2, 64, 64, dtype=torch.int16)
    labels[:, 32:] = 3
    masks = torch.stack([labels[0] == 0, labels[0] == 3]).float()
    batch = batch_of(labels, kind)
    torch.manual_seed(1)  # the points at which masks are compared are drawn
    outputs, sums = universal.loss_sums(model, batch)
    inputs = {name: batch[name] for name in ("pixel_values", "task_inputs") if name in batch}
    torch.manual_seed(1)
    expected = model(**inputs, mask_labels=[masks, masks], class_labels=[torch.tensor([0, 3])] * 2).loss
    assert sums["items"].shape == ()
    assert sums["items"].item() == pytest.approx(2 * expected.item(), rel=1e-5)
    assert float(universal.OwnLoss().denominator(labels)) == 2
    smaller = batch_of([one[::2, ::2].contiguous() for one in labels], kind)
    torch.manual_seed(1)
    _, resampled = universal.loss_sums(model, smaller)
    assert resampled["items"].item() == pytest.approx(sums["items"].item(), rel=1e-5)
    assert outputs.class_queries_logits.shape[-1] == model.config.num_labels + 1, "the last one is of no class"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("empty", [(0,), (0, 1)])
def test_pictures_without_a_class_train(kind, empty, world):
    """A window of a picture, or all of a batch, can be void or padding."""
    model = load(world, kind).train()
    labels = torch.zeros(2, 64, 64, dtype=torch.int16)
    labels[list(empty)] = IGNORE_INDEX
    _, sums = universal.loss_sums(model, batch_of(labels, kind))
    sums["items"].backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert sums["items"].isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert sum(float(gradient.abs().sum()) for gradient in gradients) > 0


def test_without_masks_there_is_no_loss(world):
    batch = batch_of(torch.zeros(1, 64, 64), "maskformer")
    del batch["labels"]
    outputs, sums = universal.loss_sums(load(world, "maskformer").eval(), batch)
    assert sums == {}
    assert outputs.loss is None


def test_its_loss_is_the_model_s():
    with pytest.raises(NotImplementedError, match="The model computes it"):
        universal.OwnLoss()(torch.zeros(1), torch.zeros(1))


@pytest.mark.parametrize("kind", KINDS)
def test_processors_that_keep_proportions_squash_to_a_fixed_size(kind, world):
    """800 on the shorter side, 1333 at most on the longer: no two pictures would fit into one batch."""
    processor = AutoImageProcessor.from_pretrained(world / kind)
    with pytest.raises(ModelError, match="makes pictures of several sizes"):
        Geometry.of(processor)
    assert fixed_size(processor) == (64, 64)
    for size in ((64, 64), (48, 80)):
        squashing = without_crop(processor, size)
        assert Geometry.of(squashing).size == size
    assert processor.size["shortest_edge"] == 64, "the one that was given stays"


def test_a_processor_without_a_size_is_asked_for_one():
    processor = MaskFormerImageProcessor()
    processor.size = {"longest_edge": 500}
    with pytest.raises(ModelError, match=r"MaskFormerImageProcessor has a size of .*: give one with --image_size"):
        fixed_size(processor)


def test_one_former_s_task_is_filled_up_as_its_checkpoints_were(world):
    """By token 0, as OneFormerProcessor does; transformers.pipeline fills up with the padding token, CLIP's end of text."""
    image_processor = AutoImageProcessor.from_pretrained(world / "oneformer")
    tokenizer = AutoTokenizer.from_pretrained(world / "oneformer")
    config = AutoConfig.from_pretrained(world / "oneformer")
    processor = universal.with_tokenizer(without_crop(image_processor, (64, 64)), tokenizer)
    tokens = universal.task_inputs(processor, config)
    assert tokens.shape == (1, config.task_seq_len)
    length = len(tokenizer("the task is semantic").input_ids)
    assert (tokens[0, :length] > 0).all()
    assert (tokens[0, length:] == 0).all()
    assert processor.image_processor.repo_path is None, "no class names of other data are fetched"
    assert Geometry.of(processor).size == (64, 64)
    assert universal.task_inputs(processor, AutoConfig.from_pretrained(world / "maskformer")) is None


def test_answers_have_the_pictures_sizes(world):
    model, processor = load(world, "mask2former").eval(), AutoImageProcessor.from_pretrained(world / "mask2former")
    outputs = model(pixel_values=torch.rand(2, 3, 64, 64))
    answers = universal.answers(processor, outputs, [(5, 7), (64, 32)])
    assert [tuple(answer.shape) for answer in answers] == [(5, 7), (64, 32)]
    assert all(answer.max() < model.config.num_labels for answer in answers), "never the null class"
