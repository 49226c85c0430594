"""Semantic segmentation, stage by stage: masks that become class ids once, numbers at the masks' own resolution."""

import dataclasses
import io
import json
import logging
import math
import re
import weakref
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
from datasets import Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image
from test_trainer import gradient, relative_difference
from transformers import SegformerImageProcessor, pipeline
from transformers.modeling_outputs import SemanticSegmenterOutput

from sft_hf import build_trainer
from sft_hf.arguments import DataArguments, FinetuningArguments, ModelArguments
from sft_hf.data.sources import from_memory, load_splits
from sft_hf.errors import ArgumentError, DataError
from sft_hf.losses import IGNORE_INDEX
from sft_hf.pretrained import new_head
from sft_hf.task import Columns
from sft_hf.tasks.semantic_segmentation import MaskLabels, SemanticSegmentation
from sft_hf.vision.geometry import Geometry
from sft_hf.vision.masks import MaskClasses
from sft_hf.vision.universal import is_universal

COLUMNS = Columns(("image",), "mask")
NAMES = ("ground", *tiny.COLOURS)
CLASS_NAMES = ",".join(NAMES)
LABELS = MaskLabels(
    "semantic_segmentation", NAMES, "mask", classes=MaskClasses(NAMES, (0, 1, 2, 3), (255,)), pixel_counts=(10, 4, 4, 2)
)
PER_PIXEL = ("segformer", "mobilenet", "upernet", "dpt", "beit")


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """Pictures in folders, and a model of each kind."""
    folder = tmp_path_factory.mktemp("world")
    tiny.write_mask_folders(folder / "pairs", train=12, test=4)
    tiny.save_segformer(folder / "segformer")
    for kind in (*PER_PIXEL[1:], "maskformer", "mask2former", "oneformer"):
        tiny.save_segmenter(folder / kind, kind)
    return folder


def pairs(number: int, *, ignored_rows: bool = False) -> Dataset:
    """Pictures of 40 x 32 in memory; with `ignored_rows` each has another number of pixels that do not count."""
    made = {"image": [], "mask": []}
    for index, (_, image, mask) in enumerate(tiny.pictures(number)):
        ids = np.array(mask)
        if ignored_rows:
            ids[: 2 * index] = 255
        made["image"].append(image)
        made["mask"].append(Image.fromarray(ids))
    return Dataset.from_dict(made, features=Features(dict.fromkeys(made, ImageFeature())))


def make_trainer(
    output_dir: Path,
    model: Path | str,
    datasets: dict[str, Dataset],
    *,
    task: SemanticSegmentation | None = None,
    **flags,
):
    """A trainer of plain SGD at rate 1 in the order of the rows."""
    model_flags = {name: flags.pop(name) for name in ("from_scratch", "config_overrides") if name in flags}
    arguments = {
        "max_steps": 1,
        "learning_rate": 1.0,
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "lr_scheduler_type": "constant",
        "train_sampling_strategy": "sequential",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "cpu_bf16": "off",
        "dataloader_num_workers": 0,
        **flags,
    }
    return build_trainer(
        task or SemanticSegmentation(class_names=CLASS_NAMES),
        DataArguments(),
        ModelArguments(model_name_or_path=str(model), **model_flags),
        FinetuningArguments(output_dir=str(output_dir), **arguments),
        datasets=datasets,
    )


# ---- numbers ----


class Oracle(torch.nn.Module):
    """A model that reads the class of a pixel in its red channel, which is 20 times the class, at half the resolution."""

    def __init__(self, num_classes: int):
        super().__init__()
        self.num_classes = num_classes

    def forward(self, pixel_values):
        red = 255 * pixel_values[:, :1, ::2, ::2]
        return SemanticSegmenterOutput(logits=-(red - 20 * torch.arange(self.num_classes).view(1, -1, 1, 1)).abs())


def coloured(ids: np.ndarray) -> Image.Image:
    """A picture whose red is 20 times the class that the oracle shall answer."""
    return Image.fromarray(np.stack([20 * ids, 0 * ids, 0 * ids], axis=-1).astype(np.uint8))


def evaluated(task: SemanticSegmentation, labels: MaskLabels, image: Image.Image, mask: np.ndarray, *, window=None):
    """What the stages of evaluation make of a pair with the oracle: the metrics, and the prediction."""
    processor = SegformerImageProcessor(size={"height": 8, "width": 8}, image_mean=[0] * 3, image_std=[1] * 3)
    loss = task.load_loss(None, labels, FinetuningArguments(output_dir="unused"), tiny_config())
    read = task.load_reader(processor, None, COLUMNS, labels, split="validation", seed=0)
    example = read({"image": image, "labels": Image.fromarray(mask), "example_id": 3}, 0)
    batch = task.data_collator(processor, tiny_config())([example])
    batch["pixel_values"] = batch["pixel_values"] / 255
    outputs, sums = task.loss_sums(loss, Oracle(labels.num_labels), batch)
    metrics = task.load_metrics(labels, ModelArguments())
    predictions = task.predict(None, outputs, batch, processor)
    metrics.update(predictions, task.references(batch), example_id=batch["example_id"])
    denominators = task.loss_denominators(loss, batch)
    return metrics.compute(), predictions[0], {name: float(sums[name] / denominators[name]) for name in sums}


