"""Models, data and runs that take seconds: what the tests of whole runs are made of.

    tiny.save_bert(folder)                             two layers of width 32 and a WordPiece vocabulary
    hub.add_repo("model", "alice/bert", tiny.bert())   the same as files for the Hub of the tests
    tiny.write_rows(folder / "train.csv", tiny.rows(64))
    run = tiny.run_recipe("--train_file", folder / "train.csv", "--model_name_or_path", folder / "bert", ...)
    assert run.metrics["accuracy"] == 1

A text is a few words of one topic among words that say nothing, so that a model of this size learns to tell them apart.
"""

import csv
import io
import json
import logging
import os
import random
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

RECIPE = Path(__file__).parent.parent / "recipes" / "text_cls.py"

TOPICS = {
    "animals": "cat dog horse goose whale otter badger heron".split(),
    "weather": "rain snow storm cloud thunder frost breeze drizzle".split(),
    "kitchen": "spoon kettle oven saucepan butter recipe whisk ladle".split(),
}
FILLERS = "the a one some of with near under we you they saw took liked again today".split()

LOGGERS = ("sft_hf", "transformers", "datasets", "huggingface_hub", "accelerate")

# Flags of a run of two seconds, which learns the topics in six epochs. One thread, because two wait for each other on a
# busy machine; float32, so that numbers can be compared.
QUICK = {
    "num_train_epochs": 2,
    "learning_rate": 5e-3,
    "num_cpu_threads_per_process": 1,
    "per_device_train_batch_size": 8,
    "per_device_eval_batch_size": 32,
    "cpu_bf16": "off",
    "disable_tqdm": True,
    "report_to": "none",
}


# ---- data ----


def text(topics: Sequence[str], generator: random.Random) -> str:
    """Three words of each topic and two that say nothing, shuffled."""
    words = [word for topic in topics for word in generator.sample(TOPICS[topic], 3)] + generator.sample(FILLERS, 2)
    generator.shuffle(words)
    return " ".join(words)


def rows(number: int, kind: str = "single", *, seed: int = 0) -> list[dict[str, Any]]:
    """Rows with `text` and `label`: the topic's name, the names of one or two topics, or for `regression` a number.

    The number is 1 for animals, 0 for weather and -1 for the kitchen. Topics take turns, so every class is there.
    """
    generator, names, made = random.Random(seed), list(TOPICS), []
    for index in range(number):
        first = names[index % len(names)]
        if kind == "multi":
            chosen = sorted({first, generator.choice(names)})
            made.append({"text": text(chosen, generator), "label": chosen})
        else:
            label = first if kind == "single" else 1.0 - names.index(first)
            made.append({"text": text([first], generator), "label": label})
    return made


def table(made: Sequence[Mapping[str, Any]], suffix: str) -> bytes:
    """Rows as the content of a .csv, .tsv, .json, .jsonl or .parquet file."""
    if suffix == ".parquet":
        from datasets import Dataset

        buffer = io.BytesIO()
        Dataset.from_list(list(made)).to_parquet(buffer)
        return buffer.getvalue()
    if suffix == ".json":
        return json.dumps(list(made)).encode()
    if suffix == ".jsonl":
        return "".join(json.dumps(row) + "\n" for row in made).encode()
    file = io.StringIO()
    writer = csv.DictWriter(file, fieldnames=list(made[0]), delimiter="\t" if suffix == ".tsv" else ",")
    writer.writeheader()
    writer.writerows(made)
    return file.getvalue().encode()


def write_rows(path: Path, made: Sequence[Mapping[str, Any]]) -> Path:
    """Write rows in the format of the path's suffix; returns the path."""
    path.write_bytes(table(made, path.suffix))
    return path


# ---- models ----


