"""SIGKILL, at any moment and at any system call that changes a file; then the same command until it ends.

Of six tries two are killed at a moment drawn over the run, two at one of the calls that write or delete checkpoints, one at a deletion, and
one at any call below the folder of the run and of its cache. Of six two are killed once more on their way.
"""

import random
import re
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import tiny

from . import endings, held, launched, runs, warm
from .report import Row

MOST_STARTS = 5


@dataclass(frozen=True)
class Undisturbed:
    """How a run ends that nobody disturbs, how long it computes, and all its calls."""

    end: endings.Ending
    seconds: float | None
    calls: tuple[held.Call, ...]


def undisturbed(recipe: runs.Recipe, world: Path, folder: Path) -> Undisturbed:
    """Run it twice, once held; ValueError if the two do not end alike."""
    run = warm.start(recipe.name, recipe.flags(world), folder / "undisturbed")
    seconds = run.run_until(float("inf"))
    if run.wait() != 0:
        raise ValueError(run.output[-3000:])
    held_run = undisturbed_but_held(recipe, world, folder)
    different = endings.lost(held_run.end, folder / "undisturbed" / "run")
    if different:
        raise ValueError(f"two undisturbed runs differ: {different}")
    return replace(held_run, seconds=seconds)


def undisturbed_but_held(recipe: runs.Recipe, world: Path, folder: Path) -> Undisturbed:
    """One run, of which is not known how long it computes."""
    run = warm.start(recipe.name, recipe.flags(world), folder / "held", is_held=True)
    calls = held.follow(run.listener, pid=run.pid, folder=folder / "held")
    if run.wait() != 0:
        raise ValueError(run.output[-3000:])
    return Undisturbed(endings.ending(folder / "held" / "run"), None, tuple(calls))


@dataclass(frozen=True)
class Kill:
    """Where a run is killed: after so many seconds of its own computing, or instead of its call of this number."""

    seconds: float | None = None
    call: int | None = None

    def __str__(self) -> str:
        return f"after {self.seconds:.2f} s" if self.call is None else f"at call {self.call}"


def draw(generator: random.Random, kind: str, whole: Undisturbed) -> Kill:
    """A moment, any call, a call of a checkpoint, or one that deletes a part of it."""
    if kind == "moment":
        return Kill(seconds=generator.uniform(0, whole.seconds))
    chosen = [number for number, call in enumerate(whole.calls, 1) if kind == "call" or call.is_of_a_checkpoint]
    if kind == "deletion":
        chosen = [number for number in chosen if whole.calls[number - 1].is_deletion]
    return Kill(call=generator.choice(chosen))


def kills(tries: int, seed: int, whole: Undisturbed) -> Iterator[tuple[Kill, ...]]:
    """Of each try one kill or two."""
    generator, kinds = random.Random(seed), ("checkpoint", "moment", "deletion", "checkpoint", "moment", "call")
    for number in range(tries):
        kind = kinds[number % 6]
        again = (sooner(draw(generator, generator.choice(kinds), whole)),) if number % 6 in (3, 4) else ()
        yield (draw(generator, kind, whole), *again)


