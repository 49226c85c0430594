"""Whole runs on pictures: from the Hub to the Hub and back, where `transformers.pipeline` sees what the evaluation saw."""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import tiny
import yaml
from huggingface_hub import ModelCard, snapshot_download
from PIL import Image
from transformers import pipeline

TOKEN = "hf_dora_may_write_c41d07"
NAMES = ["ground", *tiny.COLOURS]
ALLOWED = {
    ".gitattributes",
    "README.md",
    "config.json",
    "model.safetensors",
    "preprocessor_config.json",
    "recipe.yaml",
    "results.json",
}
NUM_TRAIN, NUM_TEST = 48, 13  # an odd number: the last batch of an evaluation is short
QUICK = {"dataloader_num_workers": 0, "per_device_eval_batch_size": 4, "augmentation": "none", "num_train_epochs": 8}


# ---- data and models on the Hub ----


def splits(make) -> dict[str, bytes]:
    return {
        "data/train-00000-of-00001.parquet": make(NUM_TRAIN, seed=0),
        "data/test-00000-of-00001.parquet": make(NUM_TEST, seed=1),
    }


@pytest.fixture(scope="module", autouse=True)
def repositories(hub, tmp_path_factory):
    """Two datasets and three models of dora, whose token is in HF_TOKEN."""
    hub.add_user("dora", TOKEN)
    hub.add_repo("dataset", "dora/colours", splits(tiny.coloured_parquet))
    id2label = json.dumps(dict(enumerate(NAMES)))
    hub.add_repo("dataset", "dora/scenes", {**splits(tiny.masked_parquet), "id2label.json": id2label})
    for name, save in {"vit": tiny.save_vit, "resnet": tiny.save_timm, "segformer": tiny.save_segformer}.items():
        hub.add_repo("model", f"dora/{name}", tiny.files(save(tmp_path_factory.mktemp(name))))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_TOKEN", TOKEN)
        yield


# ---- five runs, each pulled, trained until it knows something, and pushed ----


@dataclass(frozen=True)
class Case:
    """A recipe, what it pulls, its other flags, and the metric that says whether it learned."""

    recipe: str
    dataset: str
    model: str
    metric: str
    flags: tuple[str, ...] = ()


CLASSIFIERS = {
    "vit": Case("image_cls", "dora/colours", "dora/vit", "accuracy"),
    "timm": Case("image_cls", "dora/colours", "dora/resnet", "accuracy"),
    "mlp": Case(
        *("image_cls", "dora/colours", "builtin:mlp", "accuracy"),
        flags=("--config_overrides", "num_channels=3", "--learning_rate", "0.05"),
    ),
}
SEGMENTERS = {
    "segformer": Case("image_seg", "dora/scenes", "dora/segformer", "mean_iou"),
    "fcn": Case(
        *("image_seg", "dora/scenes", "builtin:fcn", "mean_iou"), flags=("--backbone_name_or_path", "dora/resnet")
    ),
}
CASES = {**CLASSIFIERS, **SEGMENTERS}


def run_case(name: str, folder: Path, *flags: object, **quick) -> tiny.Run:
    case = CASES[name]
    pulled = ("--dataset_name", case.dataset, "--model_name_or_path", case.model, *case.flags)
    run = tiny.run_recipe(*pulled, "--output_dir", folder, *flags, recipe=case.recipe, **{**QUICK, **quick})
    assert run.exit_code == 0, run.output
    return run


@pytest.fixture(scope="module")
def pushed(hub, repositories, tmp_path_factory):
    """The finished run of a case by its name; each is trained once."""

    @cache
    def pushed(name: str) -> tiny.Pushed:
        folder, repo_id = tmp_path_factory.mktemp("runs") / name, f"dora/my-{name}"
        run = run_case(name, folder, "--push_to_hub", "--hub_strategy", "end", "--hub_model_id", repo_id)
        return tiny.Pushed(repo_id, run, folder, hub.files("model", repo_id))

    return pushed


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> list[str]:
    """The test split as files, which is what a user gives to a pipeline."""
    folder = tmp_path_factory.mktemp("pictures")
    paths = [folder / f"{index}.png" for index in range(NUM_TEST)]
    for path, (_, image, _) in zip(paths, tiny.pictures(NUM_TEST, seed=1), strict=True):
        image.save(path)
    return [str(path) for path in paths]


@pytest.mark.parametrize("name", CASES)
def test_something_is_learned(name, pushed):
    """One class for every picture, or the ground for every pixel, would prove nothing below."""
    metric = CASES[name].metric
    assert pushed(name).run.metrics[metric] > 0.6
    assert pushed(name).results["metrics"]["test"] == pytest.approx(pushed(name).run.metrics)


# ---- pulled back ----


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_the_pulled_classifier_predicts_what_the_evaluation_did(name, pushed, pictures, tmp_path):
    result = pushed(name)
    pulled = snapshot_download(result.repo_id, cache_dir=tmp_path)
    answers = [answer[0] for answer in pipeline("image-classification", model=pulled, device="cpu")(pictures)]
    lines = result.predictions
    assert [answer["label"] for answer in answers] == [line["prediction"] for line in lines]
    assert [answer["score"] for answer in answers] == pytest.approx([line["score"] for line in lines], abs=1e-4)
    right = sum(line["prediction"] == line["label"] for line in lines)
    assert right / NUM_TEST == pytest.approx(result.results["metrics"]["test"]["accuracy"])


