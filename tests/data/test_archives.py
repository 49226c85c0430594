"""Files that are larger than they look: zip, one-file compressions and parquet, in a folder, on the Hub and by their name."""

import bz2
import gzip
import io
import lzma
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sft_hf.arguments import DataArguments
from sft_hf.data import archives
from sft_hf.data.archives import refuse_bomb
from sft_hf.data.sources import load_splits
from sft_hf.errors import DataError

MEGABYTES = 8
ROWS = b'{"text": "rain", "label": "weather"}\n' * 50


@pytest.fixture(autouse=True)
def _harmless_below_a_megabyte(monkeypatch):
    monkeypatch.setattr(archives, "HARMLESS", 1 << 20)


def zipped(**files: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def constant_parquet(rows: int) -> bytes:
    """A column of equal numbers: its pages hold one of them and how often it comes."""
    buffer = io.BytesIO()
    pq.write_table(pa.table({"label": np.zeros(rows, np.int64)}), buffer, row_group_size=rows)
    return buffer.getvalue()


ZEROS = bytes(MEGABYTES << 20)
BOMBS = {
    "data.zip": zipped(**{"train.csv": ZEROS}),
    "many.zip": zipped(**{f"{number}.csv": ZEROS[: 1 << 20] for number in range(MEGABYTES)}),
    "train.jsonl.gz": gzip.compress(ZEROS),
    "train.csv.bz2": bz2.compress(ZEROS),
    "train.csv.xz": lzma.compress(ZEROS),
    "train.csv": gzip.compress(ZEROS),  # what a file is, its first bytes say
    "train.parquet": constant_parquet(MEGABYTES << 20),
}
NOISE = np.random.default_rng(0).bytes(3 << 20)


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_with_its_name_and_sizes(tmp_path, name):
    (tmp_path / name).write_bytes(BOMBS[name])
    assert len(BOMBS[name]) < 40_000
    with pytest.raises(
        DataError, match=rf"^--dataset_name a: {name}, {len(BOMBS[name])} bytes, unpacks to over 0.0 GB"
    ):
        refuse_bomb(str(tmp_path / name), flag="--dataset_name a")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"text,label\n",
        NOISE,
        gzip.compress(ZEROS[: 1 << 20]),  # large for its size, and harmless
        gzip.compress(NOISE),
        zipped(**{"1.png": NOISE}),
        zipped(**{"1.png": NOISE, "zeros": ZEROS}),  # 3 MB for 11
        constant_parquet(1 << 20),
        gzip.compress(NOISE)[:-2000],  # damaged files are for who reads them
        b"PAR1nonsense",
        b"\x1f\x8bnonsense",
        b"PK\x03\x04nonsense",
    ],
    ids=lambda content: f"{content[:4]!r}-{len(content)}",
)
def test_other_files_are_no_bombs(tmp_path, content):
    (tmp_path / "file").write_bytes(content)
    refuse_bomb(str(tmp_path / "file"), flag="--train_file")


def test_no_more_is_unpacked_than_shows_what_it_is(tmp_path, monkeypatch):
    """A file that unpacks for ever would else be unpacked for ever."""
    (tmp_path / "train.gz").write_bytes(gzip.compress(ZEROS))
    read = []
    plain = gzip.GzipFile.read
    monkeypatch.setattr(gzip.GzipFile, "read", lambda *args: read.append(plain(*args)) or read[-1])
    with pytest.raises(DataError, match="decompression bomb"):
        refuse_bomb(str(tmp_path / "train.gz"), flag="--train_file")
    assert sum(map(len, read)) <= 3 << 20


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", ["data.zip", "train.jsonl.gz", "train.parquet"])
def test_a_folder_with_a_bomb_is_refused(tmp_path, name, streaming):
    (tmp_path / name).write_bytes(BOMBS[name])
    with pytest.raises(DataError, match=rf"^--dataset_name {tmp_path}: {name}, .* decompression bomb"):
        load_splits(DataArguments(dataset_name=str(tmp_path), streaming=streaming))


@pytest.mark.parametrize("name", ["data.zip", "train.jsonl.gz", "train.parquet"])
def test_a_repository_with_a_bomb_is_refused_when_it_is_downloaded(hub, repo_name, name):
    hub.add_user("alice", "alice-token")
    hub.add_repo("dataset", f"alice/{repo_name}", {name: BOMBS[name]})
    with pytest.raises(DataError, match=rf"^--dataset_name alice/{repo_name}: .* unpacks to over"):
        load_splits(DataArguments(dataset_name=f"alice/{repo_name}"))


@pytest.mark.parametrize("name", ["train.csv", "train.parquet"])
def test_a_file_that_the_user_names_is_looked_at_too(tmp_path, name):
    (tmp_path / name).write_bytes(BOMBS[name])
    with pytest.raises(DataError, match=rf"^--train_file: {name}, .* decompression bomb"):
        load_splits(DataArguments(train_file=[str(tmp_path / name)]))


@pytest.mark.parametrize("content", [gzip.compress(ROWS), zipped(**{"train.jsonl": ROWS})], ids=["gz", "zip"])
def test_what_is_no_bomb_is_read(tmp_path, content):
    (tmp_path / ("train.jsonl.gz" if content[:2] == b"\x1f\x8b" else "data.zip")).write_bytes(content)
    assert len(load_splits(DataArguments(dataset_name=str(tmp_path))).splits["train"]) == 50
