"""Which checkpoints are whole, which one a run goes on from, and which are deleted."""

import json
import os

import pytest

from sft_hf import checkpoints
from sft_hf.errors import StorageError


def make(run, step, *, whole=True, content=b"weights"):
    folder = run / f"checkpoint-{step}"
    (folder / "pytorch_model_fsdp_0").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(content)
    (folder / "pytorch_model_fsdp_0" / "__0_0.distcp").write_bytes(b"shard")
    if whole:
        checkpoints.write_manifest(folder, num_processes=2)
    return folder


def tick(run, step):
    """Give a checkpoint a later time than those before; file systems' own clocks are coarse."""
    tick.now = getattr(tick, "now", 10**18) + 10**9
    os.utime(run / f"checkpoint-{step}" / "manifest.json", ns=(tick.now, tick.now))


def steps(run):
    return [int(path.name.split("-")[1]) for path in checkpoints.checkpoints(run)]


def test_the_manifest_lists_every_file_and_its_size(tmp_path):
    folder = make(tmp_path, 10)
    assert json.loads((folder / "manifest.json").read_text()) == {
        "num_processes": 2,
        "files": {"model.safetensors": 7, "pytorch_model_fsdp_0/__0_0.distcp": 5},
    }
    assert checkpoints.what_is_missing(folder) is None


def test_checkpoints_go_by_their_numbers_and_nothing_else_is_one(tmp_path):
    for step in (9, 100, 20):
        make(tmp_path, step)
    (tmp_path / "checkpoint-best").mkdir()
    assert steps(tmp_path) == [100, 20, 9]


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (
            lambda folder: (folder / "manifest.json").unlink(),
            "it has no manifest.json that can be read: it was not written to its end",
        ),
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors is missing"),
        (lambda folder: os.truncate(folder / "model.safetensors", 3), "model.safetensors has 3 bytes instead of 7"),
    ],
    ids=["half written", "half deleted", "cut short"],
)
def test_what_is_not_whole_is_passed_over_and_named(spoil, reason, tmp_path, caplog):
    make(tmp_path, 10)
    spoil(make(tmp_path, 20))
    (tmp_path / ".tmpaB3xYz").write_bytes(b"safetensors was killed here")
    assert checkpoints.last_whole(tmp_path) == tmp_path / "checkpoint-10"
    assert f"checkpoint-20 is passed over: {reason}" in caplog.text
    checkpoints.discard_broken(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-10"]


def test_checkpoints_that_may_be_all_that_somebody_has_are_left(tmp_path):
    """Those of an earlier version, or of another trainer, have no manifest."""
    make(tmp_path, 10, whole=False)
    make(tmp_path, 20, whole=False)
    checkpoints.discard_broken(tmp_path)
    checkpoints.rotate(tmp_path, limit=1)
    assert steps(tmp_path) == [20, 10]


def test_odd_files_are_no_checkpoints(tmp_path):
    (tmp_path / "checkpoint-12").write_text("")
    (tmp_path / ".tmpfolder").mkdir()
    (make(tmp_path, 20) / "manifest.json").write_text("{")
    assert checkpoints.last_whole(tmp_path) is None
    make(tmp_path, 10)
    checkpoints.discard_broken(tmp_path)
    assert steps(tmp_path) == [10]


def test_of_two_with_one_time_the_later_step_is_the_newer(tmp_path):
    for step in (30, 40):
        os.utime(make(tmp_path, step) / "manifest.json", ns=(10**18, 10**18))
    checkpoints.rotate(tmp_path, limit=1)
    assert steps(tmp_path) == [40]


def test_what_no_push_takes_along_is_not_missed(tmp_path):
    """--hub_strategy checkpoint leaves the pickle out: from what another machine downloads it can go on."""
    folder = make(tmp_path, 10, whole=False)
    (folder / "training_args.bin").write_bytes(b"pickle")
    checkpoints.write_manifest(folder, num_processes=1)
    (folder / "training_args.bin").unlink()
    assert checkpoints.what_is_missing(folder) is None


def test_deleting_begins_with_the_manifest(tmp_path, monkeypatch):
    """Killed in the middle of it, what is left is no whole checkpoint."""
    folder = make(tmp_path, 10)

    def killed(_path):
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints.shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.discard(folder)
    assert checkpoints.last_whole(tmp_path) is None


@pytest.mark.parametrize(
    ("limit", "best", "left"),
    [
        (None, None, [40, 30, 20, 10]),
        (0, None, [40, 30, 20, 10]),
        (2, None, [40, 30]),
        (1, None, [40]),
        (2, 10, [40, 10]),
        (1, 10, [40, 10]),  # both the best and the newest stay
        (1, 40, [40]),
    ],
)
def test_neither_the_newest_nor_the_best_is_deleted(limit, best, left, tmp_path):
    for step in (10, 20, 30, 40):
        make(tmp_path, step)
        tick(tmp_path, step)
    keep = () if best is None else (tmp_path / f"checkpoint-{best}",)
    checkpoints.rotate(tmp_path, limit=limit, keep=keep)
    assert steps(tmp_path) == left


def test_the_newest_is_the_one_written_last_and_not_the_highest_step(tmp_path):
    """A run that was taken up from step 10 writes step 15 while 20 and 30 of its first life still lie there."""
    for step in (10, 20, 30, 15):
        make(tmp_path, step)
        tick(tmp_path, step)
    checkpoints.rotate(tmp_path, limit=1)
    assert steps(tmp_path) == [15]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full, the disk that is always full")
def test_a_full_disk_leaves_the_earlier_one_and_says_so(tmp_path):
    make(tmp_path, 10)
    new = make(tmp_path, 20, whole=False)
    (new / "optimizer.pt").symlink_to("/dev/full")
    with pytest.raises(StorageError) as caught, checkpoints.writing(new):
        (new / "optimizer.pt").write_bytes(b"x")
    message = str(caught.value)
    assert message.startswith(f"{new} could not be written: No space left on device; ")
    assert f"{tmp_path / 'checkpoint-10'}, the last one, is whole. Make room and run the same command again" in message
    assert "--save_total_limit" in message
    assert steps(tmp_path) == [10], "what it took is given back"


def test_another_failure_is_not_a_full_disk(tmp_path):
    with pytest.raises(ZeroDivisionError), checkpoints.writing(tmp_path / "checkpoint-1"):
        1 / 0  # noqa: B018
