"""Models whose weights are shared among ranks: whole where they are made and evaluated, cut at layers that they hold.

accelerate takes its sharded paths on GPUs alone, but torch's FSDP2 works on the CPU. Two ranks of `sharded_cases` tell accelerate so,
and train for real; one process trains the same.
"""

import json
import os
from pathlib import Path
from unittest import mock

import pytest
import tiny
import tiny_speech
import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from safetensors.torch import load_file
from test_accelerate_configs import environment_of_the_ranks
from transformers import AutoConfig, AutoModelForAudioClassification, AutoModelForSequenceClassification
from transformers.integrations import deepspeed

from sft_hf import build_trainer, launching
from sft_hf.arguments import DataArguments, FinetuningArguments, ModelArguments
from sft_hf.models.mlp import MlpConfig, MlpForImageClassification
from sft_hf.sharding import fit_fsdp, layers_to_shard, whole_models
from sft_hf.tasks.semantic_segmentation import SemanticSegmentation

# ---- what is asked of a model ----


class Zero3:
    """As much as transformers asks of a DeepSpeed configuration before it makes a model."""

    def is_zero3(self) -> bool:
        return True


def test_models_are_made_whole_under_a_zero_3_file():
    """The first rank prepares the data alone, and would wait for the others in a broadcast of its model's first weight."""
    configuration = Zero3()  # transformers holds a weak reference
    deepspeed.set_hf_deepspeed_config(configuration)
    try:
        with whole_models():
            assert not deepspeed.is_deepspeed_zero3_enabled()
        with pytest.raises(ZeroDivisionError), whole_models():
            1 / 0  # noqa: B018
        assert deepspeed.is_deepspeed_zero3_enabled()  # generation keeps ranks in step by it
    finally:
        deepspeed.unset_hf_deepspeed_config()
    with whole_models():
        assert not deepspeed.is_deepspeed_zero3_enabled()


def made(auto_class: type, folder: Path) -> torch.nn.Module:
    return auto_class.from_config(AutoConfig.from_pretrained(folder))


def test_layers_are_those_that_a_model_declares_and_holds(tmp_path):
    """Of BertEmbeddings, declared too, accelerate makes a unit around the one of the words' embeddings; a classifier has no decoder."""
    bert = made(AutoModelForSequenceClassification, tiny.save_bert(tmp_path / "bert"))
    assert set(bert._no_split_modules) == {"BertEmbeddings", "BertLayer"}
    assert layers_to_shard(bert) == ["BertLayer"]
    whisper = made(AutoModelForAudioClassification, tiny_speech.save_whisper(tmp_path / "whisper"))
    assert set(whisper._no_split_modules) == {"WhisperEncoderLayer", "WhisperDecoderLayer"}
    assert layers_to_shard(whisper) == ["WhisperEncoderLayer"]


def test_a_model_without_input_embeddings_says_so(tmp_path):
    model = MlpForImageClassification(MlpConfig())
    with pytest.raises(NotImplementedError):
        model.get_input_embeddings()
    fit_fsdp(FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="TRANSFORMER_BASED_WRAP"), model)
    assert model.get_input_embeddings() is None
    plugin = FullyShardedDataParallelPlugin(transformer_cls_names_to_wrap=["BertAttention"])
    fit_fsdp(plugin, made(AutoModelForSequenceClassification, tiny.save_bert(tmp_path / "bert")))
    assert plugin.transformer_cls_names_to_wrap == ["BertAttention"]  # the file's


# ---- two ranks that share a model ----

