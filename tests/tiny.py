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
import re
import runpy
import socket
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

RECIPES = Path(__file__).parent.parent / "recipes"
RECIPE = RECIPES / "text_cls.py"

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


def parquet(columns: Mapping[str, list], features: Any) -> bytes:
    """Columns as the content of a parquet file of the Hub, whose pictures and clips are `{"bytes": ..., "path": name}`."""
    from datasets import Dataset

    buffer = io.BytesIO()
    # Cast to them, since to encode what already is, datasets asks for torchcodec where a column is declared to be audio.
    Dataset.from_dict(dict(columns)).cast(features).to_parquet(buffer)
    return buffer.getvalue()


def write_rows(path: Path, made: Sequence[Mapping[str, Any]]) -> Path:
    """Write rows in the format of the path's suffix; returns the path."""
    path.write_bytes(table(made, path.suffix))
    return path


# ---- pictures ----

COLOURS = {"red": (220, 40, 40), "green": (40, 200, 60), "blue": (50, 60, 220)}


def picture(colour: str, generator: random.Random, *, size: tuple[int, int] = (40, 32)) -> tuple[Any, Any]:
    """A square of one colour on a noisy grey ground, and its mask: 0 for the ground, 1 to 3 for the colours."""
    import numpy as np
    from PIL import Image

    width, height = size
    noise = np.random.default_rng(generator.randrange(2**32))
    pixels = noise.integers(90, 160, (height, width, 3)).astype(np.uint8)
    mask = np.zeros((height, width), dtype=np.uint8)
    side = generator.randrange(height // 3, height // 2)
    left, top = generator.randrange(width - side), generator.randrange(height - side)
    pixels[top : top + side, left : left + side] = COLOURS[colour]
    mask[top : top + side, left : left + side] = 1 + list(COLOURS).index(colour)
    return Image.fromarray(pixels), Image.fromarray(mask)


def pictures(number: int, *, seed: int = 0) -> list[tuple[str, Any, Any]]:
    """Colour, picture and mask; colours take turns."""
    generator, names = random.Random(seed), list(COLOURS)
    return [(names[index % 3], *picture(names[index % 3], generator)) for index in range(number)]


def write_class_folders(folder: Path, *, train: int = 48, test: int = 12) -> Path:
    """train/red/0.png ...: an image folder."""
    for seed, (split, number) in enumerate({"train": train, "test": test}.items()):
        for index, (colour, image, _) in enumerate(pictures(number, seed=seed)):
            path = folder / split / colour / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)
    return folder


def write_picture_rows(path: Path, number: int, kind: str, *, seed: int = 0) -> Path:
    """Rows of `image`, a path, and `label`, as those of `rows` (the colour, it and another, a number); the files beside them."""
    names, made = list(COLOURS), []
    folder = path.with_suffix("")
    folder.mkdir(parents=True)
    for index, (colour, image, _) in enumerate(pictures(number, seed=seed)):
        image.save(folder / f"{index}.png")
        labels = {
            "single": colour,
            "multi": sorted({colour, names[index % 2]}),
            "regression": 1.0 - names.index(colour),
        }
        made.append({"image": f"{folder.name}/{index}.png", "label": labels[kind]})
    return write_rows(path, made)


def write_mask_folders(folder: Path, *, train: int = 48, test: int = 12) -> Path:
    """train/images/0.png, train/masks/0.png ... and id2label.json."""
    for seed, (split, number) in enumerate({"train": train, "test": test}.items()):
        for index, (_, image, mask) in enumerate(pictures(number, seed=seed)):
            for kind, content in (("images", image), ("masks", mask)):
                path = folder / split / kind / f"{index}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                content.save(path)
    (folder / "id2label.json").write_text(json.dumps(dict(enumerate(["ground", *COLOURS]))))
    return folder


