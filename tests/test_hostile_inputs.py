"""Datasets, models and checkpoints by somebody who means harm: no code of theirs runs, no path leads out, nothing explodes.

What they would run leaves a file behind, and no test finds it. What belongs to one module is tested beside it: archives
(data/test_archives.py), paths (data/test_containment.py), pictures and clips (vision/, audio/), names in reports (report/, test_model_card.py).
"""

import io
import json
import logging
import os
import pickle
import shutil
import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny
import tiny_speech
import torch
from datasets import Audio, Dataset, Features, Image
from PIL import Image as Pillow
from safetensors.torch import load
from transformers import AutoModelForSequenceClassification

from sft_hf import build_trainer
from sft_hf.arguments import DataArguments, FinetuningArguments, ModelArguments
from sft_hf.data.labels import Labels
from sft_hf.data.paths import as_encoded_images
from sft_hf.data.sources import load_splits
from sft_hf.errors import DataError, ModelError
from sft_hf.preparation import prepare
from sft_hf.pretrained import (
    load_config,
    load_feature_extractor,
    load_image_processor,
    load_model,
    load_processor,
    load_tokenizer,
)
from sft_hf.tasks.audio_classification import AudioClassification
from sft_hf.tasks.image_classification import ImageClassification
from sft_hf.tasks.semantic_segmentation import SemanticSegmentation
from sft_hf.tasks.text_classification import TextClassification
from sft_hf.vision.decoding import check_image
from sft_hf.vision.masks import read_mask

LABELS = Labels("single_label_classification", ("a", "b", "c"))


@pytest.fixture
def ran(tmp_path) -> Path:
    """The file that whatever runs leaves behind; it must not be there in the end."""
    path = tmp_path / "it-ran"
    yield path
    assert not path.exists(), "code of the attacker ran"


class Payload:
    """Unpickling it runs a command."""

    def __init__(self, ran: Path):
        self.ran = ran

    def __reduce__(self):
        return os.system, (f"touch {self.ran}",)


def test_the_payload_works(tmp_path):
    """Else the other tests could not fail."""
    pickle.loads(pickle.dumps(Payload(tmp_path / "it-ran")))
    assert (tmp_path / "it-ran").exists()


def code(ran: Path) -> str:
    return f"open({str(ran)!r}, 'w').close()\nclass Their: pass\n"


def write(folder: Path, files: dict[str, bytes | str]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


# ---- models ----


def model_of(args: ModelArguments):
    return load_model(AutoModelForSequenceClassification, load_config(args, LABELS), args)


LOADERS = {
    "AutoConfig": model_of,
    "AutoModelForSequenceClassification": model_of,
    "AutoTokenizer": load_tokenizer,
    "AutoImageProcessor": load_image_processor,
    "AutoFeatureExtractor": load_feature_extractor,
    "AutoProcessor": load_processor,
}


@pytest.mark.parametrize("reference", ["code.Their", "eve/elsewhere--code.Their"])
@pytest.mark.parametrize("key", LOADERS)
@pytest.mark.parametrize("model_type", ["bert", "theirs"])
def test_code_beside_a_model_does_not_run(hub, repo_name, ran, model_type, key, reference):
    """Named in whatever file, by whatever class. transformers takes its own class where it has one."""
    files = dict(tiny.bert())
    named = {"auto_map": {key: [reference, reference] if key == "AutoTokenizer" else reference}}
    files |= {
        "config.json": json.dumps({**json.loads(files["config.json"]), "model_type": model_type, **named}),
        "tokenizer_config.json": json.dumps({**json.loads(files["tokenizer_config.json"]), **named}),
        "preprocessor_config.json": json.dumps(named),
        "processor_config.json": json.dumps(named),
        **dict.fromkeys(("code.py", "modeling_theirs.py", "tokenization_theirs.py", "processing_theirs.py"), code(ran)),
    }
    hub.add_user("alice", "alice-token")
    hub.add_repo("model", f"alice/{repo_name}", files)
    try:
        LOADERS[key](ModelArguments(model_name_or_path=f"alice/{repo_name}"))
    except ModelError:
        assert model_type == "theirs" or "Processor" in key or "Extractor" in key


def torch_file(content, **options) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["zip", "legacy", "bare", "sharded"])
def test_weights_that_are_a_program_are_not_loaded(tmp_path, ran, kind):
    """Beside tensors, in either format of torch, or instead of it."""
    files = dict(tiny.bert())
    tensors = load(files.pop("model.safetensors"))
    poisoned = {**tensors, "more": Payload(ran)}
    files |= {
        "zip": {"pytorch_model.bin": torch_file(poisoned)},
        "legacy": {"pytorch_model.bin": torch_file(poisoned, _use_new_zipfile_serialization=False)},
        "bare": {"pytorch_model.bin": pickle.dumps(Payload(ran), protocol=2)},
        "sharded": {
            "pytorch_model.bin.index.json": json.dumps({"metadata": {}, "weight_map": dict.fromkeys(tensors, "1.bin")}),
            "1.bin": torch_file(poisoned),
        },
    }[kind]
    folder = write(tmp_path / "model", files)
    with pytest.raises(ModelError, match=rf"^--model_name_or_path {folder}: its weights are a pickle that holds more"):
        model_of(ModelArguments(model_name_or_path=str(folder)))