HALVES = {"per_device_train_batch_size": 4, "per_device_eval_batch_size": 1}
EVERY_CASE = {"save_strategy": "no", "eval_strategy": "no", "load_best_model_at_end": False, "max_steps": 6}
# By rank different numbers of forward passes: windows of large and small pictures, texts that end at different lengths.
RECIPES = {"bert": "text_cls", "windows": "image_seg", "whisper": "speech_seq2seq"}
FLAGS = {
    "bert": {"eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True, "learning_rate": 5e-4},
    "windows": {"learning_rate": 1e-3, "augmentation": "none", "train_sampling_strategy": "random"},
    "whisper": {"learning_rate": 1e-3, "train_sampling_strategy": "random"},
}
MORE = {"windows": ("--eval_window", 32, 32)}


def run_case(name: str, folder: Path, **flags: object) -> tiny.Run:
    """A recipe on the data beside its folder; where the launcher asked for FSDP, on ranks that share the model."""
    data = Path(os.environ["SFT_HF_TEST_DATA"])
    source = (
        {"dataset_name": data / name}
        if (data / name).is_dir()
        else {"train_file": data / "bert.csv", "test_file": data / "test.csv"}
    )
    given = {
        **EVERY_CASE,
        "model_name_or_path": data / f"{name}_model",
        "output_dir": folder,
        **source,
        **FLAGS[name],
        **flags,
    }
    with (
        mock.patch.object(AcceleratorState, "__init__", _shares_on_the_cpu),
        mock.patch.object(launching, "check_sharding"),
    ):
        run = tiny.run_recipe(*MORE.get(name, ()), recipe=RECIPES[name], **given)
    assert run.exit_code == 0, run.output
    return run


def on_each_rank(folder: Path) -> None:
    """What `tiny.run_on_two_processes` has each rank do."""
    for name in RECIPES:
        run_case(name, folder / name, **HALVES)


_plain_state = AcceleratorState.__init__


def _shares_on_the_cpu(self, *args, fsdp_plugin=None, **kwargs) -> None:
    """As accelerate does for its GPUs."""
    _plain_state(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
    if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
        self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        self.fsdp_plugin = fsdp_plugin


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Training data of each case, and its model."""
    folder = tmp_path_factory.mktemp("data")
    tiny.write_rows(folder / "bert.csv", tiny.rows(47))
    tiny.write_rows(folder / "test.csv", tiny.rows(13, seed=1))
    tiny.save_bert(folder / "bert_model")
    tiny.write_mask_folders(folder / "windows", train=24, test=5)
    for index in (0, 2, 4):  # those of the first rank are four times as large
        for kind in ("images", "masks"):
            path = folder / "windows" / "test" / kind / f"{index}.png"
            enlarge(path)
    tiny.save_segformer(folder / "windows_model")
    tiny_speech.write_spelt(folder / "whisper", train=24, test=5)
    tiny_speech.save_whisper(folder / "whisper_model")
    return folder


def enlarge(path: Path) -> None:
    from PIL import Image

    with Image.open(path) as image:
        larger = image.resize((image.width * 2, image.height * 2), Image.Resampling.NEAREST)
    larger.save(path)


@pytest.fixture(scope="module")
def sharded(data, tmp_path_factory) -> Path:
    """The runs of two ranks under fsdp2.yaml, in float32 so that they can be compared."""
    folder = tmp_path_factory.mktemp("sharded")
    asked = environment_of_the_ranks("fsdp2", "--mixed_precision", "no")
    asked = {name: value for name, value in asked.items() if name.startswith(("ACCELERATE_", "FSDP_"))}
    tiny.run_on_two_processes(Path(__file__).stem, folder, env={**asked, "SFT_HF_TEST_DATA": str(data)})
    return folder


@pytest.mark.parametrize("name", ["bert", "whisper"])
def test_two_ranks_that_share_a_model_train_what_one_process_trains(name, sharded, data, tmp_path, monkeypatch):
    """Evaluated each epoch and loaded again as the best one, generating, saved as one file, and reloaded by the pipeline."""
    monkeypatch.setenv("SFT_HF_TEST_DATA", str(data))
    run_case(name, tmp_path / name, per_device_train_batch_size=8, per_device_eval_batch_size=1)
    found, wanted = (load_file(folder / name / "model.safetensors") for folder in (sharded, tmp_path))
    assert found.keys() >= wanted.keys()  # whose tied weights are written once
    difference = max((found[key] - wanted[key]).abs().max().item() for key in wanted)
    assert difference < 1e-5  # seen: 4e-7, of rates of 5e-4 and 1e-3 over 6 steps
    results, expected = (json.loads((folder / name / "results.json").read_text()) for folder in (sharded, tmp_path))
    assert results["training"]["world_size"] == 2
    for split, metrics in expected["metrics"].items():
        assert results["metrics"][split] == pytest.approx(metrics, abs=1e-4)


def test_two_ranks_that_share_a_model_need_not_do_as_many_forward_passes(sharded, data):
    """The first has pictures of 9 windows, the second of one or two. Both score as the saved model does, whose BatchNorm is rank 0's."""
    results = json.loads((sharded / "windows" / "results.json").read_text())
    trainer = build_trainer(
        SemanticSegmentation(eval_window=[32, 32]),
        DataArguments(dataset_name=str(data / "windows"), validation_split_name="test"),
        ModelArguments(model_name_or_path=str(sharded / "windows")),
        FinetuningArguments(output_dir=str(sharded / "again"), report_to="none", disable_tqdm=True, cpu_bf16="off"),
    )
    one = trainer.evaluate(metric_key_prefix="test")
    for name, value in results["metrics"]["test"].items():
        assert one[f"test_{name}"] == pytest.approx(value, abs=1e-5)
