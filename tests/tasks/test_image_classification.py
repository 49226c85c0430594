"""Image classification, stage by stage and in whole runs: what is trained on, what the evaluation sees, and what is said."""

import io
import json
import logging
import pickle
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from datasets import ClassLabel, Dataset, Features, List, Value
from datasets import Image as ImageFeature
from PIL import Image
from safetensors.torch import load_file, save_file
from test_trainer import gradient, relative_difference
from torch.utils.data import DataLoader
from transformers import (
    BitImageProcessor,
    CLIPConfig,
    CLIPForImageClassification,
    CLIPImageProcessor,
    Dinov2Config,
    Dinov2ForImageClassification,
    pipeline,
)

from sft_hf import build_trainer
from sft_hf.arguments import DataArguments, FinetuningArguments, ModelArguments
from sft_hf.data.labels import Labels
from sft_hf.data.order import KeyedByEpoch, ReadExamples, Shuffled
from sft_hf.data.sources import from_memory
from sft_hf.errors import ArgumentError, DataError, ModelError
from sft_hf.methods.mixup import Mixup
from sft_hf.preparation import prepare
from sft_hf.task import Columns
from sft_hf.tasks.image_classification import ImageClassification
from sft_hf.vision.geometry import Geometry

COLUMNS = Columns(("image",), "label")
NAMES = ("blue", "green", "red")
SINGLE = Labels("single_label_classification", NAMES)
ARGUMENTS = FinetuningArguments(output_dir="unused")
QUICK = {"dataloader_num_workers": 0, "num_train_epochs": 1, "recipe": "image_cls"}


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """Models and pictures by name."""
    folder = tmp_path_factory.mktemp("world")
    tiny.save_vit(folder / "vit")
    tiny.save_timm(folder / "timm")
    tiny.write_class_folders(folder / "colours", train=24, test=6)
    return folder


@pytest.fixture(autouse=True)
def _log(monkeypatch, caplog):
    monkeypatch.setattr(logging.getLogger("sft_hf"), "propagate", True)
    caplog.set_level(logging.INFO, logger="sft_hf")


def png(image: Image.Image, path: str = "1.png") -> dict:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": path}


def colours(number: int, kind: str = "single", *, seed: int = 0) -> Dataset:
    """Pictures with a class each, with one or two labels, or with a number."""
    made = tiny.pictures(number, seed=seed)
    names = [colour for colour, _, _ in made]
    labels, feature = {
        "single": (names, ClassLabel(names=list(NAMES))),
        "multi": ([sorted({name, NAMES[i % 2]}) for i, name in enumerate(names)], List(Value("string"))),
        "numbers": ([float(NAMES.index(name)) for name in names], Value("float32")),
    }[kind]
    features = Features({"image": ImageFeature(decode=False), "label": feature})
    return Dataset.from_dict({"image": [png(image) for _, image, _ in made], "label": labels}, features=features)


def selected(dataset: Dataset, task: ImageClassification, labels: Labels = SINGLE, split: str = "train") -> Dataset:
    source = from_memory({"train": dataset}, DataArguments())
    return task.select_examples(source.splits["train"], COLUMNS, labels, split=split)


def loaded(path: Path | str, task: ImageClassification | None = None, labels: Labels = SINGLE, **model_args):
    task, arguments = task or ImageClassification(), ModelArguments(model_name_or_path=str(path), **model_args)
    processor = task.load_processor(arguments, None, COLUMNS)
    return task, processor, task.load_model(arguments, labels, processor)


def trainer_of(
    output_dir: Path,
    dataset: Dataset,
    model: Path,
    *,
    task: ImageClassification | None = None,
    methods: tuple = (),
    **flags,
):
    quick = {"max_steps": 1, "save_strategy": "no", "report_to": "none", "disable_tqdm": True, "cpu_bf16": "off"}
    quick |= {"learning_rate": 0.01, "lr_scheduler_type": "constant", "dataloader_num_workers": 0}
    return build_trainer(
        task or ImageClassification(),
        DataArguments(),
        ModelArguments(model_name_or_path=str(model)),
        FinetuningArguments(output_dir=str(output_dir), **{**quick, **flags}),
        methods=methods,
        datasets={"train": dataset, "validation": dataset},
    )


# ---- columns and rows ----