def tiny_config(model_type: str = "segformer") -> SimpleNamespace:
    """What the stages ask of a model beside its forward pass."""
    return SimpleNamespace(config=SimpleNamespace(model_type=model_type))


BLOCKS = np.array([[0, 1], [2, 3]], dtype=np.uint8).repeat(4, axis=0).repeat(4, axis=1)


def test_pitfall_13_a_perfect_answer_scores_1_whatever_does_not_count():
    """Neither a void class nor 255 is counted by the metric or by the loss; the answer there is wrong on purpose."""
    mask = BLOCKS.copy()
    mask[:2, :2] = 255
    metrics, prediction, loss = evaluated(SemanticSegmentation(), LABELS, coloured(BLOCKS), mask)
    assert metrics["mean_iou"] == metrics["overall_accuracy"] == metrics["mean_dice"] == 1
    assert loss["items"] < 0.1
    assert prediction[:2, :2].eq(0).all(), "there it answers too"


def test_pitfall_13_labels_are_reduced_once():
    """Raw id 0 is no class; 1, 2 and 3 are the model's 0, 1 and 2."""
    names = ("red", "green", "blue")
    labels = MaskLabels(
        "semantic_segmentation", names, "mask", classes=MaskClasses(names, (1, 2, 3), (0, 255)), pixel_counts=None
    )
    task = SemanticSegmentation(reduce_labels=True)
    answer = np.where(BLOCKS > 0, BLOCKS - 1, 2)
    metrics, _, _ = evaluated(task, labels, coloured(answer), BLOCKS)
    assert metrics["mean_iou"] == 1
    wrong = np.where(BLOCKS == 1, 1, answer)
    metrics, _, _ = evaluated(task, labels, coloured(wrong), BLOCKS)
    # red is not found; of the 32 pixels called green 16 are; blue is right
    assert metrics["mean_iou"] == pytest.approx((0 + 0.5 + 1) / 3)


def test_a_mask_is_scored_at_its_own_resolution():
    """16 x 24 pixels through a model of 8 x 8 whose logits are 4 x 4: they are resampled, not the mask."""
    mask = BLOCKS.repeat(2, axis=0).repeat(3, axis=1)
    metrics, prediction, _ = evaluated(SemanticSegmentation(), LABELS, coloured(mask), mask)
    assert prediction.shape == (16, 24)
    assert 0.6 < metrics["mean_iou"] < 1, "borders are off by a pixel"
    assert prediction[[0, 0, -1, -1], [0, -1, 0, -1]].tolist() == [0, 1, 2, 3]


@torch.no_grad()
def draw_weights(trainer) -> None:
    """Random weights by which no class is the answer everywhere, and none by a hair."""
    model = trainer.model.eval()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for name, parameter in model.named_parameters():
            if not is_universal(model.config) and parameter.dim() > 1:
                torch.nn.init.kaiming_normal_(parameter)
            elif any(word in name for word in ("class", "mask_embed", "queries")):
                parameter.normal_()
    if not is_universal(model.config):
        batch = trainer._prepare_inputs(next(iter(trainer.get_eval_dataloader())))
        heads = [module for module in model.modules() if getattr(module, "out_channels", 0) == len(NAMES)]
        heads[-1].bias -= model(pixel_values=batch["pixel_values"]).logits.mean(dim=(0, 2, 3))


@pytest.mark.parametrize("kind", [*PER_PIXEL, "builtin:fcn", "maskformer", "mask2former", "oneformer"])
def test_the_evaluation_sees_what_the_pipeline_sees(kind, world, tmp_path):
    """Masks of 40 x 32, models of 32 x 32 or 64 x 64."""
    model = kind if kind.startswith("builtin:") else world / kind
    scratch = {"from_scratch": kind == "oneformer"}
    options = {"config_overrides": ["backbone=test_resnet"]} if kind == "builtin:fcn" else scratch
    trainer = make_trainer(tmp_path, model, {"train": pairs(4), "validation": pairs(4)}, **options)
    draw_weights(trainer)
    predictions = trainer.predictions(trainer.eval_dataset)
    trainer.save_model(str(tmp_path / "saved"), _internal_call=True)
    saved = pipeline("image-segmentation", model=str(tmp_path / "saved"), device="cpu")
    inputs = [trainer.task.pipeline_inputs(row, COLUMNS, None) for row in pairs(4)]
    answers = [saved(image, **trainer.task.pipeline_options()) for image in inputs]
    assert max(len(answer) for answer in answers) > 1, "a constant answer proves nothing"
    assert all(prediction.shape == (32, 40) for prediction in predictions.values())
    # Random masks attend to what they just reach, so that the last digit of a pixel can move a few of them.
    tolerance = 0.02 if is_universal(trainer.model.config) else 1e-3
    assert trainer.task.reload_difference(list(predictions.values()), answers, LABELS) <= tolerance
    config = saved.model.config
    assert (config.num_labels, config.id2label) == (4, dict(enumerate(NAMES)))
    assert not getattr(saved.image_processor, "do_reduce_labels", False)


