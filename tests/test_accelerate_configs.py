"""Each file of accelerate_configs through accelerate's own parser, and what its launcher would hand to the ranks."""

import os
from pathlib import Path
from unittest import mock

import pytest
import tiny
from accelerate.commands.config import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from accelerate.utils.launch import (
    prepare_deepspeed_cmd_env,
    prepare_multi_gpu_env,
    prepare_simple_launcher_cmd_env,
)

from sft_hf import cli, launching

CONFIGS = sorted(cli.shipped("accelerate_configs").glob("*.yaml"))
NAMES = ["cpu", "fsdp2", "multi_cpu", "multi_gpu", "multi_node", "single_gpu", "zero2", "zero3"]


def launcher_arguments(name: str, *flags: str):
    """The launcher's arguments once it has merged those of the file."""
    path = cli.shipped("accelerate_configs") / f"{name}.yaml"
    arguments = launch_command_parser().parse_args(["--config_file", str(path), *flags, "recipe.py"])
    return _validate_launch_command(arguments)


def environment_of_the_ranks(name: str, *flags: str) -> dict[str, str]:
    """Variables that the launcher would set, as `launch_command` chooses the way."""
    arguments, defaults, mixed_precision_is_the_file_s = launcher_arguments(name, *flags)
    with mock.patch.dict(os.environ, clear=True):
        if arguments.use_deepspeed:
            fields = [*defaults.deepspeed_config, *(["mixed_precision"] if mixed_precision_is_the_file_s else [])]
            arguments.deepspeed_fields_from_accelerate_config = ",".join(fields)
            return prepare_deepspeed_cmd_env(arguments)[1]
        if arguments.use_fsdp or arguments.multi_gpu:
            return prepare_multi_gpu_env(arguments)
        return prepare_simple_launcher_cmd_env(arguments)[1]


def test_they_are_these():
    assert [path.stem for path in CONFIGS] == NAMES


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_accelerate_knows_every_key(path):
    """An unknown key at the top is accelerate's own error; of an unknown one below it says nothing."""
    config = load_config_from_file(str(path))
    known = {action.dest for action in launch_command_parser()._actions}
    assert {key for key in (*config.fsdp_config, *config.deepspeed_config) if key not in known} == set()
    assert path.read_text().startswith("# ")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_recipe_starts_with_it(path):
    """Nothing is missing that the launcher would have to guess, or would refuse."""
    place = ["--machine_rank", "1", "--main_process_ip", "198.51.100.1", "--main_process_port", "29500"]
    environment = environment_of_the_ranks(path.stem, *(place if path.stem == "multi_node" else []))
    on_gpus = path.stem not in ("cpu", "multi_cpu")
    assert environment["ACCELERATE_MIXED_PRECISION"] == ("bf16" if on_gpus else "no")
    assert environment.get("ACCELERATE_USE_CPU", "False") == str(path.stem == "cpu")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_mixed_precision_is_theirs_alone(path):
    """Pitfall 31: of what else a recipe decides, they say nothing."""
    text = path.read_text()
    assert "\nmixed_precision: " in text
    settings = [line.split("#")[0] for line in text.splitlines()]
    taken = ("gradient_accumulation_steps", "gradient_clipping", "auto_cast", "learning_rate", "batch_size")
    assert [line for line in settings for name in taken if name in line] == []


def test_one_process_is_not_distributed():
    for name in ("cpu", "single_gpu"):
        arguments, config, _ = launcher_arguments(name)
        assert config.distributed_type == DistributedType.NO
        assert (arguments.num_processes, arguments.num_machines) == (1, 1)
    assert "CUDA_VISIBLE_DEVICES" not in environment_of_the_ranks("single_gpu")
    assert environment_of_the_ranks("single_gpu", "--gpu_ids", "3")["CUDA_VISIBLE_DEVICES"] == "3"


def test_two_processes_on_the_cpu_are_a_multi_gpu_file():
    """Pitfall 29: MULTI_CPU, or use_cpu, starts one."""
    arguments, config, _ = launcher_arguments("multi_cpu")
    assert config.distributed_type == DistributedType.MULTI_GPU
    assert arguments.multi_gpu
    assert not config.use_cpu
    assert arguments.num_processes == 2