def test_columns_are_found_or_named():
    features = Features({"img": ImageFeature(), "label": ClassLabel(names=["a", "b"]), "example_id": Value("int64")})
    assert ImageClassification().columns(features) == Columns(("img",), "label")
    features = Features({"a": ImageFeature(), "b": ImageFeature(), "kind": Value("string")})
    task = ImageClassification(image_column_name="b", label_column_name="kind")
    assert task.columns(features) == Columns(("b",), "kind")


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (
            {"text": Value("string"), "label": Value("int64")},
            "No column looks like the image.*'text'.*--image_column_name",
        ),
        ({"image": ImageFeature(), "file": Value("string")}, "No column looks like the label.*--label_column_name"),
        (
            {"a": ImageFeature(), "b": ImageFeature(), "label": Value("int64")},
            "Several columns could be the image: 'a'",
        ),
    ],
)
def test_columns_that_are_missing_or_unclear(features, message):
    with pytest.raises(DataError, match=message):
        ImageClassification().columns(Features(features))


def test_preprocess_keeps_pictures_encoded_beside_their_labels():
    """The ids are those of the model, whatever ids the split has for its names."""
    rows = colours(4).rename_columns({"image": "photo", "label": "kind"})
    columns, task, labels = Columns(("photo",), "kind"), ImageClassification(), Labels(SINGLE.problem_type, NAMES[::-1])
    rows = from_memory({"train": rows.add_column("other", list("abcd"))}, DataArguments()).splits["train"]
    chosen = task.select_examples(rows, columns, labels, split="train")
    examples = task.preprocess(chosen, columns, labels, None, None, split="train")
    assert set(examples.column_names) == {"image", "labels", "example_id"}
    assert examples["labels"][:] == [0, 1, 2, 0]  # red, green, blue, red
    assert examples[1]["image"] == rows[1]["photo"]


def test_rows_without_a_label_are_left_out_and_a_test_split_without_any_is_kept(caplog):
    rows = colours(4, "numbers")
    rows = rows.map(lambda row, index: {"label": None if index == 1 else row["label"]}, with_indices=True)
    numbers, task = Labels("regression", ("label",)), ImageClassification()
    assert selected(rows, task, numbers)["example_id"][:] == [0, 2, 3]
    assert "train: 1 of 4 rows have no label and are left out" in caplog.text
    unlabelled = selected(rows.remove_columns("label"), task, numbers, split="test")
    examples = task.preprocess(unlabelled, COLUMNS, numbers, None, None, split="test")
    assert set(examples.column_names) == {"image", "example_id"}


def test_a_stream_is_preprocessed_row_by_row():
    task, rows = ImageClassification(), colours(3)
    stream = from_memory({"train": rows.to_iterable_dataset()}, DataArguments()).splits["train"]
    kept = task.select_examples(stream, COLUMNS, SINGLE, split="train")
    examples = list(task.preprocess(kept, COLUMNS, SINGLE, None, None, split="train"))
    assert [(example["labels"], example["example_id"]) for example in examples] == [(2, 0), (1, 1), (0, 2)]
    assert examples[0]["image"] == rows[0]["image"]


# ---- reading ----


KINDS = {
    "grey.png": lambda image: (image.convert("L"), {}),
    "palette.png": lambda image: (image.quantize(16), {}),
    "rgba.png": lambda image: (image.convert("RGBA"), {}),
    "cmyk.jpg": lambda image: (image.convert("CMYK"), {}),
    "sixteen_bit.png": lambda image: (deep(image), {}),
    "exif.jpg": lambda image: (image, {"exif": lying()}),
    "animated.gif": lambda image: (image, {"save_all": True, "append_images": [Image.new("RGB", image.size)]}),
    "one_bit.png": lambda image: (image.convert("1"), {}),
    "plain.webp": lambda image: (image, {}),
}


def deep(image: Image.Image) -> Image.Image:
    return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)


def lying() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


@pytest.fixture(scope="module")
def kinds(tmp_path_factory) -> Path:
    """train/odd and train/even with one file of each kind in each, and test with one of each kind."""
    folder = tmp_path_factory.mktemp("kinds")
    for number, place in enumerate(("train/odd", "train/even", "test/odd")):
        (folder / place).mkdir(parents=True)
        for (name, convert), (_, image, _) in zip(KINDS.items(), tiny.pictures(len(KINDS), seed=number), strict=True):
            converted, options = convert(image)
            converted.save(folder / place / name, **options)
    return folder


