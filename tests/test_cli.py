"""sft-hf: quick, honest about what is wrong, and the recipe's own exit code through a real `accelerate launch`."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner

import sft_hf
from sft_hf import cli
from sft_hf.errors import ArgumentError

RECIPES = Path(__file__).parent.parent / "recipes"


def sft_hf_command(*arguments) -> list[str]:
    return [sys.executable, "-m", "sft_hf.cli", *map(str, arguments)]


def run(*arguments) -> subprocess.CompletedProcess:
    return subprocess.run(sft_hf_command(*arguments), capture_output=True, text=True, timeout=180)


@pytest.fixture
def write(tmp_path):
    """Write a recipe; returns its path."""

    def write(text: str) -> Path:
        path = tmp_path / "my_recipe.py"
        path.write_text(text)
        return path

    return write


# ---- without a run ----


def test_help_is_quick():
    times = []
    for _ in range(3):
        started = time.perf_counter()
        shown = run("--help")
        times.append(time.perf_counter() - started)
        assert shown.returncode == 0
    assert min(times) < 1.5
    assert "train" in shown.stdout
    assert "Exit codes: 0 done" in shown.stdout


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["--version"], ["train", "text_clz"]])
def test_torch_is_not_imported_before_a_run(arguments):
    code = (
        "import sys, sft_hf.cli\n"
        f"sys.argv = ['sft-hf', *{arguments}]\n"
        "try: sft_hf.cli.main()\n"
        "except SystemExit: print('heavy:', sorted({'torch', 'transformers', 'datasets'} & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert shown.stdout.splitlines()[-1] == "heavy: []", shown


def test_version():
    assert run("--version").stdout == f"sft_hf {sft_hf.__version__}\n"


def test_an_unknown_recipe_names_those_that_there_are():
    refused = run("train", "text_clz", "--learning_rate", "1")
    assert refused.returncode == 2
    there = ", ".join(sorted(path.stem for path in RECIPES.glob("*.py")))
    assert refused.stderr == f"error: There is no recipe 'text_clz'; there are {there}.\n"
    assert refused.stdout == ""


def test_train_without_a_recipe_lists_them():
    shown = CliRunner().invoke(cli.app, ["train"])
    assert shown.exit_code == 0
    assert "\nRecipes: " in shown.stdout
    assert "text_cls" in shown.stdout.splitlines()[-1]


def test_a_recipe_by_name_or_by_path(write):
    path = write("")
    assert cli.recipe_path("text_cls") == cli.shipped("recipes") / "text_cls.py"
    assert cli.recipe_path(str(path)) == path
    with pytest.raises(ArgumentError, match=r"There is no recipe 'nowhere\.py'"):
        cli.recipe_path("nowhere.py")


def test_an_accelerate_configuration_by_name_or_by_path(tmp_path):
    assert cli._config("multi_cpu") == cli.shipped("accelerate_configs") / "multi_cpu.yaml"
    (tmp_path / "mine.yaml").write_text("")
    assert cli._config(str(tmp_path / "mine.yaml")) == tmp_path / "mine.yaml"
    with pytest.raises(ArgumentError) as caught:
        cli._config("fsdp")
    assert str(caught.value) == (
        "--accelerate_config fsdp: no such file, and no configuration of ours; there are cpu, fsdp2, multi_cpu, multi_gpu, "
        "multi_node, single_gpu, zero2, zero3."
    )


def test_a_folder_that_is_no_run_is_not_pushed(tmp_path):
    refused = CliRunner().invoke(cli.app, ["push", str(tmp_path)])
    assert isinstance(refused.exception, ArgumentError)
    assert str(refused.exception) == f"{tmp_path}: expected the output_dir of a complete run; it has no results.json."


# ---- one process ----


def test_train_hands_the_recipe_s_flags_on(write, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["sft-hf"])
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    recipe = write("import json, sys\nif __name__ == '__main__':\n    print(json.dumps(sys.argv))")
    flags = ["--train_file", "a.csv", "b c.csv", "--learning_rate=2e-5", "--streaming", "--max_steps", "-1", "--help"]
    shown = CliRunner().invoke(cli.app, ["train", str(recipe), "--num_processes", "1", *flags])
    assert json.loads(shown.stdout) == [str(recipe), *flags]


def test_the_env_block_is_set_before_the_recipe_imports_anything(write, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["sft-hf"])
    monkeypatch.setattr(os, "environ", {**os.environ, "IN_SHELL": "shell"})
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    (tmp_path / "configs" / "my_recipe").mkdir(parents=True)
    (tmp_path / "configs" / "my_recipe" / "named.yaml").write_text("env: {IN_FILE: file, IN_SHELL: file}")
    recipe = write("import os; print(os.environ['IN_FILE'], os.environ['IN_SHELL'])")
    assert CliRunner().invoke(cli.app, ["train", str(recipe), "--config", "named"]).stdout == "file shell\n"


def test_a_launched_process_does_not_launch_again(write, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["sft-hf"])
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setattr(cli, "launch", None)
    shown = CliRunner().invoke(cli.app, ["train", str(write("print('here')")), "--num_processes", "2"])
    assert shown.stdout == "here\n"


# ---- through accelerate launch (pitfall 41) ----


def test_the_exit_code_is_the_ranks_own():
    assert cli._exit_code(0, "0") == 0
    assert cli._exit_code(0, "") == 0  # a recipe that knows nothing of exit_codes
    assert cli._exit_code(1, "2") == 2
    assert cli._exit_code(1, "143", [signal.SIGTERM]) == 143
    assert cli._exit_code(0, "3") == 3
    assert cli._exit_code(1, "") == 1
    assert cli._exit_code(1, "0") == 1  # rank 0 was done, another was not
    assert cli._exit_code(1, "", [signal.SIGTERM]) == 143  # a rank that the signal ended before it watched for it
    assert cli._exit_code(0, "0", [signal.SIGTERM]) == 0  # the signal came after the end
    assert cli._exit_code(-9, "") == 137  # the launcher was killed


@pytest.mark.parametrize(
    ("name", "told"),
    [
        (
            "fsdp2",
            "error: The accelerate configuration asks for FSDP, which shares a model among GPUs, but torch finds none",
        ),
        (
            "multi_node",
            "error: multi_node.yaml is for several machines, and this one does not know its place: set MACHINE_RANK",
        ),
    ],
)
def test_a_configuration_that_cannot_work_is_not_launched(name, told, monkeypatch):
    """Pitfall 30, and no launcher that waits 15 minutes for another machine."""
    for variable in ("MACHINE_RANK", "NODE_RANK", "SLURM_NODEID", "LOCAL_RANK"):
        monkeypatch.delenv(variable, raising=False)
    refused = run("train", "text_cls", "--accelerate_config", name)
    assert refused.returncode == 2
    assert refused.stderr.startswith(told)


def test_machines_that_did_not_find_each_other_are_an_error(write, monkeypatch, tmp_path):
    """The launcher ends before any rank, here because the port of the first machine is taken."""
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        place = {"MACHINE_RANK": 0, "NNODES": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": taken.getsockname()[1]}
        for name, value in place.items():
            monkeypatch.setenv(name, str(value))
        monkeypatch.delenv("LOCAL_RANK", raising=False)
        refused = run("train", write(""), "--accelerate_config", "multi_node")
    assert refused.returncode == 2
    assert "but another process is utilizing it" in refused.stderr  # the launcher's own error
    assert "\nerror: The launcher ended, and no process of this machine said why; what is above does." in refused.stderr
    assert (
        f"--machine_rank 0 --num_machines 2 --main_process_ip 127.0.0.1 --main_process_port {place['MASTER_PORT']}"
        in refused.stderr
    )


@pytest.fixture
def two_cpu(tmp_path):
    """The shipped configuration on a free port, so that another run on this machine is not in the way."""
    path = tmp_path / "two_cpu.yaml"
    path.write_text((cli.shipped("accelerate_configs") / "multi_cpu.yaml").read_text() + "main_process_port: 0\n")
    return path


def test_a_recipe_s_exit_code_comes_back_from_two_processes(write, tmp_path, two_cpu):
    recipe = write("""
