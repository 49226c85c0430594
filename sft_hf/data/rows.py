"""Reading every row once, before training: what is found out about it, and which rows go on.

scans = map_rows(dataset.select_columns(["image"]), scan, "checking the pictures of train")
-> [{"reason": None, "digest": "9f2c..."}, {"reason": "cat/3.jpg: truncated", "digest": None}]
refuse_or_skip(dataset, [scan["reason"] for scan in scans], "skip", what="train: pictures that cannot be decoded")
"""

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass

from datasets import Dataset, IterableDataset

from sft_hf.data.columns import EXAMPLE_ID
from sft_hf.errors import DataError
from sft_hf.launching import cores_of_this_process

logger = logging.getLogger(__name__)
ROWS_FOR_PROCESSES = 2000  # from which number of rows on they are read in several processes
NUM_NAMED = 5  # rows that a message names
FOUND = "found"  # the column of what was found out about a row


def map_rows(dataset: Dataset, function: Callable[[dict], dict], description: str) -> list[dict]:
    """What `function` says of each row of encoded files, as JSON holds it; in several processes where there are many."""
    found = dataset.map(
        _AsJson(function),
        remove_columns=dataset.column_names,
        num_proc=cores_of_this_process() if len(dataset) >= ROWS_FOR_PROCESSES else None,
        # What a path names can have been mended since.
        load_from_cache_file=all((value or {}).get("bytes") for row in dataset.take(1) for value in row.values()),
        desc=description,
    )
    return [json.loads(text) for text in found[FOUND]]


def refuse_or_skip(dataset: Dataset, reasons: list[str | None], on_bad_example: str, *, what: str) -> Dataset:
    """The rows without a reason against them; DataError that names the others, or, to skip them, a warning."""
    bad = {row: reason for row, reason in enumerate(reasons) if reason}
    if not bad:
        return dataset
    ids = dataset[EXAMPLE_ID]
    named = "; ".join(f"row {ids[row]}: {reason}" for row, reason in list(bad.items())[:NUM_NAMED])
    message = f"{what}: {len(bad)} of {len(dataset)}: {named}{'; ...' if len(bad) > NUM_NAMED else ''}"
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
