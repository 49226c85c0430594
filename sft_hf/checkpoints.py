"""Checkpoints that are whole or are not used: a manifest, written last, lists the files of each and their sizes.

    with writing(folder):                       # a full disk becomes an error that says so
        trainer.save(folder)
    write_manifest(folder, num_processes=2)     # from here on the checkpoint counts
    last_whole(Path("runs/a"))                  # -> runs/a/checkpoint-40, whatever happened while checkpoint-60 was written

A process can be killed between any two writes, and a checkpoint can be half deleted as well as half written. So neither a folder nor
one file in it says that a checkpoint is whole: the manifest does, with the sizes that the files had once they were on the disk.
"""

import json
import logging
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from sft_hf import storage
from sft_hf.errors import StorageError

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
UNLISTED = (MANIFEST, "training_args.bin")  # the second is a pickle: no push takes it along, and no resume reads it
PREFIX = "checkpoint-"


def checkpoints(run: Path) -> list[Path]:
    """The checkpoints of a run, whole or not, latest step first."""
    found = [path for path in run.glob(f"{PREFIX}*") if path.name.removeprefix(PREFIX).isdigit() and path.is_dir()]
    return sorted(found, key=lambda path: int(path.name.removeprefix(PREFIX)), reverse=True)


def write_manifest(folder: Path, *, num_processes: int) -> None:
    """Declare a checkpoint whole. Its files are on the disk before the manifest is."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in UNLISTED]
    for path in files:
        storage.flush(path)
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
    manifest = {"num_processes": num_processes, "files": sizes}
    storage.write_whole(folder / MANIFEST, json.dumps(manifest, indent=1) + "\n")


def read_manifest(folder: Path) -> dict | None:
    """`{"num_processes": 2, "files": {"model.safetensors": 1234, ...}}`, or None where there is none that can be read."""
    try:
        return json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None


def what_is_missing(folder: Path) -> str | None:
    """None for a whole checkpoint, else what it lacks."""
    manifest = read_manifest(folder)
    if manifest is None:
        return f"it has no {MANIFEST} that can be read: it was not written to its end, or by something else"
    for name, size in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes instead of {size}"
    return None


def can_be_resumed(folder: Path) -> bool:
    """Whether a whole checkpoint holds an optimizer's states, the Trainer's, FSDP's or DeepSpeed's; --save_only_model leaves them out."""
    return any("optim" in name for name in read_manifest(folder)["files"])


def last_whole(run: Path) -> Path | None:
    """The newest whole checkpoint of a run; the others are named in the log and passed over."""
    for checkpoint in checkpoints(run):
        missing = what_is_missing(checkpoint)
        if missing is None:
            return checkpoint
        logger.warning("%s is passed over: %s", checkpoint, missing)
    return None


def discard_broken(run: Path) -> None:
    """Delete what is left of checkpoints that are not whole beside one that is, and of a model that safetensors was writing.

    They cannot be used, they take the place of those that can on a full disk, and counted by --save_total_limit they would push out
    whole ones.
    """
    for unfinished in run.glob(".tmp??????"):
        if unfinished.is_file():
            unfinished.unlink()
    broken = [checkpoint for checkpoint in checkpoints(run) if what_is_missing(checkpoint) is not None]
    if len(broken) == len(checkpoints(run)):
        return  # they may be all that somebody has
    for checkpoint in broken:
        discard(checkpoint)


def discard(checkpoint: Path) -> None:
    """Delete a checkpoint; killed on the way, it leaves one that is not whole."""
    (checkpoint / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(checkpoint)


def rotate(run: Path, *, limit: int | None, keep: Collection[Path] = ()) -> None:
    """Delete whole checkpoints beyond `limit`, oldest first; never the newest one, nor those of `keep`.

    `limit` counts these too, but all of them stay. None or 0 deletes nothing.
    """
    if not limit or limit < 0:
        return
    whole = [path for path in checkpoints(run) if (path / MANIFEST).is_file()]
    # By time: a run that was taken up from an earlier checkpoint may have left later steps behind.
    there = sorted(whole, key=lambda path: ((path / MANIFEST).stat().st_mtime_ns, int(path.name.removeprefix(PREFIX))))
    protected = {path.name for path in (*there[-1:], *keep)} & {path.name for path in there}
    surplus = len(there) - max(limit, len(protected))
    for checkpoint in [path for path in there if path.name not in protected][: max(0, surplus)]:
        discard(checkpoint)


@contextmanager
def writing(checkpoint: Path) -> Iterator[None]:
    """StorageError where a checkpoint does not fit on the disk; what it already took there is given back."""
    try:
        yield
    except Exception as error:
        if not storage.is_failed_write(error):
            raise
        shutil.rmtree(checkpoint, ignore_errors=True)  # what cannot be deleted is not whole either
        whole = last_whole(checkpoint.parent)
        left = f"{whole}, the last one, is whole" if whole else "there is no earlier one"
        raise StorageError(
            f"{storage.no_room(checkpoint, error)}; {left}. Make room and run the same command again: it goes on from there. "
            "--save_total_limit keeps fewer checkpoints, --save_only_model leaves out the optimizer (no run can go on from those)."
        ) from error