def reader_of(task: ImageClassification, processor, *, split: str = "evaluation", seed: int = 42):
    return task.load_reader(processor, None, COLUMNS, SINGLE, split=split, seed=seed)


@pytest.mark.parametrize("model", ["vit", "timm"])
def test_the_evaluation_reads_what_the_pipeline_reads(world, kinds, model, tmp_path):
    """From the very files; of 16 bits the pipeline clips, of which the task gives it the decoded picture."""
    task, processor, classifier = loaded(world / model)
    for part in (processor, classifier):
        part.save_pretrained(tmp_path)
    classifier, read = pipeline("image-classification", model=str(tmp_path), device="cpu"), reader_of(task, processor)
    for path in sorted((kinds / "test" / "odd").iterdir()):
        row = {"image": {"bytes": None, "path": str(path)}, "example_id": 3, "labels": 1}
        example = read(row, 0)
        assert (example["example_id"], example["labels"], "image" in example) == (3, 1, False)
        assert (example["pixel_values"].dtype, tuple(example["pixel_values"].shape)) == (torch.uint8, (3, 32, 32))
        batch = task.on_device({"pixel_values": example["pixel_values"][None]}, processor, dtype=torch.float32)
        given = str(path) if path.name != "sixteen_bit.png" else task.pipeline_inputs(row, COLUMNS, None)
        expected = classifier.preprocess(given)["pixel_values"]
        torch.testing.assert_close(batch["pixel_values"], expected, rtol=0, atol=1e-4, msg=path.name)


def test_the_evaluation_is_never_augmented(world):
    task, processor, _ = loaded(world / "vit", ImageClassification(augmentation="trivial"))
    row = {**colours(1)[0], "example_id": 0}
    first, later = (reader_of(task, processor, seed=epoch)(row, epoch)["pixel_values"] for epoch in (0, 7))
    plain = Geometry.of(processor).pixels(tiny.pictures(1)[0][1])
    assert torch.equal(first, later)
    assert torch.equal(first, plain)


def test_the_training_is_augmented_as_the_flags_say(world):
    flags = {"augmentation": "light", "random_erasing": 0.25, "horizontal_flip": False}
    task, processor, _ = loaded(world / "vit", ImageClassification(**flags))
    augment = reader_of(task, processor, split="train").augment
    assert (augment.policy, augment.random_erasing, augment.flip) == ("light", 0.25, False)
    assert (augment.size, augment.fill, augment.interpolation) == ((32, 32), (127, 127, 127), Image.Resampling.BILINEAR)
    assert reader_of(ImageClassification(), processor, split="train").augment is None


@pytest.mark.parametrize("num_workers", [0, 2])
def test_pitfall_44_an_augmented_example_is_a_function_of_seed_epoch_and_id(world, num_workers):
    """Whatever worker reads it, and whatever was read before."""
    task, processor, _ = loaded(world / "vit", ImageClassification(augmentation="trivial", random_erasing=0.5))
    rows = task.preprocess(selected(colours(6), task), COLUMNS, SINGLE, processor, None, split="train")
    read = reader_of(task, processor, split="train")
    sampler = KeyedByEpoch(Shuffled(len(rows), seed=1))
    loader = DataLoader(ReadExamples(rows, read), sampler=sampler, collate_fn=list, num_workers=num_workers)
    alone = reader_of(task, processor, split="train")
    for epoch in (0, 2):
        sampler.set_epoch(epoch)
        for (example,) in loader:
            again = alone(rows[example["example_id"]], epoch)
            assert torch.equal(example["pixel_values"], again["pixel_values"])
    first = alone(rows[0], 0)["pixel_values"]
    others = [alone(rows[0], 1), reader_of(task, processor, split="train", seed=43)(rows[0], 0)]
    others.append(alone({**rows[0], "example_id": 1}, 0))
    assert not any(torch.equal(first, other["pixel_values"]) for other in others)


