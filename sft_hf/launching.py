"""How this process was started and what follows from it: threads, ranks, signals, the exit code.

python recipes/text_cls.py                    one process, all cores
accelerate launch recipes/text_cls.py         one process, but OMP_NUM_THREADS=1 on a CPU: one core of many
torchrun --nproc_per_node 2 recipes/...       WORLD_SIZE=2, two ranks that must find each other
"""

import ctypes
import importlib.util
import os
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sft_hf
from sft_hf.errors import Interrupted, LaunchError, SftError, UserError

# Where `sft-hf train` reads the exit code that `accelerate launch` and torchrun turn into 1 (pitfall 41).
EXIT_CODE_FILE = "SFT_HF_EXIT_CODE_FILE"
SECONDS_FOR_THE_MAIN_PROCESS = 10
# The variable by which the launcher says that a model's weights are shared among ranks.
SHARDED = {"FSDP": "ACCELERATE_USE_FSDP", "DEEPSPEED": "ACCELERATE_USE_DEEPSPEED"}
# Flags of the launcher on several machines, and the variables that tell them: torch's or a script's, then SLURM's.
MACHINE_VARIABLES = {
    "machine_rank": ("MACHINE_RANK", "NODE_RANK", "SLURM_NODEID"),
    "num_machines": ("NNODES", "SLURM_NNODES"),
    "main_process_ip": ("MASTER_ADDR",),
    "main_process_port": ("MASTER_PORT",),
}


def is_main_process() -> bool:
    """Rank 0 by the launcher's variables; true where there is no launcher."""
    return int(os.environ.get("RANK", "0")) == 0


def is_first_on_its_machine() -> bool:
    """Local rank 0, which prepares the data while the others wait; true where there is no launcher."""
    return int(os.environ.get("LOCAL_RANK", "0")) == 0


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


def how_idle_threads_wait(*, use_cpu: bool) -> str | None:
    """The line to log where `import sft_hf` has chosen how long they spin; the user's own choice, and that of GPU runs, is not worth one."""
    if not use_cpu or os.environ.get("GOMP_SPINCOUNT") != sft_hf.IDLE_SPINS:
        return None
    return f"idle CPU threads sleep after {sft_hf.IDLE_SPINS} turns, for the sake of what else runs; GOMP_SPINCOUNT changes it"


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


def num_accelerators() -> int:
    """Devices of this machine of which each can hold one process of a run: GPUs and their kind, not Apple's MPS."""
    import torch

    if not torch.accelerator.is_available() or torch.accelerator.current_accelerator().type == "mps":
        return 0
    return torch.accelerator.device_count()


def check_sharding(*, use_cpu: bool = False) -> None:
    """LaunchError where the launcher's file is one of FSDP or DeepSpeed and this machine cannot serve it (pitfall 30).

    Without an accelerator both are plain data parallel without a word. `use_cpu` is the run's own flag.
    """
    asked = [kind for kind, name in SHARDED.items() if os.environ.get(name, "false").lower() == "true"]
    if asked:
        check_machine_serves(asked[0], accelerators=0 if use_cpu else num_accelerators(), use_cpu=use_cpu)


def check_machine_serves(distributed_type: str, *, accelerators: int, use_cpu: bool = False) -> None:
    """LaunchError for FSDP or DEEPSPEED without accelerators, or for the second without deepspeed; others are served."""
    if distributed_type not in SHARDED:
        return
    name = {"FSDP": "FSDP", "DEEPSPEED": "DeepSpeed"}[distributed_type]
    if accelerators == 0:
        why = "--use_cpu true takes the CPU" if use_cpu else "torch finds none on this machine"
        raise LaunchError(
            f"The accelerate configuration asks for {name}, which shares a model among GPUs, but {why}: each process would "
            "train the whole model. On the CPU use accelerate_configs/cpu.yaml, for several processes multi_cpu.yaml beside it."
        )
    if distributed_type == "DEEPSPEED" and importlib.util.find_spec("deepspeed") is None:
        raise LaunchError(
            "The accelerate configuration asks for DeepSpeed, which is not installed: pip install deepspeed, or use "
            "accelerate_configs/fsdp2.yaml, which needs torch alone."
        )


def check_devices(*, use_cpu: bool) -> str | None:
    """LaunchError where this machine has fewer accelerators than processes; the line to log where it has more, or None."""
    accelerators = 0 if use_cpu else num_accelerators()
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if 0 < accelerators < processes:
        raise LaunchError(
            f"The launcher started {processes} processes on this machine, which has {accelerators} accelerator(s), one for each "
            f"process. Give --num_processes {accelerators} to the launcher, or --use_cpu true to the recipe."
        )
    if accelerators > processes:
        return f"{processes} of this machine's {accelerators} accelerators at work; the launcher's --num_processes changes it"
    return None


