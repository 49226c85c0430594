"""Sources: every kind gives the same rows under the same split names, and every mistake says what is there instead."""

import io
import shutil
import sys
import tarfile
import textwrap
from pathlib import Path

import datasets
import numpy as np
import pytest
import soundfile
import tiny
from PIL import Image

from sft_hf.arguments import DataArguments
from sft_hf.audio.decoding import Header, read_header
from sft_hf.data.encoded_audio import EncodedAudio
from sft_hf.data.paths import as_encoded_audio, as_encoded_images
from sft_hf.data.sources import from_memory, load_splits, sample
from sft_hf.errors import ArgumentError, DataError, HubError

ALICE, BOB, NOBODY = "alice-token", "bob-token", "no-such-token"
ROWS = tiny.rows(6)
OTHER_ROWS = tiny.rows(3, seed=1)
NUMBERED = [{**row, "example_id": number} for number, row in enumerate(ROWS)]
TABLE = tiny.table(ROWS, ".csv")


@pytest.fixture(autouse=True)
def _users(hub, monkeypatch) -> None:
    hub.add_user("alice", ALICE)
    hub.add_user("bob", BOB)
    monkeypatch.setattr("sft_hf.hub.time.sleep", lambda seconds: None)


@pytest.fixture
def repo_id(repo_name) -> str:
    return f"alice/{repo_name}"


def load(*, token=None, cache_dir=None, **flags):
    return load_splits(DataArguments(**flags), token=token, cache_dir=cache_dir)


def load_files(*paths: Path, **flags):
    return load(train_file=[str(path) for path in paths], **flags)


def write(path: Path, content: str) -> Path:
    path.write_text(textwrap.dedent(content))
    return path


# Files


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".json", ".jsonl", ".parquet"])
def test_rows_of_a_file_are_numbered(tmp_path, suffix):
    path = tiny.write_rows(tmp_path / f"pets{suffix}", ROWS)
    source = load_files(path)
    assert source.splits["train"].to_list() == NUMBERED
    assert (source.kind, source.name, source.hub_id, source.revision) == ("files", "pets", None, None)
    assert source.files == {"train": [str(path)]}


def test_several_files_are_one_split_in_the_order_given(tmp_path):
    first, second = (tiny.write_rows(tmp_path / f"{name}.csv", rows) for name, rows in (("b", ROWS), ("a", OTHER_ROWS)))
    assert load_files(first, second).splits["train"]["text"][:] == [row["text"] for row in ROWS + OTHER_ROWS]
    commas = load(train_file=[f"{first},{second}"])
    assert commas.splits["train"]["example_id"][:] == list(range(9))


def test_a_glob_is_sorted(tmp_path):
    for name, rows in (("part-2", OTHER_ROWS), ("part-1", ROWS)):
        tiny.write_rows(tmp_path / f"{name}.jsonl", rows)
    source = load_files(tmp_path / "part-*.jsonl")
    assert source.splits["train"]["text"][:] == [row["text"] for row in ROWS + OTHER_ROWS]
    assert [Path(path).name for path in source.files["train"]] == ["part-1.jsonl", "part-2.jsonl"]


def test_each_split_has_its_files_and_its_own_numbers(tmp_path):
    paths = [tiny.write_rows(tmp_path / f"{name}.csv", OTHER_ROWS) for name in ("a", "b", "c")]
    flags = {f"{split}_file": [str(path)] for split, path in zip(("train", "validation", "test"), paths, strict=True)}
    splits = load(**flags).splits
    assert list(splits) == ["train", "validation", "test"]
    assert all(split["example_id"][:] == [0, 1, 2] for split in splits.values())


def test_a_stream_has_the_same_rows(tmp_path):
    stream = load_files(tiny.write_rows(tmp_path / "pets.csv", ROWS), streaming=True).splits["train"]
    assert isinstance(stream, datasets.IterableDataset)
    assert list(stream) == NUMBERED


def test_an_example_id_of_the_data_is_replaced_by_the_row_number(tmp_path):
    path = tiny.write_rows(tmp_path / "pets.csv", [{**row, "example_id": "x"} for row in ROWS])
    assert load_files(path).splits["train"]["example_id"][:] == [0, 1, 2, 3, 4, 5]


WORDS_FOR_NOTHING = "text,label\nNA,null\nnull,None\nnan,\n,N/A\n"


@pytest.mark.parametrize("kind", ["file", "folder", "hub"])
def test_texts_like_na_stay_texts_and_empty_cells_are_missing(kind, tmp_path, hub, repo_id):
    """pandas reads all of these as missing; an example of the class "None" would be dropped as unlabelled."""
    path = write(tmp_path / "train.csv", WORDS_FOR_NOTHING)
    if kind == "hub":
        hub.add_repo("dataset", repo_id, tmp_path)
    name = repo_id if kind == "hub" else str(tmp_path)
    source = load_files(path) if kind == "file" else load(dataset_name=name)
    assert source.splits["train"]["text"][:] == ["NA", "null", "nan", None]
    assert source.splits["train"]["label"][:] == ["null", "None", None, "N/A"]