def test_a_picture_that_went_bad_says_which(world):
    """The head of a file can be whole and its pixels not; training and evaluation say the same."""
    buffer = io.BytesIO()
    tiny.pictures(1)[0][1].resize((200, 200)).save(buffer, "JPEG")
    row = {"image": {"bytes": buffer.getvalue()[:-3000], "path": "a.jpg"}, "example_id": 17}
    task, processor, _ = loaded(world / "vit", ImageClassification(augmentation="light"))
    for split in ("train", "evaluation"):
        with pytest.raises(
            DataError, match=r"example 17: a\.jpg cannot be decoded: .*truncated.* --on_bad_example skip"
        ):
            reader_of(task, processor, split=split)(row, 0)


def test_the_collator_stacks_and_pickles(world):
    """Pitfall 24: a lambda does not pickle, and loader workers die of it."""
    task, processor, model = loaded(world / "vit")
    collate = pickle.loads(pickle.dumps(task.data_collator(processor, model)))
    examples = [
        {"pixel_values": torch.full((3, 2, 2), i, dtype=torch.uint8), "labels": i, "example_id": 9} for i in (1, 2)
    ]
    batch = collate(examples)
    assert batch["labels"].tolist() == [1, 2]
    assert batch["labels"].dtype == torch.int64
    assert "labels" not in collate([{**example, "labels": None} for example in examples])
    model.config.problem_type = "multi_label_classification"
    targets = task.data_collator(processor, model)([{**example, "labels": [1, 0]} for example in examples])["labels"]
    assert (targets.dtype, targets.tolist()) == (torch.float32, [[1, 0], [1, 0]])


# ---- models ----


@pytest.mark.parametrize("model", ["vit", "timm", "builtin:mlp"])
def test_the_head_fits_the_labels_and_the_loss_starts_at_ln_of_the_classes(world, model):
    task, processor, classifier = loaded(model if ":" in model else world / model)
    assert classifier.config.id2label == {0: "blue", 1: "green", 2: "red"}
    assert classifier.config.problem_type == "single_label_classification"
    side = 28 if model == "builtin:mlp" else 32
    batch = {"pixel_values": torch.randint(0, 256, (6, 3, side, side)), "labels": torch.tensor([0, 1, 2] * 2)}
    batch = task.on_device(batch, processor, dtype=torch.float32)
    loss = task.load_loss(Dataset.from_dict({"labels": [0]}), SINGLE, ARGUMENTS, None)
    _, sums = task.loss_sums(loss, classifier.eval(), batch)
    assert sums["items"].item() / 6 == pytest.approx(np.log(3), abs=0.15)
    assert float(task.loss_denominators(loss, batch)["items"]) == 6


def test_a_head_of_another_size_is_new_and_one_in_another_order_is_warned_of(world, tmp_path, caplog):
    loaded(world / "vit")
    assert f"new weights, not in {world / 'vit'}: classifier.bias, classifier.weight" in caplog.text
    caplog.clear()
    tiny.save_vit(tmp_path, num_labels=3, id2label={0: "red", 1: "green", 2: "blue"})
    loaded(tmp_path)
    assert (
        "trained with the classes ['red', 'green', 'blue'], the data has them as ['blue', 'green', 'red']"
        in caplog.text
    )
    assert "new weights" not in caplog.text


def test_the_perceptron_sees_28_pixels_and_the_statistics_of_mnist():
    _, processor, model = loaded("builtin:mlp")
    geometry = Geometry.of(processor)
    assert geometry.size == (28, 28)
    normalized = geometry.normalize(torch.full((1, 3, 28, 28), 33.0))
    assert normalized.unique().tolist() == pytest.approx([(33 / 255 - 0.1307) / 0.3081], abs=1e-5)
    _, processor, model = loaded("builtin:mlp", ImageClassification(image_size=[16]))
    assert (Geometry.of(processor).size, model.config.image_size) == ((16, 16), 16)
    with pytest.raises(ArgumentError, match="--image_size 16 20: the pictures of a sft_hf_mlp are square"):
        loaded("builtin:mlp", ImageClassification(image_size=[16, 20]))


def test_image_size_of_a_convolutional_network(world):
    task, processor, model = loaded(world / "timm", ImageClassification(image_size=[48, 40]))
    assert Geometry.of(processor).size == (48, 40)
    assert model.config.pretrained_cfg["input_size"] == [3, 48, 40]
    row = {**colours(1)[0], "example_id": 0}
    assert tuple(reader_of(task, processor)(row, 0)["pixel_values"].shape) == (3, 48, 40)


