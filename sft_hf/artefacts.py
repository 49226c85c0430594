"""What a run leaves in its output_dir: model, processor, results, resolved flags, predictions, model card.

    results.json    {"task", "metrics": {"validation": {"loss", "accuracy", ...}, "test": {...}}, "training": {...}, ...}
    recipe.yaml     every flag (run_folder.py); `--config runs/a/recipe.yaml` repeats the run
    README.md       the model card (model_card.py), with the same numbers in its model-index

Before any of it counts as done, the saved model is reloaded as a user would and must predict what the trainer did.
"""

import importlib.metadata
import json
import logging
import platform
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, IterableDataset

import sft_hf
from sft_hf import storage
from sft_hf.callbacks import peak_rss_mb
from sft_hf.data.sources import EXAMPLE_ID, Source
from sft_hf.errors import ReloadError
from sft_hf.flags import Parsed
from sft_hf.model_card import cell, make_card
from sft_hf.preparation import Prepared
from sft_hf.task import Columns, Task
from sft_hf.trainer import SftTrainer

logger = logging.getLogger(__name__)

SPLIT_PREFIXES = {"validation": "eval", "test": "test"}
RELOAD_SAMPLE = 16
# Of Task.reload_difference (probabilities, or the share of the pixels): float32 differs by summation order alone, bfloat16
# keeps 8 bits of mantissa.
RELOAD_TOLERANCE = {"no": 1e-3, "bf16": 5e-2, "fp16": 1e-2}
VERSIONED = ("transformers", "datasets", "accelerate", "torch", "tokenizers", "evaluate", "timm")


def save_model(trainer: SftTrainer, prepared: Prepared, output_dir: str) -> None:
    """Save the best model and its processor; thresholds of multi-label classes go into the configuration."""
    config = trainer.accelerator.unwrap_model(trainer.model).config
    if trainer.thresholds is not None:
        config.thresholds = [float(value) for value in trainer.thresholds]
    trainer.save_model(output_dir, _internal_call=True)


# ---- the reload check ----


def reload_sample(rows: Dataset | IterableDataset, columns: Columns) -> list[dict]:
    """A few raw rows, spread over the validation split; none is empty, of which some pipelines make nothing."""
    if isinstance(rows, IterableDataset):
        chosen = list(rows.take(RELOAD_SAMPLE))
    else:
        spread = np.linspace(0, len(rows) - 1, min(RELOAD_SAMPLE, len(rows)))
        chosen = [rows[int(index)] for index in np.unique(spread.astype(int))]
    return [row for row in chosen if any(row[name] not in (None, "") for name in columns.inputs)]


def matching(examples: Dataset | IterableDataset, sample: list[dict]) -> Dataset | IterableDataset:
    """The preprocessed examples of the sampled rows."""
    if isinstance(examples, IterableDataset):
        return examples.take(RELOAD_SAMPLE)
    wanted = {row[EXAMPLE_ID] for row in sample}
    return examples.select([index for index, key in enumerate(examples[EXAMPLE_ID]) if key in wanted])