def test_a_card_that_says_what_is_missing_is_obeyed(tmp_path):
    card = "---\nconfigs:\n- config_name: default\n  data_files: train.csv\n  na_values: [nan]\n---\n"
    write(tmp_path / "README.md", card)
    write(tmp_path / "train.csv", WORDS_FOR_NOTHING)
    assert load(dataset_name=str(tmp_path)).splits["train"]["label"][:] == [None, None, None, None]


# Folders


def test_a_folder_of_data_files(tmp_path):
    folder = tmp_path / "pets"
    folder.mkdir()
    tiny.write_rows(folder / "train.parquet", ROWS)
    tiny.write_rows(folder / "test.parquet", OTHER_ROWS)
    source = load(dataset_name=str(folder))
    assert (source.kind, source.name, source.hub_id) == ("folder", "pets", None)
    assert source.splits["train"].to_list() == NUMBERED
    assert len(source.splits["test"]) == 3


@pytest.mark.parametrize("streaming", [False, True])
def test_a_folder_from_save_to_disk(tmp_path, streaming):
    splits = {"train": datasets.Dataset.from_list(ROWS), "dev": datasets.Dataset.from_list(OTHER_ROWS)}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "pets")
    source = load(dataset_name=str(tmp_path / "pets"), streaming=streaming)
    assert list(source.splits) == ["train", "validation"]
    assert list(source.splits["train"]) == NUMBERED
    splits["train"].save_to_disk(tmp_path / "alone")
    assert list(load(dataset_name=str(tmp_path / "alone"), streaming=streaming).splits) == ["train"]


# Folders of pictures