def test_two_runs_on_one_machine_do_not_meet():
    """Port 0 is one that is free, where the default is 29500 for all."""
    for name in ("multi_cpu", "multi_gpu", "fsdp2", "zero2", "zero3"):
        assert launcher_arguments(name)[0].main_process_port == 0


def test_fsdp2_is_what_the_trainer_can_save():
    environment = environment_of_the_ranks("fsdp2")
    with mock.patch.dict(os.environ, environment):
        plugin = FullyShardedDataParallelPlugin()
    assert environment["ACCELERATE_USE_FSDP"] == "true"
    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward is True
    assert plugin.state_dict_type.name == "FULL_STATE_DICT"  # with the other one save_model writes nothing
    assert plugin.auto_wrap_policy.__name__ == "transformer_auto_wrap_policy"
    assert plugin.transformer_cls_names_to_wrap is None  # the trainer's to say, sft_hf/sharding.py
    assert plugin.cpu_ram_efficient_loading is False  # the launcher's default is true
    assert type(plugin.cpu_offload).__name__ == "OffloadPolicy"  # not CPUOffloadPolicy


@pytest.mark.parametrize("stage", [2, 3])
def test_zero_leaves_accumulation_and_clipping_to_the_recipe(stage):
    """Where the file gives none, accelerate says "auto", which the Trainer fills in."""
    environment = environment_of_the_ranks(f"zero{stage}")
    assert environment["ACCELERATE_USE_DEEPSPEED"] == "true"
    assert environment["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == str(stage)
    assert "ACCELERATE_GRADIENT_ACCUMULATION_STEPS" not in environment
    assert "ACCELERATE_GRADIENT_CLIPPING" not in environment
    if stage == 3:
        assert environment["ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL"] == "true"
        assert environment["ACCELERATE_DEEPSPEED_ZERO3_INIT"] == "false"


def test_several_machines_learn_their_place_from_flags():
    flags = ["--machine_rank", "1", "--num_machines", "4", "--num_processes", "32", "--main_process_ip", "198.51.100.1"]
    arguments, _, _ = launcher_arguments("multi_node", *flags, "--main_process_port", "29400")
    prepare_multi_gpu_env(arguments)
    assert (arguments.nnodes, arguments.nproc_per_node, arguments.node_rank) == ("4", "8", 1)
    assert arguments.rdzv_endpoint == "198.51.100.1:29400"
    assert arguments.rdzv_backend == "static"


@pytest.mark.parametrize(("name", "kind"), [("fsdp2", "FSDP"), ("zero2", "DeepSpeed"), ("zero3", "DeepSpeed")])
def test_without_an_accelerator_a_sharded_run_is_an_error(name, kind, monkeypatch, tmp_path):
    """Pitfall 30: it was plain data parallel without a word. It comes before any file is read or made."""
    for variable, value in environment_of_the_ranks(name).items():
        monkeypatch.setenv(variable, value)
    refused = tiny.run_recipe("--train_file", "nowhere.csv", output_dir=tmp_path / "run")
    assert refused.exit_code == 2
    assert f"asks for {kind}, which shares a model among GPUs, but torch finds none on this machine" in refused.output
    assert "accelerate_configs/cpu.yaml" in refused.output
    assert not (tmp_path / "run").exists()


def test_single_gpu_is_one_gpu(monkeypatch, tmp_path):
    """The Trainer would take all that it sees by torch.nn.DataParallel, and as many examples in a step."""
    from sft_hf.arguments import FinetuningArguments
    from sft_hf.finetuning import _use_one_accelerator

    arguments = FinetuningArguments(output_dir=str(tmp_path), per_device_train_batch_size=4)
    arguments._n_gpu = 8
    assert arguments.train_batch_size == 32
    _use_one_accelerator(arguments)
    assert (arguments.train_batch_size, arguments.n_gpu) == (4, 1)


def test_every_name_is_in_the_table_of_the_docs():
    docs = (Path(cli.__file__).parent.parent / "docs" / "scaling.md").read_text()
    assert [name for name in NAMES if f"`{name}`" not in docs] == []
    assert launching.SHARDED.keys() == {"FSDP", "DEEPSPEED"}