@pytest.mark.parametrize("kind", [*PER_PIXEL, "maskformer", "mask2former", "oneformer"])
@pytest.mark.parametrize("image_size", [None, [96, 64]])
def test_pitfall_43_the_whole_picture_is_seen(kind, image_size, world):
    """MobileNetV2's processor crops, and its pipeline stretches the mask of the crop to the whole picture."""
    task = SemanticSegmentation(image_size=image_size)
    arguments = ModelArguments(model_name_or_path=str(world / kind))
    processor = task.load_processor(arguments, pairs(1), COLUMNS)
    geometry = Geometry.of(processor)
    expected = (64, 64) if kind in ("maskformer", "mask2former", "oneformer") else (32, 32)
    assert geometry.size == (tuple(image_size) if image_size else expected)
    corners = Image.new("RGB", (400, 200))
    for index, corner in enumerate([(0, 0), (350, 0), (0, 150), (350, 150)]):
        corners.paste((50 + 50 * index,) * 3, (*corner, corner[0] + 50, corner[1] + 50))
    pixels = geometry.pixels(corners)[0]
    assert pixels[[0, 0, -1, -1], [0, -1, 0, -1]].tolist() == [50, 100, 150, 200]


def test_the_reload_check_sees_another_answer():
    """Two of eight pixels differ, and one that the pipeline calls no class differs too."""
    prediction = torch.tensor([[0, 0, 1, 1], [0, 0, 1, 1]])
    answered = [
        {"label": "ground", "mask": Image.fromarray(np.array([[255, 255, 0, 0], [0, 0, 0, 0]], dtype=np.uint8))},
        {"label": "red", "mask": Image.fromarray(np.array([[0, 0, 255, 255], [255, 0, 255, 255]], dtype=np.uint8))},
    ]
    assert SemanticSegmentation().reload_difference([prediction], [answered], LABELS) == 2 / 8


LOSSES = {
    "cross_entropy": {},
    "dice": {},
    "lovasz": {},
    "cross_entropy+dice": {"class_weights": "balanced"},
}


@pytest.mark.parametrize("loss", LOSSES)
def test_a_global_batch_has_one_gradient_however_it_is_cut(loss, world, tmp_path):
    """Pitfall 1: SegFormer's own loss is x3.96 at 4 accumulation steps. Pitfall 4: smoothing crashes it.

    The pictures have 1024 to 576 pixels that count. Batch normalisation, in the decoder, cannot be cut: it is taken out.
    """
    task = SemanticSegmentation(class_names=CLASS_NAMES, loss=loss, augmentation="none", **LOSSES[loss])
    data = pairs(8, ignored_rows=True)

    def of(batch_size: int, steps: int) -> torch.Tensor:
        smoothing = {"label_smoothing_factor": 0.1} if "cross_entropy" in loss else {}
        sizes = {"per_device_train_batch_size": batch_size, "gradient_accumulation_steps": steps}
        trainer = make_trainer(
            tmp_path, world / "segformer", {"train": data, "validation": data}, task=task, **sizes, **smoothing
        )
        trainer.model.decode_head.batch_norm = torch.nn.Identity()
        return gradient(trainer)

    whole = of(8, 1)
    assert whole.norm() > 0.01
    for batch_size, steps in ((4, 2), (2, 4)):
        assert relative_difference(of(batch_size, steps), whole) < 1e-5


def test_a_cross_entropy_is_a_mean_over_the_pixels_that_count(world, tmp_path):
    """The same number from the model's logits by torch alone, in training and in evaluation, whatever the batch size."""
    data = pairs(4, ignored_rows=True)
    losses = []
    for batch_size in (1, 3):
        trainer = make_trainer(
            tmp_path, world / "segformer", {"train": data, "validation": data}, per_device_eval_batch_size=batch_size
        )
        losses.append(trainer.evaluate()["eval_loss"])
    model, processor = trainer.model.eval(), trainer.processing_class
    total = counted = 0
    for row in data:
        ids = np.array(row["mask"]).astype(np.int64)
        mask = torch.from_numpy(np.where(ids == 255, IGNORE_INDEX, ids))
        logits = model(**processor(images=row["image"], return_tensors="pt")).logits
        logits = torch.nn.functional.interpolate(logits, size=(32, 40), mode="bilinear")
        total += torch.nn.functional.cross_entropy(
            logits, mask[None], reduction="sum", ignore_index=IGNORE_INDEX
        ).item()
        counted += int((mask != IGNORE_INDEX).sum())
    assert counted == 4 * 32 * 40 - (2 + 4 + 6) * 40
    assert losses == pytest.approx([total / counted] * 2, rel=1e-5)


def test_balanced_weights_come_from_the_pixels():
    """40 pixels, 4 classes: 40 / (4 x 20) = 0.5 for a class with half of them, 5 for one of two."""
    labels = MaskLabels("semantic_segmentation", NAMES, "mask", classes=LABELS.classes, pixel_counts=(20, 10, 8, 2))
    task = SemanticSegmentation(class_weights="balanced")
    loss = task.load_loss(None, labels, FinetuningArguments(output_dir="unused"), tiny_config())
    assert loss.class_weights.tolist() == pytest.approx([0.5, 1.0, 1.25, 5.0])