def picture(path: Path) -> Path:
    """A file of one pixel."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (1, 1)).save(path, format="PNG")
    return path


def encoded(split) -> list[dict]:
    """The rows with pictures as {bytes, path}; nothing is opened."""
    for name, feature in split.features.items():
        if isinstance(feature, datasets.Image):
            split = split.cast_column(name, datasets.Image(decode=False))
    return list(split)


def paths(rows: list[dict], column: str, folder: Path) -> list[str]:
    return [Path(row[column]["path"]).relative_to(folder).as_posix() for row in rows]


@pytest.mark.parametrize("streaming", [False, True])
def test_class_folders_are_a_source(tmp_path, streaming):
    for name in ("train/cat/1.png", "train/dog/2.Jpg", "dev/dog/1.png", "test/cat/1.png"):
        picture(tmp_path / "pets" / name)
    source = load(dataset_name=str(tmp_path / "pets"), streaming=streaming)
    assert (source.kind, source.name, source.hub_id, source.id2label) == ("folder", "pets", None, None)
    assert list(source.splits) == ["train", "validation", "test"]
    assert isinstance(source.splits["train"], datasets.IterableDataset) == streaming
    rows = encoded(source.splits["train"])
    assert paths(rows, "image", tmp_path / "pets") == ["train/cat/1.png", "train/dog/2.Jpg"]
    assert [(row["label"], row["example_id"]) for row in rows] == [(0, 0), (1, 1)]
    assert encoded(source.splits["test"])[0]["label"] == 0


@pytest.mark.parametrize("streaming", [False, True])
def test_pictures_and_masks_with_the_names_of_ids_are_a_source(tmp_path, streaming):
    for name in ("images/training/1.jpg", "annotations/training/1.png", "images/validation/1.jpg"):
        picture(tmp_path / name)
    picture(tmp_path / "annotations/validation/1.png")
    write(tmp_path / "id2label.json", '{"0": "wall", "1": "sky"}')
    source = load(dataset_name=str(tmp_path), streaming=streaming)
    assert list(source.splits) == ["train", "validation"]
    assert source.id2label == {0: "wall", 1: "sky"}
    rows = encoded(source.splits["train"])
    assert paths(rows, "image", tmp_path) == ["images/training/1.jpg"]
    assert paths(rows, "mask", tmp_path) == ["annotations/training/1.png"]


def metadata_folder(folder: Path) -> Path:
    """As image and mask lie in a folder with metadata."""
    for split in ("train", "test"):
        picture(folder / split / "images/1.Jpg")
        picture(folder / split / "masks/1.png")
        row = '{"image_file_name": "images/1.Jpg", "label_file_name": "masks/1.png"}\n'
        write(folder / split / "metadata.jsonl", row)
    write(folder / "id2label.json", '{"0": "null", "1": "shirt"}')
    return folder


@pytest.mark.parametrize("streaming", [False, True])
def test_metadata_with_pairs_of_files(tmp_path, streaming):
    for name in ("1.txt", "2.txt", "3.txt", "Thumbs.db", ".DS_Store"):  # more than pictures, which datasets would read
        write(metadata_folder(tmp_path) / "train/images" / name, "a caption")
    source = load(dataset_name=str(tmp_path), streaming=streaming)
    assert list(source.splits) == ["train", "test"]
    assert source.id2label == {0: "null", 1: "shirt"}
    for split, dataset in source.splits.items():
        rows = encoded(dataset)
        assert (paths(rows, "image", tmp_path), paths(rows, "label", tmp_path)) == (
            [f"{split}/images/1.Jpg"],
            [f"{split}/masks/1.png"],
        )


@pytest.mark.usefixtures("offline")
def test_metadata_with_labels_without_the_hub(tmp_path):
    picture(tmp_path / "train/a/1.png")
    picture(tmp_path / "train/2.png")
    write(tmp_path / "train/metadata.csv", "file_name,label\na/1.png,cat\n2.png,dog\n")
    rows = encoded(load(dataset_name=str(tmp_path)).splits["train"])
    assert paths(rows, "image", tmp_path) == ["train/a/1.png", "train/2.png"]
    assert [row["label"] for row in rows] == ["cat", "dog"]


def test_a_broken_file_of_names_is_an_error(tmp_path):
    picture(tmp_path / "images/1.png")
    picture(tmp_path / "masks/1.png")
    write(tmp_path / "id2label.json", "{0: wall}")
    with pytest.raises(DataError, match=f"^--dataset_name {tmp_path}/id2label.json: expected names by id, such as"):
        load(dataset_name=str(tmp_path))


def test_a_picture_without_its_mask_names_the_flag(tmp_path):
    picture(tmp_path / "images/1.png")
    picture(tmp_path / "images/2.png")
    picture(tmp_path / "masks/1.png")
    with pytest.raises(
        DataError, match=f"^--dataset_name {tmp_path}, train: 1 of 2 pictures have no mask: images/2.png"
    ):
        load(dataset_name=str(tmp_path))


# Tables of paths


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_paths_of_a_table_begin_at_its_folder(tmp_path, suffix, streaming):
    rows = [
        {"image": "pictures/1.png", "mask": "masks/1.png", "label": "cat"},
        {"image": "2.png", "mask": "/m/2.png", "label": "dog"},
    ]
    path = tiny.write_rows(tmp_path / f"pets{suffix}", rows)
    split = load_files(path, streaming=streaming).splits["train"]
    assert list(split) == [
        {"image": f"{tmp_path}/pictures/1.png", "mask": f"{tmp_path}/masks/1.png", "label": "cat", "example_id": 0},
        {"image": f"{tmp_path}/2.png", "mask": "/m/2.png", "label": "dog", "example_id": 1},
    ]


@pytest.mark.parametrize("streaming", [False, True])
def test_paths_of_tables_in_several_folders(tmp_path, streaming):
    """Each row's path begins at the folder of its own table, and the rows keep the order of the tables."""
    files = []
    for folder, names in (("b", ["1.png", "2.png"]), ("a", ["1.png"]), ("c", ["x/3.png", "4.png", "5.png"])):
        (tmp_path / folder).mkdir()
        files.append(
            tiny.write_rows(tmp_path / folder / "list.csv", [{"img_path": name, "label": 1} for name in names])
        )
    rows = list(load_files(*files, streaming=streaming).splits["train"])
    assert [Path(row["img_path"]).relative_to(tmp_path).as_posix() for row in rows] == [
        "b/1.png", "b/2.png", "a/1.png", "c/x/3.png", "c/4.png", "c/5.png",
    ]  # fmt: skip
    ids = [0, 1, 10**9, 2 * 10**9, 2 * 10**9 + 1, 2 * 10**9 + 2] if streaming else [0, 1, 2, 3, 4, 5]
    assert [row["example_id"] for row in rows] == ids


@pytest.mark.parametrize("streaming", [False, True])
def test_tables_in_several_folders_have_one_type(tmp_path, streaming):
    files = []
    for folder, label in (("a", 0.5), ("b", 2)):
        (tmp_path / folder).mkdir()
        files.append(tiny.write_rows(tmp_path / folder / "list.jsonl", [{"image": "1.png", "label": label}]))
    split = load_files(*files, streaming=streaming).splits["train"]
    assert split.features["label"] == datasets.Value("float64")
    assert [(row["image"], row["label"]) for row in split] == [
        (f"{tmp_path}/a/1.png", 0.5),
        (f"{tmp_path}/b/1.png", 2.0),
    ]


def test_a_table_of_texts_is_left_alone(tmp_path, monkeypatch):
    """Pictures that a text comes with need not be there: whether a column of paths is of use is for the task to say."""
    monkeypatch.setattr("sft_hf.data.sources.with_absolute_paths", lambda *_: pytest.fail("a text dataset was mapped"))
    rows = [{"text": "woof", "label": "dog", "image": "https://example.com/1.jpg", "file": "notes.txt"}] * 2
    split = load_files(tiny.write_rows(tmp_path / "train.jsonl", rows)).splits["train"]
    assert split.to_list() == [{**row, "example_id": number} for number, row in enumerate(rows)]


