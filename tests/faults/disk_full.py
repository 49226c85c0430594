"""A disk that is full: a real one, a tmpfs of a few checkpoints, and files that may not grow (RLIMIT_FSIZE).

Expected: exit code 2 and one message with the folder and what is free, the last good checkpoint whole, and, once there is room, the same
command to the same end.
"""

import ctypes
import json
import os
import random
import resource
import shutil
import sys
from dataclasses import replace
from pathlib import Path

from . import endings, runs, warm
from .report import Row, Skipped
from .sigkill import Undisturbed, last_lines, undisturbed, unwanted_start

CLONE_NEWNS, CLONE_NEWUSER = 0x00020000, 0x10000000
MS_REMOUNT, MS_REC, MS_PRIVATE = 32, 16384, 1 << 18
ROOMY = 256 << 20


def disk_full(world: Path, folder: Path, tries: int, seed: int) -> list[Row]:
    """The output_dir is a file system without room for the first, second or third checkpoint, or for the model at the end."""
    row, generator = Row("disk_full", "output_dir on a tmpfs that gets full"), random.Random(seed)
    wholes = {limit: undisturbed(_keeping(limit), world, folder / f"keeping_{limit}") for limit in (2, 6)}
    size = _size(folder / "keeping_2" / "undisturbed" / "run" / "checkpoint-24")
    for index in range(tries):
        # Of two that are kept, a third one is there while it is written.
        limit, share = (2, index % 4 + generator.random()) if index % 4 < 3 else (6, 6 + generator.uniform(0.02, 0.25))
        where, room = folder / f"try_{index}", int(share * size)

        def one(where=where, room=room, limit=limit) -> tuple[str, list[str]]:
            return _on_a_disk_of(room, _keeping(limit), world, where, wholes[limit])

        row.attempt(f"room for {share:.2f} checkpoints", one)
    return [row]


def _keeping(limit: int) -> runs.Recipe:
    return replace(runs.TEXT, options={**runs.TEXT.options, "save_total_limit": limit})


def _size(folder: Path) -> int:
    return sum(-(-path.stat().st_size // 4096) * 4096 for path in folder.rglob("*"))


def _on_a_disk_of(
    size: int, recipe: runs.Recipe, world: Path, folder: Path, whole: Undisturbed
) -> tuple[str, list[str]]:
    folder.mkdir()
    warm.call(_fill_and_go_on, recipe.name, recipe.flags(world), folder, size, timeout=120)
    found = json.loads((folder / "found.json").read_text())
    if "skipped" in found:
        raise Skipped(found["skipped"])
    first, second = (folder.with_name(f"{folder.name}_{number}.log").read_text(errors="replace") for number in (1, 2))
    lost = _expected_of_a_full_disk(found["codes"][0], first, folder / "run")
    lost += unwanted_start(second, found["whole"])
    lost += [] if found["codes"][1] == 0 else [f"with room: exit code {found['codes'][1]}: {last_lines(second)}"]
    return f"exit code {found['codes'][0]}", lost + endings.lost(whole.end, folder / "kept")


def _expected_of_a_full_disk(code: int, output: str, run: Path) -> list[str]:
    lost = [] if code == 2 else [f"exit code {code}"]
    message = output.rpartition("\nerror: ")[2]
    lost += ["a traceback"] if "Traceback" in output else []
    lost += (
        []
        if str(run) in message and ("free" in message or "full" in message)
        else [f"the message: {last_lines(output)}"]
    )
    return lost


def _fill_and_go_on(recipe: str, flags: list[str], folder: Path, size: int) -> None:
    """In a process of its own: mount, run, make room, run again, and copy what is there afterwards out of the mount."""
    run = folder / "run"
    run.mkdir()
    try:
        _mount_privately(run, size)
    except OSError as error:
        (folder / "found.json").write_text(json.dumps({"skipped": f"no mount namespace: {error}"}))
        return
    given = [*flags, "--output_dir", str(run)]
    codes = [_run(recipe, given, folder, 1)]
    whole = endings.whole_checkpoints(run)
    _mount(run, ROOMY, MS_REMOUNT)
    codes.append(_run(recipe, given, folder, 2))
    shutil.copytree(run, folder / "kept")
    (folder / "found.json").write_text(json.dumps({"codes": codes, "whole": whole}))


def _run(recipe: str, flags: list[str], folder: Path, number: int) -> int:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            warm.run_recipe(recipe, flags, folder / "cache", folder.with_name(f"{folder.name}_{number}.log"))
            code = 0
        except SystemExit as error:
            code = int(error.code or 0)
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _mount_privately(folder: Path, size: int) -> None:
    libc, user, group = ctypes.CDLL(None, use_errno=True), os.getuid(), os.getgid()
    if libc.unshare(CLONE_NEWUSER | CLONE_NEWNS) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {user} 1")
    Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    _mount(folder, size, 0)


def _mount(folder: Path, size: int, flags: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if flags == 0 and libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    if libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", flags, f"size={size}".encode()) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


# ---- files that may not grow ----


def file_too_large(world: Path, folder: Path, tries: int, seed: int) -> list[Row]:
    """After the second checkpoint no file may be larger than a part of one (RLIMIT_FSIZE), as under a quota."""
    row, whole, generator = (
        Row("file_too_large", "RLIMIT_FSIZE after checkpoint-8"),
        undisturbed(runs.TEXT, world, folder),
        random.Random(seed),
    )
    size = (folder / "undisturbed" / "run" / "checkpoint-24" / "optimizer.pt").stat().st_size
    for index in range(tries):
        limit, where = int(generator.uniform(0.1, 0.95) * size), folder / f"try_{index}"
        row.attempt(f"{limit} bytes", lambda where=where, limit=limit: _with_files_of(limit, world, where, whole))
    return [row]


def _with_files_of(limit: int, world: Path, folder: Path, whole: Undisturbed) -> tuple[str, list[str]]:
    run = warm.start(runs.TEXT.name, runs.TEXT.flags(world), folder)
    if not warm.sleep_until(lambda: 8 in endings.whole_checkpoints(folder / "run"), of=run):
        return "ended before", [last_lines(run.output)]
    resource.prlimit(run.pid, resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    code, there = run.wait(), endings.whole_checkpoints(folder / "run")
    lost = _expected_of_a_full_disk(code, run.output, folder / "run")
    lost += [] if there else ["no whole checkpoint is left"]
    again = warm.start(runs.TEXT.name, runs.TEXT.flags(world), folder, log=folder.with_name(f"{folder.name}_again.log"))
    lost += [] if again.wait() == 0 else [f"again: {last_lines(again.output)}"]
    lost += unwanted_start(again.output, there)
    return f"exit code {code}", lost + endings.lost(whole.end, folder / "run")
