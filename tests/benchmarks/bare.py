"""The ceiling: a loop by hand over batches that are ready before the clock starts.

    python -m tests.benchmarks.bare CASE.json FIGURES.json

Same model, same batches as our recipe's first ones, same number of steps: forward, the model's loss as torch has it, backward, clipping, fused AdamW.
"""

import json
import runpy
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from sft_hf import build_trainer, finetuning
from sft_hf.arguments import DataArguments, FinetuningArguments, ModelArguments
from sft_hf.flags import parse_arguments
from sft_hf.trainer import SftTrainer
from tests.benchmarks.clock import Clock, write_figures
from tests.benchmarks.ours import flags

ROOT = Path(__file__).parent.parent.parent


def cross_entropy(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Of classes (batch, classes)."""
    labels = batch.pop("labels")
    return functional.cross_entropy(model(**batch).logits, labels)


def pixel_cross_entropy(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Of masks (batch, height, width), logits enlarged to them."""
    labels = batch.pop("labels")
    logits = functional.interpolate(model(**batch).logits, size=labels.shape[-2:], mode="bilinear", align_corners=False)
    return functional.cross_entropy(logits, labels.long())  # -100 is no class


def windowed_cross_entropy(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Of clips that are one window each in training."""
    batch.pop("window_of", None)
    return cross_entropy(model, batch)


def own_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """What the model computes from its labels."""
    return model(**batch).loss


LOSSES = {
    "text": cross_entropy,
    "images": cross_entropy,
    "segmentation": pixel_cross_entropy,
    "audio_classification": windowed_cross_entropy,
    "seq2seq": own_loss,
    "ctc": own_loss,
}
NOT_THE_MODEL_S = ("example_id", "length", "text", "num_frames", "sizes")


def main(case_file: str, figures_file: str) -> None:
    """Prepare batches, then run over them by the clock."""
    case = json.loads(Path(case_file).read_text())
    trainer = recipe_trainer(case)
    batches = [trainer._prepare_inputs(batch) for batch in islice(_endless(trainer), case["max_steps"])]
    examples = sum(len(batch["example_id"]) for batch in batches)
    batches = [{name: value for name, value in batch.items() if name not in NOT_THE_MODEL_S} for batch in batches]
    model = trainer.model.to(trainer.args.device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=case["learning_rate"], weight_decay=0.01, fused=True)
    loss_of, clock = LOSSES[case["task"]], Clock()
    clock.restart()
    for batch in batches:
        loss_of(model, batch).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        clock.on_step_end()
    write_figures(Path(figures_file), clock, examples=examples, evaluated=None, metric=None)


def recipe_trainer(case: dict[str, Any]) -> SftTrainer:
    """The Trainer that the recipe would train, its flags and defaults included."""
    given: list[SftTrainer] = []

    def instead_of_finetune(task_class: type, /, *, methods: Sequence[type] = (), **recipe: Any) -> None:
        types = (DataArguments, ModelArguments, FinetuningArguments, task_class, *methods)
        model_defaults, _ = recipe.pop("model_defaults", None), recipe.pop("description", None)
        parsed = parse_arguments(types, flags(case), defaults=recipe, model_defaults=model_defaults)
        data_args, model_args, training_args, task, *used = parsed.instances
        given.append(build_trainer(task, data_args, model_args, training_args, methods=used))

    finetuning.finetune = instead_of_finetune
    runpy.run_path(str(ROOT / "recipes" / f"{case['recipe']}.py"), run_name="__main__")
    return given[0]


def _endless(trainer: Any) -> Any:
    loader = trainer.get_train_dataloader()
    while True:
        yield from loader


if __name__ == "__main__":
    main(*sys.argv[1:])
