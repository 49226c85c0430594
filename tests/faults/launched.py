"""Runs that a launcher starts: fresh processes, of which every one has to be gone afterwards.

run = Launched(tiny.torchrun(2), recipe.command(world, folder), folder)
run.wait_for_training(); run.signal(signal.SIGTERM); run.wait(60); run.code, run.left_over()
"""

import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from . import endings, runs, warm

SFT_HF = [sys.executable, "-m", "sft_hf.cli", "train"]


class Launched:
    """A launcher, its ranks, and what they show."""

    def __init__(self, launcher: Sequence[str], command: Sequence[str], folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.log = folder.with_name(f"{folder.name}_{len(list(folder.parent.glob(f'{folder.name}_*.log')))}.log")
        environment = warm.environment() | {"HF_HOME": str(folder / "cache"), "PYTHONUNBUFFERED": "1"}
        with open(self.log, "wb") as output:
            self.process = subprocess.Popen(
                [*launcher, *command], stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True
            )
        self.family: set[psutil.Process] = set()

    @property
    def code(self) -> int | None:
        return self.process.poll()

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def note_family(self) -> None:
        """Remember every process below the launcher, whoever adopts it later."""
        with suppress(psutil.NoSuchProcess):
            self.family |= set(psutil.Process(self.process.pid).children(recursive=True))

    def ranks(self) -> list[psutil.Process]:
        """The processes that train: those that run a recipe and have no child that does."""
        self.note_family()
        recipes = {process for process in self.family if process.is_running() and _runs_a_recipe(process)}
        return [process for process in recipes if not recipes & set(process.children())]

    def wait_for_training(self, timeout: float = 90) -> bool:
        """Whether the second checkpoint was begun before the run ended."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline and self.code is None:
            if (self.folder / "run" / "checkpoint-8").exists():
                self.note_family()
                return True
            time.sleep(0.02)
        return False

    def wait(self, timeout: float) -> int | None:
        """The launcher's exit code; None, and an end to it, if it takes longer."""
        deadline = time.monotonic() + timeout
        while self.code is None and time.monotonic() < deadline:
            time.sleep(0.1)
            self.note_family()
        if self.code is None:
            self.process.kill()
        return self.process.wait()

    def left_over(self, timeout: float = 15) -> list[str]:
        """Processes that outlive the launcher by so many seconds; they are ended."""
        _, alive = psutil.wait_procs(list(self.family), timeout=timeout)
        names = []
        for process in alive:
            with suppress(psutil.NoSuchProcess):
                names.append(" ".join(process.cmdline()[:4])[-80:])
                process.kill()
        return names


def _runs_a_recipe(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
        arguments = process.cmdline()
        return any(argument.endswith("_cls.py") for argument in arguments) and "torch.distributed.run" not in arguments
    return False


def finished(
    launcher: Sequence[str], recipe: runs.Recipe, world: Path, folder: Path, **options: object
) -> endings.Ending:
    """The ending of an undisturbed run under a launcher; RuntimeError if it fails."""
    run = Launched(launcher, recipe.command(world, folder, **options), folder)
    if run.wait(240) != 0:
        raise RuntimeError(run.output[-3000:])
    return endings.ending(folder / "run")