def test_a_stream_has_no_pixel_counts_to_balance_by():
    labels = MaskLabels("semantic_segmentation", NAMES, "mask", classes=LABELS.classes, pixel_counts=None)
    with pytest.raises(ArgumentError, match="--class_weights balanced counts the whole training set first"):
        SemanticSegmentation(class_weights="balanced").load_loss(
            None, labels, FinetuningArguments(output_dir="unused"), tiny_config()
        )


@pytest.mark.parametrize("kind", [*PER_PIXEL, "builtin:fcn"])
def test_a_new_head_starts_at_the_logarithm_of_the_shares(kind, world, tmp_path):
    """In every architecture it is the last convolution of the head, not of one beside it, which none has."""
    model = kind if kind.startswith("builtin:") else world / kind
    options = {"config_overrides": ["backbone=test_resnet"]} if kind == "builtin:fcn" else {}
    data = pairs(6)
    trainer = make_trainer(tmp_path, model, {"train": data, "validation": data}, **options)
    pixels = np.bincount(np.concatenate([np.array(mask).ravel() for mask in data["mask"]]))
    expected = torch.from_numpy(np.log(pixels / pixels.sum())).float()
    heads = [
        module for module in trainer.model.modules() if isinstance(module, torch.nn.Conv2d) and module.out_channels == 4
    ]
    biases = [head.bias for head in heads if head.bias is not None and head.bias.any()]
    assert len(biases) == 1
    torch.testing.assert_close(biases[0].detach(), expected)
    assert not any("auxiliary" in name for name, _ in trainer.model.named_modules())
    assert new_head(trainer.model, 4, torch.nn.Conv2d) is None, "it is new no more"


def test_the_head_starts_at_the_shares_as_the_weights_weigh_them(tmp_path):
    """Balanced classes all weigh alike, as a new head has it; a class that weighs nothing starts low, not at minus infinity.

    A convolution of a mask classifier, which can have as many outputs by chance, is none, nor is there one to find in a stream.
    """
    (tmp_path / "weights.json").write_text(json.dumps({"ground": 1, "red": 2, "green": 3, "blue": 0}))
    model = tiny_head("mask2former")
    SemanticSegmentation().initialise(model, None, LABELS)
    assert not model.classifier.bias.any()
    model = tiny_head()
    SemanticSegmentation(class_weights="balanced").initialise(model, None, LABELS)
    SemanticSegmentation().initialise(model, None, dataclasses.replace(LABELS, pixel_counts=None))
    assert not model.classifier.bias.any()
    SemanticSegmentation(class_weights=str(tmp_path / "weights.json")).initialise(model, None, LABELS)
    # 10 x 1, 4 x 2, 4 x 3 and 2 x 0 of 30
    expected = [math.log(10 / 30), math.log(8 / 30), math.log(12 / 30), math.log(1e-9)]
    assert model.classifier.bias.tolist() == pytest.approx(expected, rel=1e-5)


def tiny_head(model_type: str = "segformer") -> torch.nn.Module:
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.classifier = torch.nn.Conv2d(3, 4, 1)
            torch.nn.init.zeros_(self.classifier.bias)
            self.config = tiny_config(model_type).config

    return Model()


def test_pitfall_19_an_evaluation_keeps_no_mask(world, tmp_path):
    """Of eight pictures in eight batches no more than the one under way is alive."""
    alive, most = weakref.WeakSet(), []

    class Watching(SemanticSegmentation):
        def predict(self, model, outputs, batch, processor):
            predictions = super().predict(model, outputs, batch, processor)
            for prediction in predictions:
                alive.add(prediction)
            most.append(len(alive))
            return predictions

    data = pairs(8)
    trainer = make_trainer(
        tmp_path, world / "segformer", {"train": data, "validation": data},
        task=Watching(class_names=CLASS_NAMES), per_device_eval_batch_size=1,
    )  # fmt: skip
    trainer.evaluate()
    assert len(most) == 8
    assert max(most) <= 2
    assert len(alive) == 0


def test_pitfall_28_the_columns_that_the_reader_needs_stay(world, tmp_path):
    data = pairs(4)
    trainer = make_trainer(
        tmp_path, world / "segformer", {"train": data, "validation": data}, remove_unused_columns=True
    )
    batch = next(iter(trainer.get_train_dataloader()))
    assert batch["pixel_values"].shape == (4, 3, 32, 32)
    assert batch["pixel_values"].dtype == torch.uint8
    assert batch["labels"].shape == (4, 32, 32)
    assert batch["example_id"].tolist() == [0, 1, 2, 3]


def test_the_squares_are_learnt(world, tmp_path):
    """A loss that falls is no proof: the colour of a square among noise is an easy task."""
    tiny.write_mask_folders(tmp_path / "pairs")
    flags = ["--class_weights", "balanced", "--augmentation", "none", "--per_device_train_batch_size", 4]
    run = tiny.run_recipe(
        "--dataset_name", tmp_path / "pairs", "--model_name_or_path", world / "segformer",
        "--output_dir", tmp_path / "run", *flags, recipe="image_seg", num_train_epochs=3, learning_rate=0.01,
    )  # fmt: skip
    assert run.exit_code == 0, run.output
    assert run.metrics["mean_iou"] > 0.6


# ---- data ----


