"""Which files the rows of a folder or a repository may name: its own. Somebody else wrote them, and the user's other files are no data.

    pets = Place("--dataset_name pets", ("/data/pets",))
    pets.holds("/data/pets/cat/1.png"), pets.holds("/data/pets/../../etc/passwd")     -> True, False
    place_of_repository("alice/pets").holds("hf://datasets/alice/pets@5be2.../1.png")  -> True

A table that the user names by --train_file is the user's own list, and names files wherever they lie. Links are followed: who laid a
folder there made them, and `linked_out` says where they lead.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pyarrow.compute as pc
from datasets import Dataset
from huggingface_hub.constants import HF_HUB_CACHE
from huggingface_hub.file_download import repo_folder_name

from sft_hf.errors import DataError

NUM_NAMED = 5  # rows or files that a message names
ARCHIVE = "zip://"  # `zip://1.png::/data/pets.zip`: what is inside of it has no way out


def first_few(texts: Sequence[str], *, separator: str = ", ") -> str:
    """What a message names of many: the first five, and dots for the others."""
    return separator.join([*texts[:NUM_NAMED], *(["..."] if len(texts) > NUM_NAMED else [])])


@dataclass(frozen=True)
class Place:
    """The folders, and the beginnings of URLs, in which the files of a source lie; `name` is the source's, for messages."""

    name: str
    roots: tuple[str, ...]

    def holds(self, path: str) -> bool:
        """Whether a path or URL is inside of one of the roots, as it is written; in an archive, whether the archive is."""
        *inside, path = path.split("::")
        if not all(one.startswith(ARCHIVE) for one in inside):
            return False
        if "://" in path:
            return ".." not in path.split("/") and path.startswith(tuple(root for root in self.roots if "://" in root))
        path = os.path.abspath(path)
        return any(path == root or path.startswith(os.path.join(root, "")) for root in self.roots)

    def check(self, paths: Iterable[tuple[int, str]], what: str) -> None:
        """DataError that names the `(row, path)` whose file lies elsewhere; `what` has the paths, and begins the message."""
        outside = [(row, path) for row, path in paths if not self.holds(path)]
        if outside:
            named = first_few([f"row {row}: {path}" for row, path in outside])
            raise DataError(
                f"{what}: {len(outside)} of its values name a file outside of {self.name} ({named}). A folder or a repository is read inside of itself "
                "alone. Put the files there, or, where a table is your own, give it as --train_file."
            )


def place_of_folder(folder: Path, *, name: str) -> Place:
    """A folder, as it was given and as it is without links."""
    return Place(name, tuple(dict.fromkeys((os.path.abspath(folder), os.path.realpath(folder)))))


def place_of_repository(repo_id: str) -> Place:
    """A dataset of the Hub: what the cache has of it, and, for streams, its own URLs."""
    cached = os.path.join(HF_HUB_CACHE, repo_folder_name(repo_id=repo_id, repo_type="dataset"))
    return Place(
        f"--dataset_name {repo_id}",
        (os.path.abspath(cached), f"hf://datasets/{repo_id}@", f"hf://datasets/{repo_id}/"),
    )


def files_of(dataset: Dataset, column: str) -> Iterator[tuple[int, str]]:
    """The row and the path of each value of an Image or Audio column that is not embedded."""
    start = 0
    for batch in dataset.select_columns([column]).with_format("arrow").iter(batch_size=1000):
        values = batch[column].combine_chunks()
        paths = pc.struct_field(values, "path").to_pylist()
        is_embedded = pc.is_valid(pc.struct_field(values, "bytes")).to_pylist()
        yield from ((start + row, path) for row, path in enumerate(paths) if path is not None and not is_embedded[row])
        start += len(values)


def linked_out(paths: Iterable[str], place: Place) -> dict[str, str]:
    """The paths that a link leads out of a place, and where to."""
    folder = lru_cache(maxsize=1000)(os.path.realpath)
    found = {}
    for path in paths:
        parent, name = os.path.split(path)
        target = os.path.join(folder(parent), name)
        target = os.path.realpath(target) if os.path.islink(target) else target
        if not place.holds(target):
            found[path] = target
    return found
