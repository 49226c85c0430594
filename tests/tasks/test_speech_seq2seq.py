"""Recognition by a decoder, stage by stage: what it is trained to write, what it writes by itself, and what is saved of that."""

import io
import json
import logging
import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import tiny
import tiny_speech
import torch
import transformers as hf
from datasets import Dataset
from test_trainer import gradient, relative_difference
from torch.nn import functional
from transformers import GenerationConfig, WhisperProcessor, WhisperTokenizer, pipeline

from sft_hf import build_trainer
from sft_hf.arguments import DataArguments, FinetuningArguments, ModelArguments
from sft_hf.clips import RATE, SECONDS, extracted
from sft_hf.data.labels import TRANSCRIPTION, Labels
from sft_hf.data.sources import load_splits
from sft_hf.errors import ArgumentError, ModelError
from sft_hf.task import Columns
from sft_hf.tasks.speech_seq2seq import (
    DecoderTokens,
    Seq2SeqCollator,
    SpeechSeq2Seq,
    TokenEncoder,
    WindowRule,
    decoder_limit,
    decoder_tokens,
    known_language,
)

COLUMNS = Columns(("audio",), "text")
LABELS = Labels(TRANSCRIPTION, (), "text")
KINDS = ("whisper", "multilingual", "moonshine", "speech2text", "speecht5", "encoder_decoder")
TRANSCRIPTS = ("AB C", "CAB", "A")
LANGUAGE = {"multilingual": "english"}


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """Spelt tones, and a model of each family."""
    folder = tmp_path_factory.mktemp("world")
    tiny_speech.write_spelt(folder / "spelt", train=24, test=8)
    tiny_speech.save_whisper(folder / "whisper")
    tiny_speech.save_whisper(folder / "multilingual", multilingual=True)
    tiny_speech.save_moonshine(folder / "moonshine")
    tiny_speech.save_speech2text(folder / "speech2text")
    save_speecht5(folder / "speecht5", folder / "speech2text")
    save_encoder_decoder(folder / "encoder_decoder", folder / "speech2text")
    return folder


