"""What every task promises, run for each: train, evaluate, save, reload, resume, push. One line a task."""

import dataclasses
import json
from pathlib import Path

import pytest
import tiny
import tiny_speech
import yaml
from PIL import Image

from sft_hf import Method, build_trainer
from sft_hf.arguments import DataArguments, FinetuningArguments, ModelArguments
from sft_hf.data.sources import from_memory
from sft_hf.losses import Loss
from sft_hf.preparation import prepare
from sft_hf.tasks.audio_classification import AudioClassification
from sft_hf.tasks.image_classification import ImageClassification
from sft_hf.tasks.semantic_segmentation import SemanticSegmentation
from sft_hf.tasks.speech_ctc import SpeechCtc
from sft_hf.tasks.speech_seq2seq import SpeechSeq2Seq
from sft_hf.tasks.text_classification import TextClassification


@dataclasses.dataclass(frozen=True)
class Case:
    """A task with data of its kind, and the flags of a recipe that learns them in seconds."""

    task_class: type
    data: str
    model: str
    expected: str  # a metric that the run reports
    recipe: str = "text_cls"
    flags: tuple[str, ...] = ()  # beyond those of every case


# With these a segmenter of this size soon finds more than the background, so that there is something to compare.
TWO_EPOCHS = ("--augmentation", "none", "--per_device_train_batch_size", "4", "--num_train_epochs", "2")
EVEN = ("--class_weights", "balanced", "--learning_rate", "0.01", *TWO_EPOCHS)
SMALL_FCN = ("--config_overrides", "backbone=test_resnet")
SMALL_CRNN = ("--config_overrides", "hidden_size=32", "num_mel_bins=20", "conv_channels=12")
# With these a recogniser of this size soon writes something, so that there is something to compare. By word error rate the
# first model would be the best of those that get no word right.
WRITING = ("--per_device_train_batch_size", "4", "--metric_for_best_model", "loss")
CTC = (*WRITING, "--num_train_epochs", "12")
DECODER = (*WRITING, "--generation_max_length", "8")