def test_image_size_of_position_embeddings(world):
    """Those of the checkpoint would be lost; with random weights there are none to lose."""
    task = ImageClassification(image_size=[64])
    with pytest.raises(
        ModelError, match=r"vit.embeddings.position_embeddings: \(1, 17, 32\) there, \(1, 65, 32\) here.*--im"
    ):
        loaded(world / "vit", task)
    for name, size in ((world / "vit", [64]), (world / "vit", [32, 48]), ("test_vit", [64])):
        _, processor, model = loaded(name, ImageClassification(image_size=size), from_scratch=True)
        assert Geometry.of(processor).size == (size[0], size[-1])
        assert model(torch.zeros(1, 3, size[0], size[-1])).logits.shape == (1, 3)
    with pytest.raises(ArgumentError, match="--config_overrides image_size=64: give --image_size"):
        loaded(world / "vit", config_overrides=["image_size=64"])


def test_image_size_of_a_model_that_interpolates_its_positions(tmp_path):
    """DINOv2's configuration says 518, its processor 224: it takes any."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 70, "patch_size": 14}
    Dinov2ForImageClassification(Dinov2Config(**sizes)).save_pretrained(tmp_path)
    BitImageProcessor(crop_size={"height": 42, "width": 42}).save_pretrained(tmp_path)
    for size in ([56], [28, 84]):
        task, processor, model = loaded(tmp_path, ImageClassification(image_size=size))
        example = reader_of(task, processor)({**colours(1)[0], "example_id": 0}, 0)
        batch = task.on_device({"pixel_values": example["pixel_values"][None]}, processor, dtype=torch.float32)
        assert tuple(batch["pixel_values"].shape[2:]) == (size[0], size[-1])
        assert model(**batch).logits.shape == (1, 3)


def test_image_size_of_clip(tmp_path):
    """It has no part of the name that it says its base has, and keeps the size of its pictures in its vision_config."""
    vision = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    CLIPForImageClassification(CLIPConfig(vision_config=vision)).save_pretrained(tmp_path)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    _, _, model = loaded(tmp_path)
    assert model.classifier.out_features == 3
    with pytest.raises(ModelError, match=r"position_embedding.weight: \(17, 32\) there, \(65, 32\) here"):
        loaded(tmp_path, ImageClassification(image_size=[64]))


def test_erasing_without_an_augmentation_to_erase_in():
    with pytest.raises(
        ArgumentError, match=r"--random_erasing 0\.3 is a part of the augmentation.*--augmentation is none"
    ):
        ImageClassification(random_erasing=0.3)
    assert ImageClassification(random_erasing=0.3, augmentation="light").random_erasing == 0.3


def test_one_batch_is_learnt_by_heart(world):
    torch.manual_seed(0)  # the new head's weights
    task, processor, model = loaded(world / "vit")
    rows = task.preprocess(selected(colours(6), task), COLUMNS, SINGLE, processor, None, split="train")
    read = reader_of(task, processor, split="train")
    batch = task.data_collator(processor, model)([read(row, 0) for row in rows])
    batch = task.on_device(batch, processor, dtype=torch.float32)
    loss = task.load_loss(rows, SINGLE, ARGUMENTS, None)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(80):
        optimizer.zero_grad()
        value = task.loss_sums(loss, model, batch)[1]["items"] / 6
        value.backward()
        optimizer.step()
    assert value.item() < 0.05


# ---- training ----


GRADIENTS = {
    "one class": ("single", {"class_weights": "balanced", "augmentation": "trivial"}, {"label_smoothing_factor": 0.1}),
    "several labels": ("multi", {"loss": "focal"}, {}),
    "numbers": ("numbers", {"loss": "huber"}, {}),
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_pitfall_1_a_global_batch_has_one_gradient_however_it_is_cut(name, world, tmp_path):
    kind, options, flags = GRADIENTS[name]
    sgd = {"learning_rate": 1.0, "optim": "sgd", "max_grad_norm": 0.0, "task": ImageClassification(**options), **flags}
    cuts = []
    for size in (8, 4, 2):
        cut = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 8 // size}
        cuts.append(gradient(trainer_of(tmp_path, colours(8, kind), world / "vit", **sgd, **cut)))
    assert float(cuts[0].norm()) > 0
    assert relative_difference(cuts[1], cuts[0]) < 1e-5
    assert relative_difference(cuts[2], cuts[0]) < 1e-5


@pytest.mark.parametrize(("model", "alphas"), [("vit", {"mixup_alpha": 0.2, "cutmix_alpha": 1.0}), ("timm", {})])
def test_pitfall_44_a_resumed_run_and_one_with_workers_end_with_the_same_weights(model, alphas, world, tmp_path):
    """Augmented and mixed, bit for bit; step 4 of 9 is inside the second epoch of 3 steps."""
    task = ImageClassification(augmentation="trivial", random_erasing=0.5)
    flags = {"per_device_train_batch_size": 3, "max_steps": 9, "task": task}

    def trainer(**more):
        method = Mixup(**alphas).prepare(labels=SINGLE)
        return trainer_of(tmp_path, colours(9), world / model, methods=(method,), **{**flags, **more})

    whole = trainer(save_strategy="steps", save_steps=4)
    whole.train()
    with_workers = trainer(dataloader_num_workers=2)
    with_workers.train()
    resumed = trainer()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert resumed.state.global_step == 9
    fresh = trainer()
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, with_workers.model.state_dict()[name]), name
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    assert not all(
        torch.equal(value, fresh.model.state_dict()[name]) for name, value in whole.model.state_dict().items()
    )


@pytest.mark.parametrize("model", ["vit", "timm"])
def test_the_best_checkpoint_is_loaded_whole(model, world, tmp_path):
    """transformers#43701, #48805: a ViT is saved under the names of its original checkpoints, where its Trainer finds a head."""
    trainer = trainer_of(tmp_path, colours(4), world / model, save_strategy="steps", save_steps=1)
    trainer.train()
    saved = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    with torch.no_grad():
        for value in trainer.model.state_dict().values():
            value.zero_()
    trainer.state.best_model_checkpoint = str(tmp_path / "checkpoint-1")
    trainer._load_best_model()
    assert [name for name, value in trainer.model.state_dict().items() if not torch.equal(value, saved[name])] == []

    weights = load_file(tmp_path / "checkpoint-1" / "model.safetensors")
    weights.pop(lost := sorted(weights)[0])
    save_file(weights, tmp_path / "checkpoint-1" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=rf"checkpoint-1 lacks weights of the model: .*{lost}"):
        trainer._load_best_model()