def labels_of(task: SemanticSegmentation, folder: Path | None = None, **datasets: Dataset) -> MaskLabels:
    """The stage `labels` on a folder or on datasets in memory."""
    source = (
        from_memory(datasets, DataArguments()) if datasets else load_splits(DataArguments(dataset_name=str(folder)))
    )
    return task.labels(source, task.columns(source.splits["train"].features))


def of_masks(masks: list[np.ndarray | Image.Image], *, file_format: str = "PNG") -> Dataset:
    """Black pictures with these masks, as files in memory that are called 0.png, 1.png ..."""
    rows = {"image": [], "mask": []}
    for index, mask in enumerate(masks):
        mask = mask if isinstance(mask, Image.Image) else Image.fromarray(mask)
        for name, picture in (("image", Image.new("RGB", mask.size)), ("mask", mask)):
            content = io.BytesIO()
            picture.save(content, format=file_format if name == "mask" else "PNG")
            rows[name].append({"bytes": content.getvalue(), "path": f"{index}.png"})
    return Dataset.from_dict(rows, features=Features(dict.fromkeys(rows, ImageFeature())))


IDS = np.array([[0, 1, 1], [2, 2, 2]], dtype=np.uint8)


def test_the_names_come_from_id2label_json_or_the_flag(world):
    labels = labels_of(SemanticSegmentation(), world / "pairs")
    assert labels.names == NAMES
    assert labels.problem_type == "semantic_segmentation"
    assert sum(labels.pixel_counts) == 12 * 32 * 40, "the training split's alone"
    flag = SemanticSegmentation(class_names="floor, a,b, c")
    assert labels_of(flag, world / "pairs").names == ("floor", "a", "b", "c")
    with pytest.raises(DataError, match=r"The masks hold the values 0, 1, 2, and nothing names them.*--class_names"):
        labels_of(SemanticSegmentation(), train=of_masks([IDS]))


def test_palettes_are_ids_and_colours_need_a_table(tmp_path):
    palette = Image.fromarray(IDS)
    palette.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200])
    labels = labels_of(SemanticSegmentation(class_names="a,b,c"), train=of_masks([palette]))
    assert labels.pixel_counts == (1, 2, 3)
    colours = palette.convert("RGB")
    with pytest.raises(DataError, match=r"train: pairs of .*1 of 1: row 0: The mask 0.png holds colors.*--mask_colors"):
        labels_of(SemanticSegmentation(class_names="a,b,c"), train=of_masks([colours]))
    table = tmp_path / "colours.json"
    table.write_text(json.dumps({"void": [200, 0, 0], "tree": [0, 200, 0], "sky": [0, 0, 200]}))
    labels = labels_of(SemanticSegmentation(mask_colors=str(table)), train=of_masks([colours]))
    assert (labels.names, labels.pixel_counts, labels.classes.ignored_ids) == (("tree", "sky"), (2, 3), (0, 255, 65535))


def test_classes_that_do_not_count(caplog):
    """By the name void, by --ignore_label_ids, and 255 by itself: what is left moves together."""
    mask = np.array([[0, 1, 2, 3, 255]], dtype=np.uint8)
    task = SemanticSegmentation(class_names="void,road,car,sky", ignore_label_ids=[2])
    with caplog.at_level(logging.INFO, "sft_hf"):
        labels = labels_of(task, train=of_masks([mask]))
    assert labels.names == ("road", "sky")
    assert labels.classes.encode(mask).tolist() == [[-100, 0, -100, 1, -100]]
    assert "mask value 0 (void) is ignored in loss and metrics, 20.0% of the pixels: by its name" in caplog.text


def test_an_unknown_value_stops_the_run_before_training_with_the_value_and_the_file(world, tmp_path):
    for split, number in (("train", 12), ("test", 2)):
        for index in range(number):
            for kind in ("images", "masks"):
                path = tmp_path / "data" / split / kind / f"{index}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes((world / "pairs" / "train" / kind / f"{index}.png").read_bytes())
    mask = np.array(Image.open(tmp_path / "data" / "test" / "masks" / "1.png"))
    mask[0, :3] = 9
    Image.fromarray(mask).save(tmp_path / "data" / "test" / "masks" / "1.png")
    flags = [
        "--dataset_name",
        tmp_path / "data",
        "--model_name_or_path",
        world / "segformer",
        "--class_names",
        CLASS_NAMES,
    ]
    run = tiny.run_recipe(*flags, "--output_dir", tmp_path / "run", recipe="image_seg")
    assert run.exit_code == 2
    assert "The masks hold the value 9 in 3 pixels" in run.output
    assert "(in test, row 1 (1.png))" in run.output
    assert not list((tmp_path / "run").glob("checkpoint-*"))


def bad_pairs() -> Dataset:
    """A good pair, a mask of another size, a JPEG, a broken file, no mask, and a good one."""
    data = of_masks([IDS] * 6)
    rows = [
        {name: data.cast_column(name, ImageFeature(decode=False))[row][name] for name in data.features}
        for row in range(6)
    ]
    rows[1]["mask"] = of_masks([IDS.T]).cast_column("mask", ImageFeature(decode=False))[0]["mask"]
    rows[2]["mask"] = of_masks([IDS], file_format="JPEG").cast_column("mask", ImageFeature(decode=False))[0]["mask"]
    rows[3]["mask"] = {"bytes": rows[3]["mask"]["bytes"][:40], "path": "broken.png"}
    rows[4]["mask"] = None
    return Dataset.from_list(rows, features=data.features)


