"""Less memory than a batch needs: the C library refuses it for real, by a limit on the address space of the process.

Expected: exit code 2, and a message that names the flags that keep the global batch.
"""

import os
import subprocess
import sys
from pathlib import Path

from . import runs, warm
from .report import Row
from .sigkill import last_lines

# The limit counts from what the imports take, which differs by machine.
PROGRAM = """
import resource, runpy, sys
import sft_hf.finetuning, transformers.models.bert.modeling_bert
pages = int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + int(sys.argv[1]) * 2**20,) * 2)
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
# 24 layers of 256: a batch of 64 short texts takes more than a gigabyte, its weights a tenth.
LARGE = {
    "from_scratch": True,
    "per_device_train_batch_size": 64,
    "gradient_accumulation_steps": 1,
    "learning_rate": 1e-4,
    "max_steps": 2,
    "save_strategy": "no",
    "eval_strategy": "no",
    "load_best_model_at_end": False,
}
SIZES = ["--config_overrides", "hidden_size=256", "intermediate_size=2048", "num_hidden_layers=24"]
ROOM = 1200  # MiB


def out_of_memory(world: Path, folder: Path, tries: int, seed: int) -> list[Row]:
    """A batch that does not fit."""
    row = Row("out_of_memory", f"RLIMIT_AS of {ROOM} MiB above the imports, a batch of 64 that needs more")
    for number in range(tries):
        where = folder / f"try_{number}"
        row.attempt("as it is", lambda where=where: _refused(world, where))
    return [row]


def _run(world: Path, folder: Path) -> tuple[int, str]:
    folder.mkdir(parents=True)
    command = [sys.executable, "-c", PROGRAM, str(ROOM), *runs.TEXT.command(world, folder, **LARGE), *SIZES]
    environment = {**os.environ, **warm.environment()}
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=600)
    return done.returncode, done.stdout + done.stderr


def _refused(world: Path, folder: Path) -> tuple[str, list[str]]:
    code, output = _run(world, folder)
    lost = [] if code == 2 else [f"exit code {code}: {last_lines(output)}"]
    message = output.rpartition("error: ")[2]
    lost += (
        []
        if "--per_device_train_batch_size 32 --gradient_accumulation_steps 2" in message
        else [f"the message: {message}"]
    )
    return f"exit code {code}", lost + (["a traceback"] if "Traceback" in output else [])