def vocabulary() -> list[str]:
    """Special tokens, the words of the texts, and letters, so that any word can be spelt."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = [*FILLERS, *(word for topic in TOPICS.values() for word in topic)]
    pieces = [*letters, *(f"##{letter}" for letter in letters), *words]
    return ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *dict.fromkeys(pieces)]


def save_bert(folder: Path, *, num_labels: int | None = None, dtype: str = "float32", **config: Any) -> Path:
    """A BERT with random weights, as safetensors with its tokenizer; with `num_labels` also a classification head."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification, BertModel, BertTokenizer

    words = vocabulary()
    tokenizer = BertTokenizer(vocab={word: index for index, word in enumerate(words)}, model_max_length=64)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    sizes |= {"max_position_embeddings": 64, "vocab_size": len(words)}
    sizes |= {"initializer_range": 0.05, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    kind = BertModel if num_labels is None else BertForSequenceClassification
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind(BertConfig(**{**sizes, "num_labels": num_labels or 2, **config}))
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_decoder(folder: Path) -> Path:
    """A GPT-2 with random weights, whose tokenizer splits at spaces and has no padding token."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    words = ["<|endoftext|>", *vocabulary()]
    core = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<|endoftext|>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    end = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, model_max_length=64, **end)
    config = GPT2Config(
        vocab_size=len(words),
        n_positions=64,
        n_embd=32,
        n_layer=2,
        n_head=2,
        initializer_range=0.05,
        bos_token_id=0,
        eos_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@cache
def bert(**options: Any) -> dict[str, bytes]:
    """The files of `save_bert`, for a repository of the Hub of the tests."""
    with tempfile.TemporaryDirectory() as folder:
        return files(save_bert(Path(folder), **options))


def files(folder: Path) -> dict[str, bytes]:
    """Every file below a folder: its path in there and its content."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


# ---- runs ----


@dataclass(frozen=True)
class Run:
    """How a recipe ended: its exit code, the metrics that it returned, and all that it printed and logged."""

    exit_code: int
    metrics: dict[str, float]
    output: str


def flags(*given: object, **quick: Any) -> list[str]:
    """`QUICK`, then `quick`, then the flags of a test: the last one counts."""
    values = {**QUICK, **quick}
    return [*(f"--{name}={value}" for name, value in values.items()), *(str(flag) for flag in given)]


def run_recipe(*given: object, **quick: Any) -> Run:
    """Run recipes/text_cls.py in this process, whose imports are done.

    Unexpected exceptions are raised; the exit codes of `sft_hf.errors` are returned.
    """
    import sft_hf
    from sft_hf.finetuning import finetune

    returned: list[dict[str, float]] = []
    recording = lambda *args, **kwargs: returned.append(finetune(*args, **kwargs))  # noqa: E731
    output, code = io.StringIO(), 0
    with (
        mock.patch.object(sys, "argv", [str(RECIPE), *flags(*given, **quick)]),
        mock.patch.dict(os.environ),
        mock.patch.object(sft_hf, "finetune", recording, create=True),
        redirect_stdout(output),
        redirect_stderr(output),
        _state_of_the_process_kept(output),
    ):
        try:
            runpy.run_path(str(RECIPE), run_name="__main__")
        except SystemExit as error:
            code = error.code
    return Run(code, returned[0] if returned else {}, output.getvalue())


@contextmanager
def _state_of_the_process_kept(stream: io.StringIO) -> Iterator[None]:
    """What sft_hf and the libraries log goes to `stream`; loggers and threads are left as they were."""
    import torch

    loggers = [logging.getLogger(name) for name in LOGGERS]
    before = [(logger.handlers, logger.propagate, logger.level) for logger in loggers]
    threads = torch.get_num_threads()
    for logger in loggers:
        logger.handlers = [logging.StreamHandler(stream)]
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        for logger, (handlers, propagate, level) in zip(loggers, before, strict=True):
            logger.handlers, logger.propagate = handlers, propagate
            logger.setLevel(level)


def run_recipe_process(*given: object, env: Mapping[str, str] | None = None, **quick: Any) -> Run:
    """The same in a process of its own, for what is read once at import; 10 seconds more. No metrics come back."""
    command = [sys.executable, str(RECIPE), *flags(*given, **quick)]
    process = subprocess.run(command, env={**os.environ, **(env or {})}, capture_output=True, text=True, timeout=120)
    return Run(process.returncode, {}, process.stdout + process.stderr)
