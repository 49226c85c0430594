"""Precision, memory and speed on an accelerator, each against float32 on it: small models, three steps of plain SGD."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import precision
import pytest
import tiny
import torch

CONFIGS = Path(__file__).parents[2] / "accelerate_configs"


def test_the_run_is_on_the_accelerator(device, world, tmp_path):
    """What is compared below is not the CPU with itself."""
    precision.difference("text", world, tmp_path)
    assert json.loads((tmp_path / "run" / "results.json").read_text())["training"]["device"] == device.type


@pytest.mark.parametrize("name", precision.MODELS)
def test_bf16(name, device, world, tmp_path):
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        pytest.skip("this GPU does not compute in bfloat16")
    precision.check_bf16(name, world, tmp_path)


@pytest.mark.parametrize("name", precision.MODELS)
def test_fp16(name, world, tmp_path):
    """Ten bits of mantissa; the loss is scaled, and steps whose gradients are too large for that are left out at first."""
    change = precision.difference(name, world, tmp_path, "--fp16")
    assert change.loss < 0.2
    state = json.loads((tmp_path / "run" / "trainer_state.json").read_text())
    assert state["global_step"] == precision.FLAGS["max_steps"]


@pytest.mark.parametrize("name", precision.MODELS)
def test_activation_checkpointing(name, world, tmp_path):
    precision.check_activation_checkpointing(name, world, tmp_path)


@pytest.mark.parametrize("name", precision.MODELS)
def test_torch_compile(name, world, tmp_path):
    precision.check_torch_compile(name, world, tmp_path, backend="inductor")


@pytest.mark.parametrize("config", ["fsdp2", "zero2", "zero3"])
def test_one_process_by_a_sharding_configuration_trains_as_without(config, world, tmp_path):
    """In float32, by the flag of the launcher, so that the difference is the engine's alone."""
    if config.startswith("zero") and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("deepspeed is not installed")
    precision.difference("text", world, tmp_path / "plain")
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / f"{config}.yaml")]
    launcher += ["--num_processes", "1", "--mixed_precision", "no", str(tiny.RECIPES / "text_cls.py")]
    flags = tiny.flags(*precision.flags_of("text", world, tmp_path / "run"), **precision.FLAGS)
    process = subprocess.run([*launcher, *flags], env=os.environ, capture_output=True, text=True, timeout=220)
    assert process.returncode == 0, process.stderr[-3000:]
    change = precision.between(tmp_path / "plain" / "run", tmp_path / "run")
    assert change.weights < 1e-5
    assert change.loss < 1e-5