def test_missing_files_do_no_harm_where_nobody_reads_them(tmp_path):
    rows = [{"text": "woof", "label": "dog", "image": "no/1.jpg"}]
    split = load_files(tiny.write_rows(tmp_path / "train.csv", rows)).splits["train"]
    assert split[0]["text"] == "woof"
    with pytest.raises(DataError, match=rf"Column 'image': 1 of 1 values \(row 0: {tmp_path}/no/1.jpg\) name no file"):
        as_encoded_images(split, "image")


# Sounds


@pytest.fixture
def no_torchcodec(monkeypatch):
    for name in ("torchcodec", "torchcodec.encoders", "torchcodec.decoders"):
        monkeypatch.setitem(sys.modules, name, None)


def sound() -> bytes:
    """A tenth of a second at 8 kHz."""
    buffer = io.BytesIO()
    soundfile.write(buffer, np.linspace(-0.5, 0.5, 800), 8000, format="WAV")
    return buffer.getvalue()


def sounds(folder: Path) -> Path:
    """A folder as datasets' audiofolder has it, with metadata for each split."""
    for split, texts in (("train", ["yes", "no"]), ("test", ["go"])):
        (folder / split).mkdir(parents=True)
        rows = "".join(f"{number}.wav,{text}\n" for number, text in enumerate(texts))
        write(folder / split / "metadata.csv", f"file_name,text\n{rows}")
        for number in range(len(texts)):
            (folder / split / f"{number}.wav").write_bytes(sound())
    return folder


def clips() -> datasets.Dataset:
    """What the Hub has as parquet: the bytes of files, and their names."""
    rows = {"audio": [{"bytes": sound(), "path": f"{number}.wav"} for number in range(2)], "text": ["yes", "no"]}
    return datasets.Dataset.from_dict(rows).cast_column("audio", datasets.Audio(8000))


def assert_two_clips(split, streaming: bool) -> None:
    """Rows with a clip each that reads, also behind a map, and that no feature decodes."""
    assert isinstance(split, datasets.IterableDataset) == streaming
    assert isinstance(split.features["audio"], EncodedAudio)
    assert not split.features["audio"].decode
    for dataset in (split, as_encoded_audio(split, "audio")):
        rows = list(dataset.map(lambda row: {**row, "text": row["text"].upper()}, features=dataset.features))
        assert [(row["text"], row["example_id"]) for row in rows] == [("YES", 0), ("NO", 1)]
        assert [read_header(row["audio"]) for row in rows] == [Header(800, 8000, 1)] * 2


@pytest.mark.usefixtures("no_torchcodec")
@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", ["folder", "card", "parquet", "saved", "memory"])
def test_pitfall_20_sounds_of_every_kind_need_no_torchcodec(tmp_path, kind, streaming):
    if kind in ("folder", "card"):
        sounds(tmp_path / "data")
    if kind == "card":
        split = "- split: {0}\n    path: {0}/*\n"
        files = "  ".join(split.format(name) for name in ("train", "test"))
        write(tmp_path / "data/README.md", f"---\nconfigs:\n- config_name: default\n  data_files:\n  {files}---\n")
    if kind == "parquet":
        (tmp_path / "data").mkdir()
        clips().to_parquet(tmp_path / "data/train.parquet")
    if kind == "saved":
        datasets.DatasetDict(train=clips()).save_to_disk(tmp_path / "data")
    if kind == "memory":
        dataset = clips().to_iterable_dataset() if streaming else clips()
        source = from_memory({"train": dataset}, DataArguments())
    else:
        source = load(dataset_name=str(tmp_path / "data"), streaming=streaming)
    assert_two_clips(source.splits["train"], streaming)
    assert list(source.splits) == (["train", "test"] if kind in ("folder", "card") else ["train"])


