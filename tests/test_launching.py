"""How a process was started: its threads, its ranks, its signals and its exit code."""

import datetime
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

import sft_hf
from sft_hf import launching
from sft_hf.errors import (
    ArgumentError,
    DataError,
    HubError,
    Interrupted,
    LaunchError,
    ModelError,
    PushError,
    ReloadError,
    SftError,
)
from sft_hf.launching import (
    SignalWatch,
    check_devices,
    check_sharding,
    check_world_size,
    exit_codes,
    finding_each_other,
    how_idle_threads_wait,
    is_main_process,
    launcher_flags,
    machine_flags,
    num_accelerators,
    num_reading_workers,
    use_all_cores,
)


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch):
    """As `python recipe.py` starts it."""
    for name in list(os.environ):
        places = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MACHINE_RANK", "NODE_RANK", "NNODES"}
        if name.startswith(("ACCELERATE_", "OMP_", "SLURM_", "MASTER_")) or name in places:
            monkeypatch.delenv(name)


def test_rank_0_is_the_main_process(monkeypatch):
    assert is_main_process()
    monkeypatch.setenv("RANK", "0")
    assert is_main_process()
    monkeypatch.setenv("RANK", "3")
    assert not is_main_process()


# ---- threads (pitfall 38) ----


@pytest.fixture
def threads(monkeypatch):
    """Eight cores, of which torch uses one; the numbers of threads that were set."""
    chosen = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(8)), raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    return chosen


def test_without_a_launcher_torch_decides(threads, monkeypatch):
    assert use_all_cores() is None
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert use_all_cores() is None
    assert threads == []


def test_the_launcher_s_one_thread_becomes_all_cores(threads, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert use_all_cores() == "8 CPU threads for this process; --num_cpu_threads_per_process changes it"
    assert threads == [8]
    assert os.environ["OMP_NUM_THREADS"] == "8"


def test_ranks_share_the_cores(threads, monkeypatch):
    for name, value in {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "3", "OMP_NUM_THREADS": "1"}.items():
        monkeypatch.setenv(name, value)
    assert use_all_cores().startswith("2 CPU threads")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "16")
    assert use_all_cores() is None  # one thread each, which torch already has
    assert threads == [2]


def test_idle_threads_soon_sleep_unless_the_user_says_otherwise(monkeypatch):
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    assert sft_hf.finetune  # imports torch, which reads the number
    assert os.environ["GOMP_SPINCOUNT"] == "10000"
    assert how_idle_threads_wait(use_cpu=True).startswith("idle CPU threads sleep after 10000 turns")
    assert how_idle_threads_wait(use_cpu=False) is None
    monkeypatch.setenv("GOMP_SPINCOUNT", "300000")
    assert how_idle_threads_wait(use_cpu=True) is None
    assert sft_hf.build_trainer
    assert os.environ["GOMP_SPINCOUNT"] == "300000"


def test_the_user_s_number_stays(threads, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert use_all_cores() is None
    assert threads == []


def test_a_flag_beats_everything(threads, monkeypatch):
    assert use_all_cores(3).startswith("3 CPU threads")
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert use_all_cores(5).startswith("5 CPU threads")
    assert threads == [3, 5]


def test_freed_memory_is_kept_where_the_c_library_can(monkeypatch):
    """Pitfall 36."""
    calls = []

    class GlibC:
        def mallopt(self, option, value):
            calls.append((option, value))
            return 1

    monkeypatch.setattr(launching.ctypes, "CDLL", lambda _name: GlibC())
    assert launching.keep_freed_memory() is True
    assert calls == [(-1, 2**31 - 1), (-4, 0)]
    monkeypatch.setattr(launching.ctypes, "CDLL", lambda _name: object())
    assert launching.keep_freed_memory() is False


# ---- ranks (pitfall 29) ----


def test_processes_that_do_not_find_each_other_are_an_error(monkeypatch):
    check_world_size(1)
    monkeypatch.setenv("WORLD_SIZE", "2")
    check_world_size(2)
    with pytest.raises(LaunchError) as caught:
        check_world_size(1)
    assert str(caught.value) == (
        "The launcher started 2 processes, but 1 of them train together: each would train and save alone. On a machine "
        "without an accelerator start them with --config_file accelerate_configs/multi_cpu.yaml."
    )


@pytest.fixture
def accelerators(monkeypatch):
    """Set how many accelerators torch sees."""
    return lambda number: monkeypatch.setattr(launching, "num_accelerators", lambda: number)


def test_this_machine_s_accelerators(monkeypatch):
    """Apple's MPS is one, but holds no ranks."""
    assert num_accelerators() == 0  # the tests hide them all
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 8)
    for kind, number in {"mps": 0, "cuda": 8, "xpu": 8}.items():
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda kind=kind: torch.device(kind))
        assert num_accelerators() == number