def test_weights_that_are_tensors_alone_are_loaded(tmp_path):
    files = dict(tiny.bert())
    tensors = load(files.pop("model.safetensors"))
    folder = write(tmp_path / "model", {**files, "pytorch_model.bin": torch_file(tensors)})
    state = model_of(ModelArguments(model_name_or_path=str(folder))).state_dict()
    assert all(torch.equal(state[f"bert.{name}"], tensor) for name, tensor in tensors.items())


def test_safetensors_are_taken_and_the_pickle_beside_them_is_not_opened(tmp_path, ran):
    folder = write(tmp_path / "model", {**tiny.bert(), "pytorch_model.bin": pickle.dumps(Payload(ran))})
    model_of(ModelArguments(model_name_or_path=str(folder)))


def test_a_chat_template_is_not_rendered(tmp_path):
    """It is a program of jinja; this one does not end."""
    files = dict(tiny.bert())
    endless = "{% for one in range(10 ** 12) %}{% endfor %}"
    settings = {**json.loads(files["tokenizer_config.json"]), "chat_template": endless}
    folder = write(tmp_path / "model", {**files, "tokenizer_config.json": json.dumps(settings)})
    assert load_tokenizer(ModelArguments(model_name_or_path=str(folder)))("cat").input_ids


# ---- checkpoints ----


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A trainer of two steps, and its checkpoint after the first."""
    folder = tmp_path_factory.mktemp("run")
    arguments = FinetuningArguments(
        output_dir=str(folder), max_steps=2, save_steps=1, report_to="none", disable_tqdm=True, num_cpu_threads_per_process=1,
        per_device_train_batch_size=4, cpu_bf16="off",
    )  # fmt: skip
    trainer = build_trainer(
        TextClassification(),
        DataArguments(validation_fraction=0.5),
        ModelArguments("builtin:lstm"),
        arguments,
        datasets={"train": Dataset.from_list(tiny.rows(24))},
    )
    trainer.train()
    return trainer, folder / "checkpoint-1"


@pytest.mark.parametrize(
    "name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "scaler.pt", "training_args.bin", "pytorch_model.bin"]
)
def test_a_checkpoint_with_a_program_in_it_is_not_run(checkpoint, tmp_path, ran, monkeypatch, name):
    """The Trainer refuses what it reads; training_args.bin and weights beside safetensors it does not read."""
    trainer, original = checkpoint
    monkeypatch.setattr(trainer.accelerator, "scaler", torch.amp.GradScaler("cpu") if name == "scaler.pt" else None)
    poisoned = shutil.copytree(original, tmp_path / "checkpoint-1")
    (poisoned / name).write_bytes(torch_file({"more": Payload(ran)}))
    if name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "scaler.pt"):
        with pytest.raises(pickle.UnpicklingError, match="posix.system"):
            trainer.train(resume_from_checkpoint=str(poisoned))
    else:
        trainer.train(resume_from_checkpoint=str(poisoned))
        assert trainer.state.global_step == 2


# ---- datasets: code ----


def tar(**files: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name.replace("_", "."))
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def object_array(ran: Path) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([Payload(ran)], dtype=object), allow_pickle=True)
    return buffer.getvalue()


DATASETS_OF_CODE = {
    "script": lambda ran: {"data.py": code(ran)},
    "script beside data": lambda ran: {"NAME.py": code(ran), "train.csv": "text,label\na,b\n"},
    "pickle": lambda ran: {"train.pkl": pickle.dumps(Payload(ran))},
    "pt": lambda ran: {"train.pt": torch_file(Payload(ran))},
    "npy": lambda ran: {"train.npy": object_array(ran)},
    "npy in tar": lambda ran: {"train.tar": tar(a_npy=object_array(ran), a_txt=b"text")},
    "pth in tar": lambda ran: {"train.tar": tar(a_pth=torch_file(Payload(ran)), a_txt=b"text")},
    "bare pickle in tar": lambda ran: {"train.tar": tar(a_pth=pickle.dumps(Payload(ran), protocol=2), a_txt=b"text")},
    "saved": lambda ran: {"state.json": pickle.dumps(Payload(ran)), "dataset_info.json": pickle.dumps(Payload(ran))},
}


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("is_local", [True, False], ids=["folder", "hub"])
@pytest.mark.parametrize("kind", DATASETS_OF_CODE)
def test_code_in_a_dataset_does_not_run(hub, repo_name, tmp_path, ran, kind, is_local):
    files = {name.replace("NAME", repo_name): content for name, content in DATASETS_OF_CODE[kind](ran).items()}
    name = str(write(tmp_path / repo_name, files)) if is_local else f"alice/{repo_name}"
    if not is_local:
        hub.add_user("alice", "alice-token")
        hub.add_repo("dataset", name, files)
    with pytest.raises((DataError, pickle.UnpicklingError)):
        load_splits(DataArguments(dataset_name=name))


# ---- datasets: paths ----


@pytest.fixture
def secret(tmp_path) -> Path:
    """What the user has beside the dataset: a picture and a sound that are nobody's business."""
    Pillow.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    tiny_speech.write_wav(tmp_path / "secret.wav", np.zeros(800, np.float32))
    return tmp_path / "secret.png"