def test_bad_pairs_end_the_run(caplog):
    with pytest.raises(DataError) as error:
        labels_of(SemanticSegmentation(class_names="a,b,c"), train=bad_pairs())
    message = str(error.value)
    assert message.startswith("train: pairs of a picture and a mask that cannot be used: 4 of 6: row 1: ")
    for part in (
        "the picture has 3 x 2 pixels, its mask 2 x 3",
        "row 2: The mask 0.png is a JPEG file, which keeps ids and colors only nearly",
        "row 3: broken.png",
        "row 4: no mask",
        "--on_bad_example skip",
    ):
        assert part in message


def test_bad_pairs_are_left_out_by_name(caplog):
    task = SemanticSegmentation(class_names="a,b,c", on_bad_example="skip")
    labels = labels_of(task, train=bad_pairs())
    assert labels.pixel_counts == (2, 4, 6)
    left = task.select_examples(bad_pairs().add_column("example_id", list(range(6))), COLUMNS, labels, split="train")
    assert left["example_id"][:] == [0, 5]
    assert "row 2: The mask 0.png is a JPEG" in caplog.text
    assert "they are left out" in caplog.text


def test_where_all_pairs_are_bad_there_is_nothing_to_skip():
    with pytest.raises(
        DataError, match="train: pairs of a picture and a mask that cannot be used: 1 of 1: row 0: no mask"
    ):
        labels_of(SemanticSegmentation(class_names="a,b", on_bad_example="skip"), train=bad_pairs().select([4]))


def test_a_split_without_masks_is_named():
    task = SemanticSegmentation(class_names="a,b,c")
    data = of_masks([IDS]).add_column("example_id", [0])
    labels = labels_of(task, train=of_masks([IDS]))
    with pytest.raises(DataError, match=r"The validation split has no column 'mask'; it has image, example_id"):
        task.select_examples(data.remove_columns("mask"), COLUMNS, labels, split="validation")


@pytest.mark.parametrize("has_column", [True, False])
def test_a_test_split_without_masks_is_predicted_and_not_scored(has_column, world, tmp_path):
    """The column is missing, or has no mask in it."""
    rows = [
        {"image": str(world / "pairs" / "train" / "images" / f"{index}.png"), "mask": str(world / "pairs" / "train" / "masks" / f"{index}.png")}
        for index in range(12)
    ]  # fmt: skip
    tiny.write_rows(tmp_path / "train.csv", rows)
    tiny.write_rows(
        tmp_path / "test.csv", [{**row, "mask": ""} if has_column else {"image": row["image"]} for row in rows[:3]]
    )
    run = tiny.run_recipe(
        "--train_file", tmp_path / "train.csv", "--test_file", tmp_path / "test.csv", "--class_names", CLASS_NAMES,
        "--model_name_or_path", world / "segformer", "--output_dir", tmp_path / "run", recipe="image_seg", num_train_epochs=1,
    )  # fmt: skip
    assert run.exit_code == 0, run.output
    assert "the test split has no masks: its predictions are written, nothing is scored" in run.output
    assert list(json.loads((tmp_path / "run" / "results.json").read_text())["metrics"]) == ["validation"]
    lines = [json.loads(line) for line in (tmp_path / "run" / "predictions" / "test.jsonl").read_text().splitlines()]
    for line in lines:
        written = Image.open(tmp_path / "run" / "predictions" / line["predicted_mask"])
        assert (written.mode, written.size) == ("P", (40, 32))
        ids, pixels = np.unique(np.array(written), return_counts=True)
        shares = {NAMES[index]: round(int(number) / 1280, 4) for index, number in zip(ids, pixels, strict=True)}
        assert line["shares"] == shares
    assert [line["example_id"] for line in lines] == [0, 1, 2]


def test_a_stream_is_read_with_the_names_beside_it(world, tmp_path):
    """Its first masks are checked before training, and there are no pixel counts for the head."""
    run = tiny.run_recipe(
        "--dataset_name", world / "pairs", "--streaming", "--validation_split_name", "test", "--max_steps", 2,
        "--eval_steps", 2, "--save_steps", 2, "--model_name_or_path", world / "segformer", "--output_dir", tmp_path / "run",
        recipe="image_seg", eval_strategy="steps", save_strategy="steps",
    )  # fmt: skip
    assert run.exit_code == 0, run.output
    assert "4 outputs: ground, red, green, blue" in run.output
    assert "the new head starts" not in run.output
    stream = load_splits(DataArguments(dataset_name=str(world / "pairs"), streaming=True))
    with pytest.raises(DataError, match=r"The masks hold the value 3 in \d+ pixels"):
        SemanticSegmentation(class_names="a,b,c").labels(stream, COLUMNS)


def test_bad_pairs_of_a_stream_end_the_run_when_they_are_read_or_are_left_out(caplog):
    labels = labels_of(SemanticSegmentation(class_names="a,b,c"), train=of_masks([IDS]))
    stream = bad_pairs().add_column("example_id", list(range(6))).to_iterable_dataset()
    task = SemanticSegmentation(on_bad_example="skip")
    left = task.select_examples(stream, COLUMNS, labels, split="train")
    assert [row["example_id"] for row in left] == [0, 5]
    assert "left out: no mask" in caplog.text
    kept = SemanticSegmentation().select_examples(stream, COLUMNS, labels, split="train")
    assert len(list(kept)) == 6