CONVOLUTIONS = {"conv_dim": (16, 16, 16), "conv_kernel": (16, 8, 5), "conv_stride": (8, 8, 5), "mask_time_prob": 0.0}
CONVOLUTIONS |= {"num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2}


def save_speecht5(folder: Path, tokenizer: Path) -> None:
    layers = {"encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    layers |= {"hidden_size": 32, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_text_positions": 64}
    save(folder, hf.SpeechT5ForSpeechToText, hf.SpeechT5Config(vocab_size=32, **layers, **CONVOLUTIONS), tokenizer)


def save_encoder_decoder(folder: Path, tokenizer: Path) -> None:
    """A wav2vec2 whose states a BART's decoder reads."""
    normed = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
    encoder = hf.Wav2Vec2Config(**tiny_speech.SIZES, **tiny_speech.NO_DROPOUT, **CONVOLUTIONS, **normed)
    sizes = {"d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 2, "decoder_ffn_dim": 64, "vocab_size": 32}
    decoder = hf.BartConfig(**sizes, max_position_embeddings=64, is_decoder=True, add_cross_attention=True)
    config = hf.SpeechEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    config.decoder_start_token_id, config.pad_token_id, config.eos_token_id = 2, 1, 2
    save(folder, hf.SpeechEncoderDecoderModel, config, tokenizer)


def save(folder: Path, kind: type, config, tokenizer: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind(config)
    model.save_pretrained(folder)
    extractor = hf.Wav2Vec2FeatureExtractor(return_attention_mask=True)
    hf.Wav2Vec2Processor(extractor, hf.AutoTokenizer.from_pretrained(tokenizer)).save_pretrained(folder)


@pytest.fixture(autouse=True)
def _log(monkeypatch, caplog):
    monkeypatch.setattr(logging.getLogger("sft_hf"), "propagate", True)
    caplog.set_level(logging.INFO, logger="sft_hf")


def loaded(world: Path, kind: str, *, task: SpeechSeq2Seq | None = None, **flags):
    task = task or SpeechSeq2Seq(language=LANGUAGE.get(kind), generation_max_length=12)
    arguments = ModelArguments(model_name_or_path=str(world / kind), **flags)
    train = Dataset.from_dict({"text": ["A"], RATE: [16_000], SECONDS: [1.0]})
    processor = task.load_processor(arguments, train, COLUMNS)
    torch.manual_seed(0)
    return processor, task.load_model(arguments, LABELS, processor).eval()


def batch_of_letters(processor, model, *texts: str) -> dict:
    """Spelt tones with their transcripts, as evaluation has them."""
    encode = SpeechSeq2Seq().text_encoder(processor, model)
    clips = [tiny_speech.spelt(text, random.Random(0)) for text in texts]
    examples = [
        {
            "features": extracted(processor.feature_extractor, clip),
            "labels": encode(text),
            "text": text,
            "example_id": row,
        }
        for row, (clip, text) in enumerate(zip(clips, texts, strict=True))
    ]
    return SpeechSeq2Seq().data_collator(processor, model)(examples)


def unused(**flags) -> FinetuningArguments:
    return FinetuningArguments(output_dir="unused", **flags)


# ---- what the decoder is trained to write ----


@pytest.mark.parametrize("kind", KINDS)
def test_the_labels_decode_back_to_the_text(world, kind):
    """Pitfall 17: the end is trained although some models pad with it, and the start is given once."""
    processor, model = loaded(world, kind)
    batch, tokens = batch_of_letters(processor, model, *TRANSCRIPTS), decoder_tokens(model)
    for text, labels, inputs in zip(TRANSCRIPTS, batch["labels"], batch["decoder_input_ids"], strict=True):
        kept = labels[labels != -100]
        assert processor.tokenizer.decode(kept, skip_special_tokens=True) == text
        assert (kept[-1], kept.tolist().count(tokens.end)) == (tokens.end, 1)
        assert inputs[0] == tokens.start
        assert tokens.start not in inputs[1 : len(kept)]
        assert inputs[1 : len(kept)].equal(kept[:-1])
        assert (labels[len(kept) :] == -100).all()
        assert (inputs[len(kept) :] == tokens.pad).all()


def test_what_whisper_writes_before_the_text(world):
    """Language and task where it has several, and that there are no timestamps."""
    heads = {}
    for kind in ("whisper", "multilingual"):
        processor, model = loaded(world, kind)
        batch = batch_of_letters(processor, model, "A")
        heads[kind] = processor.tokenizer.convert_ids_to_tokens(batch["decoder_input_ids"][0])
    assert heads["whisper"] == ["<|startoftranscript|>", "<|notimestamps|>", "A"]
    assert heads["multilingual"] == ["<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>", "A"]


@pytest.mark.parametrize("kind", KINDS)
def test_generation_starts_as_training_does(world, kind):
    processor, model = loaded(world, kind)
    batch, seen = batch_of_letters(processor, model, "A", "B"), []
    model.get_decoder().register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs.get("input_ids", kwargs.get("input_values"))), with_kwargs=True
    )
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    generated(model, inputs, processor)
    first = seen[0].tolist()
    assert first == batch["decoder_input_ids"][:, :-1].tolist()  # all but the letter


def test_a_tokenizer_that_adds_a_start_token_adds_none_too_many():
    """Moonshine's own begins with the token that its decoder starts from."""
    tokenizer = lambda text: SimpleNamespace(input_ids=[1, *(ord(letter) for letter in text)])  # noqa: E731
    encode = TokenEncoder(tokenizer, DecoderTokens(start=1, end=2, pad=2))
    assert encode("A") == [65, 2]
    assert encode("") == [2]


def test_where_a_decoder_starts_and_ends_is_the_generation_configurations_to_say():
    model = SimpleNamespace(
        generation_config=GenerationConfig(eos_token_id=[7, 8]),
        config=SimpleNamespace(decoder_start_token_id=3, eos_token_id=2, pad_token_id=None),
    )
    assert decoder_tokens(model) == DecoderTokens(start=3, end=7, pad=7)
    model.config.decoder_start_token_id = None
    with pytest.raises(
        ModelError, match="has no decoder_start_token_id: give --config_overrides decoder_start_token_id"
    ):
        decoder_tokens(model)


# ---- the loss ----


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_the_models_own(world, kind):
    """In evaluation too, where the encoder's states are kept for generation; Moonshine's is then that of clips without padding."""
    processor, model = loaded(world, kind)
    # Moonshine shifts labels by itself only where it has a padding token.
    model.config.pad_token_id = decoder_tokens(model).pad
    batch = batch_of_letters(processor, model, *TRANSCRIPTS)
    inputs = {
        name: batch[name] for name in ("input_values", "input_features", "attention_mask", "labels") if name in batch
    }
    theirs = model(**inputs).loss.item()
    loss = SpeechSeq2Seq().load_loss(None, LABELS, unused(), model)
    for is_training in (False, True):
        model.train(is_training)
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.eval()
        model.config.dropout = 0.0
        states, sums = SpeechSeq2Seq().loss_sums(loss, model, batch)
        ours = sums["items"] / SpeechSeq2Seq().loss_denominators(loss, batch)["items"]
        assert (states is None) == is_training
        if kind == "moonshine" and not is_training:
            assert ours.item() != pytest.approx(theirs, rel=1e-5)
        elif not is_training or kind in ("whisper", "multilingual", "moonshine", "speech2text"):  # without other noise
            assert ours.item() == pytest.approx(theirs, rel=1e-5)


def test_pitfall_12_a_clip_scores_the_same_in_every_batch(world):
    """Moonshine's encoder normalises over all of a clip, padding too, in spite of its attention mask."""
    processor, model = loaded(world, "moonshine")
    task = SpeechSeq2Seq()
    loss = task.load_loss(None, LABELS, unused(), model)
    with torch.no_grad():
        together = task.loss_sums(loss, model, batch_of_letters(processor, model, *TRANSCRIPTS))[1]["items"]
        alone = [
            task.loss_sums(loss, model, batch_of_letters(processor, model, text))[1]["items"] for text in TRANSCRIPTS
        ]
    assert together.item() == pytest.approx(sum(alone).item(), rel=1e-5)


def test_label_smoothing(world):
    processor, model = loaded(world, "whisper")
    batch = batch_of_letters(processor, model, *TRANSCRIPTS)
    loss = SpeechSeq2Seq().load_loss(None, LABELS, unused(label_smoothing_factor=0.1), model)
    _, sums = SpeechSeq2Seq().loss_sums(loss, model, batch)
    ours = sums["items"] / SpeechSeq2Seq().loss_denominators(loss, batch)["items"]
    inputs = {name: batch[name] for name in ("input_features", "decoder_input_ids")}
    logits, labels = model(**inputs).logits.flatten(0, 1), batch["labels"].flatten()
    assert ours.item() == pytest.approx(functional.cross_entropy(logits, labels, label_smoothing=0.1).item(), rel=1e-5)


def make_trainer(
    world: Path, output_dir: Path, kind: str, *, task: SpeechSeq2Seq | None = None, rows: int = 4, **flags
):
    """A trainer of plain SGD at rate 1 on the first rows in their order."""
    splits = load_splits(DataArguments(dataset_name=str(world / "spelt")), cache_dir=str(world / "cache")).splits
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
        task or SpeechSeq2Seq(language=LANGUAGE.get(kind)),
        DataArguments(),
        ModelArguments(model_name_or_path=str(world / kind)),
        FinetuningArguments(output_dir=str(output_dir), **arguments),
        datasets={"train": splits["train"].select(range(rows)), "validation": splits["test"]},
    )


