"""Files that are there whole or not at all, and what is said when a disk is full.

write_whole(folder / "results.json", text)     # killed on the way, it leaves the file as it was
"""

import errno
import os
import re
import shutil
import tempfile
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# What torch and safetensors say instead of an OSError.
FAILED_WRITE = re.compile(r"PytorchStreamWriter failed|file write failed|unexpected pos|\(os error (27|28|122)\)")


def write_whole(path: Path, text: str) -> None:
    """Write a text file (UTF-8) in one step: others see what was there before, or all of it."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.write_text(text, encoding="utf-8")
    flush(unfinished)
    os.replace(unfinished, path)


def flush(path: Path) -> None:
    """Wait until a file is on the disk, and not only on its way there."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_failed_write(error: BaseException) -> bool:
    """Whether a disk, a quota or a limit on the size of files is the cause."""
    if isinstance(error, OSError):
        return error.errno in FULL
    return FAILED_WRITE.search(str(error)) is not None


def no_room(path: str | Path, error: BaseException) -> str:
    """`/home/me/runs/a/checkpoint-20 could not be written: No space left on device; 1.3 MB are free there`."""
    return f"{Path(path).absolute()} could not be written: {first_line(error)}; {_free(path)} are free there"


def some_disk_is_full(error: BaseException, output_dir: str) -> str:
    """The same where the error does not say which file it was: the places that a run writes to, and what is free there."""
    from datasets.config import HF_DATASETS_CACHE  # heavy, and only needed now

    places = (output_dir, HF_DATASETS_CACHE, tempfile.gettempdir())
    return f"{first_line(error)}; free are " + ", ".join(
        f"{_free(place)} at {Path(place).absolute()}" for place in places
    )


def first_line(error: BaseException) -> str:
    """What an error says, without what torch and others write below it; its kind if it says nothing."""
    said = error.strerror if isinstance(error, OSError) else str(error)
    return (said or type(error).__name__).splitlines()[0]


def _free(path: str | Path) -> str:
    path = Path(path).absolute()
    free = shutil.disk_usage(next(folder for folder in (path, *path.parents) if folder.is_dir())).free
    return f"{free / 1e9:.1f} GB" if free > 1e9 else f"{free / 1e6:.1f} MB"
