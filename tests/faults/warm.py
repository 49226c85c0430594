"""Runs of recipes that start at once: forked off a process that has imported everything and done nothing.

    warm.serve("text_cls")
    run = warm.start("text_cls", flags, folder)           a process of its own, two seconds instead of ten
    run.kill(signal.SIGTERM); run.wait() == -15; run.output

A run shares no state with another: each begins from the imports, draws its random states anew, and has a cache of datasets of its
own in its folder, which the next run of the same command finds again.
"""

import contextlib
import multiprocessing
import multiprocessing.forkserver
import os
import random
import runpy
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import recv_handle, send_handle
from pathlib import Path

from . import held

ROOT = Path(__file__).parent.parent.parent
IMPORTS = {
    "text_cls": "sft_hf.finetuning sft_hf.tasks.text_classification transformers.models.bert.modeling_bert "
    "transformers.pipelines.text_classification datasets.packaged_modules.csv.csv rich.table sklearn.metrics",
    "image_cls": "sft_hf.tasks.image_classification sft_hf.methods.mixup transformers.models.vit.modeling_vit "
    "transformers.models.vit.image_processing_vit transformers.pipelines.image_classification",
    "audio_cls": "sft_hf.tasks.audio_classification transformers.models.wav2vec2.modeling_wav2vec2 soundfile soxr",
}

SERVER = multiprocessing.get_context("forkserver")


def serve(*recipes: str) -> None:
    """Import what these recipes need, once, in a process of which all runs are forked."""
    SERVER.set_forkserver_preload([name for recipe in recipes for name in IMPORTS[recipe].split()])
    multiprocessing.forkserver.ensure_running()


def environment() -> dict[str, str]:
    """Of the processes that are started: no hub, no accelerator, one thread."""
    names = ("HF_", "HUGGING_FACE_", "TRANSFORMERS_", "ACCELERATE_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(names)}
    return kept | {
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": os.pathsep.join(path for path in (str(ROOT), os.environ.get("PYTHONPATH", "")) if path),
    }


@dataclass
class Run:
    """A recipe that runs in a process, and all that it shows."""

    process: BaseProcess
    log: Path
    listener: int | None = None

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def kill(self, number: int = signal.SIGKILL) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def run_until(self, cpu_seconds: float) -> float:
        """Wait until the run has computed for so long, whatever else the machine does, or has ended; how long it has."""
        spent = 0.0
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            while spent < cpu_seconds and self.process.exitcode is None:
                spent = int(Path(f"/proc/{self.pid}/schedstat").read_text().split()[0]) / 1e9
                time.sleep(0.002)
        return spent

    def wait(self, timeout: float = 120) -> int:
        """Its exit code, or minus the signal that ended it; TimeoutError, and an end to it, if it takes too long."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            self.kill()
            raise TimeoutError(f"still running after {timeout} s; it showed:\n{self.output[-2000:]}")
        return self.process.exitcode


def start(
    recipe: str,
    flags: Sequence[object],
    folder: Path,
    *,
    is_held: bool = False,
    prepare: Callable[[], None] | None = None,
    log: Path | None = None,
) -> Run:
    """Start a recipe whose output_dir is `folder`/run; `is_held` as in held.py, `prepare` is called in the process before.

    A run's log is beside its folder and goes on where the last one ended.
    """
    folder.mkdir(parents=True, exist_ok=True)
    log = log or folder.with_suffix(".log")
    flags = [*(str(flag) for flag in flags), "--output_dir", str(folder / "run")]
    mine, theirs = SERVER.Pipe()
    arguments = (recipe, flags, folder / "cache", log, theirs if is_held else None, prepare)
    process = SERVER.Process(target=run_recipe, args=arguments)
    process.start()
    theirs.close()
    run = Run(process, log)
    run.listener = _listener(mine, run) if is_held else None
    mine.close()
    return run


def _listener(mine, run: Run) -> int:
    try:
        return recv_handle(mine)
    except (EOFError, RuntimeError):
        run.wait()
        raise held.CannotHold(run.output.strip().splitlines()[-1]) from None


def call(function: Callable[..., None], *arguments: object, timeout: float = 300) -> None:
    """Call a function in such a process; RuntimeError if it fails."""
    process = SERVER.Process(target=function, args=arguments)
    process.start()
    process.join(timeout)
    if process.exitcode != 0:
        process.kill()
        raise RuntimeError(f"{function.__name__}: exit code {process.exitcode}")


def run_recipe(recipe: str, flags: list[str], cache: Path, log: Path, pipe=None, prepare=None) -> None:
    """In the process: what `python recipes/RECIPE.py FLAGS` would do from here on."""
    import datasets
    import numpy as np
    import torch

    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    # Fresh processes begin with other random states, and what does not set them by itself must be seen.
    random.seed()
    np.random.seed()
    torch.seed()
    torch.set_num_threads(1)
    datasets.config.HF_DATASETS_CACHE = cache
    multiprocessing.set_start_method(None, force=True)  # for workers the platform's, not that of this process
    if prepare is not None:
        prepare()
    if pipe is not None:
        _be_held(pipe)
    path = str(ROOT / "recipes" / f"{recipe}.py")
    sys.argv = [path, *flags]
    sys.stdout, sys.stderr = open(1, "w", buffering=1, closefd=False), open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    runpy.run_path(path, run_name="__main__")


def _be_held(pipe) -> None:
    """Hand the listener to who started this process; from then on it answers each write to a file."""
    listener = held.hold_this_process()
    send_handle(pipe, listener, None)
    os.close(listener)
    pipe.close()


def sleep_until(condition: Callable[[], bool], *, timeout: float = 60, of: Run | None = None) -> bool:
    """Whether the condition came true before the time was up or the run ended."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if condition():
            return True
        if of is not None and of.process.exitcode is not None:
            return condition()
        time.sleep(0.005)
    return False