@pytest.mark.parametrize(("kind", "smoothing"), [("whisper", 0.0), ("whisper", 0.1), ("multilingual", 0.0)])
def test_a_global_batch_has_one_gradient_however_it_is_cut(world, kind, smoothing, tmp_path):
    """Pitfalls 1 and 42. Transcripts have 3 to 5 letters, and each token weighs the same."""
    whole, cut = (
        gradient(
            make_trainer(
                world,
                tmp_path,
                kind,
                per_device_train_batch_size=size,
                gradient_accumulation_steps=4 // size,
                label_smoothing_factor=smoothing,
            )
        )
        for size in (4, 2)
    )
    assert relative_difference(cut, whole) < 1e-5


def test_the_encoder_can_be_frozen(world):
    _, model = loaded(world, "whisper", task=SpeechSeq2Seq(freeze_encoder=True))
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {name for name, _ in model.named_parameters() if name.startswith("model.encoder.")}


# ---- what does not fit ----


def test_transcripts_longer_than_the_decoder_and_clips_longer_than_the_window():
    """Pitfalls 17 and 43; the end is a token too, the start stands in the place of the last one."""
    rule = WindowRule(limit=4, window_seconds=2)
    assert rule([1, 2, 3, 4], (2.0, 2.0)) is None
    assert rule([1, 2, 3, 4, 5], (1.0, 1.0)) == "have transcripts of more than the 4 tokens of the decoder"
    assert rule([1], (1.5, 2.01)) == "are longer than the 2 s that the model hears"
    assert WindowRule(limit=None, window_seconds=None)([1] * 9999, (9999.0, 9999.0)) is None


