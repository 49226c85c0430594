"""SIGTERM and SIGINT, to a run and to what launched it; then the same command until it ends.

While a run trains, a signal ends it with a checkpoint and 143 or 130. Before and after, when there is nothing to save, SIGTERM may end
it as it ends any process, which a shell calls 143 too.
"""

import random
import re
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import tiny

from . import endings, held, launched, runs, warm
from .report import Row
from .sigkill import Kill, Undisturbed, draw, last_lines, undisturbed, unwanted_start

CODES = {signal.SIGTERM: (143, -signal.SIGTERM), signal.SIGINT: (130,)}
LONGER = {"num_train_epochs": 12}  # so that a signal comes before the end
SECONDS_TO_END = 60


def sigterm(world: Path, folder: Path, tries: int, seed: int) -> list[Row]:
    """To one process."""
    return _to_a_process(signal.SIGTERM, world, folder, tries, seed)


def sigint(world: Path, folder: Path, tries: int, seed: int) -> list[Row]:
    """To one process."""
    return _to_a_process(signal.SIGINT, world, folder, tries, seed)


def sigterm_launchers(world: Path, folder: Path, tries: int, seed: int) -> list[Row]:
    """To the launcher alone: accelerate launch with one process and two, torchrun, sft-hf train."""
    return _to_launchers(signal.SIGTERM, world, folder, tries, seed)


def sigint_launchers(world: Path, folder: Path, tries: int, seed: int) -> list[Row]:
    """To the launcher alone: accelerate launch with one process and two, torchrun, sft-hf train."""
    return _to_launchers(signal.SIGINT, world, folder, tries, seed)


# ---- one process ----


def _to_a_process(number: signal.Signals, world: Path, folder: Path, tries: int, seed: int) -> list[Row]:
    name = number.name.lower()
    row = Row(name, f"{number.name} to a run at random moments and at random system calls that change a file")
    whole, generator = undisturbed(runs.TEXT, world, folder), random.Random(seed)
    for index in range(tries):
        kill, where = draw(generator, ("moment", "checkpoint", "call")[index % 3], whole), folder / f"try_{index}"
        row.attempt(str(kill), lambda where=where, kill=kill: _signalled(number, world, where, whole, kill))
    return [row]


def _signalled(
    number: signal.Signals, world: Path, folder: Path, whole: Undisturbed, kill: Kill
) -> tuple[str, list[str]]:
    run = warm.start(runs.TEXT.name, runs.TEXT.flags(world), folder, is_held=kill.call is not None)
    if kill.call is None:
        run.run_until(kill.seconds)
        run.kill(number)
    else:
        held.follow(run.listener, pid=run.pid, folder=folder, kill_at=kill.call, number=number)
    code, there = run.wait(SECONDS_TO_END), endings.whole_checkpoints(folder / "run")
    lost = [] if code in (0, *CODES[number]) else [f"exit code {code}: {last_lines(run.output)}"]
    lost += _not_left(run.output, there)
    if code == 0:
        return "ended before", lost + endings.lost(whole.end, folder / "run")
    trained = _has_trained(run.output) and not _has_finished(run.output)
    again = warm.start(runs.TEXT.name, runs.TEXT.flags(world), folder, log=folder.with_name(f"{folder.name}_again.log"))
    lost += [] if again.wait() == 0 else [f"again: {last_lines(again.output)}"]
    lost += unwanted_start(again.output, there)
    return f"exit code {code}{' while it trained' if trained else ''}", lost + endings.lost(
        whole.end, folder / "run", has_own_checkpoints=True
    )


def _has_trained(output: str) -> bool:
    return "'loss':" in output


def _has_finished(output: str) -> bool:
    return "'train_runtime'" in output


def _not_left(output: str, there: list[int]) -> list[str]:
    """A message that says that a checkpoint is whole has to be true."""
    said = re.search(r"the checkpoint \S*checkpoint-(\d+) is whole", output)
    return [f"checkpoint-{said[1]} is not whole, {there} are"] if said and int(said[1]) not in there else []


# ---- launchers ----


def _launchers() -> dict[str, tuple[Sequence[str], int]]:
    """What a user starts, and how many processes of it train."""
    accelerate = [*tiny.torchrun(1)[:1], "-m", "accelerate.commands.launch"]
    one = ["--num_processes", "1", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--cpu"]
    two = ["--config_file", str(warm.ROOT / "accelerate_configs" / "multi_cpu.yaml")]
    return {
        "accelerate launch, 1 process": ([*accelerate, *one], 1),
        "accelerate launch, 2 processes": ([*accelerate, *two], 2),
        "torchrun, 2 processes": (tiny.torchrun(2), 2),
        "sft-hf train --num_processes 2": ([*launched.SFT_HF, "--num_processes", "2"], 2),
    }


def _to_launchers(number: signal.Signals, world: Path, folder: Path, tries: int, seed: int) -> list[Row]:
    generator, name = random.Random(seed), f"{number.name.lower()}_launchers"
    ends = {
        1: launched.finished([tiny.torchrun(1)[0]], runs.TEXT, world, folder / "undisturbed_1", **LONGER),
        2: launched.finished(tiny.torchrun(2), runs.TEXT, world, folder / "undisturbed_2", **LONGER),
    }
    rows = []
    for index, (launcher, (command, num_processes)) in enumerate(_launchers().items()):
        row = Row(name, f"{number.name} to the pid of `{launcher}` while it trains")
        for number_of_try in range(tries):
            where, delay = folder / f"launcher_{index}" / f"try_{number_of_try}", generator.uniform(0, 0.7)
            is_ours = launcher.startswith("sft-hf")

            def one(where=where, delay=delay, command=command, is_ours=is_ours, whole=ends[num_processes]):
                return _signalled_launcher(number, command, world, where, delay, whole, is_ours=is_ours)

            row.attempt(f"{launcher}, {delay:.1f} s after checkpoint-8", one)
        rows.append(row)
    return rows


def _signalled_launcher(
    number: signal.Signals,
    launcher: Sequence[str],
    world: Path,
    folder: Path,
    delay: float,
    whole: endings.Ending,
    *,
    is_ours: bool,
) -> tuple[str, list[str]]:
    command = runs.TEXT.command(world, folder, **LONGER)
    run = launched.Launched(launcher, command, folder)
    if not run.wait_for_training():
        return "ended before", [f"exit code {run.code}: {last_lines(run.output)}"]
    time.sleep(delay)
    run.note_family()
    began = time.monotonic()
    psutil.Process(run.process.pid).send_signal(number)
    code = run.wait(SECONDS_TO_END)
    after, left = time.monotonic() - began, run.left_over()
    there = endings.whole_checkpoints(folder / "run")
    lost = [f"still there: {left}"] if left else []
    lost += [f"exit code {code}"] if is_ours and code not in CODES[number] else []
    lost += _not_left(run.output, there)
    if "is whole. The same command" not in run.output:
        lost += [f"no checkpoint was written for the signal: {last_lines(run.output)}"]
    again = launched.Launched(launcher, command, folder)
    lost += [] if again.wait(240) == 0 else [f"again, exit code {again.code}: {last_lines(again.output)}"]
    lost += unwanted_start(again.output, there)
    return f"exit code {code} after {after:.0f} s", lost + endings.lost(whole, folder / "run", has_own_checkpoints=True)