@pytest.mark.parametrize(
    ("variable", "name"), [("ACCELERATE_USE_FSDP", "FSDP"), ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed")]
)
def test_sharding_needs_an_accelerator(variable, name, accelerators, monkeypatch):
    """Pitfall 30."""
    check_sharding()
    monkeypatch.setenv(variable, "true")
    with pytest.raises(LaunchError) as caught:
        check_sharding()
    assert str(caught.value) == (
        f"The accelerate configuration asks for {name}, which shares a model among GPUs, but torch finds none on this machine: "
        "each process would train the whole model. On the CPU use accelerate_configs/cpu.yaml, for several processes "
        "multi_cpu.yaml beside it."
    )
    accelerators(2)
    with pytest.raises(LaunchError, match="but --use_cpu true takes the CPU: each process"):
        check_sharding(use_cpu=True)


def test_deepspeed_has_to_be_installed(accelerators, monkeypatch):
    accelerators(2)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    check_sharding()
    monkeypatch.delenv("ACCELERATE_USE_FSDP")
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    installed = set()
    monkeypatch.setattr(launching.importlib.util, "find_spec", lambda name: name if name in installed else None)
    with pytest.raises(LaunchError) as caught:
        check_sharding()
    assert str(caught.value) == (
        "The accelerate configuration asks for DeepSpeed, which is not installed: pip install deepspeed, or use "
        "accelerate_configs/fsdp2.yaml, which needs torch alone."
    )
    installed.add("deepspeed")
    check_sharding()


def test_each_process_needs_an_accelerator(accelerators, monkeypatch):
    assert check_devices(use_cpu=False) is None  # the CPU holds any number
    accelerators(2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert check_devices(use_cpu=False) is None
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    assert check_devices(use_cpu=True) is None
    with pytest.raises(LaunchError) as caught:
        check_devices(use_cpu=False)
    assert str(caught.value) == (
        "The launcher started 3 processes on this machine, which has 2 accelerator(s), one for each process. Give "
        "--num_processes 2 to the launcher, or --use_cpu true to the recipe."
    )
    accelerators(8)
    assert check_devices(use_cpu=False) == (
        "3 of this machine's 8 accelerators at work; the launcher's --num_processes changes it"
    )


def test_ranks_that_cannot_reach_each_other_are_an_error(monkeypatch):
    """Real ones: nobody listens at the first rank's port, and gloo at an address of this host alone."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # without listen() it refuses connections
        place = {"RANK": 1, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": taken.getsockname()[1]}
        for name, value in place.items():
            monkeypatch.setenv(name, str(value))
        with pytest.raises(LaunchError) as caught, finding_each_other():
            torch.distributed.init_process_group("gloo", timeout=datetime.timedelta(seconds=1))
    told = f"(RANK 1, WORLD_SIZE 2, MASTER_ADDR 127.0.0.1, MASTER_PORT {place['MASTER_PORT']}): "
    assert str(caught.value).startswith(f"The processes do not find each other {told}")
    assert "GLOO_SOCKET_IFNAME on the CPU, NCCL_SOCKET_IFNAME on GPUs" in str(caught.value)
    with pytest.raises(LaunchError, match="Connection refused"), finding_each_other():
        raise RuntimeError("Gloo connectFullMesh failed with [...] timed out connecting: Connection refused")
    with pytest.raises(RuntimeError, match="something else"), finding_each_other():
        raise RuntimeError("something else")


# ---- what the launcher is told ----

PLACE = {"MACHINE_RANK": "1", "NNODES": "2", "MASTER_ADDR": "198.51.100.1", "MASTER_PORT": "29400"}


@pytest.fixture
def config(tmp_path):
    """Write a file of accelerate's."""

    def write(**settings) -> Path:
        path = tmp_path / "some.yaml"
        path.write_text("\n".join(f"{name}: {value}" for name, value in settings.items()))
        return path

    return write


def given(flags: list[str]) -> dict[str, str]:
    return dict(zip(flags[::2], flags[1::2], strict=True))


def test_our_files_take_all_accelerators(config, accelerators):
    all_gpus = config(distributed_type="MULTI_GPU", gpu_ids="all", num_processes=2)
    assert launcher_flags(all_gpus, num_processes=None, is_ours=True) == []  # none: as the file says
    accelerators(8)
    assert launcher_flags(all_gpus, num_processes=None, is_ours=True) == ["--num_processes", "8"]
    assert launcher_flags(all_gpus, num_processes=3, is_ours=True) == ["--num_processes", "3"]
    assert launcher_flags(all_gpus, num_processes=None, is_ours=False) == []
    one = config(distributed_type="'NO'", gpu_ids="all", num_processes=1)
    assert launcher_flags(one, num_processes=None, is_ours=True) == []
    two_cpu = config(distributed_type="MULTI_GPU", num_processes=2)
    assert launcher_flags(two_cpu, num_processes=None, is_ours=True) == []


def test_a_file_is_checked_before_the_launcher_starts(config):
    """Pitfall 30."""
    with pytest.raises(LaunchError, match="asks for FSDP, which shares a model among GPUs"):
        launcher_flags(config(distributed_type="FSDP"), num_processes=2, is_ours=False)


def test_a_machine_learns_its_place_from_the_environment(config, accelerators, monkeypatch):
    path = config(distributed_type="MULTI_GPU", num_machines=2, num_processes=2, gpu_ids="all")
    for name, value in PLACE.items():
        monkeypatch.setenv(name, value)
    place = {
        "--machine_rank": "1",
        "--num_machines": "2",
        "--main_process_ip": "198.51.100.1",
        "--main_process_port": "29400",
    }
    assert given(launcher_flags(path, num_processes=None, is_ours=True)) == {**place, "--num_processes": "2"}
    accelerators(8)
    assert given(launcher_flags(path, num_processes=None, is_ours=True)) == {**place, "--num_processes": "16"}
    with pytest.raises(LaunchError, match="--num_processes 5 is for all 2 machines together: expected a multiple of 2"):
        launcher_flags(path, num_processes=5, is_ours=True)


def test_slurm_s_variables_count_too(config, monkeypatch):
    for name, value in {
        "SLURM_NODEID": "2",
        "SLURM_NNODES": "3",
        "MASTER_ADDR": "node7",
        "MASTER_PORT": "29500",
    }.items():
        monkeypatch.setenv(name, value)
    flags = given(
        launcher_flags(
            config(num_machines=2, gpu_ids="all", distributed_type="MULTI_GPU"), num_processes=None, is_ours=True
        )
    )
    assert (flags["--machine_rank"], flags["--num_machines"], flags["--num_processes"]) == ("2", "3", "3")
    monkeypatch.setenv("NODE_RANK", "1")
    assert machine_flags("multi_node.yaml", {})["machine_rank"] == "1"
    monkeypatch.setenv("MACHINE_RANK", "0")
    assert machine_flags("multi_node.yaml", {})["machine_rank"] == "0"


def test_a_machine_that_does_not_know_its_place_is_an_error(monkeypatch):
    with pytest.raises(LaunchError) as caught:
        machine_flags("multi_node.yaml", {"num_machines": 2})
    assert str(caught.value) == (
        "multi_node.yaml is for several machines, and this one does not know its place: set MACHINE_RANK or NODE_RANK or "
        "SLURM_NODEID, MASTER_ADDR, MASTER_PORT. Every machine runs the same command; docs/scaling.md has the script for SLURM."
    )
    for name, value in {**PLACE, "MACHINE_RANK": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(LaunchError) as caught:
        machine_flags("multi_node.yaml", {"num_machines": 2})
    assert str(caught.value) == (
        "multi_node.yaml: expected whole numbers, and a machine_rank from 0 to num_machines - 1; the environment has "
        "machine_rank 2, num_machines 2, main_process_port 29400."
    )
    monkeypatch.setenv("MASTER_PORT", "http")
    with pytest.raises(LaunchError, match="main_process_port http"):
        machine_flags("multi_node.yaml", {"num_machines": 2})


# ---- exit codes ----


@pytest.fixture
def code_file(tmp_path, monkeypatch):
    """Where a launched process leaves its code (pitfall 41)."""
    path = tmp_path / "exit_code"
    monkeypatch.setenv(launching.EXIT_CODE_FILE, str(path))
    return path


def exit_code(error: BaseException) -> int:
    with pytest.raises(SystemExit) as caught, exit_codes():
        raise error
    return caught.value.code


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ArgumentError("--seed x"), 2),
        (DataError("no column"), 2),
        (ModelError("no model"), 2),
        (HubError("no right"), 2),
        (LaunchError("alone"), 2),
        (SftError("broken"), 1),
        (ReloadError("differs"), 1),
        (PushError("not pushed"), 3),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_an_error_of_ours_is_one_message_and_a_code(error, code, code_file, capsys):
    assert exit_code(error) == code
    assert capsys.readouterr().err == f"\nerror: {error}\n"
    assert code_file.read_text() == str(code)


class Unreadable(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int):
        raise DataError("example 3: a.png is empty. Leave it out.")


def test_an_error_of_a_dataloaders_worker_is_one_message_too(capsys):
    """torch raises it again with the worker's traceback in its text."""
    with pytest.raises(SystemExit) as caught, exit_codes():
        next(iter(torch.utils.data.DataLoader(Unreadable(), num_workers=1)))
    assert caught.value.code == 2
    assert capsys.readouterr().err == "\nerror: example 3: a.png is empty. Leave it out.\n"


def test_an_interruption_is_no_error(code_file, capsys):
    assert exit_code(Interrupted(signal.SIGTERM, "Stopped by SIGTERM.")) == 143
    assert capsys.readouterr().err == "\ninterrupted: Stopped by SIGTERM.\n"
    assert exit_code(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == "\nInterrupted.\n"
    assert code_file.read_text() == "143"


def test_a_failure_of_someone_else_keeps_its_traceback(code_file, capsys):
    """Pitfall 32."""
    with pytest.raises(ZeroDivisionError), exit_codes():
        1 / 0  # noqa: B018
    assert capsys.readouterr().err == ""
    assert code_file.read_text() == "1"


def test_the_end_is_0_and_so_is_a_plain_exit(code_file):
    with exit_codes():
        pass
    assert code_file.read_text() == "0"
    for error, code in (
        (SystemExit(), "0"),
        (SystemExit(0), "0"),
        (SystemExit("a message"), "1"),
        (SystemExit(5), "5"),
    ):
        code_file.unlink()
        with pytest.raises(SystemExit), exit_codes():
            raise error
        assert code_file.read_text() == code


def test_without_a_launcher_no_file_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert exit_code(DataError("x")) == 2
    assert list(tmp_path.iterdir()) == []


def test_the_first_failure_is_the_cause(code_file, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(launching.time, "sleep", lambda _seconds: None)
    with exit_codes():
        pass
    assert not code_file.exists()  # only the main process says that all is well
    assert exit_code(DataError("x")) == 2
    assert exit_code(Interrupted(signal.SIGTERM, "the launcher ends the others")) == 143
    monkeypatch.setenv("RANK", "0")
    with exit_codes():
        pass
    assert code_file.read_text() == "2"


def test_an_error_that_all_ranks_meet_is_left_to_the_main_process(monkeypatch, capsys):
    """It ends, and the launcher ends the others while they wait; what rank 1 meets alone is said all the same."""
    waits = []
    monkeypatch.setattr(launching.time, "sleep", waits.append)
    monkeypatch.setenv("RANK", "1")
    assert exit_code(DataError("no column")) == 2
    assert exit_code(Interrupted(signal.SIGTERM, "Stopped by SIGTERM.")) == 143
    assert waits == [10, 10]
    assert capsys.readouterr().err == "\nerror: no column\n\ninterrupted: Stopped by SIGTERM.\n"
    assert exit_code(ReloadError("differs here alone")) == 1
    monkeypatch.setenv("RANK", "0")
    assert exit_code(DataError("no column")) == 2
    assert waits == [10, 10]


# ---- signals ----


def test_a_signal_is_a_flag_until_it_is_checked():
    before = signal.getsignal(signal.SIGTERM)
    with SignalWatch().watching() as watch:
        watch.check(None)
        os.kill(os.getpid(), signal.SIGTERM)
        assert watch.received == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before
    with pytest.raises(Interrupted) as caught:
        watch.check("runs/a/checkpoint-5")
    assert caught.value.exit_code == 143
    assert str(caught.value) == (
        "Stopped by SIGTERM; the checkpoint runs/a/checkpoint-5 is whole. The same command goes on from there."
    )
    with pytest.raises(Interrupted, match="Stopped by SIGTERM; no step was finished yet"):
        watch.check(None)


def test_a_second_ctrl_c_interrupts_at_once():
    before = signal.getsignal(signal.SIGINT)
    watch = SignalWatch()
    with watch.watching():
        os.kill(os.getpid(), signal.SIGINT)
        assert watch.received == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_outside_the_main_thread_signals_are_left_alone():
    seen = []

    def work():
        with SignalWatch().watching():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGTERM)]


def test_workers_read_ahead_where_the_model_computes_elsewhere(monkeypatch):
    monkeypatch.setattr("sft_hf.launching.cores_of_this_process", lambda: 4)
    assert [num_reading_workers(on_cpu=on_cpu) for on_cpu in (True, False)] == [0, 3]
    monkeypatch.setattr("sft_hf.launching.cores_of_this_process", lambda: 64)
    assert num_reading_workers(on_cpu=False) == 8


def test_ctrl_c_is_one_also_where_a_library_makes_an_error_of_it():
    """datasets raises DatasetGenerationError from it while it reads, and ours comes from that."""

    def read():
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as interrupt:
            raise DataError("train.csv cannot be read") from interrupt

    with pytest.raises(SystemExit) as stopped, exit_codes():
        read()
    assert stopped.value.code == 130


# ---- launchers that die (pitfall 41) ----

RANK = """
import signal, sys, time
from sft_hf.launching import SignalWatch, end_with_the_launcher
assert end_with_the_launcher()
with SignalWatch().watching() as signals:
    print("watching", flush=True)
    while signals.received is None:
        time.sleep(0.01)
with open(sys.argv[1], "w") as file:
    file.write(signal.Signals(signals.received).name)
"""
LAUNCHER = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1], sys.argv[2]])"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="prctl is Linux's")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_launcher_that_dies_takes_its_ranks_along_by_sigterm(number, tmp_path):
    """Pitfall 41: `accelerate launch` leaves its child running."""
    noted = tmp_path / "noted"
    command = [sys.executable, "-c", LAUNCHER, RANK, str(noted)]
    launcher = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert launcher.stdout.readline() == "watching\n"
    launcher.send_signal(number)
    launcher.wait(timeout=10)
    launcher.stdout.read()  # ends when the rank has ended
    assert noted.read_text() == "SIGTERM"


def test_only_a_launched_process_follows_its_parent(monkeypatch):
    assert not launching.is_launched()
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert launching.is_launched()
