"""A head that is trained on what was kept is the head that is trained through its frozen base, and the base runs once for each example."""

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import tiny
import tiny_speech
import torch
import transformers as hf
from torch import nn
from torch.nn import functional

from sft_hf import build_trainer, features
from sft_hf.arguments import DataArguments, FinetuningArguments, ModelArguments
from sft_hf.errors import ArgumentError
from sft_hf.features import FEATURES, CannotKeep, HeadAlone, KeptExamples, _Blank
from sft_hf.methods.mixup import Mixup
from sft_hf.pretrained import base_modules, freeze_base_model
from sft_hf.tasks.audio_classification import AudioClassification
from sft_hf.tasks.image_classification import ImageClassification
from sft_hf.tasks.semantic_segmentation import SemanticSegmentation
from sft_hf.tasks.text_classification import TextClassification

LAYERS = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 32, "intermediate_size": 64}
TEXT = {"vocab_size": 60, "max_position_embeddings": 20, "pad_token_id": 0, **LAYERS}
PICTURE = {"image_size": 32, "patch_size": 8, **LAYERS}
WHISPER = {"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 64, "num_mel_bins": 16}
WHISPER |= {"max_source_positions": 50, "classifier_proj_size": 16, "vocab_size": 60, "pad_token_id": 0}
WHISPER |= {"bos_token_id": 1, "eos_token_id": 1, "decoder_start_token_id": 1}


# ---- where the frozen part ends ----


def timm_model(architecture: str, **options) -> hf.PreTrainedModel:
    config = hf.TimmWrapperConfig(architecture=architecture, num_labels=3, model_args=options)
    return hf.TimmWrapperForImageClassification(config)


def texts() -> dict[str, torch.Tensor]:
    """Eight texts of twelve tokens, of which the last ones are padding."""
    ids, mask = torch.randint(1, 60, (8, 12)), torch.ones(8, 12, dtype=torch.long)
    ids[::2, 9:], mask[::2, 9:] = 0, 0
    return {"input_ids": ids, "attention_mask": mask}


def pictures() -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.randn(8, 3, 32, 32)}


def spectrograms() -> dict[str, torch.Tensor]:
    return {"input_features": torch.randn(8, 16, 100)}


def waveforms() -> dict[str, torch.Tensor]:
    mask = torch.ones(8, 1600, dtype=torch.long)
    mask[::2, 1200:] = 0
    return {"input_values": torch.randn(8, 1600), "attention_mask": mask}


# A model, its inputs, and the shape of what is kept of an example: what the frozen part hands on, before the dropout.
ENDS = {
    "BERT: the pooled vector": (
        lambda: hf.BertForSequenceClassification(hf.BertConfig(**TEXT)), texts, (32,)),
    "DistilBERT: the first token's": (
        lambda: hf.DistilBertForSequenceClassification(hf.DistilBertConfig(
            vocab_size=60, dim=32, n_layers=2, n_heads=2, hidden_dim=64, max_position_embeddings=20)), texts, (32,)),
    "RoBERTa: inside of its head": (
        lambda: hf.RobertaForSequenceClassification(hf.RobertaConfig(**TEXT)), texts, (32,)),
    "ModernBERT: the mean of the tokens": (
        lambda: hf.ModernBertForSequenceClassification(hf.ModernBertConfig(
            **TEXT, classifier_pooling="mean", classifier_dropout=0.1, bos_token_id=1, eos_token_id=1, cls_token_id=1,
            sep_token_id=1)), texts, (32,)),
    "ViT": (lambda: hf.ViTForImageClassification(hf.ViTConfig(**PICTURE)), pictures, (32,)),
    "DINOv2: the first token's and the mean": (
        lambda: hf.Dinov2ForImageClassification(hf.Dinov2Config(**PICTURE)), pictures, (64,)),
    "MobileNetV2: dropout in place": (
        lambda: hf.MobileNetV2ForImageClassification(hf.MobileNetV2Config(
            depth_multiplier=0.25, min_depth=8, initializer_range=0.1)), pictures, (1280,)),
    "timm, dropout as a function": (lambda: timm_model("test_efficientnet", drop_rate=0.5), pictures, (256,)),
    "timm, a head with a pooling and a norm": (lambda: timm_model("test_convnext"), pictures, (64, 1, 1)),
    "timm, a transformer": (lambda: timm_model("test_vit"), pictures, (64,)),
    "Whisper: all frames": (lambda: hf.WhisperForAudioClassification(hf.WhisperConfig(**WHISPER)), spectrograms, (50, 32)),
}  # fmt: skip