import os, sys, time
from pathlib import Path
from sft_hf.errors import DataError
from sft_hf.launching import exit_codes

with exit_codes():
    Path(sys.argv[2], os.environ["RANK"]).write_text(os.environ["WORLD_SIZE"] + " " + sys.argv[3])
    while not Path(sys.argv[2], "0").exists() or not Path(sys.argv[2], "1").exists():
        time.sleep(0.05)
    time.sleep(1 - int(os.environ["RANK"]))  # rank 1 meets the error first
    raise DataError("there is no such column")
""")
    refused = run("train", recipe, "--accelerate_config", two_cpu, "--output_dir", tmp_path, "--learning_rate=1e-4")
    assert refused.returncode == 2, refused.stderr
    assert (tmp_path / "0").read_text() == (tmp_path / "1").read_text() == "2 --learning_rate=1e-4"
    assert refused.stderr.count("error: there is no such column") == 1


def signalled(number: signal.Signals, folder: Path, *, num_processes: int, arguments: list) -> tuple[int, str]:
    """Exit code and stderr of a command that gets a signal once its ranks run; fails if a process outlives it."""
    command = subprocess.Popen(sft_hf_command("train", *arguments), stderr=subprocess.PIPE, text=True)
    family = []
    try:
        deadline = time.monotonic() + 60
        while len(list(folder.glob("started_*"))) < num_processes:
            assert command.poll() is None, command.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        family = psutil.Process(command.pid).children(recursive=True)
        assert len(family) >= 1 + num_processes  # the launcher and the ranks
        command.send_signal(number)
        _, shown = command.communicate(timeout=30)
        assert psutil.wait_procs(family, timeout=5)[1] == []
        return command.returncode, shown
    finally:
        command.kill()
        for process in family:
            if process.is_running():
                process.kill()


def test_a_signal_reaches_two_ranks_that_watch_for_it(write, tmp_path, two_cpu):
    recipe = write("""