@pytest.mark.usefixtures("no_torchcodec")
@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", ["folder", "parquet", "webdataset"])
def test_pitfall_20_sounds_of_the_hub_need_no_torchcodec(hub, repo_id, tmp_path, kind, streaming):
    if kind == "folder":
        sounds(tmp_path / "data")
    (tmp_path / "data/train").mkdir(parents=True, exist_ok=True)
    if kind == "parquet":
        clips().to_parquet(tmp_path / "data/train/0.parquet")
    if kind == "webdataset":
        with tarfile.open(tmp_path / "data/train/0.tar", "w") as archive:
            for number, text in enumerate([b"yes", b"no"]):
                for suffix, content in (("wav", sound()), ("txt", text)):
                    member = tarfile.TarInfo(f"{number}.{suffix}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    hub.add_repo("dataset", repo_id, tmp_path / "data")
    split = load(dataset_name=repo_id, streaming=streaming).splits["train"]
    if kind == "webdataset":
        split = split.rename_columns({"wav": "audio", "txt": "text"})
    assert_two_clips(split, streaming)


@pytest.mark.usefixtures("no_torchcodec")
@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_metadata_of_sounds_of_every_kind(tmp_path, suffix):
    folder = sounds(tmp_path)
    for split in ("train", "test"):
        table = datasets.Dataset.from_csv(str(folder / split / "metadata.csv"), keep_in_memory=True)
        (folder / split / "metadata.csv").unlink()
        getattr(table, "to_json" if suffix == "jsonl" else f"to_{suffix}")(folder / split / f"metadata.{suffix}")
    source = load(dataset_name=str(folder))
    assert_two_clips(source.splits["train"], False)
    assert source.splits["test"].select_columns(["text"]).to_list() == [{"text": "go"}]


def test_texts_like_na_in_metadata_stay_texts(tmp_path):
    folder = sounds(tmp_path)
    write(folder / "train/metadata.csv", "file_name,text\n0.wav,NA\n1.wav,null\n")
    assert load(dataset_name=str(folder)).splits["train"]["text"][:] == ["NA", "null"]


def test_mistakes_in_metadata_name_the_flag_and_the_file(tmp_path):
    folder = sounds(tmp_path)
    (folder / "test/0.wav").unlink()
    with pytest.raises(
        DataError, match=f"^--dataset_name {folder}, test/metadata.csv: 1 of 1 rows name no file that is there"
    ):
        load(dataset_name=str(folder))
    write(folder / "test/metadata.csv", "")
    with pytest.raises(
        DataError, match=f"^--dataset_name {folder}/test/metadata.csv cannot be read: No columns to parse"
    ):
        load(dataset_name=str(folder))
    (folder / "test/metadata.csv").unlink()
    write(folder / "test/metadata.jsonl", '{"file_name": "0.wav"}\n{"file_name":\n')
    with pytest.raises(DataError, match=f"^--dataset_name {folder}/test/metadata.jsonl, line 2: not valid JSON"):
        load(dataset_name=str(folder))


@pytest.mark.usefixtures("no_torchcodec")
@pytest.mark.parametrize("streaming", [False, True])
def test_class_folders_of_sounds_are_a_source(tmp_path, streaming):
    for name in ("train/yes/0.wav", "train/no/0.wav", "test/yes/0.wav"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(sound())
    split = load(dataset_name=str(tmp_path), streaming=streaming).splits["train"]
    assert split.features["label"] == datasets.ClassLabel(names=["no", "yes"])
    assert paths(list(split), "audio", tmp_path) == ["train/no/0.wav", "train/yes/0.wav"]
    assert [row["label"] for row in split] == [0, 1]


@pytest.mark.usefixtures("no_torchcodec")
@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_table_of_sounds(tmp_path, suffix, streaming):
    (tmp_path / "clips").mkdir()
    for number in range(2):
        (tmp_path / f"clips/{number}.wav").write_bytes(sound())
    rows = [{"audio": f"clips/{number}.wav", "text": text} for number, text in enumerate(["yes", "no"])]
    split = load_files(tiny.write_rows(tmp_path / f"list{suffix}", rows), streaming=streaming).splits["train"]
    assert_two_clips(as_encoded_audio(split, "audio"), streaming)


# Split names


@pytest.mark.parametrize(
    ("there", "flags", "chosen"),
    [
        ("train test", {}, {"train": "train", "test": "test"}),
        ("train dev test", {}, {"train": "train", "validation": "dev", "test": "test"}),
        ("train validation_matched", {}, {"train": "train", "validation": "validation_matched"}),
        ("train test", {"validation_split_name": "test"}, {"train": "train", "validation": "test"}),
        (
            "a b c",
            {"train_split_name": "c", "validation_split_name": "a", "test_split_name": "b"},
            {"train": "c", "validation": "a", "test": "b"},
        ),
    ],
)
def test_splits_are_found_by_their_usual_names_or_by_flags(there, flags, chosen):
    splits = {name: datasets.Dataset.from_dict({"text": [name]}) for name in there.split()}
    found = from_memory(splits, DataArguments(**flags)).splits
    assert {role: split["text"][0] for role, split in found.items()} == chosen


def test_a_split_that_is_not_there_is_an_error_that_lists_those_that_are():
    splits = {"train": datasets.Dataset.from_list(ROWS), "extra": datasets.Dataset.from_list(ROWS)}
    with pytest.raises(DataError, match="no split 'tset'; it has train, extra. Choose with --test_split_name"):
        from_memory(splits, DataArguments(test_split_name="tset"))
    with pytest.raises(ArgumentError, match="--train_split_name train is also the split to validate"):
        from_memory(splits, DataArguments(validation_split_name="train"))


# The Hub

CARD = """\
---
configs:
- config_name: big
  data_files: [{split: train, path: big/train.csv}, {split: valid, path: big/valid.csv}]
- config_name: small
  data_files: [{split: train, path: small/train.csv}]
---
"""
CONFIGURED = {"README.md": CARD, "big/train.csv": TABLE, "big/valid.csv": TABLE, "small/train.csv": TABLE}


@pytest.mark.parametrize("streaming", [False, True])
def test_a_dataset_of_the_hub_with_the_commit_it_came_from(hub, repo_id, streaming):
    sha = hub.add_repo("dataset", repo_id, CONFIGURED)
    source = load(dataset_name=repo_id, dataset_config_name="big", streaming=streaming)
    assert (source.kind, source.name, source.hub_id) == ("hub", repo_id, repo_id)
    assert (source.config_name, source.revision) == ("big", sha)
    assert list(source.splits) == ["train", "validation"]
    assert list(source.splits["train"]) == NUMBERED


def test_an_old_revision_is_what_it_was(hub, repo_id):
    old = hub.add_repo("dataset", repo_id, {"train.csv": TABLE})
    new = hub.add_repo("dataset", repo_id, {"train.csv": tiny.table(OTHER_ROWS, ".csv")})
    revisions = {revision: load(dataset_name=repo_id, dataset_revision=revision) for revision in (old, None, "main")}
    assert [len(source.splits["train"]) for source in revisions.values()] == [6, 3, 3]
    assert [source.revision for source in revisions.values()] == [old, new, new]


def test_cache_dir_holds_the_data(hub, repo_id, tmp_path):
    hub.add_repo("dataset", repo_id, {"train.csv": TABLE})
    load(dataset_name=repo_id, cache_dir=str(tmp_path))
    assert list(tmp_path.rglob("*.arrow"))


@pytest.mark.parametrize(
    ("failure", "path"),
    [({"status": 503}, "/api/datasets/"), ({"status": 503}, r"/resolve/.*csv"), ({"cut": True}, r"/resolve/.*csv")],
)
def test_one_failure_of_the_hub_is_survived(hub, repo_id, failure, path):
    hub.add_repo("dataset", repo_id, {"train.csv": TABLE})
    hub.fail("GET", path, **failure)
    assert load(dataset_name=repo_id).splits["train"].to_list() == NUMBERED


def test_a_hub_that_stays_down_is_an_error_of_the_hub(hub, repo_id):
    hub.add_repo("dataset", repo_id, {"train.csv": TABLE})
    hub.fail("GET", r"/resolve/.*csv", status=503, times=100)
    with pytest.raises(HubError, match=rf"--dataset_name {repo_id}: the Hub could not be asked \(HfHubHTTPError.*503"):
        load(dataset_name=repo_id)


@pytest.fixture
def offline(monkeypatch):
    """As if HF_HUB_OFFLINE were set, which the clients read when they are imported."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_what_was_loaded_before_is_there_without_the_hub(hub, repo_id, request, suffix):
    hub.add_repo("dataset", repo_id, {f"train{suffix}": tiny.table(ROWS, suffix)})
    load(dataset_name=repo_id)
    request.getfixturevalue("offline")
    before = len(hub.requests)
    source = load(dataset_name=repo_id)
    assert source.splits["train"].to_list() == NUMBERED
    assert source.revision is None
    assert len(hub.requests) == before


@pytest.mark.usefixtures("offline")
def test_what_is_not_in_the_cache_is_an_error_at_once_without_the_hub(monkeypatch):
    monkeypatch.setattr("sft_hf.hub.time.sleep", lambda seconds: pytest.fail("waited for a Hub that is switched off"))
    with pytest.raises(HubError, match="--dataset_name a/never-seen: HF_HUB_OFFLINE is set and this dataset is not"):
        load(dataset_name="a/never-seen")


@pytest.mark.parametrize("streaming", [False, True])
def test_a_repository_names_the_ids_of_its_masks(hub, repo_id, tmp_path, streaming):
    hub.add_repo("dataset", repo_id, metadata_folder(tmp_path))
    source = load(dataset_name=repo_id, streaming=streaming)
    assert source.id2label == {0: "null", 1: "shirt"}
    assert (source.kind, source.hub_id) == ("hub", repo_id)


def test_names_of_ids_are_of_the_revision_and_with_the_token(hub, repo_id, tmp_path):
    old = hub.add_repo("dataset", repo_id, metadata_folder(tmp_path), private=True)
    write(tmp_path / "id2label.json", '{"0": "null", "1": "coat"}')
    hub.add_repo("dataset", repo_id, tmp_path, private=True)
    names = [load(dataset_name=repo_id, dataset_revision=revision, token=ALICE).id2label for revision in (old, None)]
    assert names == [{0: "null", 1: "shirt"}, {0: "null", 1: "coat"}]


def test_names_of_ids_survive_a_failure_and_a_lost_hub(hub, repo_id, tmp_path, request):
    hub.add_repo("dataset", repo_id, metadata_folder(tmp_path / "data"))
    hub.fail("HEAD", "id2label.json", status=503)
    assert load(dataset_name=repo_id, cache_dir=str(tmp_path)).id2label == {0: "null", 1: "shirt"}
    assert list(tmp_path.glob("datasets--*/snapshots/*/id2label.json"))
    request.getfixturevalue("offline")
    assert load(dataset_name=repo_id, cache_dir=str(tmp_path)).id2label == {0: "null", 1: "shirt"}


def test_names_of_ids_that_cannot_be_had(hub, repo_id, tmp_path):
    folder = metadata_folder(tmp_path)
    hub.add_repo("dataset", repo_id, folder)
    hub.fail("HEAD", "id2label.json", status=503, times=100)
    with pytest.raises(HubError, match=rf"--dataset_name {repo_id}: the Hub could not be asked"):
        load(dataset_name=repo_id)
    hub.clear_failures()
    write(folder / "id2label.json", "[]")
    hub.add_repo("dataset", repo_id, folder)
    with pytest.raises(DataError, match=rf"--dataset_name {repo_id}, id2label.json: expected names by id"):
        load(dataset_name=repo_id)
    (folder / "id2label.json").unlink()
    hub.add_repo("dataset", repo_id, folder)
    assert load(dataset_name=repo_id).id2label is None


def test_a_repository_without_masks_is_not_asked_for_names(hub, repo_id):
    hub.add_repo("dataset", repo_id, {"train.csv": TABLE, "id2label.json": "[]"})
    before = len(hub.requests)
    assert load(dataset_name=repo_id).id2label is None
    assert not [request.path for request in hub.requests[before:] if "id2label" in request.path]


# What goes wrong on the Hub


@pytest.mark.parametrize(
    ("token", "repo", "message"),
    [
        (None, {}, "no such dataset on the Hub, no such folder here, or it is private"),
        (ALICE, {}, "no such dataset on the Hub"),
        (None, {"private": True}, "or it is private and the token .* has no right to it"),
        (BOB, {"private": True}, "or it is private and the token .* has no right to it"),
        (NOBODY, {"private": True}, "the Hub refuses the token. Renew it: `hf auth login`"),
        (NOBODY, {"private": False}, "the Hub refuses the token"),
        (None, {"gated": True}, "this dataset is gated. Ask for access on the page of"),
        (BOB, {"gated": True}, "this dataset is gated. Ask for access on the page of"),
    ],
)
def test_what_may_not_be_read_says_why(hub, repo_id, token, repo, message):
    if repo:
        hub.add_repo("dataset", repo_id, {"train.csv": TABLE}, **repo)
    with pytest.raises(HubError, match=f"^--dataset_name {repo_id}: .*{message}"):
        load(dataset_name=repo_id, token=token)


@pytest.mark.parametrize("repo", [{"private": True}, {"gated": True}])
def test_the_owner_reads_private_and_gated_datasets(hub, repo_id, repo):
    hub.add_repo("dataset", repo_id, {"train.csv": TABLE}, **repo)
    assert len(load(dataset_name=repo_id, token=ALICE).splits["train"]) == 6


@pytest.mark.parametrize(
    ("flags", "error", "message"),
    [
        ({}, DataError, "pick one among the available configs: .'big', 'small'.* --dataset_config_name"),
        ({"dataset_config_name": "bgi"}, DataError, "'bgi' not found. .*'big', 'small'.* --dataset_config_name"),
        (
            {"dataset_config_name": "small", "validation_split_name": "valid"},
            DataError,
            "no split 'valid'; it has train. Choose with --validation_split_name",
        ),
        ({"dataset_config_name": "big", "dataset_revision": "v9"}, HubError, "there is no such revision"),
    ],
)
def test_configurations_splits_and_revisions_that_are_not_there(hub, repo_id, flags, error, message):
    hub.add_repo("dataset", repo_id, CONFIGURED)
    with pytest.raises(error, match=message):
        load(dataset_name=repo_id, **flags)


def test_a_dataset_that_is_a_script_or_empty(hub, repo_id):
    hub.add_repo("dataset", repo_id, {f"{repo_id.split('/')[1]}.py": "raise SystemExit"})
    with pytest.raises(DataError, match="is a script, .* --dataset_revision refs/convert/parquet"):
        load(dataset_name=repo_id)
    hub.add_repo("dataset", f"{repo_id}-empty", {"README.md": "nothing"})
    with pytest.raises(DataError, match="doesn't contain any data files"):
        load(dataset_name=f"{repo_id}-empty")


@pytest.mark.parametrize("name", ["a/b/c", "./no/such/folder", "no such name"])
def test_a_name_that_is_neither_a_folder_nor_a_repository(name):
    with pytest.raises(DataError, match=f"--dataset_name {name}: no such file or folder, and no name of the Hub"):
        load(dataset_name=name)


# What goes wrong with files and flags


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"dataset_name": "a", "train_file": ["b"]}, "--dataset_name and --train_file name two sources"),
        ({"validation_file": ["b"]}, "--validation_file and --test_file need --train_file"),
        ({}, "No data: give --dataset_name ORG/NAME .* or --train_file FILE"),
        ({"dataset_name": "builtin:docstrngs"}, "--dataset_name builtin:docstrngs: .* docstrings"),
    ],
)
def test_flags_that_name_no_source_or_two(flags, message):
    with pytest.raises(ArgumentError, match=message):
        load(**flags)


def test_a_missing_file_lists_its_neighbours(tmp_path):
    tiny.write_rows(tmp_path / "train.csv", ROWS)
    tiny.write_rows(tmp_path / "dev.csv", ROWS)
    with pytest.raises(DataError, match=rf"--train_file {tmp_path}/trian.csv: no such file. In .*: dev.csv, train.csv"):
        load_files(tmp_path / "trian.csv")
    with pytest.raises(DataError, match="--validation_file .*val.csv: no such file. In .*no: nothing"):
        load(train_file=[str(tmp_path / "train.csv")], validation_file=[str(tmp_path / "no" / "val.csv")])


def test_a_file_is_no_dataset_name(tmp_path):
    with pytest.raises(ArgumentError, match="is a file; give files by --train_file"):
        load(dataset_name=str(tiny.write_rows(tmp_path / "train.csv", ROWS)))


def test_files_of_two_kinds_or_of_an_unknown_kind(tmp_path):
    paths = [tiny.write_rows(tmp_path / f"train{suffix}", ROWS) for suffix in (".csv", ".json")]
    with pytest.raises(DataError, match=r"--train_file: .csv, .json given; expected one kind of .csv, .tsv"):
        load_files(*paths)
    with pytest.raises(DataError, match=r"--train_file: .txt given; expected one kind of"):
        load_files(write(tmp_path / "train.txt", "woof"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"text": "a"}\n{"text": b}\n', "a.jsonl, line 2: not valid JSON"),
        ("a.jsonl", '{"text": "a"}\n\n["b"]\n', "a.jsonl, line 3: expected an object, got list"),
        ("a.json", '[{"text": "a"}, {"text":', "a.json cannot be read"),
        ("a.csv", "text,label\na,b\nc,d,e\n", "a.csv cannot be read: .* Expected 2 fields in line 3, saw 3$"),
        ("a.csv", 'text,label\na,b\nc,"d\n', "a.csv cannot be read: .*EOF inside string starting at row 2$"),
        ("a.csv", "", "a.csv cannot be read: No columns to parse"),
        ("a.csv", "text,label\n", "a.csv: no row"),
        ("a.parquet", "PAR1", "a.parquet cannot be read"),
    ],
)
def test_a_broken_file_is_named_with_its_line(tmp_path, name, content, message):
    with pytest.raises(DataError, match=message):
        load_files(write(tmp_path / name, content))


# Samples


def test_a_sample_is_seeded_and_keeps_the_order():
    dataset = datasets.Dataset.from_dict({"number": list(range(100))})
    numbers = [sample(dataset, 10, seed=seed, flag="--max_train_samples")["number"][:] for seed in (0, 0, 1)]
    assert numbers[0] == numbers[1] == sorted(numbers[0])
    assert numbers[0] != numbers[2]
    assert numbers[0] != list(range(10))
    assert len(set(numbers[0])) == 10


def test_a_sample_of_all_or_more_is_the_dataset():
    dataset = datasets.Dataset.from_dict({"number": [3, 1, 2]})
    for number in (None, 3, 99):
        assert sample(dataset, number, seed=0, flag="--max_train_samples") is dataset
    with pytest.raises(ArgumentError, match="--max_eval_samples 0: expected a positive number"):
        sample(dataset, 0, seed=0, flag="--max_eval_samples")


def test_a_sample_of_a_stream_is_of_its_shuffled_order():
    stream = datasets.Dataset.from_dict({"number": list(range(100))}).to_iterable_dataset()
    first, second = (
        [row["number"] for row in sample(stream, 5, seed=seed, flag="--max_train_samples", buffer_size=50)]
        for seed in (0, 0)
    )
    assert first == second
    assert len(first) == 5
    assert first != [0, 1, 2, 3, 4]


def test_builtin_data_is_a_source_like_any_other(monkeypatch):
    splits = datasets.DatasetDict(train=datasets.Dataset.from_list(ROWS), test=datasets.Dataset.from_list(OTHER_ROWS))
    monkeypatch.setattr("sft_hf.data.sources.builtin_dataset", {"docstrings": splits}.__getitem__)
    source = load(dataset_name="builtin:docstrings")
    assert (source.kind, source.name, source.hub_id) == ("builtin", "builtin:docstrings", None)
    assert source.splits["train"].to_list() == NUMBERED


def test_builtin_scenes_name_the_ids_of_their_masks(monkeypatch):
    splits = datasets.DatasetDict(train=datasets.Dataset.from_list(ROWS))
    monkeypatch.setattr("sft_hf.data.sources.builtin_dataset", {"digit_scenes": splits}.__getitem__)
    assert load(dataset_name="builtin:digit_scenes").id2label[10] == "9"


def test_a_folder_that_moves_on_is_read_again(tmp_path):
    """datasets caches by name: a changed file must not come back as it was."""
    folder = tmp_path / "pets"
    folder.mkdir()
    tiny.write_rows(folder / "train.csv", ROWS)
    assert len(load(dataset_name=str(folder)).splits["train"]) == 6
    shutil.rmtree(folder)
    folder.mkdir()
    tiny.write_rows(folder / "train.csv", OTHER_ROWS)
    assert len(load(dataset_name=str(folder)).splits["train"]) == 3
