"""SIGKILL to a worker that reads pictures, as the kernel does it where memory is short.

Expected: the run ends within seconds, with exit code 2 and a message that says that a worker died and which flag to change; the last
checkpoint is whole, and the same command goes on to the same end.
"""

import random
import time
from pathlib import Path

import psutil

from . import endings, runs, warm
from .report import Row
from .sigkill import Undisturbed, last_lines, undisturbed, unwanted_start

SECONDS_TO_END = 30


def dead_worker(world: Path, folder: Path, tries: int, seed: int) -> list[Row]:
    """SIGKILL to one of two workers in the middle of an epoch."""
    row, generator = Row("dead_worker", "image_cls with two workers: SIGKILL to one of them"), random.Random(seed)
    whole = undisturbed(runs.IMAGE, world, folder)
    for index in range(tries):
        where, delay, which = folder / f"try_{index}", generator.uniform(0, 0.5), generator.randrange(2)
        row.attempt(
            f"{delay:.2f} s after checkpoint-4",
            lambda where=where, delay=delay, which=which: _without(which, delay, world, where, whole),
        )
    return [row]


def _without(which: int, delay: float, world: Path, folder: Path, whole: Undisturbed) -> tuple[str, list[str]]:
    run = warm.start(runs.IMAGE.name, runs.IMAGE.flags(world), folder)
    if not warm.sleep_until(lambda: 4 in endings.whole_checkpoints(folder / "run"), of=run):
        return "ended before", [last_lines(run.output)]
    time.sleep(delay)
    workers: list[psutil.Process] = []

    def are_there() -> bool:
        workers[:] = sorted(psutil.Process(run.pid).children(), key=lambda process: process.pid)
        return len(workers) > which

    if not warm.sleep_until(are_there, of=run, timeout=10):
        return "no worker was there", [last_lines(run.output)]
    workers[which].kill()
    began = time.monotonic()
    try:
        code = run.wait(SECONDS_TO_END)
    except TimeoutError:
        code = None
    after, there = time.monotonic() - began, endings.whole_checkpoints(folder / "run")
    lost = [f"still running after {SECONDS_TO_END} s"] if code is None else []
    # A worker that had given its last batch is not missed.
    if code not in (0, None):
        message = run.output.rpartition("error: ")[2]
        lost += [] if code == 2 else [f"exit code {code}"]
        lost += ["a traceback"] if "Traceback" in run.output else []
        lost += (
            []
            if "worker" in message and "--dataloader_num_workers" in message
            else [f"the message: {last_lines(run.output)}"]
        )
        again = warm.start(
            runs.IMAGE.name, runs.IMAGE.flags(world), folder, log=folder.with_name(f"{folder.name}_again.log")
        )
        lost += [] if again.wait() == 0 else [f"again: {last_lines(again.output)}"]
        lost += unwanted_start(again.output, there)
    return f"exit code {code} after {after:.1f} s", lost + endings.lost(whole.end, folder / "run")
