"""Two machines: network namespaces joined by a cable, in each of them `sft-hf train` with the multi_node configuration.

What they train together is what one process trains. Skipped where namespaces cannot be made (they need root, or CAP_NET_ADMIN).
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import tiny
from safetensors.torch import load_file

from sft_hf import cli

ADDRESSES = ["198.51.100.1", "198.51.100.2"]
NAMES = [f"sft_hf_{os.getpid()}_{machine}" for machine in "ab"]
CABLE = "cable"


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@contextmanager
def two_machines() -> Iterator[None]:
    try:
        for name in NAMES:
            ip("netns", "add", name)
        ip("link", "add", CABLE, "netns", NAMES[0], "type", "veth", "peer", "name", CABLE, "netns", NAMES[1])
        for name, address in zip(NAMES, ADDRESSES, strict=True):
            ip("-n", name, "address", "add", f"{address}/24", "dev", CABLE)
            for device in (CABLE, "lo"):
                ip("-n", name, "link", "set", device, "up")
        yield
    finally:
        for name in NAMES:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


@pytest.fixture(scope="module")
def machines() -> Iterator[None]:
    """Two network namespaces, NAMES, with an address each; a cable goes with the namespace that it ends in."""
    if shutil.which("ip") is None:
        pytest.skip("no ip (iproute2), which makes network namespaces")
    try:
        context = two_machines()
        context.__enter__()
    except subprocess.CalledProcessError as error:
        pytest.skip(f"network namespaces cannot be made here: {error.stderr.strip()}")
    yield
    context.__exit__(None, None, None)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """train.csv, test.csv of an odd number of rows, a BERT, and the shipped configuration in float32, so that weights can be compared."""
    folder = tmp_path_factory.mktemp("data")
    tiny.write_rows(folder / "train.csv", tiny.rows(47))
    tiny.write_rows(folder / "test.csv", tiny.rows(13, seed=1))
    tiny.save_bert(folder / "bert")
    shipped = (cli.shipped("accelerate_configs") / "multi_node.yaml").read_text()
    assert "mixed_precision: bf16" in shipped
    (folder / "multi_node.yaml").write_text(shipped.replace("mixed_precision: bf16", "mixed_precision: 'no'"))
    return folder


def flags(data: Path, output_dir: Path, **more) -> list[str]:
    files = [
        "--train_file",
        data / "train.csv",
        "--test_file",
        data / "test.csv",
        "--model_name_or_path",
        data / "bert",
    ]
    return tiny.flags(
        *files, output_dir=output_dir, eval_strategy="no", save_strategy="no", load_best_model_at_end=False, **more
    )


RECIPE = """
import runpy, sys
from pathlib import Path
from accelerate import PartialState
from sft_hf.errors import LaunchError
from sft_hf.launching import check_shared_folder

PartialState(cpu=True)
try:
    check_shared_folder(Path(sys.argv.pop(1)), seconds=0.5)
except LaunchError as error:
    print("refused:", error)
sys.argv[0] = sys.argv.pop(1)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def start(machine: int, data: Path, *arguments: object) -> subprocess.Popen:
    """`sft-hf train` on one of the machines, which learns its place from the environment."""
    place = {"MACHINE_RANK": machine, "NNODES": 2, "MASTER_ADDR": ADDRESSES[0], "MASTER_PORT": 29500}
    environment = {**os.environ, **{name: str(value) for name, value in place.items()}, "GLOO_SOCKET_IFNAME": CABLE}
    command = [
        sys.executable,
        "-m",
        "sft_hf.cli",
        "train",
        data / "recipe.py",
        "--accelerate_config",
        data / "multi_node.yaml",
    ]
    return subprocess.Popen(
        ["ip", "netns", "exec", NAMES[machine], *map(str, command), *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@dataclass(frozen=True)
class TwoMachines:
    """How both ended, what each printed, and the folder that both wrote to."""

    codes: list[int]
    shown: list[str]
    folder: Path


@pytest.fixture(scope="module")
def two(machines, data, tmp_path_factory) -> TwoMachines:
    """A run on two machines; each first asks whether a folder of its own is that of the other, too."""
    folder = tmp_path_factory.mktemp("machines")
    (data / "recipe.py").write_text(RECIPE)
    started = [
        start(
            machine,
            data,
            folder / f"disk_{machine}",
            tiny.RECIPE,
            *flags(data, folder / "run", per_device_train_batch_size=4),
        )
        for machine in range(2)
    ]
    try:
        shown = [process.communicate(timeout=150)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    return TwoMachines([process.returncode for process in started], shown, folder / "run")


def test_two_machines_train_what_one_process_trains(two, data, tmp_path):
    """Pitfall 2: 47 rows in batches of 2 x 4, so that the last step of an epoch is short."""
    assert two.codes == [0, 0], two.shown
    assert tiny.run_recipe(*flags(data, tmp_path / "one", per_device_train_batch_size=8)).exit_code == 0
    results, expected = (json.loads((folder / "results.json").read_text()) for folder in (two.folder, tmp_path / "one"))
    assert (results["training"]["world_size"], expected["training"]["world_size"]) == (2, 1)
    assert results["training"]["steps"] == expected["training"]["steps"] > 8
    found, wanted = (load_file(folder / "model.safetensors") for folder in (two.folder, tmp_path / "one"))
    start = load_file(data / "bert" / "model.safetensors")
    moved = max((wanted[f"bert.{name}"] - start[name]).abs().max().item() for name in start if f"bert.{name}" in wanted)
    difference = max((found[name] - wanted[name]).abs().max().item() for name in wanted)
    assert moved > 2e-2
    assert difference < 5e-5  # seen: 5.5e-6, where the weights moved by 0.029
    for split in ("validation", "test"):
        assert results["metrics"][split] == pytest.approx(expected["metrics"][split], abs=1e-4)
    assert len(tiny.predictions(two.folder)) == 13  # the odd one is counted once


def test_only_the_first_machine_speaks_of_the_results(two):
    assert "Model, card and results:" in two.shown[0]
    assert "Model, card and results:" not in two.shown[1]


def test_a_disk_of_its_own_is_an_error_on_both_machines(two):
    told = [next(line for line in text.splitlines() if line.startswith("refused: ")) for text in two.shown]
    disks = [two.folder.parent / f"disk_{machine}" for machine in range(2)]
    for line, disk in zip(told, disks, strict=True):
        assert line.startswith(f"refused: --output_dir {disk} is not one folder for all machines: ")
        assert line.endswith("or --save_on_each_node true to write checkpoints on every machine.")
    assert list(disks[0].iterdir()) == []
    assert not disks[1].exists()