@contextmanager
def finding_each_other() -> Iterator[None]:
    """LaunchError instead of torch's, where a process cannot reach the others."""
    from torch.distributed import DistError

    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, DistError) and "connectFullMesh" not in str(error):  # gloo raises a bare RuntimeError
            raise
        place = {name: os.environ.get(name, "not set") for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")}
        raise LaunchError(
            f"The processes do not find each other ({', '.join(f'{name} {value}' for name, value in place.items())}): "
            f"{str(error).splitlines()[0][:300]}. Every machine has to reach that address and port, and the network interface that leads "
            "there may have to be named: GLOO_SOCKET_IFNAME on the CPU, NCCL_SOCKET_IFNAME on GPUs (`ip address` lists them)."
        ) from error


def check_shared_folder(folder: Path, *, seconds: float = 10) -> None:
    """LaunchError on every rank where a machine does not see, within `seconds`, what the first one writes in `folder`.

    Checkpoints and results would lie on the first machine alone, and no other could go on from them or load the best model.
    """
    if os.environ.get("WORLD_SIZE", "1") == os.environ.get("LOCAL_WORLD_SIZE", "1"):
        return
    from accelerate.utils import broadcast_object_list, gather_object

    mark = folder / f".{uuid.uuid4().hex}"
    if is_main_process():
        folder.mkdir(parents=True, exist_ok=True)
        mark.touch()
    [name] = broadcast_object_list([mark.name])
    is_there = _appears(folder / name, seconds=seconds)
    blind = sorted({host for host, sees in gather_object([(socket.gethostname(), is_there)]) if not sees})
    if is_main_process():
        mark.unlink()
    if blind:
        raise LaunchError(
            f"--output_dir {folder} is not one folder for all machines: {', '.join(blind)} does not see what the first machine writes "
            "there. Choose a folder that all of them mount, or --save_on_each_node true to write checkpoints on every machine."
        )


def _appears(path: Path, *, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not path.exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


# ---- what `sft-hf train` tells the launcher ----


def launcher_flags(config_file: Path, *, num_processes: int | None, is_ours: bool) -> list[str]:
    """Flags of `accelerate launch` that its file cannot know: how many accelerators there are, and which machine this is.

    Raises LaunchError for a file that this machine cannot serve, and where variables of several machines are missing. A file of
    ours takes all accelerators unless `num_processes` says otherwise; it is the number on all machines together.
    """
    import yaml

    config = yaml.safe_load(config_file.read_text()) or {}
    kind = str(config.get("distributed_type", "NO"))
    if kind in SHARDED:
        check_machine_serves(kind, accelerators=num_accelerators())
    machine = machine_flags(config_file.name, config) if int(config.get("num_machines", 1)) > 1 else {}
    num_machines = int(machine.get("num_machines", 1))
    if (
        num_processes is None
        and is_ours
        and config.get("gpu_ids") == "all"
        and kind != "NO"
        and (machine or num_accelerators())
    ):
        num_processes = num_machines * max(1, num_accelerators())
    if num_processes is not None and num_processes % num_machines:
        raise LaunchError(
            f"--num_processes {num_processes} is for all {num_machines} machines together: expected a multiple of {num_machines}."
        )
    flags = {**machine, **({} if num_processes is None else {"num_processes": num_processes})}
    return [part for name, value in flags.items() for part in (f"--{name}", str(value))]


def machine_flags(file_name: str, config: Mapping[str, Any]) -> dict[str, str]:
    """Which of how many machines this is and where the first one is: from the environment, else from the file.

    LaunchError that names the variables for what neither says.
    """
    found = {
        flag: next((os.environ[name] for name in names if os.environ.get(name)), config.get(flag))
        for flag, names in MACHINE_VARIABLES.items()
    }
    missing = [" or ".join(MACHINE_VARIABLES[flag]) for flag, value in found.items() if value is None]
    if missing:
        raise LaunchError(
            f"{file_name} is for several machines, and this one does not know its place: set {', '.join(missing)}. Every machine "
            "runs the same command; docs/scaling.md has the script for SLURM."
        )
    numbers = {flag: str(value) for flag, value in found.items() if flag != "main_process_ip"}
    wrong = [f"{flag} {value}" for flag, value in numbers.items() if not value.isdecimal()]
    if wrong or not int(numbers["machine_rank"]) < int(numbers["num_machines"]):
        raise LaunchError(
            f"{file_name}: expected whole numbers, and a machine_rank from 0 to num_machines - 1; the environment has "
            + ", ".join(f"{flag} {value}" for flag, value in numbers.items())
            + "."
        )
    return {flag: str(value) for flag, value in found.items()}


class SignalWatch:
    """SIGINT and SIGTERM as a flag to look at between steps, so that a checkpoint can be written first.

    A second SIGINT interrupts at once. Outside the main thread (a notebook's worker) signals are left alone.
    """

    def __init__(self):
        self.received: int | None = None  # here or, once all agree, by another rank
        self._interrupts = 0

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
        self._interrupts += number == signal.SIGINT
        if self._interrupts > 1:
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