@pytest.mark.parametrize(("augmentation", "kept"), [("none", [0, 1]), ("light", [0]), ("full", [])])
def test_no_augmentation_makes_a_clip_longer_than_the_window(world, caplog, augmentation, kept):
    """Of 2 s: 1.8 s at 90 % of the speed and 0.1 s later are 2.1; 1.95 s and 0.1 s are 2.05. Whisper would cut the end off."""
    task = SpeechSeq2Seq(augmentation=augmentation)
    processor, model = loaded(world, "whisper", task=task)
    clips = []
    for seconds in (1.8, 1.95):
        buffer = io.BytesIO()
        soundfile.write(buffer, tiny_speech.tone(440.0, seconds, random.Random(0)), 16_000, format="WAV")
        clips.append({"bytes": buffer.getvalue(), "path": f"{seconds}.wav"})
    rows = Dataset.from_dict({"audio": clips, "text": ["A", "B"], "example_id": [0, 1]})
    for split, expected in (("train", kept), ("validation", [0, 1])):
        chosen = task.select_examples(rows, COLUMNS, LABELS, split=split)
        found = task.preprocess(chosen, COLUMNS, LABELS, processor, model, split=split)
        assert found["example_id"][:] == expected
    said = f"are longer than the 2 s that the model hears once --augmentation {augmentation} has changed them; they are"
    assert (f"train: {2 - len(kept)} of 2 clips {said} left out" in caplog.text) == (len(kept) < 2)
    assert "validation: " not in caplog.text


@pytest.mark.parametrize("kind", KINDS)
def test_whisper_alone_pads_every_clip_to_one_length(world, kind):
    processor, _ = loaded(world, kind)
    clips = Dataset.from_dict({"length": [0.5, 1.5]})
    for split in ("train", "evaluation"):
        lengths = SpeechSeq2Seq().lengths(clips, processor, split=split)
        assert (lengths is None) == (kind in ("whisper", "multilingual"))
        assert lengths is None or lengths.values.tolist() == [0.5, 1.5]


@pytest.mark.parametrize("kind", KINDS)
def test_every_family_says_how_long_its_decoder_is(world, kind):
    _, model = loaded(world, kind)
    assert decoder_limit(model) == 64


def test_evaluation_cuts_labels_for_the_loss_alone(world):
    processor, _ = loaded(world, "moonshine")
    collate = Seq2SeqCollator(processor.feature_extractor, DecoderTokens(start=1, end=2, pad=2), limit=3)
    features = extracted(processor.feature_extractor, np.zeros(1600, dtype=np.float32))
    batch = collate([{"features": features, "labels": [5, 6, 7, 8, 2], "text": "ABCD", "example_id": 0}])
    assert batch["labels"].tolist() == [[5, 6, 7]]
    assert batch["decoder_input_ids"].tolist() == [[1, 5, 6]]
    assert batch["text"] == ["ABCD"]


def test_what_is_too_long_is_counted_and_left_out_of_training_alone(world, tmp_path, caplog):
    """Evaluation scores it: what the model cannot hear or write are errors of its own."""
    for split in ("train", "test"):
        rows = []
        for index, (seconds, text) in enumerate([(0.5, "A"), (2.5, "B"), (0.5, "C" * 70), (0.5, "A B")]):
            tiny_speech.write_wav(tmp_path / "clips" / split / f"{index}.wav", np.zeros(round(16_000 * seconds)))
            rows.append({"file_name": f"{index}.wav", "text": text})
        tiny.write_rows(tmp_path / "clips" / split / "metadata.csv", rows)
    finished = tiny.run_recipe(
        "--dataset_name", tmp_path / "clips", "--validation_split_name", "test",
        "--model_name_or_path", world / "whisper", "--output_dir", tmp_path / "out",
        "--generation_max_length", 12, recipe="speech_seq2seq", num_train_epochs=1,
    )  # fmt: skip
    assert finished.exit_code == 0, finished.output
    for split, outcome in (("train", "left out"), ("validation", "scored like any other")):
        assert (
            f"{split}: 1 of 4 clips are longer than the 2 s that the model hears; they are {outcome}" in finished.output
        )
        assert (
            f"{split}: 1 of 4 clips have transcripts of more than the 64 tokens of the decoder; they are {outcome}"
            in finished.output
        )
    assert "train: 3.0 seconds of sound are left out" in finished.output
    assert "4 examples differ by at most 0.0e+00" in finished.output  # the pipeline is given what the model hears


