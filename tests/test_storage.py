"""Files that are there whole or not at all, and the words for a full disk."""

import errno
import os
import re

import pytest
import torch
from safetensors.torch import save_file

from sft_hf.storage import is_failed_write, no_room, write_whole


def test_what_was_there_stays_until_all_of_the_new_is_written(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    write_whole(path, "old")

    def killed(*_args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            write_whole(path, "new")
    assert path.read_text() == "old"
    write_whole(path, "new, ä")
    assert path.read_text(encoding="utf-8") == "new, ä"
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full, the disk that is always full")
def test_a_full_disk_is_known_by_what_each_writer_says(tmp_path):
    """torch and safetensors say it in words of their own; the disk here is a real one that has no room."""
    full = tmp_path / "full"
    full.symlink_to("/dev/full")
    for write in (
        lambda: full.write_text("x"),
        lambda: torch.save({"weights": torch.zeros(10_000)}, str(full)),
    ):
        with pytest.raises((OSError, RuntimeError)) as caught:
            write()
        assert is_failed_write(caught.value), caught.value
    assert not is_failed_write(FileNotFoundError(errno.ENOENT, "No such file"))
    assert not is_failed_write(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_a_limit_on_the_size_of_files_is_one_too(tmp_path):
    import resource
    import signal

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
        with pytest.raises(Exception) as caught:
            save_file({"weights": torch.zeros(10_000)}, tmp_path / "model.safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert is_failed_write(caught.value), caught.value


def test_the_message_says_where_why_and_how_much_is_free(tmp_path):
    text = no_room(tmp_path / "runs" / "a", OSError(errno.ENOSPC, "No space left on device"))
    assert text.startswith(f"{tmp_path}/runs/a could not be written: No space left on device; ")
    assert re.search(r" [0-9.]+ [GM]B are free there$", text)