def test_mixed_labels_are_soft_and_those_of_the_evaluation_are_not(world, tmp_path):
    method = Mixup(mixup_alpha=1.0).prepare(labels=SINGLE)
    trainer = trainer_of(tmp_path, colours(3), world / "vit", methods=(method,))  # one picture of each class
    (batch,), denominators = trainer.get_batch_samples(iter(trainer.get_train_dataloader()), 1, trainer.args.device)
    largest, smaller, none = batch["labels"].sort(dim=1, descending=True).values.T.tolist()
    assert none == [0, 0, 0]
    assert largest == pytest.approx([1 - share for share in smaller])
    assert 0 < smaller[0] < largest[0] < 1
    assert denominators["items"] == 3
    assert next(iter(trainer.get_eval_dataloader()))["labels"].dtype == torch.int64


def test_the_augmentation_is_drawn_from_the_seed_of_the_data(world, tmp_path):
    def batch(**seeds) -> torch.Tensor:
        task = ImageClassification(augmentation="light")
        flags = {"train_sampling_strategy": "sequential", "task": task, **seeds}
        return next(iter(trainer_of(tmp_path, colours(3), world / "vit", **flags).get_train_dataloader()))[
            "pixel_values"
        ]

    assert torch.equal(batch(seed=1, data_seed=7), batch(seed=7))
    assert not torch.equal(batch(seed=1), batch(seed=7))


def test_a_hold_out_has_the_proportions_of_the_classes(world):
    """Pitfall 15: and is the same on every call."""
    rows = colours(60).filter(lambda row, index: index % 3 or index < 30, with_indices=True)  # 10 red, 20 and 20
    prepared = prepare(
        ImageClassification(),
        DataArguments(validation_fraction=0.2, max_train_samples=12),
        ModelArguments(model_name_or_path=str(world / "vit")),
        ARGUMENTS,
        datasets={"train": rows},
    )
    held_out = prepared.examples["validation"]["labels"]
    assert np.bincount(held_out).tolist() == [4, 4, 2]
    assert len(prepared.examples["train"]) == 12
    assert not set(prepared.examples["train"]["example_id"]) & set(prepared.held_out)