# ---- language and task ----


def test_language_and_task_reach_tokenizer_and_generation(world, tmp_path):
    """Pitfall 17, and that they are still there when the model is loaded again."""
    task = SpeechSeq2Seq(language="en", task="translate")
    processor, model = loaded(world, "multilingual", task=task)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    tokenizer, generation = WhisperTokenizer.from_pretrained(tmp_path), GenerationConfig.from_pretrained(tmp_path)
    expected = ["<|startoftranscript|>", "<|en|>", "<|translate|>", "<|notimestamps|>"]
    for one in (processor.tokenizer, tokenizer, WhisperProcessor.from_pretrained(tmp_path).tokenizer):
        assert one.convert_ids_to_tokens(one.prefix_tokens) == expected
        assert one.convert_ids_to_tokens(one("A").input_ids) == [*expected, "A", "<|endoftext|>"]
    assert (generation.language, generation.task) == ("english", "translate")
    assert generation.return_timestamps is False
    assert generation.forced_decoder_ids is None


def test_a_model_that_was_fine_tuned_to_a_language_keeps_it(world, tmp_path):
    processor, model = loaded(world, "multilingual", task=SpeechSeq2Seq(language="english", task="translate"))
    model.save_pretrained(tmp_path / "english")
    processor.save_pretrained(tmp_path / "english")
    _, again = loaded(tmp_path, "english", task=SpeechSeq2Seq())
    assert (again.generation_config.language, again.generation_config.task) == ("english", "translate")


@pytest.mark.parametrize("given", ["english", "English", "en", "<|en|>"])
def test_a_language_by_name_or_code(given):
    assert known_language(given, {"<|en|>": 5, "<|de|>": 6}, "the model") == "english"


def test_a_language_that_the_model_does_not_have():
    message = "--language klingon: the model has no such; it has english \\(en\\), german \\(de\\)"
    with pytest.raises(ArgumentError, match=message):
        known_language("klingon", {"<|de|>": 6, "<|en|>": 5}, "the model")
    with pytest.raises(ArgumentError, match="--language french: the model has no such"):
        known_language("french", {"<|en|>": 5}, "the model")


def test_a_multilingual_model_is_told_its_language(world, tmp_path):
    """Trained without, it would write transcripts that its own search for the language never leads to."""
    tiny_speech.save_whisper(tmp_path / "whisper", multilingual=True)
    tokenizer = WhisperTokenizer.from_pretrained(tmp_path / "whisper")
    tokenizer.language = None
    tokenizer.set_prefix_tokens()
    WhisperProcessor(hf.AutoFeatureExtractor.from_pretrained(tmp_path / "whisper"), tokenizer).save_pretrained(
        tmp_path / "whisper"
    )
    with pytest.raises(ArgumentError, match="whisper needs a --language, since it has several; it has english"):
        loaded(tmp_path, "whisper", task=SpeechSeq2Seq())


@pytest.mark.parametrize("kind", ["whisper", "moonshine"])
@pytest.mark.parametrize("flags", [{"language": "english"}, {"task": "transcribe"}])
def test_a_model_of_one_language_takes_neither(world, kind, flags):
    (name, value), *_ = flags.items()
    with pytest.raises(ArgumentError, match=f"--{name} {value}: .*{kind} names no languages, it knows one; leave"):
        loaded(world, kind, task=SpeechSeq2Seq(**flags))