def stored(image: Any, name: str) -> dict[str, Any]:
    """A picture as the parquet files of the Hub hold it."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": name}


def coloured_parquet(number: int, *, seed: int) -> bytes:
    """Pictures as `image`, and their colours as a ClassLabel."""
    from datasets import ClassLabel, Features, Image

    rows = pictures(number, seed=seed)
    images = [stored(image, f"{index}.png") for index, (_, image, _) in enumerate(rows)]
    features = Features({"image": Image(), "label": ClassLabel(names=list(COLOURS))})
    return parquet({"image": images, "label": [colour for colour, _, _ in rows]}, features)


def masked_parquet(number: int, *, seed: int) -> bytes:
    """Pictures as `image`, and their masks as `mask`."""
    from datasets import Features, Image

    rows = pictures(number, seed=seed)
    columns = {
        "image": [stored(image, f"{index}.png") for index, (_, image, _) in enumerate(rows)],
        "mask": [stored(mask, f"{index}.png") for index, (_, _, mask) in enumerate(rows)],
    }
    return parquet(columns, Features(dict.fromkeys(columns, Image())))


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


def save_vit(folder: Path, **config: Any) -> Path:
    """A vision transformer with random weights and its image processor, for pictures of 32 x 32."""
    import torch
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    sizes |= {"image_size": 32, "patch_size": 8, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ViTForImageClassification(ViTConfig(**{**sizes, "num_labels": 5, **config}))
    model.save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def save_timm(folder: Path, architecture: str = "test_resnet", *, size: int = 32) -> Path:
    """An architecture of timm with random weights, as timm itself pushes it to the Hub, for square pictures of that side."""
    import timm
    import torch
    from timm.models import save_for_hf

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = timm.create_model(architecture, num_classes=5)
    save_for_hf(model, str(folder), {"label_names": list("abcde")}, safe_serialization=True)
    config = json.loads((folder / "config.json").read_text())
    config["pretrained_cfg"]["input_size"] = [3, size, size]
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def save_segformer(folder: Path, **config: Any) -> Path:
    """A SegFormer with random weights and its image processor, for pictures of 32 x 32."""
    import torch
    from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor

    sizes = {"hidden_sizes": [16, 16, 24, 24], "num_attention_heads": [1, 1, 2, 2], "depths": [1, 1, 1, 1]}
    sizes |= {"decoder_hidden_size": 32, "classifier_dropout_prob": 0.0, "drop_path_rate": 0.0}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = SegformerForSemanticSegmentation(SegformerConfig(**{**sizes, "num_labels": 7, **config}))
    model.save_pretrained(folder)
    SegformerImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def save_segmenter(folder: Path, kind: str) -> Path:
    """One of the other segmenters with random weights and its image processor.

    Kinds: mobilenet (whose processor crops), upernet, dpt and beit, for pictures of 32 x 32; maskformer, mask2former and oneformer,
    which answer with masks and their classes, for 64 x 64 (their processors keep proportions).
    """
    import torch

    is_universal = kind.endswith("former")
    model_class, config, processor = (_mask_classifier if is_universal else _pixel_classifier)(kind)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = model_class(config)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


STAGES = {"out_features": ["stage1", "stage2", "stage3", "stage4"]}
RESNET = {"embedding_size": 8, "hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "layer_type": "basic", **STAGES}


def _pixel_classifier(kind: str) -> tuple[type, Any, Any]:
    import transformers as hf

    size = {"height": 32, "width": 32}
    vit = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64, "image_size": 32, "patch_size": 8}
    vit |= {"num_hidden_layers": 4, "num_labels": 7}
    if kind == "mobilenet":
        config = hf.MobileNetV2Config(depth_multiplier=0.25, min_depth=8, output_stride=8, num_labels=7)
        processor = hf.MobileNetV2ImageProcessor(size={"shortest_edge": 40}, crop_size=size)
        return hf.MobileNetV2ForSemanticSegmentation, config, processor
    if kind == "upernet":
        sizes = {"hidden_size": 16, "auxiliary_channels": 8, "auxiliary_in_channels": 16, "num_labels": 7}
        config = hf.UperNetConfig(backbone_config=hf.ResNetConfig(**RESNET), **sizes)
        return hf.UperNetForSemanticSegmentation, config, hf.SegformerImageProcessor(size=size)
    if kind == "dpt":
        sizes = {"neck_hidden_sizes": [8, 8, 16, 16], "fusion_hidden_size": 16, "backbone_out_indices": [0, 1, 2, 3]}
        processor = hf.DPTImageProcessor(size=size, keep_aspect_ratio=True, ensure_multiple_of=8)
        return hf.DPTForSemanticSegmentation, hf.DPTConfig(**vit, **sizes), processor
    sizes = {"out_indices": [1, 2, 3, 4], "pool_scales": [1, 2], "auxiliary_channels": 8}
    config = hf.BeitConfig(**vit, **sizes, use_relative_position_bias=True)
    return hf.BeitForSemanticSegmentation, config, hf.BeitImageProcessor(size=size)


def _mask_classifier(kind: str) -> tuple[type, Any, Any]:
    import transformers as hf

    proportions = {"size": {"shortest_edge": 64, "longest_edge": 96}, "do_reduce_labels": True, "ignore_index": 0}
    swin = hf.SwinConfig(image_size=32, patch_size=4, embed_dim=16, depths=[1] * 4, num_heads=[1] * 4, **STAGES)
    sizes = {"num_queries": 8, "encoder_layers": 1, "decoder_layers": 2, "num_attention_heads": 2, "hidden_dim": 32}
    sizes |= {"encoder_feedforward_dim": 32, "dim_feedforward": 32, "train_num_points": 64, "num_labels": 7}
    if kind == "mask2former":
        config = hf.Mask2FormerConfig(backbone_config=swin, feature_size=32, mask_feature_size=32, **sizes)
        return hf.Mask2FormerForUniversalSegmentation, config, hf.Mask2FormerImageProcessor(**proportions)
    if kind == "maskformer":
        layers = {"encoder_layers": 1, "decoder_layers": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
        heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
        decoder = hf.DetrConfig(d_model=32, num_queries=8, **layers, **heads)
        backbone = hf.ResNetConfig(**RESNET)
        features = {"fpn_feature_size": 32, "mask_feature_size": 32, "num_labels": 7}
        config = hf.MaskFormerConfig(backbone_config=backbone, decoder_config=decoder, **features)
        return hf.MaskFormerForInstanceSegmentation, config, hf.MaskFormerImageProcessor(**proportions)
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = ["!", *letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = hf.CLIPTokenizer(vocab={word: index for index, word in enumerate(words)}, merges=[])
    features = {"conv_dim": 32, "mask_dim": 32, "query_dec_layers": 1, "task_seq_len": 32, "text_encoder_n_ctx": 2}
    config = hf.OneFormerConfig(backbone_config=swin, **features, **sizes)
    processor = hf.OneFormerProcessor(hf.OneFormerImageProcessor(**proportions), tokenizer)
    return hf.OneFormerForUniversalSegmentation, config, processor


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


def torchrun(num_processes: int) -> list[str]:
    """The start of a command that launches processes, on a port that nobody listens on: tests run beside each other."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(num_processes)]
    return [*launcher, "--master_port", port]