# ---- augmentation ----


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"scale_range": [0.0, 2.0]}, "--scale_range 0.0 2.0: expected the smallest and the largest scale"),
        ({"scale_range": [0.5, 1.0, 2.0]}, "--scale_range 0.5 1.0 2.0: expected"),
        ({"scale_range": [2.0, 0.5]}, "--scale_range 2.0 0.5: expected"),
        ({"scale_range": [0.5, math.inf]}, "--scale_range 0.5 inf: expected"),
        ({"eval_window": [0, 32]}, "--eval_window 0 32: expected height and width in pixels, or one number for both"),
        ({"eval_window": [32, 32, 3]}, "--eval_window 32 32 3: expected"),
        ({"image_size": [0]}, "--image_size 0: expected height and width"),
    ],
)
def test_sizes_and_scales_that_are_none(flags, message):
    with pytest.raises(ArgumentError, match=f"^{re.escape(message)}"):
        SemanticSegmentation(**flags)


def test_a_bad_scale_on_the_command_line_is_an_error_of_the_user(tmp_path):
    run = tiny.run_recipe("--scale_range", "2", "0.5", "--output_dir", tmp_path / "run", recipe="image_seg")
    assert run.exit_code == 2
    assert "--scale_range 2.0 0.5: expected the smallest and the largest scale, such as 0.5 2.0." in run.output


def drawn(world: Path, tmp_path: Path, **flags) -> tuple[torch.Tensor, torch.Tensor]:
    """Forty windows of one picture and its mask."""
    data = pairs(1)
    task = SemanticSegmentation(class_names=CLASS_NAMES, **flags)
    trainer = make_trainer(tmp_path, world / "segformer", {"train": data, "validation": data}, task=task)
    read = trainer._read_train
    examples = [read(trainer.train_dataset[0], epoch) for epoch in range(40)]
    return tuple(torch.stack([example[name] for example in examples]) for name in ("pixel_values", "labels"))


def test_augmentation_is_none_light_or_full(world, tmp_path):
    pixels, labels = drawn(world, tmp_path, augmentation="none")
    assert (pixels == pixels[0]).all()
    assert (labels == labels[0]).all()
    pixels, labels = drawn(world, tmp_path, scale_range=[1.0, 1.0])
    mirrored = sum(not torch.equal(one, labels[0]) for one in labels)
    assert {tuple(one.flatten().tolist()) for one in labels} == {
        tuple(one.flatten().tolist()) for one in (labels[0], labels[0].flip(-1))
    }
    assert 10 <= mirrored <= 30
    pixels, labels = drawn(world, tmp_path, scale_range=[1.0, 1.0], horizontal_flip=False)
    assert (labels == labels[0]).all()
    assert (pixels == pixels[0]).all()
    pixels, labels = drawn(world, tmp_path, scale_range=[1.0, 1.0], horizontal_flip=False, augmentation="full")
    assert (labels == labels[0]).all()
    assert sum(bool((one != pixels[0]).any()) for one in pixels) > 30
    _, labels = drawn(world, tmp_path, scale_range=[0.5, 0.5])
    assert ((labels != IGNORE_INDEX).flatten(1).sum(dim=1) == 16 * 16).all()


def test_pitfall_44_neither_workers_nor_a_resume_change_a_bit(world, tmp_path):
    """Two epochs of three steps: with two workers, and cut in the middle of the second epoch."""
    data = {"train": pairs(12), "validation": pairs(2)}
    common = {
        "max_steps": 6,
        "per_device_train_batch_size": 4,
        "learning_rate": 0.1,
        "train_sampling_strategy": "random",
    }

    def weights(name: str, *, resume: str | None = None, **flags) -> torch.Tensor:
        task = SemanticSegmentation(class_names=CLASS_NAMES, augmentation="full")
        trainer = make_trainer(tmp_path / name, world / "segformer", data, task=task, **{**common, **flags})
        trainer.train(resume_from_checkpoint=resume)
        return torch.cat([parameter.detach().ravel() for parameter in trainer.model.parameters()])

    whole = weights("whole", save_strategy="steps", save_steps=4)
    assert torch.equal(weights("workers", dataloader_num_workers=2), whole)
    assert torch.equal(weights("resumed", resume=str(tmp_path / "whole" / "checkpoint-4")), whole)
    assert not torch.equal(weights("seed", data_seed=7), whole)


# ---- sliding windows ----


def test_windows_of_an_oracle_make_the_whole_picture():
    """A 32 x 40 picture in windows of 16: 3 x 4 of them, the last column flush with the border and so nearer to the third."""
    mask = BLOCKS.repeat(4, axis=0).repeat(5, axis=1)
    task = SemanticSegmentation(eval_window=[16])
    metrics, prediction, loss = evaluated(task, LABELS, coloured(mask), mask)
    assert prediction.shape == (32, 40)
    assert metrics["mean_iou"] > 0.9
    assert prediction[[0, 0, -1, -1], [0, -1, 0, -1]].tolist() == [0, 1, 2, 3]
    assert 0 < loss["items"] < 0.5
    coarse, _, _ = evaluated(SemanticSegmentation(), LABELS, coloured(mask), mask)
    assert coarse["mean_iou"] < metrics["mean_iou"], "8 x 8 pixels of a window are more than of a picture"