def check_reload(
    trainer: SftTrainer,
    prepared: Prepared,
    sample: list[dict],
    expected: dict[int, Any],
    output_dir: str,
    *,
    trust_remote_code: bool,
) -> None:
    """Reload the saved folder with transformers.pipeline; ReloadError if it predicts something else (pitfall 18)."""
    from transformers import pipeline

    task, labels = trainer.task, prepared.labels
    saved = pipeline(task.pipeline_tag, model=output_dir, device="cpu", trust_remote_code=trust_remote_code)
    inputs = [task.pipeline_inputs(row, prepared.columns, prepared.processor) for row in sample]
    answers = [saved(item, **task.pipeline_options()) for item in inputs]
    difference = task.reload_difference([expected[row[EXAMPLE_ID]] for row in sample], answers, labels)
    weights = {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(
        trainer.accelerator.unwrap_model(trainer.model).dtype, "no"
    )
    tolerance = max(RELOAD_TOLERANCE[weights], RELOAD_TOLERANCE[trainer.args.mixed_precision])
    if not difference <= tolerance:  # also where it is NaN
        raise ReloadError(
            f"The model saved in {output_dir}, reloaded with transformers.pipeline, differs from the trainer by "
            f"{difference:.2g} (tolerance {tolerance:.2g}) on {len(sample)} validation examples. Do not use it; please "
            "report this with recipe.yaml."
        )
    logger.info("reloaded with transformers.pipeline: %d examples differ by at most %.1e", len(sample), difference)


# ---- results ----


def training_facts(trainer: SftTrainer, measured: dict[str, dict[str, float]], *, started: float) -> dict[str, Any]:
    """Steps, seconds and memory of this process's part of the run.

    `eval_samples_per_second` is that of the pass over test or, where none is scored, of the validation pass that the results
    are from: loading, forward passes (with generation, where the task generates) and metrics, of all ranks together.
    """
    timing, args = trainer.timing, trainer.args
    rate = trainer.num_examples_trained / timing.step_seconds if timing.step_seconds else 0.0
    return {
        "steps": trainer.state.global_step,
        "epochs": round(trainer.state.epoch or 0.0, 4),
        "seconds": round(time.time() - started, 2),
        "train_samples_per_second": round(rate, 3),
        "eval_samples_per_second": round(list(_speeds(measured).values())[-1], 3),
        "seconds_to_first_step": round(timing.seconds_to_first_step, 2) if timing.seconds_to_first_step else None,
        "peak_rss_mb": round(peak_rss_mb(), 1),
        "world_size": args.world_size,
        "per_device_train_batch_size": args.per_device_train_batch_size if args.tokens_per_batch is None else None,
        "tokens_per_batch": args.tokens_per_batch,
        "gradient_accumulation_steps": args.gradient_accumulation_steps,
        "device": args.device.type,
        "mixed_precision": args.mixed_precision,
        "best_checkpoint": Path(trainer.state.best_model_checkpoint).name
        if trainer.state.best_model_checkpoint
        else None,
    }


def speed_of_sound(
    task: Task, examples: dict[str, Any], training: dict[str, Any], measured: dict[str, dict[str, float]]
) -> dict[str, Any]:
    """Seconds of sound trained on in a second and, for each evaluated split, seconds of work for one of sound; {} without sound."""
    seconds = {split: task.seconds_per_example(examples[split]) for split in ("train", *measured)}
    facts: dict[str, Any] = {}
    if seconds["train"]:
        facts["audio_seconds_per_second"] = round(training["train_samples_per_second"] * seconds["train"], 2)
    factors = {
        split: round(1 / (speed * seconds[split]), 5) for split, speed in _speeds(measured).items() if seconds[split]
    }
    return facts | ({"real_time_factor": factors} if factors else {})


def _speeds(measured: dict[str, dict[str, float]]) -> dict[str, float]:
    """Examples that were evaluated in a second, of each split."""
    return {split: values[f"{SPLIT_PREFIXES[split]}_samples_per_second"] for split, values in measured.items()}


def write_all(
    trainer: SftTrainer,
    prepared: Prepared,
    results: dict[str, Any],
    parsed: Parsed,
    predictions: dict[int, Any] | None,
) -> None:
    """Everything beside the model; results.json comes last, it says that the run is complete."""
    folder = Path(trainer.args.output_dir)
    trainer.state.save_to_json(str(folder / "trainer_state.json"))
    if prepared.held_out is not None:
        _write_json(folder / "validation_indices.json", {"seed": trainer.args.seed, "rows": prepared.held_out})
    if predictions is not None:
        _write_predictions(folder / "predictions" / "test.jsonl", trainer, prepared, predictions)
    results |= _provenance(trainer, prepared)
    card = make_card(trainer, prepared, results, parsed)
    card.save(folder / "README.md")
    _write_json(folder / "results.json", results)


def _provenance(trainer: SftTrainer, prepared: Prepared) -> dict[str, Any]:
    source, model, labels = prepared.source, prepared.model_source, prepared.labels
    base = prepared.base_source
    config = trainer.accelerator.unwrap_model(trainer.model).config
    return {
        "data": {
            "source": source.kind,
            "name": source.name,
            "config_name": source.config_name,
            "revision": source.revision,
            "columns": {"inputs": list(prepared.columns.inputs), "label": prepared.columns.label},
            "rows": {split: len(data) for split, data in prepared.rows.items() if isinstance(data, Dataset)},
        },
        "model": {
            "name": model.hub_id or (model.name if model.name.startswith("builtin:") else Path(model.name).name),
            "revision": model.revision,
            "architecture": type(trainer.accelerator.unwrap_model(trainer.model)).__name__,
            "parameters": sum(parameter.numel() for parameter in trainer.model.parameters()),
            **(
                {}
                if base is model
                else {"backbone": base.hub_id or Path(base.name).name, "backbone_revision": base.revision}
            ),
        },
        "problem_type": labels.problem_type,
        "label_names": list(labels.names),
        "thresholds": getattr(config, "thresholds", None),
        "main_metric": trainer.args.metric_for_best_model.removeprefix("eval_"),
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """sft_hf, Python, and the libraries whose version can change a number."""
    found = {"sft_hf": sft_hf.__version__, "python": platform.python_version()}
    for name in VERSIONED:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _write_json(path: Path, content: Any) -> None:
    storage.write_whole(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _write_predictions(path: Path, trainer: SftTrainer, prepared: Prepared, predictions: dict[int, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    task, rows, columns = trainer.task, prepared.rows["test"], prepared.columns
    label_feature = columns.label_feature(rows)
    with open(path, "w", encoding="utf-8") as file:
        for row in rows:
            line = {EXAMPLE_ID: row[EXAMPLE_ID], **task.describe_inputs(row, columns)}
            line |= task.describe(predictions[row[EXAMPLE_ID]], prepared.labels, trainer.thresholds)
            truth = task.describe_label(row, columns, prepared.labels, label_feature)
            line |= {} if truth is None else {"label": truth}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


# ---- what the terminal shows ----


def print_results(results: dict[str, Any]) -> None:
    """The final table."""
    from rich.console import Console
    from rich.table import Table

    metrics = results["metrics"]
    training = results["training"]
    table = Table(title=f"{results['task']}: {training['steps']} steps, {training['seconds']:.0f} s")
    table.add_column("metric")
    for split in metrics:
        table.add_column(split, justify="right")
    for name in dict.fromkeys(name for values in metrics.values() for name in values if name != "epoch"):
        style = "bold" if name == results.get("main_metric") else None
        table.add_row(name, *(cell(values.get(name)) for values in metrics.values()), style=style)
    Console(soft_wrap=False).print(table)


def print_next_command(task: Task, source: Source, output_dir: str) -> None:
    """Where everything is and, after a demo set, the command for the user's own data."""
    print(f"Model, card and results: {output_dir}")
    for name in ("predictions", "reports"):
        if (Path(output_dir) / name).is_dir():
            print(f"{name.capitalize()}: {Path(output_dir) / name}")
    if source.kind == "builtin":
        print(
            "Your own data:\n"
            f"  accelerate launch {sys.argv[0]} --dataset_name ORG/DATASET --model_name_or_path ORG/MODEL --output_dir runs/mine\n"
            f"  python {sys.argv[0]} {task.own_data} --model_name_or_path ORG/MODEL --output_dir runs/mine"
        )