def prepared(task, *, cache_dir: Path | None = None, **data_args):
    """The stages of a run up to the model."""
    arguments = FinetuningArguments(output_dir="nowhere", report_to="none", max_steps=1)
    model_args = ModelArguments("builtin:crnn" if isinstance(task, AudioClassification) else "builtin:mlp")
    return prepare(task, DataArguments(**data_args), model_args, arguments)


def parquet_of_paths(feature, **columns: list[str]) -> bytes:
    """Pictures or clips by path in a parquet file, as a program of ill will writes it."""
    rows = {name: [{"bytes": None, "path": path} for path in paths] for name, paths in columns.items()}
    dataset = Dataset.from_dict(rows).cast(Features(dict.fromkeys(columns, feature)))
    number = len(next(iter(columns.values())))
    buffer = io.BytesIO()
    pq.write_table(dataset.add_column("label", ["a", "b"] * (number // 2)).data.table, buffer)
    return buffer.getvalue()


OUTSIDE = {
    "absolute": "{folder}/secret.{suffix}",
    "parent": "{data}/../secret.{suffix}",
    "file url": "file://{folder}/secret.{suffix}",
    "http url": "http://127.0.0.1:9/secret.{suffix}",
    "other repository": "hf://datasets/bob/private/secret.{suffix}",
    "chained": "file://{folder}/secret.{suffix}::{data}/train.parquet",
    "other archive": "zip://secret.{suffix}::{folder}/other.zip",
}


@pytest.mark.parametrize("is_local", [True, False], ids=["folder", "hub"])
@pytest.mark.parametrize("medium", ["png", "wav"])
@pytest.mark.parametrize("how", OUTSIDE)
def test_a_parquet_file_names_no_file_outside(hub, repo_name, tmp_path, secret, how, medium, is_local):
    """Its columns of pictures and sounds may hold paths instead of bytes, and whoever made it chose them."""
    data = tmp_path / "data"
    path = OUTSIDE[how].format(folder=tmp_path, data=data, suffix=medium)
    feature, task = (Image(), ImageClassification()) if medium == "png" else (Audio(), AudioClassification())
    column = "image" if medium == "png" else "audio"
    files = {"train.parquet": parquet_of_paths(feature, **{column: [path] * 2})}
    name = str(write(data, files)) if is_local else f"alice/{repo_name}"
    if not is_local:
        hub.add_user("alice", "alice-token")
        hub.add_repo("dataset", name, files)
    message = rf"^Column '{column}': 2 of its values name a file outside of --dataset_name {name} \(row 0: "
    with pytest.raises(DataError, match=message):
        prepared(task, dataset_name=name)


@pytest.mark.parametrize("is_local", [True, False], ids=["folder", "hub"])
@pytest.mark.parametrize("column", ["image", "anything"])
def test_a_column_of_texts_names_no_file_outside(hub, repo_name, tmp_path, secret, column, is_local):
    """Whether or not it is called as columns of paths are."""
    files = {"train.csv": f"{column},label\n{secret},a\n{tmp_path}/not-there.png,b\n"}
    name = str(write(tmp_path / "data", files)) if is_local else f"alice/{repo_name}"
    if not is_local:
        hub.add_user("alice", "alice-token")
        hub.add_repo("dataset", name, files)
    # Both alike: nobody learns from the message which files there are.
    with pytest.raises(DataError, match=rf"^Column '{column}': 2 of its values name a file outside of"):
        prepared(ImageClassification(image_column_name=column), dataset_name=name)


@pytest.mark.parametrize("is_local", [True, False], ids=["folder", "hub"])
def test_a_stream_names_no_file_outside(hub, repo_name, tmp_path, secret, is_local):
    files = {"train.parquet": parquet_of_paths(Image(), image=[str(secret)] * 2)}
    name = str(write(tmp_path / "data", files)) if is_local else f"alice/{repo_name}"
    if not is_local:
        hub.add_user("alice", "alice-token")
        hub.add_repo("dataset", name, files)
    source = load_splits(DataArguments(dataset_name=name, streaming=True))
    rows = as_encoded_images(source.splits["train"], "image", place=source.place)
    with pytest.raises(DataError, match=rf"name a file outside of --dataset_name {name} \(row 0: {secret}\)"):
        next(iter(rows))


def test_a_mask_lies_inside_too(tmp_path, secret):
    Pillow.new("RGB", (8, 8)).save(tmp_path / "1.png")
    shutil.copy(tmp_path / "1.png", write(tmp_path / "data", {"id2label.json": '{"0": "sky", "1": "road"}'}))
    inside, outside = [f"{tmp_path}/data/1.png"] * 2, [str(secret)] * 2
    write(tmp_path / "data", {"train.parquet": parquet_of_paths(Image(), image=inside, mask=outside)})
    shutil.copy(tmp_path / "data/train.parquet", tmp_path / "data/test.parquet")
    with pytest.raises(DataError, match=r"^Column 'mask': 2 of its values name a file outside of"):
        prepared(SemanticSegmentation(label_column_name="mask"), dataset_name=str(tmp_path / "data"))


@pytest.mark.parametrize(
    "path", ["../secret.{suffix}", "x/../../secret.{suffix}", "{folder}/secret.{suffix}", "~/secret.{suffix}"]
)
@pytest.mark.parametrize("medium", ["png", "wav"])
@pytest.mark.parametrize("table", ["metadata.csv", "metadata.jsonl"])
def test_metadata_names_no_file_outside(tmp_path, secret, monkeypatch, medium, table, path):
    monkeypatch.setenv("HOME", str(tmp_path))
    path = path.format(suffix=medium, folder=tmp_path)
    data = write(tmp_path / "data", {"x/y.txt": ""})
    tiny.write_rows(data / table, [{"file_name": f"1.{medium}", "label": "a"}, {"file_name": path, "label": "b"}])
    shutil.copy(secret.with_suffix(f".{medium}"), data / f"1.{medium}")
    task = ImageClassification() if medium == "png" else AudioClassification()
    # Of pictures datasets says it, and takes ~ for the name of a folder.
    with pytest.raises(DataError, match=r"outside of|Invalid metadata file_name|cannot be decoded: .* does not exist"):
        prepared(task, dataset_name=str(data))


@pytest.mark.parametrize(
    "card",
    [
        "data_files: {folder}/secret.csv",
        "data_files: x/../../secret.csv",
        "data_files: file://{folder}/secret.csv",
        "data_dir: {folder}/other",
        "data_dir: ../other",
    ],
)
def test_the_card_of_a_folder_names_no_file_outside(tmp_path, card):
    """Of a repository datasets refuses it by itself, of a folder it does not."""
    table = "text,label\nsecret,a\n"
    card = f"---\nconfigs:\n- config_name: default\n  {card.format(folder=tmp_path)}\n---\n"
    write(
        tmp_path,
        {
            "secret.csv": table,
            "other/train.csv": table,
            "data/README.md": card,
            "data/train.csv": table,
            "data/x/y": "",
        },
    )
    with pytest.raises(DataError, match=r"data_files of README.md: .* of its values name a file outside of"):
        load_splits(DataArguments(dataset_name=str(tmp_path / "data")))


def test_a_saved_dataset_names_no_file_outside(tmp_path):
    Dataset.from_list(tiny.rows(6)).save_to_disk(str(tmp_path / "secret"))
    shutil.copytree(tmp_path / "secret", tmp_path / "data")
    state = json.loads((tmp_path / "data/state.json").read_text())
    state["_data_files"] = [{"filename": f"../secret/{file['filename']}"} for file in state["_data_files"]]
    write(tmp_path / "data", {"state.json": json.dumps(state)})
    write(tmp_path / "splits", {"dataset_dict.json": '{"splits": ["../secret"]}'})
    for name, listed in (("data", "state.json"), ("splits", "dataset_dict.json")):
        with pytest.raises(
            DataError, match=rf"{listed}: 1 of its values name a file outside of .*/{name} \(row 0: .*secret"
        ):
            load_splits(DataArguments(dataset_name=str(tmp_path / name)))


def test_what_the_user_lists_himself_lies_anywhere(tmp_path, secret):
    """--train_file is his own list; a folder's table may name what is in the folder by whole paths."""
    table = f"image,label\n{secret},a\n../secret.png,b\n{secret},a\n{secret},b\n"
    listed = write(tmp_path / "lists", {"train.csv": table}) / "train.csv"
    rows = prepared(ImageClassification(), train_file=[str(listed)], validation_fraction=0.5).rows
    assert {row["image"]["path"] for split in rows.values() for row in split.select_columns(["image"])} == {str(secret)}
    shutil.copytree(tmp_path / "lists", tmp_path / "data")
    shutil.copy(secret, tmp_path / "data/1.png")
    write(
        tmp_path / "data",
        {
            "train.csv": table.replace(str(secret), f"{tmp_path}/data/1.png").replace(
                "../secret.png", f"{tmp_path}/data/1.png"
            )
        },
    )
    shutil.copy(tmp_path / "data/train.csv", tmp_path / "data/test.csv")
    assert len(prepared(ImageClassification(), dataset_name=str(tmp_path / "data")).rows["test"]) == 4


def test_links_out_of_a_folder_are_followed_and_said(tmp_path, secret, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("sft_hf"), "propagate", True)
    for name in ("a/1.png", "b/1.png"):
        (tmp_path / "data" / name).parent.mkdir(parents=True)
        (tmp_path / "data" / name).symlink_to(secret)
    (tmp_path / "data/a/2.png").symlink_to("1.png")
    assert len(load_splits(DataArguments(dataset_name=str(tmp_path / "data"))).splits["train"]) == 3
    assert (
        f"links lead 3 of 3 files out of the folder: {tmp_path}/data/a/1.png -> {os.path.realpath(secret)}"
        in caplog.text
    )


# ---- pictures that are larger than they look ----


SIDE = 50_000  # 2.5 billion pixels: 7.5 GB as RGB


def png(*, side: int = 1, pixels: bytes = b"\0\0", before: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", header),
            before,
            chunk(b"IDAT", zlib.compress(pixels)),
            chunk(b"IEND", b""),
        )
    )


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def gif() -> bytes:
    size = struct.pack("<HH", SIDE, SIDE)
    return b"GIF89a" + size + b"\0\0\0,\0\0\0\0" + size + b"\0\x02\x02L\x01\0;"


def bmp() -> bytes:
    header = struct.pack("<IiiHHIIiiII", 40, SIDE, SIDE, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + header


def tiff() -> bytes:
    tags = ((256, SIDE), (257, SIDE), (258, 8), (259, 8), (262, 1), (273, 8), (277, 1), (278, SIDE), (279, 64))
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + bytes(4)


LETTERS = b"x" * (1 << 20)
BOMBS = {
    "1.png": (png(side=SIDE), "exceeds limit of 178956970 pixels"),
    "1.gif": (gif(), "exceeds limit of 178956970 pixels"),
    "1.bmp": (bmp(), "exceeds limit of 178956970 pixels"),
    "1.tiff": (tiff(), "exceeds limit of 178956970 pixels"),
    "1.ppm": (f"P6 {SIDE} {SIDE} 255 ".encode(), "exceeds limit of 178956970 pixels"),
    "text.png": (png(before=chunk(b"zTXt", b"a\0\0" + zlib.compress(64 * LETTERS))), "Decompressed data too large"),
    "texts.png": (png(before=66 * chunk(b"zTXt", b"a\0\0" + zlib.compress(LETTERS))), "Too much memory used in text"),
    "profile.png": (png(before=chunk(b"iCCP", b"a\0\0" + zlib.compress(64 * LETTERS))), "Decompressed data too large"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_decompression_bomb_is_refused_as_a_picture_and_as_a_mask(name):
    """Before its pixels are made: files of at most 100 KB would become gigabytes."""
    content, reason = BOMBS[name]
    assert len(content) < 100_000
    value = {"bytes": content, "path": name}
    assert reason in check_image(value)
    with pytest.raises(DataError, match=rf"^The mask {name} cannot be read: .*{reason}"):
        read_mask(value)


def test_a_run_on_a_decompression_bomb_names_the_row(tmp_path):
    folder = write(tmp_path / "pets", {f"{name}/1.png": png() for name in "ab"} | {"a/2.png": BOMBS["1.png"][0]})
    with pytest.raises(DataError, match=r"cannot be decoded: 1 of 3: row 1: .*a/2.png is larger than Pillow decodes"):
        prepared(ImageClassification(), dataset_name=str(folder))


# ---- tokens ----


def test_arguments_show_no_token():
    """As a debugger, a failed assertion or a log would."""
    model_args = ModelArguments(token="hf_secret")
    training_args = FinetuningArguments(output_dir="runs/a", hub_token="hf_secret", report_to="none")
    assert (model_args.token, training_args.hub_token) == ("hf_secret", "hf_secret")
    assert "hf_secret" not in f"{model_args!r} {model_args} {training_args!r} {training_args}"


@pytest.mark.parametrize(
    "given",
    [
        ["--tokn", "hf_secret"],
        ["--tokn=hf_secret"],
        ["--token", "hf_mine", "hf_secret"],
        ["--streaming", "hf_secret"],
        ["hf_secret"],
        ["--token", "hf_secret", "--learning_rat", "1"],
        ["--token", "hf_secret", "--dataset_name", "/nowhere/at/all"],
        ["--token", "hf_secret", "--hub_token", "hf_secret", "--model_name_or_path", "./nowhere"],
    ],
)
def test_a_run_that_is_refused_shows_no_token(given):
    run = tiny.run_recipe(*given)
    assert run.exit_code == 2
    assert "error: " in run.output
    assert "hf_secret" not in run.output