def test_a_window_as_large_as_the_picture_changes_nothing():
    mask = BLOCKS.repeat(2, axis=0).repeat(3, axis=1)
    whole = evaluated(SemanticSegmentation(), LABELS, coloured(mask), mask)
    windowed = evaluated(SemanticSegmentation(eval_window=[16, 24]), LABELS, coloured(mask), mask)
    assert torch.equal(whole[1], windowed[1])
    assert whole[2] == windowed[2]


def test_a_run_with_windows(world, tmp_path):
    """It is reloaded, and its card says what was evaluated; the pipeline sees one window."""
    flags = ["--eval_window", 16, 24, "--class_weights", "balanced", "--augmentation", "none"]
    run = tiny.run_recipe(
        "--dataset_name", world / "pairs", "--model_name_or_path", world / "segformer", "--output_dir", tmp_path / "run",
        *flags, recipe="image_seg", num_train_epochs=1,
    )  # fmt: skip
    assert run.exit_code == 0, run.output
    assert "reloaded with transformers.pipeline" in run.output
    card = (tmp_path / "run" / "README.md").read_text()
    assert 'segmenter = pipeline("image-segmentation"' in card
    assert 'segmenter(picture.crop((0, 0, 24, 16)), subtask="semantic")' in card
    assert "windows of 16 x 24 pixels" in card
    assert len(list((tmp_path / "run" / "reports" / "overlays").iterdir())) == 1


def test_the_reload_check_of_windows_compares_what_the_first_one_saw_alone(world, tmp_path):
    """Pictures of 32 x 40 in windows of 16 x 24: the next ones begin at 8 below and 12 to the right."""
    data = pairs(4)
    task = SemanticSegmentation(class_names=CLASS_NAMES, eval_window=[16, 24])
    trainer = make_trainer(tmp_path, world / "segformer", {"train": data, "validation": data}, task=task)
    draw_weights(trainer)
    predictions = list(trainer.predictions(trainer.eval_dataset).values())
    trainer.save_model(str(tmp_path / "saved"), _internal_call=True)
    saved = pipeline("image-segmentation", model=str(tmp_path / "saved"), device="cpu")
    inputs = [task.pipeline_inputs(row, COLUMNS, None) for row in data]
    assert [image.size for image in inputs] == [(24, 16)] * 4
    answers = [saved(image, **task.pipeline_options()) for image in inputs]
    assert max(len(answer) for answer in answers) > 1
    assert task.reload_difference(predictions, answers, LABELS) <= 1e-3
    predictions[0][:8, :12] += 1
    assert task.reload_difference(predictions, answers, LABELS) == pytest.approx(1 / 4, abs=1e-3)
    predictions[1][8:], predictions[1][:, 12:] = 0, 0
    assert task.reload_difference(predictions, answers, LABELS) == pytest.approx(1 / 4, abs=1e-3)


def test_training_with_windows_sees_parts_of_that_size(world, tmp_path):
    """At scale 1 a window of 16 x 20 is a quarter of the picture, enlarged to the model's 32 x 32."""
    _, labels = drawn(world, tmp_path, eval_window=[16, 20], scale_range=[1.0, 1.0], horizontal_flip=False)
    assert (labels != IGNORE_INDEX).all()
    assert len({tuple(one.flatten().tolist()) for one in labels}) > 20


def test_builtin_fcn_takes_the_window_for_its_size(tmp_path):
    data = of_masks([np.zeros((200, 300), dtype=np.uint8)])
    arguments = ModelArguments(model_name_or_path="builtin:fcn", config_overrides=["backbone=test_resnet"])
    sizes = {}
    for window in (None, [64, 96], [50]):
        processor = SemanticSegmentation(eval_window=window).load_processor(arguments, data, COLUMNS)
        sizes[str(window)] = processor.size["height"], processor.size["width"]
    assert sizes == {"None": (192, 288), "[64, 96]": (64, 96), "[50]": (64, 64)}


# ---- universal models ----


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"loss": "dice"}, "--loss dice: a mask2former has a loss of its own; leave the flag out."),
        ({"class_weights": "balanced"}, "--class_weights balanced: a mask2former has a loss of its own"),
        ({"eval_window": [16]}, "--eval_window: a mask2former answers with masks of whole pictures"),
    ],
)
def test_what_a_universal_model_has_no_use_for(flags, message, world):
    arguments = ModelArguments(model_name_or_path=str(world / "mask2former"))
    task = SemanticSegmentation(**flags)
    processor = task.load_processor(arguments, None, COLUMNS)
    with pytest.raises(ArgumentError, match=re.escape(message)):
        task.load_model(arguments, LABELS, processor)


def test_a_universal_model_is_not_smoothed(world, tmp_path):
    with pytest.raises(ArgumentError, match="--label_smoothing_factor: a mask2former has a loss of its own"):
        make_trainer(
            tmp_path, world / "mask2former", {"train": pairs(2), "validation": pairs(2)}, label_smoothing_factor=0.1
        )