def test_a_tokenizer_of_another_model_is_refused(world, tmp_path):
    """Tokens of Whisper's versions have other numbers, and none of them would say so."""
    tiny_speech.save_whisper(tmp_path / "whisper", multilingual=True)
    settings = json.loads((tmp_path / "whisper" / "generation_config.json").read_text())
    settings["task_to_id"]["transcribe"] += 1
    (tmp_path / "whisper" / "generation_config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError, match="its tokenizer begins a transcript with .*they are of two models"):
        loaded(tmp_path, "whisper", task=SpeechSeq2Seq(language="english"))


def test_a_tokenizer_without_its_files_is_no_tokenizer(tmp_path):
    """transformers makes an empty one of nothing."""
    tiny_speech.save_whisper(tmp_path / "whisper")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "whisper" / name).unlink()
    with pytest.raises(ModelError, match="its tokenizer begins a transcript with .*they are of two models"):
        loaded(tmp_path, "whisper")


def test_random_weights_keep_what_the_checkpoint_says_of_generation(world):
    _, model = loaded(world, "multilingual", from_scratch=True)
    assert model.generation_config.language == "english"
    assert model.generation_config.lang_to_id.keys() == {"<|en|>", "<|de|>"}
    assert loaded(world, "moonshine", from_scratch=True)[1].generation_config.decoder_start_token_id == 1


# ---- generation ----


def generated(model, batch, processor, task: SpeechSeq2Seq | None = None) -> list[str]:
    task = task or SpeechSeq2Seq()
    loss = task.load_loss(None, LABELS, unused(), model)
    with torch.no_grad():
        states, _ = task.loss_sums(loss, model, batch)
    return task.predict(model, states, batch, processor)


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_the_kept_states_give_what_the_clip_gives(world, kind, num_beams):
    flags = {"num_beams": num_beams, "generation_max_length": 12}
    processor, model = loaded(world, kind, task=SpeechSeq2Seq(language=LANGUAGE.get(kind), **flags))
    assert model.generation_config.num_beams == num_beams
    texts = []
    for transcript in TRANSCRIPTS:
        alone = batch_of_letters(processor, model, transcript)
        inputs = {name: alone[name] for name in ("input_values", "input_features", "attention_mask") if name in alone}
        texts += processor.tokenizer.batch_decode(model.generate(**inputs), skip_special_tokens=True)
    batch = batch_of_letters(processor, model, *TRANSCRIPTS)
    assert generated(model, batch, processor) == [text.strip() for text in texts]


@pytest.mark.parametrize("kind", ["whisper", "multilingual", "moonshine", "speech2text"])
def test_the_encoder_runs_once_for_a_batch_and_the_decoder_over_new_tokens_alone(world, kind, tmp_path):
    task = SpeechSeq2Seq(language=LANGUAGE.get(kind), generation_max_length=12)
    trainer = make_trainer(world, tmp_path, kind, task=task, per_device_eval_batch_size=4)
    model, lengths, runs = trainer.model, [], []
    write_letters_alone(model, trainer.processing_class)
    model.get_encoder().register_forward_hook(lambda *_: runs.append(1))
    model.get_decoder().register_forward_pre_hook(
        lambda _, args, kwargs: lengths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    trainer.evaluate()
    assert len(runs) == (4 if kind == "moonshine" else 2)  # 8 clips; Moonshine hears those of one length together
    # Per batch the transcripts, what comes before a text, and from there one token after the other: the cache is on.
    prefix = trainer.processing_class.tokenizer.num_special_tokens_to_add() - 1
    assert len(lengths) >= 2 * (1 + 12 - max(prefix, 1))
    assert len([length for length in lengths if length > 1]) == (4 if prefix > 1 else 2)


def write_letters_alone(model, processor) -> None:
    """No end, no special token, no time."""
    special = set(range(model.generation_config.eos_token_id, len(processor.tokenizer)))
    if not hasattr(model.generation_config, "no_timestamps_token_id"):
        special = set(processor.tokenizer.all_special_ids)
    model.generation_config.suppress_tokens = sorted(special)


def test_a_model_that_writes_times_all_the_same(world, monkeypatch):
    """Whisper's generate goes on after the last time that it wrote, which it cannot do with states of the whole clip."""
    processor, model = loaded(world, "whisper")
    time = processor.tokenizer.convert_tokens_to_ids("<|0.50|>")
    letter = processor.tokenizer.convert_tokens_to_ids("A")
    calls = []

    def generate(**inputs):
        calls.append("encoder_outputs" in inputs)
        return torch.tensor([[letter, time, time] if calls[-1] else [letter, letter, letter]])

    monkeypatch.setattr(model, "generate", generate)
    assert generated(model, batch_of_letters(processor, model, "A"), processor) == ["AAA"]
    assert calls == [True, False]


def test_what_decides_a_transcript_is_saved(world, tmp_path):
    """The pipeline's own defaults are five beams and 256 new tokens."""
    processor, model = loaded(world, "moonshine", task=SpeechSeq2Seq(generation_max_length=9))
    write_letters_alone(model, processor)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "generation_config.json").read_text())
    assert (saved["num_beams"], saved["max_length"], saved["do_sample"], saved["use_cache"]) == (1, 9, False, True)
    assert "max_new_tokens" not in saved
    recogniser = pipeline("automatic-speech-recognition", model=str(tmp_path))
    clip = tiny_speech.spelt("ABC", random.Random(0))
    text = recogniser({"raw": clip, "sampling_rate": 16_000})["text"]
    assert len(text) == 8  # and the start token
    assert [text.strip()] == generated(model, batch_of_letters(processor, model, "ABC"), processor)