import os, sys, time
from pathlib import Path
from sft_hf.launching import SignalWatch, exit_codes

with exit_codes(), SignalWatch().watching() as watch:
    Path(sys.argv[2], "started_" + os.environ["RANK"]).touch()
    while True:
        time.sleep(0.05)
        watch.check(None)
""")
    arguments = [recipe, "--accelerate_config", two_cpu, "--output_dir", tmp_path]
    code, shown = signalled(signal.SIGINT, tmp_path, num_processes=2, arguments=arguments)
    assert code == 130, shown
    assert shown.count("interrupted: Stopped by SIGINT; no step was finished yet.") == 1  # not once for each rank


def test_a_signal_ends_a_rank_that_does_not_watch_for_it(write, tmp_path):
    """For one process the launcher is a parent that dies of SIGTERM alone, and its child runs on."""
    config = tmp_path / "one_cpu.yaml"
    config.write_text("{compute_environment: LOCAL_MACHINE, distributed_type: 'NO', num_processes: 1, use_cpu: true}")
    recipe = write("""
import sys, time
from pathlib import Path
from sft_hf.launching import exit_codes

with exit_codes():
    Path(sys.argv[2], "started_0").touch()
    time.sleep(60)
""")
    arguments = [recipe, "--accelerate_config", config, "--output_dir", tmp_path]
    code, shown = signalled(signal.SIGTERM, tmp_path, num_processes=1, arguments=arguments)
    assert code == 143, shown