def made(build: Callable, inputs: Callable) -> tuple[hf.PreTrainedModel, dict, Callable]:
    """A model with a frozen base, a batch, and what gives its logits."""
    torch.manual_seed(0)
    model, batch = build(), {**inputs(), "labels": torch.arange(8) % 2, "example_id": torch.arange(8)}
    freeze_base_model(model)
    names = ("labels", "example_id")
    return model, batch, lambda given: model(**{key: value for key, value in given.items() if key not in names}).logits


def head_gradient(model: nn.Module, run: Callable, batch: dict, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The logits of a training step, and the gradient of the head, with the random numbers of a seed."""
    model.train()
    for module in base_modules(model):
        module.eval()
    torch.manual_seed(seed)
    logits = run(batch)
    functional.cross_entropy(logits, batch["labels"]).backward()
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    gradient = torch.cat([weight.grad.ravel() for weight in weights])
    model.zero_grad()
    return logits.detach(), gradient


@pytest.mark.parametrize("case", ENDS)
def test_the_frozen_part_ends_before_the_first_dropout_and_the_first_trained_weight(case):
    build, inputs, shape = ENDS[case]
    model, batch, run = made(build, inputs)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    head = HeadAlone(model, base_modules(model))
    kept = head.find_cut(run, batch)
    assert sorted(kept) == ["example_id", FEATURES, "labels"]
    assert kept[FEATURES].shape == (8, *shape)
    assert not kept[FEATURES].requires_grad
    wanted, wanted_gradient = head_gradient(model, run, batch, seed=7)
    untouched = kept[FEATURES].clone()
    logits, gradient = head_gradient(model, run, kept, seed=7)
    assert torch.equal(kept[FEATURES], untouched)
    assert torch.allclose(logits, wanted, atol=1e-5)
    assert torch.allclose(gradient, wanted_gradient, atol=1e-5)
    # What is saved is the model; what a batch is kept of is any batch.
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    half = {name: value[:3] for name, value in kept.items()}
    model.eval()
    assert torch.allclose(run(half), run({name: value[:3] for name, value in batch.items()}), atol=1e-5)


def test_frozen_modules_hand_on_nan_so_that_nothing_passes_unseen():
    blank = _Blank.of(torch.ones(8, 2), batch_size=8)
    assert blank.value.shape == (1, 2)
    assert blank.expanded(3).shape == (3, 2)
    assert blank.expanded(3).isnan().all()
    assert _Blank.of(torch.ones(8, 2, dtype=torch.long), batch_size=8).expanded(3).tolist() == [[0, 0]] * 3
    assert _Blank.of(torch.ones(5), batch_size=8).expanded(3).shape == (5,)


def test_dropout_is_drawn_anew_at_every_step():
    model, batch, run = made(*ENDS["timm, dropout as a function"][:2])
    kept = HeadAlone(model, base_modules(model)).find_cut(run, batch)
    model.train()
    assert not torch.equal(run(kept), run(kept))


WEIGHTED = {**WHISPER, "use_weighted_layer_sum": True}
DECODER = {"vocab_size": 60, "n_positions": 20, "n_embd": 32, "n_layer": 2, "n_head": 2, "pad_token_id": 0}
WAV2VEC2 = {"conv_dim": (16, 16), "conv_kernel": (16, 8), "conv_stride": (8, 5), "classifier_proj_size": 16, **LAYERS}
WAV2VEC2 |= {"feat_extract_norm": "layer", "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2}
NO_ENDS = {
    "a decoder's head chooses a token by the ids": (
        lambda: hf.GPT2ForSequenceClassification(hf.GPT2Config(**DECODER)), texts),
    "weights of the layers are trained": (
        lambda: hf.WhisperForAudioClassification(hf.WhisperConfig(**WEIGHTED)), spectrograms),
    "the mean is one of the frames that the mask names": (
        lambda: hf.Wav2Vec2ForSequenceClassification(hf.Wav2Vec2Config(**WAV2VEC2)), waveforms),
}  # fmt: skip


def patches(model: nn.Module) -> int:
    """How many hooks and forward passes of instances a model has."""
    parts = list(model.modules())
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) + ("forward" in vars(part)) for part in parts)


@pytest.mark.parametrize("case", NO_ENDS)
def test_a_head_that_sees_more_is_left_alone(case):
    model, batch, run = made(*NO_ENDS[case])
    run(batch)  # transformers puts hooks of its own on
    before = patches(model)
    head = HeadAlone(model, base_modules(model))
    assert patches(model) > before
    with pytest.raises(CannotKeep, match="sees more than one tensor of the base"):
        head.find_cut(run, batch)
    head.close()
    assert patches(model) == before


def test_what_only_later_batches_show_is_found_as_well():
    """Of texts without padding the head of a decoder takes the last token, whatever ids it is shown; of others not."""
    model, batch, run = made(
        lambda: hf.GPT2ForSequenceClassification(hf.GPT2Config(**{**DECODER, "pad_token_id": 59})), texts
    )
    batch["input_ids"] = batch["input_ids"].clamp(max=58)
    head = HeadAlone(model, base_modules(model))
    assert head.find_cut(run, batch)[FEATURES].shape == (8, 12, 32)
    batch["input_ids"][:, 6:] = 59
    model.eval()
    with pytest.raises(CannotKeep, match="sees more than what enters it"):
        head.record(run, batch)


# ---- what is kept ----


def test_kept_rows_are_found_by_keys_of_any_epoch():
    """Of three rows the keys 3 to 5 are those of the second epoch."""
    rows = KeptExamples({"example_id": torch.tensor([7, 8, 9]), FEATURES: torch.arange(6.0).reshape(3, 2)})
    assert len(rows) == 3
    assert rows[4]["example_id"] == 8
    batch = rows.__getitems__([5, 3])
    assert batch["example_id"].tolist() == [9, 7]
    assert batch[FEATURES].tolist() == [[4, 5], [0, 1]]


def test_what_may_be_kept_is_half_of_what_is_free(monkeypatch):
    monkeypatch.setattr(features.psutil, "virtual_memory", lambda: SimpleNamespace(available=1000))
    assert features.available_bytes() == 500
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert features.available_bytes() == 250


# ---- whole trainings ----


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """Models and data by name."""
    folder = tmp_path_factory.mktemp("world")
    tiny.save_bert(folder / "bert", hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1)
    tiny.save_decoder(folder / "decoder")
    tiny.save_timm(folder / "timm", "test_efficientnet")
    tiny_speech.save_whisper(folder / "whisper")
    tiny.write_rows(folder / "topics.csv", tiny.rows(26))
    tiny.write_class_folders(folder / "colours", train=18, test=3)
    tiny_speech.write_tone_folders(folder / "tones", train=12, test=3)
    return folder


@pytest.fixture(autouse=True)
def _log(monkeypatch, caplog):
    monkeypatch.setattr(logging.getLogger("sft_hf"), "propagate", True)
    caplog.set_level(logging.INFO, "sft_hf")


def trainer_of(world: Path, output_dir: Path, kind: str, cache_features: str, *, task=None, methods=(), **flags):
    """A trainer of a head for three epochs, evaluated after each, its steps of two micro-batches."""
    source, task, model = {
        "bert": ({"train_file": [str(world / "topics.csv")]}, task or TextClassification(), "bert"),
        "decoder": ({"train_file": [str(world / "topics.csv")]}, task or TextClassification(), "decoder"),
        "timm": ({"dataset_name": str(world / "colours")}, task or ImageClassification(), "timm"),
        "whisper": ({"dataset_name": str(world / "tones")}, task or AudioClassification(), "whisper"),
    }[kind]
    arguments = {"num_train_epochs": 3, "learning_rate": 1e-2, "per_device_train_batch_size": 4}
    arguments |= {"gradient_accumulation_steps": 2, "eval_strategy": "epoch", "save_strategy": "epoch"}
    arguments |= {"load_best_model_at_end": True, "cpu_bf16": "off", "num_cpu_threads_per_process": 1}
    arguments |= {"report_to": "none", "disable_tqdm": True}
    if kind == "bert":
        arguments["train_sampling_strategy"] = "group_by_length"
    dropout = {"timm": ["model_args={drop_rate: 0.3}"]}.get(kind)
    return build_trainer(
        task,
        DataArguments(**source, validation_fraction=0.2),
        ModelArguments(model_name_or_path=str(world / model), freeze_base_model=True, config_overrides=dropout),
        FinetuningArguments(output_dir=str(output_dir), cache_features=cache_features, **{**arguments, **flags}),
        methods=methods,
    )


@contextmanager
def inputs_counted(trainer) -> Iterator[Counter]:
    """How many examples pass through the first frozen module of a model."""
    counter, module = Counter(), base_modules(trainer.model)[0]
    kind, forward = type(module), type(module).forward

    def counting(self, *args, **kwargs):
        if self is module:
            inputs = (value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor))
            counter["base"] += len(next(inputs))
        return forward(self, *args, **kwargs)

    with mock.patch.object(kind, "forward", counting):
        yield counter


def trained(trainer, **options) -> tuple[dict[str, torch.Tensor], dict[str, float], int]:
    """The weights, the metrics of the best model, and how many examples the base has seen."""
    with inputs_counted(trainer) as counter:
        trainer.train(**options)
        metrics = trainer.evaluate()
    weights = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    return weights, {name: metrics[f"eval_{name}"] for name in ("loss", "accuracy", "f1_macro")}, counter["base"]


# Training and validation examples. Without the cache: 3 epochs over both, and the last evaluation.
SIZES = {"bert": (21, 5), "timm": (14, 4), "whisper": (10, 2)}


@pytest.mark.parametrize("kind", SIZES)
def test_a_run_ends_the_same_and_its_base_runs_once_for_each_example(kind, world, tmp_path):
    num_train, num_validation = SIZES[kind]
    plain = trainer_of(world, tmp_path / "plain", kind, "off")
    assert (len(plain.train_dataset), len(plain.eval_dataset)) == SIZES[kind]
    weights, metrics, seen = trained(plain)
    assert seen == 3 * num_train + 4 * num_validation
    trainer = trainer_of(world, tmp_path / "kept", kind, "auto")
    kept_weights, kept_metrics, kept_seen = trained(trainer)
    assert kept_seen == num_train + num_validation
    for name, value in weights.items():
        assert torch.allclose(kept_weights[name].float(), value.float(), atol=1e-5), name
    assert kept_metrics == pytest.approx(metrics, abs=1e-6)
    losses = [[entry["loss"] for entry in run.state.log_history if "loss" in entry] for run in (plain, trainer)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert plain.state.best_global_step == trainer.state.best_global_step


def test_the_log_says_what_is_kept(world, tmp_path, caplog):
    trainer_of(world, tmp_path, "bert", "auto", max_steps=7, num_train_epochs=1).train()
    said = "--cache_features auto: what enters the head, 32 numbers of each of 21 training and 5 validation examples, is kept"
    assert said in caplog.text
    assert "--cache_features off runs it in every epoch" in caplog.text


def test_a_resumed_run_ends_bit_for_bit_the_same(world, tmp_path):
    whole, _, _ = trained(trainer_of(world, tmp_path, "bert", "auto", load_best_model_at_end=False))
    again = trainer_of(world, tmp_path, "bert", "auto", load_best_model_at_end=False)
    resumed, _, seen = trained(again, resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert seen == 21 + 5
    assert all(torch.equal(whole[name], value) for name, value in resumed.items())


def test_under_bfloat16_what_is_kept_is_what_the_head_would_see(world, tmp_path):
    weights, _, _ = trained(trainer_of(world, tmp_path / "plain", "bert", "off", bf16=True))
    trainer = trainer_of(world, tmp_path / "kept", "bert", "on", bf16=True)
    kept_weights, _, _ = trained(trainer)
    assert trainer._features.train.columns[FEATURES].dtype == torch.bfloat16
    assert torch.allclose(kept_weights["classifier.weight"], weights["classifier.weight"], atol=1e-3)


WHY_NOT = {
    "augmentation": (
        "timm", {"task": ImageClassification(augmentation="light")}, "--augmentation light changes every example anew"),
    "mixup": ("timm", {"methods": (Mixup(mixup_alpha=0.2),)}, r"MixedBatches\(mixup_alpha=0.2.*changes every batch anew"),
    "parts": (
        "whisper", {"task": AudioClassification(max_length_seconds=0.3), "per_device_train_batch_size": 2},
        "of clips longer than .* every epoch hears another part"),
    "once": ("bert", {"num_train_epochs": 1}, "no example is seen twice"),
    "decoder": ("decoder", {}, "the head of GPT2ForSequenceClassification sees more than one tensor of the base"),
}  # fmt: skip


@pytest.mark.parametrize("case", WHY_NOT)
def test_where_features_differ_or_do_not_help_the_base_runs_as_ever(case, world, tmp_path, caplog):
    kind, flags, why = WHY_NOT[case]
    trainer = trainer_of(world, tmp_path, kind, "auto", **{"max_steps": -1, **flags})
    trainer._keep_features()
    assert trainer._features is None
    (line,) = [record.message for record in caplog.records if "--cache_features" in record.message]
    assert line.startswith("--cache_features auto: the frozen base model runs in every epoch, since ")
    assert re.search(why, line), line


def test_what_does_not_fit_into_memory_is_not_kept(world, tmp_path, monkeypatch):
    """Pitfall 26: 21 rows of 32 float32 numbers, a label and an id are 3,024 bytes, of which 3,000 fit."""
    monkeypatch.setattr(features, "available_bytes", lambda: 3000)
    trainer = trainer_of(world, tmp_path, "bert", "on")
    with pytest.raises(ArgumentError, match="what enters its head needs .* more than 50% of the free memory"):
        trainer.train()
    monkeypatch.setattr(features, "available_bytes", lambda: 3000 + 24 + 5 * 144)
    trainer._keep_features()
    assert trainer._features is not None


def test_a_signal_ends_the_keeping_and_then_the_run(world, tmp_path):
    trainer = trainer_of(world, tmp_path, "bert", "on")
    trainer.signals.received = 15
    trainer.train()
    assert trainer._features is None
    assert trainer.state.global_step == 1


@pytest.mark.parametrize(
    ("task", "freeze", "message"),
    [
        (TextClassification(), False, "add --freeze_base_model true"),
        (ImageClassification(augmentation="trivial"), True, "Give --augmentation none, or --cache_features off"),
        (AudioClassification(spec_augment=True), True, "Give --spec_augment false, or --cache_features off"),
    ],
)
def test_flags_that_cannot_go_together_are_an_error_before_anything_is_read(task, freeze, message):
    arguments = FinetuningArguments(output_dir="unused", cache_features="on")
    with pytest.raises(ArgumentError, match=message):
        features.check_flags(task, arguments, freeze_base_model=freeze)


def test_other_tasks_run_their_base_in_every_epoch():
    assert SemanticSegmentation().why_inputs_vary(None, None, None) == "that is for classification alone"
