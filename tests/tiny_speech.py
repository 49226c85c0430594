"""Models and sound that take seconds: what the tests of whole runs on clips are made of, beside `tiny`.

    tiny_speech.save_wav2vec2(folder / "wav2vec2", layer_norm=True, vocabulary=False)
    tiny_speech.write_tone_folders(folder / "tones")            # train/low/0.wav ...
    run = tiny.run_recipe("--dataset_name", folder / "tones", "--model_name_or_path", folder / "wav2vec2", recipe="audio_cls")

A class is the pitch of a tone, a letter is one too, so that models of this size learn to tell them apart.
"""

import csv
import random
from pathlib import Path
from typing import Any

import numpy as np

SAMPLING_RATE = 16_000
PITCHES = {"low": 300.0, "middle": 900.0, "high": 2700.0}  # Hz
LETTERS = {"A": 300.0, "B": 900.0, "C": 2700.0}
LETTER_SECONDS = 0.12
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
NO_DROPOUT = dict.fromkeys(
    ("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout", "final_dropout", "layerdrop"),
    0.0,
)


# ---- sound ----


def tone(pitch: float, seconds: float, generator: random.Random, *, sampling_rate: int = SAMPLING_RATE) -> np.ndarray:
    """A tone of about that pitch in Hz, with an overtone, fading in and out, in a little noise: float32 (samples,)."""
    noise = np.random.default_rng(generator.randrange(2**32))
    time = np.arange(round(seconds * sampling_rate)) / sampling_rate
    phase = 2 * np.pi * (pitch * generator.uniform(0.95, 1.05) * time + generator.random())
    fade = np.minimum(1, np.minimum(time, time[::-1]) / 0.02)
    samples = 0.3 * fade * (np.sin(phase) + 0.3 * np.sin(2 * phase)) + 0.01 * noise.standard_normal(len(time))
    return (samples * generator.uniform(0.5, 1.5)).astype(np.float32)


def tones(number: int, *, seed: int = 0) -> list[tuple[str, np.ndarray]]:
    """Class and waveform of 0.2 to 0.6 s; classes take turns."""
    generator, names = random.Random(seed), list(PITCHES)
    return [
        (names[index % 3], tone(PITCHES[names[index % 3]], generator.uniform(0.2, 0.6), generator))
        for index in range(number)
    ]


def spelt(text: str, generator: random.Random) -> np.ndarray:
    """A text of "ABC " as a tone for each letter and silence for a space, with silence around: float32 (samples,)."""
    pause = np.zeros(round(0.04 * SAMPLING_RATE), dtype=np.float32)
    silence = np.zeros(round(LETTER_SECONDS * SAMPLING_RATE), dtype=np.float32)
    parts = [pause]
    for letter in text:
        parts += [silence if letter == " " else tone(LETTERS[letter], LETTER_SECONDS, generator), pause]
    return np.concatenate(parts)


def spelt_text(generator: random.Random) -> str:
    """3 to 5 letters of "ABC ", of which a space is never the first, the last, or next to another."""
    text = generator.choice("ABC")
    for place in reversed(range(generator.randrange(2, 5))):
        text += generator.choice("ABC" if place == 0 or text[-1] == " " else "ABC ")
    return text


def write_wav(path: Path, samples: np.ndarray, *, sampling_rate: int = SAMPLING_RATE) -> Path:
    """Write a waveform as 16-bit wav (or what the suffix says) and return the path."""
    import soundfile

    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, sampling_rate)
    return path


def parquet(rows: list[tuple[Any, np.ndarray]], **label: Any) -> bytes:
    """Clips as `audio`, encoded as the parquet files of the Hub hold them, and what each is, in the column of that feature."""
    import io

    import soundfile
    import tiny
    from datasets import Audio, Features

    clips = []
    for index, (_, samples) in enumerate(rows):
        buffer = io.BytesIO()
        soundfile.write(buffer, samples, SAMPLING_RATE, format="FLAC")
        clips.append({"bytes": buffer.getvalue(), "path": f"{index}.flac"})
    (name,) = label
    return tiny.parquet({"audio": clips, name: [what for what, _ in rows]}, Features({"audio": Audio(), **label}))