# ---- whole runs ----


def run(world: Path, folder: Path, *flags: object, **quick) -> tiny.Run:
    given = ("--dataset_name", world / "colours", "--model_name_or_path", world / "vit", "--output_dir", folder)
    return tiny.run_recipe(*given, *flags, **{**QUICK, **quick})


def test_every_kind_of_picture_goes_through_a_run(world, kinds, tmp_path):
    """Trained on, augmented, evaluated, reloaded, predicted."""
    result = run(world, tmp_path, "--dataset_name", kinds, "--augmentation", "randaugment")
    assert result.exit_code == 0, result.output
    assert "reloaded with transformers.pipeline" in result.output
    lines = [json.loads(line) for line in (tmp_path / "predictions" / "test.jsonl").read_text().splitlines()]
    assert [line["image"] for line in lines] == [f"odd/{name}" for name in sorted(KINDS)]
    rows = json.loads((tmp_path / "results.json").read_text())["data"]["rows"]
    assert (rows["train"] + rows["validation"], rows["test"]) == (2 * len(KINDS), len(KINDS))


MIXED = {
    "cross-entropy": (
        "single",
        "single_label_classification",
        ["--label_smoothing_factor", 0.1, "--class_weights", "balanced"],
    ),
    "focal": ("single", "single_label_classification", ["--loss", "focal"]),
    "several labels": ("multi", "multi_label_classification", ["--loss", "focal"]),
}


@pytest.mark.parametrize("name", MIXED)
def test_pitfall_3_mixed_labels_never_change_the_problem(name, world, tmp_path):
    """Nor does a flag that would drop the pictures' column (pitfall 28)."""
    kind, problem_type, flags = MIXED[name]
    colours(16, kind).to_parquet(tmp_path / "train.parquet")
    mixing = ("--mixup_alpha", 0.2, "--cutmix_alpha", 1.0, "--random_erasing", 0.3, "--remove_unused_columns", "true")
    source = ("--train_file", tmp_path / "train.parquet", "--logging_steps", 1)
    result = tiny.run_recipe(
        *(*source, "--model_name_or_path", world / "vit", "--output_dir", tmp_path / "run", *mixing, *flags), **QUICK
    )
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "run" / "config.json").read_text())["problem_type"] == problem_type
    history = json.loads((tmp_path / "run" / "trainer_state.json").read_text())["log_history"]
    losses = [entry["loss"] for entry in history if "loss" in entry]
    assert len(losses) == 2  # 14 rows in batches of 8
    assert np.isfinite(losses).all()
    assert "--remove_unused_columns changes nothing" in result.output


def test_many_classes_a_timm_architecture_and_a_head_alone(tmp_path):
    """All at once: top 5 of twelve classes, random weights, pictures of 32 x 32."""
    for row, (_, image, _) in enumerate(tiny.pictures(36)):
        path = tmp_path / "data" / ("test" if row < 12 else "train") / f"class {row % 12}" / f"{row}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    result = tiny.run_recipe(
        *("--dataset_name", tmp_path / "data", "--model_name_or_path", "test_resnet", "--from_scratch"),
        *("--image_size", 32, "--freeze_base_model", "--validation_fraction", 0.5, "--output_dir", tmp_path / "run"),
        **QUICK,
    )
    assert result.exit_code == 0, result.output
    assert 0 <= result.metrics["top5_accuracy"] <= 1
    assert "top5_accuracy" in result.output.split("image-classification:")[-1]
    assert "test_resnet starts from random weights" in result.output
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["label_names"] == sorted(f"class {number}" for number in range(12))
    assert config["pretrained_cfg"]["input_size"] == [3, 32, 32]


BAD = {
    "truncated.jpg": lambda path: path.write_bytes(path.with_name("whole.jpg").read_bytes()[:-1500]),
    "text.png": lambda path: path.write_text("not found"),
    "empty.png": lambda path: path.write_bytes(b""),
}


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory) -> Path:
    """Three files that cannot be decoded in the training split, one of them in the test split too."""
    folder = tiny.write_class_folders(tmp_path_factory.mktemp("spoilt"), train=18, test=6)
    tiny.pictures(1)[0][1].resize((120, 120)).save(folder / "train" / "red" / "whole.jpg")
    for name, write in BAD.items():
        write(folder / "train" / "red" / name)
    BAD["text.png"](folder / "test" / "red" / "text.png")
    return folder