CASES = {
    "text, single label": Case(TextClassification, "single", "bert", "accuracy"),
    "text, several labels": Case(TextClassification, "multi", "bert", "f1_micro"),
    "text, numbers": Case(TextClassification, "regression", "bert", "mse"),
    "text, decoder": Case(TextClassification, "single", "decoder", "accuracy"),
    "text, lstm": Case(TextClassification, "single", "builtin:lstm", "accuracy"),
    "image, single label": Case(ImageClassification, "colours", "vit", "accuracy", "image_cls"),
    "image, several labels": Case(ImageClassification, "pictures_multi", "vit", "f1_micro", "image_cls"),
    "image, numbers": Case(ImageClassification, "pictures_regression", "vit", "mse", "image_cls"),
    "image, timm": Case(ImageClassification, "colours", "timm", "accuracy", "image_cls"),
    "image, mlp": Case(ImageClassification, "colours", "builtin:mlp", "accuracy", "image_cls"),
    "segmentation, segformer": Case(SemanticSegmentation, "pairs", "segformer", "mean_iou", "image_seg", EVEN),
    "segmentation, fcn": Case(
        SemanticSegmentation, "pairs", "builtin:fcn", "mean_iou", "image_seg", (*EVEN, *SMALL_FCN)
    ),
    "segmentation, mobilenet": Case(SemanticSegmentation, "pairs", "mobilenet", "mean_iou", "image_seg", EVEN),
    "segmentation, maskformer": Case(SemanticSegmentation, "pairs", "maskformer", "mean_iou", "image_seg", TWO_EPOCHS),
    "segmentation, mask2former": Case(
        SemanticSegmentation, "pairs", "mask2former", "mean_iou", "image_seg", TWO_EPOCHS
    ),
    "segmentation, oneformer": Case(SemanticSegmentation, "pairs", "oneformer", "mean_iou", "image_seg", TWO_EPOCHS),
    "audio, single label": Case(AudioClassification, "tones", "wav2vec2", "accuracy", "audio_cls"),
    "audio, several labels": Case(AudioClassification, "tones_multi", "wav2vec2", "f1_micro", "audio_cls"),
    "audio, numbers": Case(AudioClassification, "tones_regression", "wav2vec2", "mse", "audio_cls"),
    "audio, whisper": Case(AudioClassification, "tones", "whisper", "accuracy", "audio_cls"),
    "audio, crnn": Case(AudioClassification, "tones", "builtin:crnn", "accuracy", "audio_cls", SMALL_CRNN),
    "ctc, wav2vec2": Case(
        SpeechCtc, "spelt", "wav2vec2", "wer", "speech_ctc", (*CTC, "--freeze_feature_encoder", "false")
    ),
    "ctc, crnn": Case(SpeechCtc, "spelt", "builtin:crnn", "wer", "speech_ctc", (*CTC, *SMALL_CRNN)),
    "seq2seq, whisper": Case(SpeechSeq2Seq, "spelt", "whisper", "wer", "speech_seq2seq", DECODER),
    "seq2seq, moonshine": Case(SpeechSeq2Seq, "spelt", "moonshine", "wer", "speech_seq2seq", DECODER),
    "seq2seq, speech2text": Case(SpeechSeq2Seq, "spelt", "speech2text", "wer", "speech_seq2seq", DECODER),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Models and files by name."""
    folder = tmp_path_factory.mktemp("world")
    tiny.save_bert(folder / "bert")
    tiny.save_decoder(folder / "decoder")
    for kind in ("single", "multi", "regression"):
        tiny.write_rows(folder / f"{kind}_train.jsonl", tiny.rows(96, kind))
        tiny.write_rows(folder / f"{kind}_test.jsonl", tiny.rows(24, kind, seed=1))
    tiny.save_vit(folder / "vit")
    tiny.save_timm(folder / "timm")
    tiny.write_class_folders(folder / "colours", train=48, test=24)
    tiny.save_segformer(folder / "segformer")
    for kind in ("mobilenet", "maskformer", "mask2former", "oneformer"):
        tiny.save_segmenter(folder / kind, kind)
    tiny.write_mask_folders(folder / "pairs", train=48, test=24)
    for kind in ("multi", "regression"):
        tiny.write_picture_rows(folder / f"pictures_{kind}_train.jsonl", 48, kind)
        tiny.write_picture_rows(folder / f"pictures_{kind}_test.jsonl", 24, kind, seed=1)
        tiny_speech.write_tone_rows(folder / f"tones_{kind}_train.jsonl", 48, kind)
        tiny_speech.write_tone_rows(folder / f"tones_{kind}_test.jsonl", 24, kind, seed=1)
    tiny_speech.write_tone_folders(folder / "tones", train=48, test=24)
    tiny_speech.write_spelt(folder / "spelt", train=48, test=24)
    tiny_speech.save_wav2vec2(folder / "wav2vec2")
    tiny_speech.save_whisper(folder / "whisper", chunk_length=1)
    tiny_speech.save_moonshine(folder / "moonshine")
    tiny_speech.save_speech2text(folder / "speech2text")
    return folder


def flags_of(case: Case, world: Path, output_dir: Path) -> list[str]:
    model = case.model if case.model.startswith("builtin:") else str(world / case.model)
    source = ["--dataset_name", str(world / case.data)]
    if not (world / case.data).is_dir():
        files = [str(world / f"{case.data}_{split}.jsonl") for split in ("train", "test")]
        source = ["--train_file", files[0], "--test_file", files[1]]
    quick = ["--dataloader_num_workers", "0"]
    return [*source, "--model_name_or_path", model, "--output_dir", str(output_dir), *quick, *case.flags]


@pytest.mark.parametrize("name", CASES)
def test_a_run_leaves_a_model_that_reloads_and_numbers_that_agree(name, world, tmp_path):
    """The reload check inside the run compares transformers.pipeline with the trainer; here the rest of the promise."""
    case = CASES[name]
    run = tiny.run_recipe(*flags_of(case, world, tmp_path / "run"), recipe=case.recipe, num_train_epochs=4)
    assert run.exit_code == 0, run.output
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["task"] == case.task_class.pipeline_tag
    assert results["metrics"]["test"][case.expected] == run.metrics[case.expected]
    assert "reloaded with transformers.pipeline" in run.output
    assert {
        "steps",
        "seconds",
        "train_samples_per_second",
        "eval_samples_per_second",
        "seconds_to_first_step",
        "peak_rss_mb",
        "world_size",
    } <= set(results["training"])
    card = (tmp_path / "run" / "README.md").read_text()
    metadata = yaml.safe_load(card.split("---")[1])
    reported = [
        metric["value"]
        for result in metadata["model-index"][0]["results"]
        for metric in result["metrics"]
        if metric["name"] == f"{case.expected} (test)"
    ]
    assert reported == [round(run.metrics[case.expected], 5)]
    predictions = [
        json.loads(line) for line in (tmp_path / "run" / "predictions" / "test.jsonl").read_text().splitlines()
    ]
    assert [line["example_id"] for line in predictions] == list(range(24))
    if case.recipe == "image_seg":
        check_pictures(tmp_path / "run", predictions)
    if case.recipe.startswith("speech"):
        check_texts(tmp_path / "run", predictions)


def check_pictures(folder: Path, predictions: list[dict]) -> None:
    """Masks of class ids, with a palette, at the pictures' size; overlays of a few validation examples."""
    for line in predictions:
        mask = Image.open(folder / "predictions" / line["predicted_mask"])
        assert (mask.mode, mask.size) == ("P", (40, 32))
        assert len(line["shares"]) == len(mask.getcolors())
        assert sum(line["shares"].values()) == pytest.approx(1, abs=1e-3)
    assert len(list((folder / "reports" / "overlays").glob("*.jpg"))) == 5


def check_texts(folder: Path, predictions: list[dict]) -> None:
    """Something is written, and the worst of it has a page."""
    assert any(line["prediction"] for line in predictions)
    for split in ("validation", "test"):
        assert "<h1>Worst utterances by WER</h1>" in (folder / "reports" / f"worst_utterances_{split}.html").read_text()


def test_the_topics_are_learnt(world, tmp_path):
    """A loss that falls is no proof: three topics from words that stand in each text are an easy task."""
    run = tiny.run_recipe(*flags_of(CASES["text, single label"], world, tmp_path / "run"), num_train_epochs=4)
    assert run.metrics["accuracy"] >= 0.9


def test_recipe_yaml_repeats_the_run(world, tmp_path):
    first = tiny.run_recipe(*flags_of(CASES["text, single label"], world, tmp_path / "first"))
    second = tiny.run_recipe("--config", tmp_path / "first" / "recipe.yaml", "--output_dir", tmp_path / "second")
    assert second.exit_code == 0, second.output
    assert second.metrics == first.metrics


def test_a_stage_is_changed_by_a_subclass_and_training_by_a_method(tmp_path):
    """What DESIGN promises to users of the package: no fork of the pipeline is needed for either."""

    @dataclasses.dataclass(frozen=True)
    class Shouting(TextClassification):
        def joined(self, rows, columns):
            texts, pairs = super().joined(rows, columns)
            return [text.upper() for text in texts], pairs

    @dataclasses.dataclass(frozen=True)
    class Halved(Method):
        def wrap_loss(self, loss):
            return _HalfLoss(loss)

    from datasets import Dataset

    rows = Dataset.from_list(tiny.rows(12))
    arguments = FinetuningArguments(output_dir=str(tmp_path), max_steps=1, report_to="none", disable_tqdm=True)
    trainer = build_trainer(
        Shouting(),
        DataArguments(),
        ModelArguments(model_name_or_path="builtin:lstm"),
        arguments,
        methods=(Halved(),),
        datasets={"train": rows, "validation": rows},
    )
    decoded = trainer.processing_class.decode(trainer.train_dataset[0]["input_ids"], skip_special_tokens=True)
    assert decoded.strip() == rows[0]["text"].upper()
    whole = trainer.evaluate()["eval_loss"]
    trainer.args.logging_steps = 1
    batch = trainer.data_collator([trainer.train_dataset[row] for row in range(12)])
    trainer.model.eval()
    assert trainer.compute_loss(trainer.model, batch).item() == pytest.approx(whole / 2, rel=1e-5)


@dataclasses.dataclass(frozen=True, eq=False)
class _HalfLoss(Loss):
    loss: Loss

    def denominator(self, labels):
        return self.loss.denominator(labels)

    def __call__(self, logits, labels):
        return self.loss(logits, labels) / 2


def test_prepare_is_the_same_on_every_call(tmp_path):
    """Pitfall 15: an unseeded hold-out makes every rank and every run evaluate on something else."""
    from datasets import Dataset

    rows = Dataset.from_list(tiny.rows(40))
    arguments = FinetuningArguments(output_dir=str(tmp_path), report_to="none")
    model_args = ModelArguments(model_name_or_path="builtin:lstm")
    made = [
        prepare(TextClassification(), DataArguments(), model_args, arguments, datasets={"train": rows})
        for _ in range(2)
    ]
    assert made[0].held_out == made[1].held_out
    assert len(made[0].held_out) == 4
    assert from_memory({"train": rows}, DataArguments()).splits["train"]["example_id"][:3] == [0, 1, 2]
    first, second = (part.model.classifier.weight for part in made)
    assert first.equal(second)