def sooner(kill: Kill) -> Kill:
    """The same in a run that has less before it."""
    return Kill(seconds=kill.seconds / 2) if kill.call is None else Kill(call=1 + kill.call // 4)


def killed(run: warm.Run, kill: Kill, folder: Path) -> str | None:
    """Kill a run; at what, or None if it had ended before."""
    if kill.call is None:
        run.run_until(kill.seconds)
        run.kill()
        return f"killed {kill}" if run.wait() == -signal.SIGKILL else None
    calls = held.follow(run.listener, pid=run.pid, folder=folder, kill_at=kill.call)
    if run.wait() != -signal.SIGKILL:
        return None
    return f"killed {kill}, {calls[-1].name} {calls[-1].path}"


def disturb(
    recipe: runs.Recipe, world: Path, folder: Path, whole: Undisturbed, given: tuple[Kill, ...]
) -> tuple[str, list[str]]:
    """Run a command into `folder`, kill it, and run it again until it ends; what was done, and what was lost."""
    done, lost, waiting, last_step = [], [], list(given), whole.end.parts["the number of steps"]
    for _ in range(MOST_STARTS):
        before = endings.whole_checkpoints(folder / "run")
        kill = waiting.pop(0) if waiting else None
        is_held = kill is not None and kill.call is not None
        log = folder.with_name(f"{folder.name}_{len(done)}.log")
        run = warm.start(recipe.name, recipe.flags(world), folder, is_held=is_held, log=log)
        what = None if kill is None else killed(run, kill, folder)
        code = run.wait()
        lost += unwanted_start(run.output, before)
        if what is None:
            lost += [] if code == 0 else [f"exit code {code}: {last_lines(run.output)}"]
            return " then ".join(done) or "not killed", lost + endings.lost(whole.end, folder / "run")
        done.append(what)
        lost += undone(run.output, endings.whole_checkpoints(folder / "run"), before, what, last_step)
    return " then ".join(done), [*lost, f"not finished after {MOST_STARTS} starts"]


def unwanted_start(output: str, there: list[int]) -> list[str]:
    """A run goes on from the newest of the whole checkpoints that are there, and from no other."""
    began_training = re.search(r"'loss':", output) is not None
    found = re.search(r"going on from \S*checkpoint-(\d+)", output)
    started = int(found[1]) if found else None
    expected = there[-1] if there else None
    if started == expected or (started is None and not began_training):
        return []
    return [f"began from {started} where the whole checkpoints are {there}"]


def undone(output: str, there: list[int], before: list[int], what: str, last_step: int) -> list[str]:
    """Every checkpoint comes after an evaluation, so what stood before the last evaluation that was shown has to be there."""
    started = max(before, default=0)
    saved = min(started + 4 * (output.count("'eval_loss'") - 1), last_step)
    newest = max(there, default=0)
    return (
        [f"{what}: the newest whole checkpoint is {newest}, {saved} was written"]
        if newest < max(saved, started)
        else []
    )


def last_lines(output: str) -> str:
    """The end of what a run showed, without its progress bars."""
    lines = [
        line.strip() for line in output.splitlines() if line.strip() and "it/s]" not in line and "s/it]" not in line
    ]
    return " / ".join(lines[-2:])[-400:]


def _fault(
    name: str, injected: str, recipe: runs.Recipe, world: Path, folder: Path, tries: int, seed: int
) -> list[Row]:
    row, whole = Row(name, injected), undisturbed(recipe, world, folder)
    for number, given in enumerate(kills(tries, seed, whole)):
        where = folder / f"try_{number}"
        row.attempt(
            ", ".join(map(str, given)),
            lambda where=where, given=given: _short(disturb(recipe, world, where, whole, given)),
        )
    return [row]


def _short(result: tuple[str, list[str]]) -> tuple[str, list[str]]:
    """For the table, how often a try was killed; for a try that lost something, where."""
    done, lost = result
    times = 0 if done == "not killed" else 1 + done.count(" then ")
    return f"killed {('never', 'once', 'twice')[times]}", [f"{line} [{done}]" for line in lost]


AT = "SIGKILL at random moments, at random system calls that change a file, and at those that write or delete a checkpoint; some twice"


def sigkill(world: Path, folder: Path, tries: int, seed: int) -> list[Row]:
    """One process, text: dropout, accumulation, grouping by length."""
    return _fault("sigkill", AT, runs.TEXT, world, folder, tries, seed)


def sigkill_workers(world: Path, folder: Path, tries: int, seed: int) -> list[Row]:
    """Pictures with augmentation, read by two workers."""
    return _fault("sigkill_workers", f"image_cls with two workers: {AT}", runs.IMAGE, world, folder, tries, seed)


def sigkill_stream(world: Path, folder: Path, tries: int, seed: int) -> list[Row]:
    """Text from files that are streamed."""
    return _fault("sigkill_stream", f"--streaming: {AT}", runs.STREAM, world, folder, tries, seed)


def sigkill_ranks(world: Path, folder: Path, tries: int, seed: int) -> list[Row]:
    """Two ranks under torchrun, of which one is killed; slow, since each start is two fresh processes."""
    row = Row("sigkill_ranks", "torchrun with two ranks: SIGKILL to one of them at a random moment of the training")
    generator, options = random.Random(seed), {"num_train_epochs": 12}
    whole = launched.finished(tiny.torchrun(2), runs.TEXT, world, folder / "undisturbed", **options)
    for number in range(tries):
        where, rank, delay = folder / f"try_{number}", generator.randrange(2), generator.uniform(0, 2)

        def one(where=where, rank=rank, delay=delay) -> tuple[str, list[str]]:
            run = launched.Launched(tiny.torchrun(2), runs.TEXT.command(world, where, **options), where)
            if not run.wait_for_training():
                return "ended before", [f"exit code {run.code}: {last_lines(run.output)}"]
            time.sleep(delay)
            ranks = sorted(run.ranks(), key=lambda process: process.pid)
            if not ranks:
                return "ended before", []
            ranks[rank % len(ranks)].kill()
            began = time.monotonic()
            run.wait(120)
            after, left = time.monotonic() - began, run.left_over()
            lost = [f"still there: {left}"] if left else []
            there = endings.whole_checkpoints(where / "run")
            again = launched.Launched(tiny.torchrun(2), runs.TEXT.command(world, where, **options), where)
            again.wait(180)
            lost += unwanted_start(again.output, there)
            lost += [] if again.code == 0 else [f"exit code {again.code}: {last_lines(again.output)}"]
            return f"exit code {run.code} after {after:.0f} s", lost + endings.lost(
                whole, where / "run", has_own_checkpoints=True
            )

        row.attempt(f"rank {rank} after {delay:.1f} s of training", one)
    return [row]