@pytest.mark.parametrize("name", SEGMENTERS)
def test_the_pulled_segmenter_gives_the_masks_of_the_evaluation(name, pushed, pictures, tmp_path):
    result = pushed(name)
    pulled = snapshot_download(result.repo_id, cache_dir=tmp_path)
    segmenter = pipeline("image-segmentation", model=pulled, device="cpu")
    different = []
    for line, picture in zip(result.predictions, pictures, strict=True):
        written = written_mask(result.folder, line)
        answered = np.full(written.shape, -1)
        for part in segmenter(picture, subtask="semantic"):
            answered[np.asarray(part["mask"]) > 0] = NAMES.index(part["label"])
        different.append((answered != written).mean())
    assert np.mean(different) < 1e-3


def written_mask(folder: Path, line: dict) -> np.ndarray:
    return np.asarray(Image.open(folder / "predictions" / line["predicted_mask"]))


@pytest.mark.parametrize("name", SEGMENTERS)
def test_the_written_masks_have_the_scores_of_the_results(name, pushed):
    """The IoU of each class, counted from the files alone."""
    result = pushed(name)
    predicted = np.concatenate([written_mask(result.folder, line).ravel() for line in result.predictions])
    true = np.concatenate([np.asarray(mask).ravel() for _, _, mask in tiny.pictures(NUM_TEST, seed=1)])
    by_hand = {
        class_name: ((predicted == index) & (true == index)).sum() / ((predicted == index) | (true == index)).sum()
        for index, class_name in enumerate(NAMES)
    }
    assert result.results["per_class"]["test"]["iou"] == pytest.approx(by_hand)
    assert result.results["metrics"]["test"]["mean_iou"] == pytest.approx(np.mean([*by_hand.values()]))
    shares = {class_name: float((predicted == index).mean()) for index, class_name in enumerate(NAMES)}
    described = {
        class_name: np.mean([line["shares"].get(class_name, 0) for line in result.predictions]) for class_name in NAMES
    }
    assert described == pytest.approx(shares, abs=1e-4)


def test_the_card_s_example_runs_as_it_stands(pushed, pictures, tmp_path):
    """In a process that has the Hub, the picture and an empty cache; only builtin models need `import sft_hf`."""
    (tmp_path / "picture.jpg").write_bytes(Path(pictures[0]).read_bytes())
    of_transformers_first = sorted(CASES, key=lambda name: CASES[name].model.startswith("builtin:"))
    program = ["import json", "answers = {}"]
    for name in of_transformers_first:
        assert ("import sft_hf" in pushed(name).example) == CASES[name].model.startswith("builtin:")
        *setup, call = pushed(name).example.splitlines()
        program += [*setup, f"answers[{name!r}] = [part['label'] for part in {call}]"]
    answers = tiny.run_program("\n".join([*program, "print(json.dumps(answers))"]), tmp_path)
    for name in CLASSIFIERS:
        assert answers[name][0] == pushed(name).predictions[0]["prediction"]
    for name in SEGMENTERS:
        assert set(answers[name]) == set(pushed(name).predictions[0]["shares"])


# ---- what is pushed ----


@pytest.mark.parametrize("name", CASES)
def test_what_was_pushed_is_what_the_list_allows(name, hub, pushed):
    """No picture, no mask, no prediction; timm's settings of the pictures are in its config.json."""
    result = pushed(name)
    assert set(result.files) == ALLOWED - ({"preprocessor_config.json"} if name == "timm" else set())
    assert hub.commits("model", result.repo_id) == ["Fine-tuned with sft_hf", "initial commit"]
    for file in result.files.keys() - {".gitattributes", "recipe.yaml"}:
        assert result.files[file] == (result.folder / file).read_bytes()


@pytest.mark.parametrize("name", CASES)
def test_the_card_is_valid_and_its_numbers_are_the_results(name, pushed):
    """Pitfall 35: the Hub refuses a card with invalid metadata, and the push with it."""
    result, case = pushed(name), CASES[name]
    card = ModelCard(result.card)
    card.validate()
    tag = "image-classification" if name in CLASSIFIERS else "image-segmentation"
    assert (card.data.pipeline_tag, card.data.library_name) == (tag, "transformers")
    assert card.data.datasets == [case.dataset]
    base_models = {"builtin:mlp": None, "builtin:fcn": "dora/resnet"}  # the pretrained backbone
    assert card.data.base_model == base_models.get(case.model, case.model)
    found = {(entry.dataset_split, entry.metric_name): entry.metric_value for entry in card.data.eval_results}
    assert found == {
        (split, f"{metric} ({split})"): round(value, 5)
        for split, metrics in result.results["metrics"].items()
        for metric, value in metrics.items()
    }
    assert {entry.task_type for entry in card.data.eval_results} == {tag}


