"""How this process was started and what follows from it: threads, ranks, signals, the exit code.

python recipes/text_cls.py                    one process, all cores
accelerate launch recipes/text_cls.py         one process, but OMP_NUM_THREADS=1 on a CPU: one core of many
torchrun --nproc_per_node 2 recipes/...       WORLD_SIZE=2, two ranks that must find each other
"""

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sft_hf.errors import Interrupted, LaunchError, SftError, UserError

# Where `sft-hf train` reads the exit code that `accelerate launch` and torchrun turn into 1 (pitfall 41).
EXIT_CODE_FILE = "SFT_HF_EXIT_CODE_FILE"
SECONDS_FOR_THE_MAIN_PROCESS = 10


def is_main_process() -> bool:
    """Rank 0 by the launcher's variables; true where there is no launcher."""
    return int(os.environ.get("RANK", "0")) == 0


def use_all_cores(num_threads: int | None = None) -> str | None:
    """Give torch the machine's cores divided by the processes on it; returns the line to log, or None.

    `accelerate launch` sets OMP_NUM_THREADS=1 for CPU runs and torchrun does for several processes (pitfall 38).
    Nothing tells its 1 from the user's, so a launched process overrides exactly the value 1; another value is the
    user's and stays.
    """
    import torch

    if num_threads is None and not (is_launched() and os.environ.get("OMP_NUM_THREADS") == "1"):
        return None
    threads = num_threads or cores_of_this_process()
    if threads == torch.get_num_threads():
        return None
    torch.set_num_threads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    return f"{threads} CPU threads for this process; --num_cpu_threads_per_process changes it"


def cores_of_this_process() -> int:
    """The machine's cores, or those that this process may use, divided by the processes on it; at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def num_reading_workers(*, on_cpu: bool) -> int:
    """How many processes decode examples beside this one: none where the model computes on the same cores, else all but one.

    On two cores MobileNetV2 trains on 19.1 pictures a second without and on 6.9 with one worker: reading is 3 % of a step, and a
    thread of the model's that has to wait for a core holds up the others. At most 8.
    """
    return 0 if on_cpu else min(8, max(1, cores_of_this_process() - 1))


def keep_freed_memory() -> bool:
    """Tell glibc to keep big buffers instead of returning them to the kernel at every step (pitfall 36).

    The tensors of one step are freed and asked for again in the next; without this each of their pages is faulted
    in anew. False where the C library has no mallopt.
    """
    trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX of <malloc.h>
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(trim_threshold, 2**31 - 1)) and bool(mallopt(mmap_max, 0))


def is_launched() -> bool:
    """Whether `accelerate launch` or torchrun started this process."""
    return "LOCAL_RANK" in os.environ or any(name.startswith("ACCELERATE_") for name in os.environ)


def end_with_the_launcher() -> bool:
    """Have the kernel send SIGTERM to this process when its launcher ends; False where the kernel is not Linux's.

    `accelerate launch` and torchrun die of a signal without a word to the ranks, which would train on, unseen (pitfall 41).
    This way they write a checkpoint first.
    """
    set_parent_death_signal = 1  # PR_SET_PDEATHSIG of <sys/prctl.h>
    if not sys.platform.startswith("linux"):
        return False
    return ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM) == 0


def check_world_size(world_size: int) -> None:
    """LaunchError when the launcher started more processes than found each other (pitfall 29)."""
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched != world_size:
        raise LaunchError(
            f"The launcher started {launched} processes, but {world_size} of them train together: each would train and "
            "save alone. On a machine without an accelerator start them with "
            "--config_file accelerate_configs/multi_cpu.yaml."
        )


class SignalWatch:
    """SIGINT and SIGTERM as a flag to look at between steps, so that a checkpoint can be written first.

    A second SIGINT interrupts at once. Outside the main thread (a notebook's worker) signals are left alone.
    """

    def __init__(self):
        self.received: int | None = None

    @contextmanager
    def watching(self) -> Iterator["SignalWatch"]:
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        previous = {number: signal.signal(number, self._receive) for number in (signal.SIGINT, signal.SIGTERM)}
        for number in previous:
            signal.siginterrupt(number, False)  # a file that is being written or deleted is finished, also by torch
        try:
            yield self
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _receive(self, number: int, _frame) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number

    def check(self, checkpoint: str | None) -> None:
        """Raise Interrupted if a signal came."""
        if self.received is not None:
            name = signal.Signals(self.received).name
            left = f"the checkpoint {checkpoint} is whole" if checkpoint else "no step was finished yet"
            raise Interrupted(self.received, f"Stopped by {name}; {left}. The same command goes on from there.")


@contextmanager
def exit_codes() -> Iterator[None]:
    """Turn what went wrong into one message and an exit code; a failure of ours keeps its traceback.

    Raises SystemExit with the code that `sft_hf.errors` gives, 130 for Ctrl-C. An error that every rank meets alike is
    left to the main process to say.
    """
    try:
        yield
    except SystemExit as error:
        _record_exit_code(error.code if isinstance(error.code, int) else int(error.code is not None))
        raise
    except BaseException as error:
        if not _is_an_interrupt(error):
            _report(error)
            raise
        print("\nInterrupted.", file=sys.stderr)
        _exit(130)
    else:
        _record_exit_code(0)


def _is_an_interrupt(error: BaseException | None) -> bool:
    """Whether Ctrl-C is at the bottom of it: datasets and others raise an error of their own from it."""
    return error is not None and (
        isinstance(error, KeyboardInterrupt) or _is_an_interrupt(error.__cause__ or error.__context__)
    )


def _report(error: BaseException) -> None:
    """Note the exit code, and end the process with the message if it is an error of ours."""
    if isinstance(error, SftError):
        _record_exit_code(error.exit_code)
        if not is_main_process() and isinstance(error, (UserError, Interrupted)):
            # The launcher ends all ranks as soon as one has ended: this one, once the main process has spoken, but also
            # the main process before it could, if this one went first.
            time.sleep(SECONDS_FOR_THE_MAIN_PROCESS)
        print(f"\n{_label(error)}: {message_of(error)}", file=sys.stderr)
        _exit(error.exit_code)
    _record_exit_code(1)


def message_of(error: SftError) -> str:
    """Without the traceback that torch puts before the message of an error in a dataloader's worker."""
    message = str(error)
    return message.rpartition(f".{type(error).__name__}: ")[2].strip() if message.startswith("Caught ") else message


def _label(error: SftError) -> str:
    return "interrupted" if isinstance(error, Interrupted) else "error"


def _exit(code: int) -> None:
    _record_exit_code(code)
    sys.stdout.flush()
    raise SystemExit(code)


def _record_exit_code(code: int) -> None:
    path = os.environ.get(EXIT_CODE_FILE)
    if path and (code != 0 or is_main_process()):
        file = Path(path)
        if not (file.exists() and file.read_text().strip() not in ("", "0")):  # the first failure is the cause
            file.write_text(str(code))
