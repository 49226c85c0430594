"""How a process was started: its threads, its ranks, its signals and its exit code."""

import os
import signal
import subprocess
import sys
import threading

import pytest
import torch

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
    check_world_size,
    exit_codes,
    is_main_process,
    num_reading_workers,
    use_all_cores,
)


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch):
    """As `python recipe.py` starts it."""
    for name in list(os.environ):
        if name.startswith(("ACCELERATE_", "OMP_")) or name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
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