def test_pictures_that_cannot_be_decoded_end_the_run(world, spoilt, tmp_path):
    result = run(world, tmp_path, "--dataset_name", spoilt)
    assert result.exit_code == 2
    assert "train: pictures that cannot be decoded: 3 of 22: row " in result.output
    assert all(f"red/{name}" in result.output for name in BAD)
    assert "--on_bad_example skip" in result.output


def test_pictures_that_cannot_be_decoded_are_left_out_if_told_so(world, spoilt, tmp_path):
    """Of the test split as well, which is said: the score is of fewer pictures than there are files."""
    result = run(world, tmp_path, "--dataset_name", spoilt, "--on_bad_example", "skip")
    assert result.exit_code == 0, result.output
    assert "train: pictures that cannot be decoded: 3 of 22" in result.output
    assert "test: pictures that cannot be decoded: 1 of 7" in result.output
    rows = json.loads((tmp_path / "results.json").read_text())["data"]["rows"]
    assert (rows["train"] + rows["validation"], rows["test"]) == (19, 6)
    lines = (tmp_path / "predictions" / "test.jsonl").read_text()
    assert len(lines.splitlines()) == 6
    assert "text.png" not in lines


STREAM = (
    "--streaming",
    "--validation_split_name",
    "test",
    "--max_steps",
    3,
    "--eval_strategy",
    "no",
    "--save_strategy",
    "no",
)
STREAM += ("--load_best_model_at_end=false", "--shuffle_buffer_size", 1)


def test_a_stream_with_a_bad_picture_ends_with_its_name(world, spoilt, tmp_path):
    result = run(world, tmp_path, "--dataset_name", spoilt, *STREAM)
    assert result.exit_code == 2
    message = result.output.rpartition("\nerror: ")[2]
    assert message.startswith("example ")
    assert message.endswith("--on_bad_example skip leaves such pictures out.\n")


def test_a_stream_leaves_bad_pictures_out_if_told_so(world, spoilt, tmp_path):
    result = run(world, tmp_path, "--dataset_name", spoilt, *STREAM, "--on_bad_example", "skip")
    assert result.exit_code == 0, result.output
    assert "left out: " in result.output
    assert set(result.metrics) >= {"accuracy", "loss"}


# ---- mistakes of users ----


MISTAKES = {
    "texts": (["--train_file", "{texts}"], "No column looks like the image. Columns there: 'text' (string)"),
    "no such column": (["--image_column_name", "photo"], "--image_column_name photo: no such column"),
    "no label": (["--label_column_name", "kind"], "--label_column_name kind: no such column"),
    "no size": (["--image_size", 0], "--image_size 0: expected height and width, or one number for both"),
    "positions": (
        ["--image_size", 64],
        "or --image_size that changes them, or start from random weights with --from_scratch",
    ),
    "bare name": (
        ["--model_name_or_path", "resnet18"],
        "resnet18 is an architecture of timm. Its pretrained weights are on",
    ),
    "numbers": (["--mixup_alpha", 0.2, "--problem_type", "regression", "--train_file", "{numbers}"], "blends classes"),
    "probability": (["--random_erasing", 1.5], "--random_erasing is 1.5, expected a probability from 0 to 1"),
    "loss": (["--loss", "mse"], "--loss mse: 'mse' does not fit the problem type single_label_classification"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_one_message(name, world, tmp_path):
    tiny.write_rows(tmp_path / "texts.jsonl", tiny.rows(6))
    colours(12, "numbers").to_parquet(tmp_path / "numbers.parquet")
    files = {"texts": tmp_path / "texts.jsonl", "numbers": tmp_path / "numbers.parquet"}
    flags, message = MISTAKES[name]
    given = [str(flag).format(**files) for flag in flags]
    source = () if "--train_file" in given else ("--dataset_name", world / "colours")
    result = tiny.run_recipe(
        *source, "--model_name_or_path", world / "vit", *given, "--output_dir", tmp_path / "run", **QUICK
    )
    assert result.exit_code == 2, result.output
    assert message in result.output.rpartition("\nerror: ")[2]
