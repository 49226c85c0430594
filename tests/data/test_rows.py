"""Rows that are read once before training: what is found out, and which go on."""

import logging
from pathlib import Path

import pytest
from datasets import Dataset

from sft_hf.data.rows import map_rows, refuse_or_skip, renamed
from sft_hf.errors import DataError


def rows(*contents: bytes) -> Dataset:
    files = [{"bytes": content, "path": f"{row}.png"} for row, content in enumerate(contents)]
    return Dataset.from_dict({"image": files, "example_id": list(range(len(files)))})


class _Length:
    def __call__(self, row: dict) -> dict:
        return {"length": len(row["image"]["bytes"])}


def test_many_rows_are_read_in_processes(monkeypatch):
    monkeypatch.setattr("sft_hf.data.rows.ROWS_FOR_PROCESSES", 4)
    monkeypatch.setattr("sft_hf.data.rows.cores_of_this_process", lambda: 2)
    dataset = rows(b"1", b"22", b"333", b"1", b"1").select_columns(["image"])
    assert map_rows(dataset, _Length(), "x") == [{"length": length} for length in (1, 2, 3, 1, 1)]


@pytest.mark.parametrize("are_paths", [True, False])
def test_rows_in_memory_are_read_by_the_first_rank_of_a_machine_alone(are_paths, monkeypatch, tmp_path):
    """What a path names may have been mended since an earlier run: the first rank reads it anew, the others take what it found."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    (tmp_path / "1.png").write_bytes(b"22")
    file = {"bytes": None, "path": str(tmp_path / "1.png")} if are_paths else {"bytes": b"22", "path": None}
    found = []
    for rank, mended in (("0", b"333"), ("1", b"4444"), ("0", b"55555")):
        monkeypatch.setenv("LOCAL_RANK", rank)
        dataset = Dataset.from_dict({"image": [file]})
        found += [scan["length"] for scan in map_rows(dataset, _LengthOfFile(), "x")]
        (tmp_path / "1.png").write_bytes(mended)
    assert found == ([2, 2, 4] if are_paths else [2, 2, 2])


class _LengthOfFile:
    def __call__(self, row: dict) -> dict:
        content = row["image"]["bytes"] or Path(row["image"]["path"]).read_bytes()
        return {"length": len(content)}


def test_a_message_names_five_of_many_by_their_rows_in_the_source():
    """Rows without a label have been dropped before, so a position is no address."""
    dataset = rows(*[b""] * 8).select(range(1, 8))
    with pytest.raises(DataError, match=r"spoilt: 6 of 7: row 1: a; row 2: a; row 3: a; row 4: a; row 5: a; \.\.\."):
        refuse_or_skip(dataset, ["a"] * 6 + [None], "error", what="spoilt")


def test_rows_with_a_reason_are_left_out_with_a_warning(monkeypatch, caplog):
    monkeypatch.setattr(logging.getLogger("sft_hf"), "propagate", True)
    kept = refuse_or_skip(rows(b"1", b"", b"3"), [None, "it is empty", None], "skip", what="train: spoilt")
    assert kept["example_id"][:] == [0, 2]
    assert "train: spoilt: 1 of 3: row 1: it is empty; they are left out" in caplog.text


def test_columns_are_chosen_and_renamed_and_missing_ones_are_no_error():
    kept = renamed(rows(b"1"), {"image": "picture", "label": "labels", "example_id": "example_id"})
    assert kept.column_names == ["picture", "example_id"]