_RANK = """
import importlib, json, os, sys
from pathlib import Path

os.environ["HF_HUB_USER_AGENT_ORIGIN"] = f"rank-{os.environ['RANK']}"
sys.path.insert(0, sys.argv[1])
tests, folder = importlib.import_module(sys.argv[2]), Path(sys.argv[3])
(folder / f"rank{os.environ['RANK']}.json").write_text(json.dumps(tests.on_each_rank(folder)))
"""


def run_on_two_processes(module: str, folder: Path, *, env: Mapping[str, str] | None = None) -> list[Any]:
    """Call `on_each_rank(folder)` of a module of tests on two processes on the CPU; what each rank returned, as JSON.

    The Hub hears of each request by which rank it is: `rank-0` or `rank-1` is in its User-Agent.
    """
    (folder / "rank.py").write_text(_RANK)
    command = [*torchrun(2), str(folder / "rank.py"), str(Path(__file__).parent), module, str(folder)]
    process = subprocess.run(command, env={**os.environ, **(env or {})}, capture_output=True, text=True, timeout=200)
    assert process.returncode == 0, process.stderr
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]


def run_program(program: str, folder: Path) -> Any:
    """Run a program in `folder` and in a process that has the Hub and an empty cache; what it printed last, as JSON."""
    (folder / "program.py").write_text(program)
    process = subprocess.run(
        [sys.executable, "program.py"],
        cwd=folder,
        env={**os.environ, "HF_HOME": str(folder / "home")},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


@dataclass(frozen=True)
class Run:
    """How a recipe ended: its exit code, the metrics that it returned, and all that it printed and logged."""

    exit_code: int
    metrics: dict[str, float]
    output: str


@dataclass(frozen=True)
class Pushed:
    """A finished run, its folder, and what arrived on the Hub."""

    repo_id: str
    run: Run
    folder: Path
    files: dict[str, bytes]

    @property
    def results(self) -> dict[str, Any]:
        return json.loads((self.folder / "results.json").read_text())

    @property
    def card(self) -> str:
        return self.files["README.md"].decode()

    @property
    def example(self) -> str:
        """The lines of Python in the card."""
        return re.search(r"```python\n(.*?)```", self.card, flags=re.DOTALL)[1].strip()

    @property
    def predictions(self) -> list[dict[str, Any]]:
        return predictions(self.folder)


def predictions(folder: Path) -> list[dict[str, Any]]:
    """What a run wrote of each row of the test split."""
    return [json.loads(line) for line in (folder / "predictions" / "test.jsonl").read_text().splitlines()]


def flags(*given: object, **quick: Any) -> list[str]:
    """`QUICK`, then `quick`, then the flags of a test: the last one counts."""
    values = {**QUICK, **quick}
    return [*(f"--{name}={value}" for name, value in values.items()), *(str(flag) for flag in given)]


def run_recipe(*given: object, recipe: str = "text_cls", **quick: Any) -> Run:
    """Run a recipe in this process, whose imports are done.

    Unexpected exceptions are raised; the exit codes of `sft_hf.errors` are returned.
    """
    import sft_hf
    from sft_hf.finetuning import finetune

    returned: list[dict[str, float]] = []
    recording = lambda *args, **kwargs: returned.append(finetune(*args, **kwargs))  # noqa: E731
    output, code = io.StringIO(), 0
    with (
        mock.patch.object(sys, "argv", [str(RECIPES / f"{recipe}.py"), *flags(*given, **quick)]),
        mock.patch.dict(os.environ),
        mock.patch.object(sft_hf, "finetune", recording, create=True),
        redirect_stdout(output),
        redirect_stderr(output),
        _state_of_the_process_kept(output),
    ):
        try:
            runpy.run_path(str(RECIPES / f"{recipe}.py"), run_name="__main__")
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


def run_recipe_process(
    *given: object, recipe: str = "text_cls", env: Mapping[str, str] | None = None, **quick: Any
) -> Run:
    """The same in a process of its own, for what is read once at import; 10 seconds more. No metrics come back."""
    command = [sys.executable, str(RECIPES / f"{recipe}.py"), *flags(*given, **quick)]
    process = subprocess.run(command, env={**os.environ, **(env or {})}, capture_output=True, text=True, timeout=120)
    return Run(process.returncode, {}, process.stdout + process.stderr)