@pytest.mark.parametrize("name", SEGMENTERS)
def test_the_card_has_a_row_for_each_class(name, pushed):
    numbers = pushed(name).results["per_class"]["test"]
    assert "| class (test) | iou | accuracy | dice |" in pushed(name).card
    for class_name in NAMES:
        values = " | ".join(f"{numbers[kind][class_name]:.4f}" for kind in ("iou", "accuracy", "dice"))
        assert f"| {class_name} | {values} |" in pushed(name).card


def test_the_pushed_recipe_repeats_the_run(pushed, tmp_path):
    """It names what was pulled, the backbone too."""
    (tmp_path / "recipe.yaml").write_bytes(pushed("fcn").files["recipe.yaml"])
    values = yaml.safe_load(pushed("fcn").files["recipe.yaml"])
    assert "output_dir" not in values
    assert (values["dataset_name"], values["backbone_name_or_path"]) == ("dora/scenes", "dora/resnet")
    again = tiny.run_recipe(
        *("--config", tmp_path / "recipe.yaml", "--output_dir", tmp_path / "again", "--push_to_hub=false"),
        recipe="image_seg",
        **QUICK,
    )
    assert again.exit_code == 0, again.output
    assert again.metrics == pytest.approx(pushed("fcn").run.metrics, abs=1e-4)


def test_push_examples_adds_predictions_and_overlays(hub, pushed):
    """The run is complete: it is pushed again, not trained again."""
    for name in ("vit", "segformer"):
        repo_id = f"dora/my-{name}-with-examples"
        run = run_case(name, pushed(name).folder, "--push_to_hub", "--push_examples", "--hub_model_id", repo_id)
        assert "nothing is trained again" in run.output
        added = hub.files("model", repo_id).keys() - ALLOWED
        masks = {f"predictions/masks/{row}.png" for row in range(NUM_TEST)}
        held_out = json.loads((pushed(name).folder / "validation_indices.json").read_text())["rows"]
        overlays = {f"reports/overlays/{row}.jpg" for row in held_out}
        assert added == {"predictions/test.jsonl"} | (masks | overlays if name == "segformer" else set())


@pytest.mark.parametrize("recipe", ["image_cls", "image_seg"])
def test_nothing_pushed_names_a_folder_of_this_machine(recipe, hub, tmp_path):
    """Not even with the examples, of local pictures, masks, colors, class weights, model and backbone."""
    if recipe == "image_cls":
        names, data = list(tiny.COLOURS), tiny.write_class_folders(tmp_path / "data", train=12, test=3)
        model = ("--model_name_or_path", tiny.save_vit(tmp_path / "model"))
    else:
        names, data = NAMES, tiny.write_mask_folders(tmp_path / "data", train=12, test=3)
        backbone = tiny.save_timm(tmp_path / "model")
        model = ("--model_name_or_path", "builtin:fcn", "--backbone_name_or_path", backbone)
        model += ("--mask_colors", paint_masks(data, tmp_path / "colors.json"))
    weights = tmp_path / "weights.json"
    weights.write_text(json.dumps(dict.fromkeys(names, 1.0)))
    repo_id = f"dora/local-{recipe}"
    run = tiny.run_recipe(
        *("--dataset_name", data, *model, "--class_weights", weights, "--output_dir", tmp_path / "run"),
        *("--push_to_hub", "--push_examples", "--hub_model_id", repo_id),
        recipe=recipe,
        **QUICK | {"max_steps": 1},
    )
    assert run.exit_code == 0, run.output
    files = hub.files("model", repo_id)
    assert "predictions/test.jsonl" in files
    assert [name for name, content in files.items() if str(tmp_path).encode() in content] == []
    first = json.loads(files["predictions/test.jsonl"].splitlines()[0])
    assert first["image"] == {"image_cls": "blue/2.png", "image_seg": "images/0.png"}[recipe]


def paint_masks(data: Path, table: Path) -> Path:
    """Make the masks of ids masks in RGB, and write the table of their colors."""
    table.write_text(json.dumps({"ground": [0, 0, 0], **tiny.COLOURS}))
    colors = np.array([(0, 0, 0), *tiny.COLOURS.values()], dtype=np.uint8)
    for path in data.glob("*/masks/*.png"):
        Image.fromarray(colors[np.asarray(Image.open(path))]).save(path)
    return table


# ---- streams ----


@pytest.mark.parametrize("name", ["vit", "fcn"])
def test_a_stream_of_the_hub_is_trained_on(name, tmp_path, monkeypatch):
    """Class names come from ClassLabel and from id2label.json, and the masks' values from the first rows."""
    # datasets waits 5 seconds each time a shuffled stream of parquet files is left.
    monkeypatch.setattr("datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)
    flags = ("--streaming", "--validation_split_name", "test", "--max_steps", 4)
    flags += ("--image_size", 32) if name == "fcn" else ()
    steps = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}
    run = run_case(name, tmp_path / "run", *flags, **steps)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["training"]["steps"] == 4
    assert results["label_names"] == (list(tiny.COLOURS) if name == "vit" else NAMES)
    assert results["metrics"] == {"validation": pytest.approx(run.metrics)}
    assert "reloaded with transformers.pipeline" in run.output