def write_torchcodec(folder: Path) -> Path:
    """A torchcodec that is installed as far as anybody can see, and cannot do anything; returns the folder for PYTHONPATH."""
    for name in ("torchcodec", "torchcodec-0.17.0.dist-info"):
        (folder / name).mkdir(parents=True)
    (folder / "torchcodec" / "__init__.py").touch()
    (folder / "torchcodec-0.17.0.dist-info" / "METADATA").write_text("Name: torchcodec\nVersion: 0.17.0\n")
    return folder


def spelt_rows(number: int, *, seed: int = 0) -> list[tuple[str, np.ndarray]]:
    """Text of "ABC " and clip."""
    generator = random.Random(seed)
    texts = [spelt_text(generator) for _ in range(number)]
    return [(text, spelt(text, generator)) for text in texts]


def write_tone_folders(folder: Path, *, train: int = 48, test: int = 12) -> Path:
    """train/low/0.wav ...: a folder of classes."""
    for seed, (split, number) in enumerate({"train": train, "test": test}.items()):
        for index, (name, samples) in enumerate(tones(number, seed=seed)):
            write_wav(folder / split / name / f"{index}.wav", samples)
    return folder


def write_tone_rows(path: Path, number: int, kind: str, *, seed: int = 0) -> Path:
    """Rows of `audio`, a path, and `label`: the pitch's name, it and another (multi), or a number (regression)."""
    import tiny

    names, made = list(PITCHES), []
    for index, (name, samples) in enumerate(tones(number, seed=seed)):
        write_wav(path.with_suffix("") / f"{index}.wav", samples)
        labels = {"single": name, "multi": sorted({name, names[index % 2]}), "regression": 1.0 - names.index(name)}
        made.append({"audio": f"{path.stem}/{index}.wav", "label": labels[kind]})
    return tiny.write_rows(path, made)