@pytest.mark.parametrize(
    ("changes", "given", "expected"),
    [
        ({}, None, 64),
        ({"max_length": 40}, None, 40),
        ({"max_length": 40}, 50, 50),
        ({"max_new_tokens": 30}, None, 31),
        ({"max_length": 400}, None, 64),
    ],
)
def test_the_longest_transcript(world, tmp_path, changes, given, expected):
    """The flag, else what the checkpoint says, as far as the decoder has positions."""
    tiny_speech.save_moonshine(tmp_path / "model")
    GenerationConfig(decoder_start_token_id=1, eos_token_id=2, **changes).save_pretrained(tmp_path / "model")
    generation = loaded(tmp_path, "model", task=SpeechSeq2Seq(generation_max_length=given))[1].generation_config
    assert (generation.max_length, generation.max_new_tokens) == (expected, None)


def test_lengths_and_beams_that_cannot_be(world):
    with pytest.raises(ArgumentError, match="--generation_max_length 65: the decoder has 64 positions"):
        loaded(world, "whisper", task=SpeechSeq2Seq(generation_max_length=65))
    with pytest.raises(ArgumentError, match="--num_beams 0: expected at least 1"):
        SpeechSeq2Seq(num_beams=0)
    with pytest.raises(ArgumentError, match="--generation_max_length -1: expected at least 1"):
        SpeechSeq2Seq(generation_max_length=-1)


def test_what_is_trained_is_not_suppressed(world, caplog):
    """Whisper's configurations forbid brackets, quotation marks and other symbols, also after a training on them."""
    processor, model = loaded(world, "whisper")
    brackets = processor.tokenizer.convert_tokens_to_ids(["(", ")", "["])
    model.generation_config.suppress_tokens = brackets
    SpeechSeq2Seq().check_transcripts(["(A)", "["], processor, model, split="validation")
    assert model.generation_config.suppress_tokens == brackets
    SpeechSeq2Seq().check_transcripts(["(A)", "B"], processor, model, split="train")
    assert model.generation_config.suppress_tokens == brackets[2:]
    assert "generation does not suppress '(', ')' any more, which the training transcripts have" in caplog.text


def test_the_error_rate_does_not_depend_on_the_batch(world, tmp_path):
    """Pitfall 12: that of the transcripts fed back to the decoder does."""
    rates, task = set(), SpeechSeq2Seq(generation_max_length=6)
    for size in (1, 3, 8):
        metrics = make_trainer(world, tmp_path, "whisper", task=task, per_device_eval_batch_size=size).evaluate()
        rates.add((round(metrics["eval_loss"], 4), metrics["eval_wer_raw"], metrics["eval_cer_raw"]))
    assert len(rates) == 1


def test_one_batch_can_be_learnt_by_heart_and_is_then_written(world, tmp_path):
    """End to end: what is trained, the end too, is what generation finds."""
    trainer = make_trainer(
        world, tmp_path, "whisper", max_steps=100, learning_rate=5e-3, optim="adamw_torch", max_grad_norm=1.0,
        per_device_train_batch_size=4,
    )  # fmt: skip
    trainer.train()
    found = trainer.evaluate(trainer.train_dataset)
    assert found["eval_loss"] < 0.05
    assert found["eval_cer_raw"] == 0


# ---- families ----


