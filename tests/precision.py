"""What flags of precision, memory and speed may change in a run: `difference(...)` from the same run in float32.

    change = difference("text", world, tmp_path, "--bf16")
    assert 0 < change.weights < 2e-3

The runs are on the accelerator, where there is one that can be seen, else on the CPU: `test_precision.py` has what the CPU can do,
`gpu/` all of it.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import tiny
import tiny_speech
import torch
from safetensors.torch import load_file

# Without dropout and BatchNorm; three steps of plain SGD, which moves weights by as much as the gradient is off.
MODELS = {"text": "text_cls", "image": "image_cls", "seq2seq": "speech_seq2seq"}
FLAGS = {
    "max_steps": 3,
    "optim": "sgd",
    "learning_rate": 0.1,
    "lr_scheduler_type": "constant",
    "warmup_steps": 0,
    "eval_strategy": "no",
    "save_strategy": "no",
    "load_best_model_at_end": "false",
    "dataloader_num_workers": 0,
}


@dataclass(frozen=True)
class Change:
    """The furthest that a weight is from the one of the float32 run, and the difference of the losses on the test split."""

    weights: float
    loss: float


def write_world(folder: Path) -> Path:
    """Models and data of `MODELS`; returns the folder."""
    tiny.save_bert(folder / "text")
    for seed, (split, number) in enumerate({"train": 24, "test": 6}.items()):
        tiny.write_rows(folder / f"{split}.jsonl", tiny.rows(number, seed=seed))
    tiny.save_vit(folder / "image")
    tiny.write_class_folders(folder / "image_data", train=24, test=6)
    tiny_speech.save_whisper(folder / "seq2seq", chunk_length=1)
    tiny_speech.write_spelt(folder / "seq2seq_data", train=24, test=6)
    return folder


def flags_of(name: str, world: Path, output_dir: Path) -> list[object]:
    """Where a run of `MODELS` reads and writes."""
    source: list[object] = ["--dataset_name", world / f"{name}_data"]
    if name == "text":
        source = ["--train_file", world / "train.jsonl", "--test_file", world / "test.jsonl"]
    elif name == "seq2seq":
        source += ["--generation_max_length", 8]
    return [*source, "--model_name_or_path", world / name, "--output_dir", output_dir]


def difference(name: str, world: Path, folder: Path, *flags: object, in_both: tuple[object, ...] = ()) -> Change:
    """A run in `folder` with `flags` against one without, each with `in_both`; both pass the reload check."""
    reference = world / "float32" / "-".join([name, *map(str, in_both)])
    for output_dir, given in ((reference, in_both), (folder / "run", (*in_both, *flags))):
        if not (output_dir / "results.json").exists():
            run = tiny.run_recipe(*flags_of(name, world, output_dir), *given, recipe=MODELS[name], **FLAGS)
            assert run.exit_code == 0, run.output
            assert "reloaded with transformers.pipeline" in run.output
    return between(reference, folder / "run")


def between(reference: Path, output_dir: Path) -> Change:
    """Two finished runs."""
    one, two = (load_file(folder / "model.safetensors") for folder in (reference, output_dir))
    assert one.keys() == two.keys()  # no _orig_mod. and no _fsdp_wrapped_module.
    losses = [
        json.loads((folder / "results.json").read_text())["metrics"]["test"]["loss"]
        for folder in (reference, output_dir)
    ]
    return Change(max(float((one[key] - two[key]).abs().max()) for key in one), abs(losses[1] - losses[0]))


def check_bf16(name: str, world: Path, folder: Path) -> None:
    """Eight bits of mantissa in the matrix products; weights, gradients and what is saved stay float32."""
    change = difference(name, world, folder, "--bf16")
    assert 0 < change.weights < 5e-3
    assert change.loss < 2e-2
    assert {weight.dtype for weight in load_file(folder / "run" / "model.safetensors").values()} == {torch.float32}


def check_activation_checkpointing(name: str, world: Path, folder: Path, *, frozen: bool = False) -> None:
    """The same products are computed twice."""
    in_both = ("--freeze_base_model",) if frozen else ()
    change = difference(name, world, folder, "--activation_checkpointing", in_both=in_both)
    assert change.weights < 1e-6
    assert change.loss < 1e-6


def check_torch_compile(name: str, world: Path, folder: Path, *, backend: str) -> None:
    """A compiled model trains alike, and is saved under its own names; inductor sums in an order of its own."""
    counters = torch._dynamo.utils.counters
    counters.clear()
    change = difference(name, world, folder, "--torch_compile", "--torch_compile_backend", backend)
    assert counters["stats"]["unique_graphs"] > 0
    assert change.weights < 1e-4
    assert change.loss < 1e-4