def write_spelt(folder: Path, *, train: int = 48, test: int = 12) -> Path:
    """train/metadata.csv and test/metadata.csv with file_name, text and speaker (anna, bert, carl), the clips beside them."""
    for seed, (split, number) in enumerate({"train": train, "test": test}.items()):
        generator, rows = random.Random(seed), []
        for index in range(number):
            text = spelt_text(generator)
            write_wav(folder / split / f"{index}.wav", spelt(text, generator))
            speaker = ("anna", "bert", "carl")[index % 3]
            rows.append({"file_name": f"{index}.wav", "text": text, "speaker": speaker})
        with (folder / split / "metadata.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return folder


# ---- models ----


def save_wav2vec2(folder: Path, *, layer_norm: bool = True, vocabulary: bool = False, **config: Any) -> Path:
    """A wav2vec2 with random weights, 50 frames a second, as safetensors with its feature extractor.

    With `layer_norm` the extractor gives an attention mask, as of wav2vec2-large-lv60; without, as of wav2vec2-base, none. With a
    `vocabulary` it is a recogniser of English letters and has a processor.
    """
    from transformers import (
        Wav2Vec2Config,
        Wav2Vec2FeatureExtractor,
        Wav2Vec2ForCTC,
        Wav2Vec2Model,
        Wav2Vec2Processor,
    )

    folder.mkdir(parents=True, exist_ok=True)
    extractor = Wav2Vec2FeatureExtractor(return_attention_mask=layer_norm)
    convolutions = {"conv_dim": (16, 16, 16), "conv_kernel": (16, 8, 5), "conv_stride": (8, 8, 5)}
    sizes = {**SIZES, **NO_DROPOUT, **convolutions, "feat_extract_norm": "layer" if layer_norm else "group"}
    sizes |= {"do_stable_layer_norm": layer_norm, "conv_bias": layer_norm, "initializer_range": 0.05}
    sizes |= {"num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2, "mask_time_prob": 0.0}
    sizes |= {"classifier_proj_size": 16}
    kind, processor = Wav2Vec2Model, extractor
    if vocabulary:
        tokenizer = letters_tokenizer(folder)
        sizes |= {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
        kind, processor = Wav2Vec2ForCTC, Wav2Vec2Processor(extractor, tokenizer)
    return _saved(folder, kind, Wav2Vec2Config(**{**sizes, **config}), processor)


def letters_tokenizer(folder: Path) -> Any:
    """The tokenizer of wav2vec2's recognisers: capital letters, an apostrophe, and a bar for the space."""
    import json

    from transformers import Wav2Vec2CTCTokenizer

    letters = [chr(code) for code in range(ord("A"), ord("Z") + 1)]
    words = ["<pad>", "<s>", "</s>", "<unk>", "|", "'", *letters]
    path = folder / "vocab.json"
    path.write_text(json.dumps({word: index for index, word in enumerate(words)}))
    return Wav2Vec2CTCTokenizer(str(path))


def save_wav2vec2_bert(folder: Path, **config: Any) -> Path:
    """A wav2vec2-BERT with random weights, which reads mel spectrograms two frames at a time, and its feature extractor."""
    from transformers import SeamlessM4TFeatureExtractor, Wav2Vec2BertConfig, Wav2Vec2BertModel

    extractor = SeamlessM4TFeatureExtractor(feature_size=16, num_mel_bins=16)
    sizes = {**SIZES, **NO_DROPOUT, "conformer_conv_dropout": 0.0, "initializer_range": 0.05}
    sizes |= {"feature_projection_input_dim": 32, "mask_time_prob": 0.0, "classifier_proj_size": 16}
    sizes |= {"conv_depthwise_kernel_size": 7, "left_max_position_embeddings": 8, "right_max_position_embeddings": 4}
    return _saved(folder, Wav2Vec2BertModel, Wav2Vec2BertConfig(**{**sizes, **config}), extractor)


def save_ast(folder: Path, *, max_length: int = 64, **config: Any) -> Path:
    """An audio spectrogram transformer with random weights for `max_length` frames of 10 ms, and its feature extractor."""
    from transformers import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification

    sizes = {**SIZES, "num_mel_bins": 32, "max_length": max_length, "patch_size": 8, "num_labels": 5}
    sizes |= {"frequency_stride": 6, "time_stride": 6, "initializer_range": 0.05}
    extractor = ASTFeatureExtractor(num_mel_bins=32, max_length=max_length)
    return _saved(folder, ASTForAudioClassification, ASTConfig(**{**sizes, **config}), extractor)


def save_whisper(
    folder: Path, *, multilingual: bool = False, chunk_length: int = 2, num_mel_bins: int = 16, **config: Any
) -> Path:
    """A Whisper with random weights and a window of `chunk_length` seconds, which spells byte by byte, and its processor."""
    from transformers import (
        GenerationConfig,
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
        WhisperProcessor,
    )

    tokenizer, num_positions = _whisper_tokenizer(chunk_length), 50 * chunk_length
    if multilingual:
        tokenizer.set_prefix_tokens(language="english", task="transcribe")
    token = tokenizer.convert_tokens_to_ids
    ends = {"bos_token_id": token("<|endoftext|>"), "eos_token_id": token("<|endoftext|>")}
    ends |= {"pad_token_id": token("<|endoftext|>"), "decoder_start_token_id": token("<|startoftranscript|>")}
    sizes = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "num_mel_bins": num_mel_bins}
    sizes |= {"vocab_size": len(tokenizer)}
    sizes |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "max_target_positions": 64, "init_std": 0.05}
    sizes |= {"encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_source_positions": num_positions}
    extractor = WhisperFeatureExtractor(feature_size=num_mel_bins, chunk_length=chunk_length)
    processor = WhisperProcessor(extractor, tokenizer)
    only_here = {"suppress_tokens": None, "begin_suppress_tokens": None, "classifier_proj_size": 16}
    _saved(
        folder, WhisperForConditionalGeneration, WhisperConfig(**{**sizes, **ends, **only_here, **config}), processor
    )
    generation = {"max_length": 64, "is_multilingual": multilingual, "return_timestamps": False, **ends}
    generation |= {"no_timestamps_token_id": token("<|notimestamps|>"), "prev_sot_token_id": token("<|startofprev|>")}
    if multilingual:
        generation["lang_to_id"] = {f"<|{code}|>": token(f"<|{code}|>") for code in ("en", "de")}
        generation["task_to_id"] = {name: token(f"<|{name}|>") for name in ("transcribe", "translate")}
    GenerationConfig(**generation).save_pretrained(folder)
    return folder


def _whisper_tokenizer(chunk_length: int) -> Any:
    """Every byte, and Whisper's special tokens in Whisper's order, timestamps of 20 ms last."""
    from transformers import WhisperTokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    special = "startoftranscript en de translate transcribe startoflm startofprev nospeech notimestamps".split()
    special = [f"<|{word}|>" for word in special]
    vocabulary = {character: index for index, character in enumerate([*bytes_to_unicode().values(), "<|endoftext|>"])}
    tokenizer = WhisperTokenizer(vocab=vocabulary, merges=[], additional_special_tokens=special)
    tokenizer.add_tokens([f"<|{index * 0.02:.2f}|>" for index in range(50 * chunk_length + 1)])
    tokenizer.set_prefix_tokens()
    return tokenizer


def save_moonshine(folder: Path, **config: Any) -> Path:
    """A Moonshine with random weights, which hears waveforms and spells letter by letter, and its processor."""
    from transformers import (
        MoonshineConfig,
        MoonshineForConditionalGeneration,
        Wav2Vec2FeatureExtractor,
        Wav2Vec2Processor,
    )

    tokenizer = _letters_with_ends(["<unk>", "<s>", "</s>"])
    sizes = {"hidden_size": 32, "intermediate_size": 64, "vocab_size": len(tokenizer), "initializer_range": 0.05}
    sizes |= dict.fromkeys(("encoder_num_hidden_layers", "decoder_num_hidden_layers"), 2)
    sizes |= dict.fromkeys(("encoder_num_attention_heads", "decoder_num_attention_heads"), 2)
    sizes |= {"max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    extractor = Wav2Vec2FeatureExtractor(do_normalize=False, return_attention_mask=True)
    processor = Wav2Vec2Processor(extractor, tokenizer)
    return _saved(folder, MoonshineForConditionalGeneration, MoonshineConfig(**{**sizes, **config}), processor)


def save_speech2text(folder: Path, **config: Any) -> Path:
    """A Speech2Text with random weights, which hears mel spectrograms and spells letter by letter, and its processor."""
    from transformers import (
        Speech2TextConfig,
        Speech2TextFeatureExtractor,
        Speech2TextForConditionalGeneration,
        Speech2TextProcessor,
    )

    tokenizer = _letters_with_ends(["<s>", "<pad>", "</s>", "<unk>"])
    tokenizer.pad_token = "<pad>"
    sizes = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
    sizes |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "vocab_size": len(tokenizer), "dropout": 0.0}
    sizes |= {"max_source_positions": 600, "max_target_positions": 64, "conv_channels": 32, "init_std": 0.05}
    sizes |= {"input_feat_per_channel": 16, "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
    extractor = Speech2TextFeatureExtractor(feature_size=16, num_mel_bins=16)
    processor = Speech2TextProcessor(extractor, tokenizer)
    settings = Speech2TextConfig(**{**sizes, "decoder_start_token_id": 2, **config})
    return _saved(folder, Speech2TextForConditionalGeneration, settings, processor)


def _letters_with_ends(special: list[str]) -> Any:
    """A tokenizer of one token for each of the letters and the space, which ends a text with </s>."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = [" ", "'", *(chr(code) for code in range(ord("A"), ord("Z") + 1))]
    words = {word: index for index, word in enumerate([*special, *letters])}
    core = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    core.decoder = decoders.Fuse()
    core.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", words["</s>"])])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>", clean_up_tokenization_spaces=False
    )


def _saved(folder: Path, kind: type, config: Any, processor: Any) -> Path:
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind(config)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