@pytest.mark.parametrize("family", ["seamless_m4t", "voxtral", "granite_speech", "qwen3_asr", "wav2vec2"])
def test_a_family_that_is_not_ours_is_refused_before_its_weights_are_loaded(tmp_path, family):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family}))
    message = f"is of the family {family}, which this task does not train; it trains whisper, moonshine, speech_to_text"
    with pytest.raises(ModelError, match=message):
        SpeechSeq2Seq().load_processor(ModelArguments(model_name_or_path=str(tmp_path)), None, COLUMNS)


def test_speech2text_that_translates_into_several_languages_is_refused(world, monkeypatch):
    tokenizer = SimpleNamespace(lang_code_to_id={"de": 5, "fr": 6}, langs=["de", "fr"])
    monkeypatch.setattr("sft_hf.tasks.speech_seq2seq.load_processor", lambda _: SimpleNamespace(tokenizer=tokenizer))
    with pytest.raises(ModelError, match="translates into 2 languages; of Speech2Text this task trains those"):
        loaded(world, "speech2text")


# ---- whole runs ----


def run(world: Path, output_dir: Path, kind: str, *given, dataset: Path | None = None, **flags) -> tiny.Run:
    language = ("--language", LANGUAGE[kind]) if kind in LANGUAGE else ()
    once = {"num_train_epochs": 2, "eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": "false"}
    return tiny.run_recipe(
        "--dataset_name", dataset or world / "spelt", "--model_name_or_path", world / kind, "--output_dir", output_dir,
        *language, *given, recipe="speech_seq2seq", **{**once, **flags},
    )  # fmt: skip


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "multilingual"])
def test_every_family_trains_evaluates_and_reloads(world, tmp_path, kind):
    finished = run(world, tmp_path / "out", kind, "--generation_max_length", 12)
    assert finished.exit_code == 0, finished.output
    assert "examples differ by at most 0.0e+00" in finished.output
    assert "unexpected behavior" not in finished.output  # what transformers says of a missing attention mask
    written = lines(tmp_path / "out" / "predictions" / "test.jsonl")
    assert [line["audio"] for line in written] == [f"test/{index}.wav" for index in range(8)]
    assert all(set(line) == {"example_id", "audio", "prediction", "label"} for line in written)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["metrics"]["test"]["loss"] < np.log(len(hf.AutoTokenizer.from_pretrained(tmp_path / "out")))
    assert {"wer", "cer", "wer_raw", "cer_raw", "substitutions"} < set(results["metrics"]["test"])
    assert (tmp_path / "out" / "reports" / "worst_utterances_test.html").is_file()


def test_beams_and_the_best_checkpoint(world, tmp_path):
    flags = {"eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": "true"}
    finished = run(world, tmp_path / "out", "moonshine", "--num_beams", 3, "--generation_max_length", 12, **flags)
    assert finished.exit_code == 0, finished.output
    assert "examples differ by at most 0.0e+00" in finished.output
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["num_beams"] == 3


def test_a_test_split_without_transcripts_is_recognised(world, tmp_path):
    tiny_speech.write_spelt(tmp_path / "spelt", train=8, test=3)
    rows = [{"file_name": f"{index}.wav"} for index in range(3)]
    tiny.write_rows(tmp_path / "spelt" / "test" / "metadata.csv", rows)
    finished = run(world, tmp_path / "out", "whisper", "--generation_max_length", 12, dataset=tmp_path / "spelt")
    assert finished.exit_code == 0, finished.output
    assert "the test split has no transcripts: its predictions are written" in finished.output
    written = lines(tmp_path / "out" / "predictions" / "test.jsonl")
    assert [sorted(line) for line in written] == [["audio", "example_id", "prediction"]] * 3


def test_a_run_that_streams(world, tmp_path):
    flags = ("--streaming", "true", "--validation_split_name", "test", "--train_sampling_strategy", "random")
    finished = run(world, tmp_path / "out", "multilingual", *flags, "--generation_max_length", 12, max_steps=2)
    assert finished.exit_code == 0, finished.output
    assert "examples differ by at most 0.0e+00" in finished.output


def test_what_a_wrong_language_says(world, tmp_path):
    finished = run(world, tmp_path / "out", "multilingual", "--language", "klingon")
    assert finished.exit_code == 2
    assert "--language klingon: " in finished.output
    assert "it has english (en), german (de)" in finished.output
