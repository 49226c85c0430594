"""Reading every row once, before training: what is found out about it, and which rows go on.

scans = map_rows(dataset.select_columns(["image"]), scan, "checking the pictures of train")
-> [{"reason": None, "digest": "9f2c..."}, {"reason": "cat/3.jpg: truncated", "digest": None}]
refuse_or_skip(dataset, [scan["reason"] for scan in scans], "skip", what="train: pictures that cannot be decoded")
"""

import json
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, IterableDataset
from datasets.fingerprint import Hasher

from sft_hf.data.columns import EXAMPLE_ID
from sft_hf.data.containment import first_few
from sft_hf.errors import DataError
from sft_hf.launching import cores_of_this_process, is_first_on_its_machine

logger = logging.getLogger(__name__)
ROWS_FOR_PROCESSES = 2000  # from which number of rows on they are read in several processes
FOUND = "found"  # the column of what was found out about a row


def map_rows(dataset: Dataset, function: Callable[[dict], dict], description: str) -> list[dict]:
    """What `function` says of each row of encoded files, as JSON holds it; in several processes where there are many."""
    as_json = _AsJson(function)
    # What a path names can have been mended since. Other ranks take what the first one of their machine has just found.
    is_embedded = all((value or {}).get("bytes") for row in dataset.take(1) for value in row.values())
    found = dataset.map(
        as_json,
        remove_columns=dataset.column_names,
        num_proc=cores_of_this_process() if len(dataset) >= ROWS_FOR_PROCESSES else None,
        load_from_cache_file=is_embedded or not is_first_on_its_machine(),
        desc=description,
        **shared_by_ranks(dataset, as_json),
    )
    return [json.loads(text) for text in found[FOUND][:]]


def shared_by_ranks(dataset: Dataset, function: Any) -> dict[str, Any]:
    """Options with which `dataset.map(function)` is run by the first rank of a machine, and read by the others.

    `function` may be whatever stands for it: equal where it does the same.

    datasets does that by itself, but not for rows in memory, as those of folders are: what it makes of them it keeps in a folder of
    the process.
    """
    if dataset.cache_files or int(os.environ.get("LOCAL_WORLD_SIZE", "1")) == 1:
        return {}
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "sft_hf"
    folder.mkdir(parents=True, exist_ok=True)
    return {"cache_file_name": str(folder / f"{Hasher.hash((dataset._fingerprint, function))}.arrow")}


def refuse_or_skip(dataset: Dataset, reasons: list[str | None], on_bad_example: str, *, what: str) -> Dataset:
    """The rows without a reason against them; DataError that names the others, or, to skip them, a warning."""
    bad = {row: reason for row, reason in enumerate(reasons) if reason}
    if not bad:
        return dataset
    ids = dataset[EXAMPLE_ID][:]
    named = first_few([f"row {ids[row]}: {reason}" for row, reason in bad.items()], separator="; ")
    message = f"{what}: {len(bad)} of {len(dataset)}: {named}"
    if on_bad_example == "error":
        raise DataError(f"{message}. Mend or remove them, or leave them out with --on_bad_example skip.")
    logger.warning("%s; they are left out", message)
    return dataset.select([row for row in range(len(dataset)) if row not in bad])


def renamed(dataset: Dataset | IterableDataset, names: dict[str, str]) -> Dataset | IterableDataset:
    """The columns of `names` that the dataset has, alone and under their new names; nothing is copied."""
    there = {before: after for before, after in names.items() if before in dataset.column_names}
    dataset = dataset.select_columns(list(there))
    for before, after in there.items():
        dataset = dataset if before == after else dataset.rename_column(before, after)
    return dataset


@dataclass(frozen=True)
class _AsJson:
    """One string for each row: datasets takes a column's type from its first 1,000 values, which may all be None."""

    function: Callable[[dict], dict]

    def __call__(self, row: dict) -> dict:
        return {FOUND: json.dumps(self.function(row))}
