"""What a run leaves in its output_dir: model, processor, results, resolved flags, predictions, model card.

    results.json    {"task", "metrics": {"validation": {"loss", "accuracy", ...}, "test": {...}}, "training": {...}, ...}
    recipe.yaml     every flag; `--config runs/a/recipe.yaml` repeats the run
    README.md       the model card, with the same numbers in its model-index

Before any of it counts as done, the saved model is reloaded as a user would and must predict what the trainer did.
"""

import importlib.metadata
import json
import logging
import platform
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from datasets import Dataset, IterableDataset
from huggingface_hub import EvalResult, ModelCard, ModelCardData

import sft_hf
from sft_hf.arguments import SECRETS, Parsed
from sft_hf.callbacks import peak_rss_mb
from sft_hf.data.labels import Labels
from sft_hf.data.sources import EXAMPLE_ID, Source
from sft_hf.errors import ReloadError
from sft_hf.hub import without_local_paths
from sft_hf.preparation import Prepared
from sft_hf.pretrained import license_of
from sft_hf.task import Columns
from sft_hf.trainer import SftTrainer

logger = logging.getLogger(__name__)

RELOAD_SAMPLE = 16
# On the pipeline's scale (probabilities, or values for regression): float32 differs by summation order alone, bfloat16
# keeps 8 bits of mantissa.
RELOAD_TOLERANCE = {"no": 1e-3, "bf16": 5e-2, "fp16": 1e-2}
VERSIONED = ("transformers", "datasets", "accelerate", "torch", "tokenizers", "evaluate", "timm")
METRIC_TYPES = {"f1_macro": "f1", "f1_micro": "f1", "f1_weighted": "f1", "mcc": "matthews_correlation", "loss": "loss"}


def recordable(parsed: Parsed) -> dict[str, Any]:
    """Flags as recipe.yaml holds them: no secrets, and null only where it takes a recipe's default back."""
    return {
        name: value
        for name, value in parsed.values.items()
        if name not in SECRETS and (value is not None or name in parsed.layers)
    }


def write_recipe(output_dir: str, parsed: Parsed) -> None:
    """Write recipe.yaml, before training, so that a killed run knows itself."""
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(recordable(parsed), sort_keys=False, allow_unicode=True)
    (folder / "recipe.yaml").write_text(f"# sft_hf {sft_hf.__version__}\n{text}", encoding="utf-8")


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
    expected: dict[int, np.ndarray],
    output_dir: str,
    *,
    trust_remote_code: bool,
) -> None:
    """Reload the saved folder with transformers.pipeline; ReloadError if it predicts something else (pitfall 18)."""
    from transformers import pipeline

    task, labels = trainer.task, prepared.labels
    saved = pipeline(task.pipeline_tag, model=output_dir, device="cpu", trust_remote_code=trust_remote_code)
    inputs = [task.pipeline_inputs(row, prepared.columns) for row in sample]
    answers = task.pipeline_predictions([saved(item, **task.pipeline_options()) for item in inputs], labels)
    wanted = task.scores(np.stack([expected[row[EXAMPLE_ID]] for row in sample]), labels)
    difference = float(np.abs(answers - wanted).max())
    scale = max(1.0, float(np.abs(wanted).max()))
    weights = {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(
        trainer.accelerator.unwrap_model(trainer.model).dtype, "no"
    )
    tolerance = max(RELOAD_TOLERANCE[weights], RELOAD_TOLERANCE[trainer.args.mixed_precision]) * scale
    if not difference <= tolerance:  # also where it is NaN
        raise ReloadError(
            f"The model saved in {output_dir}, reloaded with transformers.pipeline, differs from the trainer by "
            f"{difference:.2g} (tolerance {tolerance:.2g}) on {len(sample)} validation examples. Do not use it; please "
            "report this with recipe.yaml."
        )
    logger.info("reloaded with transformers.pipeline: %d examples differ by at most %.1e", len(sample), difference)


# ---- results ----


def training_facts(trainer: SftTrainer, *, started: float) -> dict[str, Any]:
    """Steps, seconds and memory of this process's part of the run."""
    timing, args = trainer.timing, trainer.args
    rate = trainer.num_examples_trained / timing.step_seconds if timing.step_seconds else 0.0
    return {
        "steps": trainer.state.global_step,
        "epochs": round(trainer.state.epoch or 0.0, 4),
        "seconds": round(time.time() - started, 2),
        "train_samples_per_second": round(rate, 3),
        "seconds_to_first_step": round(timing.seconds_to_first_step, 2) if timing.seconds_to_first_step else None,
        "peak_rss_mb": round(peak_rss_mb(), 1),
        "world_size": args.world_size,
        "device": str(args.device),
        "mixed_precision": args.mixed_precision,
        "best_checkpoint": Path(trainer.state.best_model_checkpoint).name
        if trainer.state.best_model_checkpoint
        else None,
    }


def write_all(
    trainer: SftTrainer,
    prepared: Prepared,
    results: dict[str, Any],
    parsed: Parsed,
    predictions: dict[int, np.ndarray] | None,
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
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def _write_predictions(path: Path, trainer: SftTrainer, prepared: Prepared, predictions: dict[int, np.ndarray]) -> None:
    path.parent.mkdir(exist_ok=True)
    rows, columns = prepared.rows["test"], prepared.columns
    label_feature = columns.label_feature(rows)
    with open(path, "w", encoding="utf-8") as file:
        for row in rows:
            prediction = predictions[row[EXAMPLE_ID]]
            line = {EXAMPLE_ID: row[EXAMPLE_ID], **{name: row[name] for name in columns.inputs}}
            line |= trainer.task.describe(prediction, prepared.labels, trainer.thresholds)
            truth = prepared.labels.encode(row[columns.label], label_feature) if columns.label in row else None
            if truth is not None:
                line["label"] = label_in_words(truth, prepared.labels)
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def label_in_words(encoded: int | list[float], labels: Labels) -> Any:
    """An encoded label as a person reads it: a name, a list of names, or numbers."""
    if labels.problem_type == "single_label_classification":
        return labels.names[encoded]
    if labels.problem_type == "multi_label_classification":
        return [name for name, active in zip(labels.names, encoded, strict=True) if active]
    return encoded


# ---- the model card ----


def make_card(trainer: SftTrainer, prepared: Prepared, results: dict[str, Any], parsed: Parsed) -> ModelCard:
    """A card whose metadata the Hub accepts also for data that it does not have (pitfall 35)."""
    source, args = prepared.source, trainer.args
    name = (args.hub_model_id or Path(args.output_dir).resolve().name).split("/")[-1]
    base_model = prepared.model_source.hub_id
    data = ModelCardData(
        model_name=name,
        base_model=base_model,
        datasets=[source.hub_id] if source.hub_id else None,
        license=license_of(parsed.instances[1]),
        library_name="transformers",
        pipeline_tag=trainer.task.pipeline_tag,
        tags=["sft_hf", "generated_from_trainer"],
        eval_results=_eval_results(trainer, source, results),
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{_card_text(name, trainer, prepared, results, parsed)}")


def _eval_results(trainer: SftTrainer, source: Source, results: dict[str, Any]) -> list[EvalResult]:
    entries = []
    for split, metrics in results["metrics"].items():
        for name, value in metrics.items():
            if isinstance(value, float) and name != "epoch":
                entries.append(
                    EvalResult(
                        task_type=trainer.task.pipeline_tag,
                        dataset_type=source.hub_id or source.name.replace("builtin:", "").replace(" ", "_"),
                        dataset_name=source.name,
                        dataset_config=source.config_name,
                        dataset_split=split,
                        dataset_revision=source.revision,
                        metric_type=METRIC_TYPES.get(name, name),
                        metric_name=f"{name} ({split})",
                        metric_value=round(value, 5),
                    )
                )
    return entries


def _card_text(name: str, trainer: SftTrainer, prepared: Prepared, results: dict[str, Any], parsed: Parsed) -> str:
    base = prepared.model_source.hub_id or prepared.model_source.name
    base = base if prepared.model_source.hub_id or base.startswith("builtin:") else Path(base).name
    lines = [
        f"# {name}",
        "",
        f"{base} fine-tuned on {prepared.source.name} with sft_hf for {trainer.task.pipeline_tag.replace('-', ' ')}.",
        "",
        "## Results",
        "",
        _metrics_table(results["metrics"]),
        "",
        *_thresholds_text(results),
        "## Use",
        "",
        "```python",
        *_usage(trainer, prepared),
        "```",
        "",
        "## Labels",
        "",
        f"{prepared.labels.problem_type}: {', '.join(prepared.labels.names)}",
        "",
        "## Training",
        "",
        f"{results['training']['steps']} steps, {results['training']['epochs']} epochs, "
        f"{results['training']['seconds']:.0f} s on {results['training']['world_size']} process(es) "
        f"({results['training']['device']}, mixed precision {results['training']['mixed_precision']}).",
        "",
        "```bash",
        command(parsed),
        "```",
        "",
        "Every flag is in `recipe.yaml`; every number is in `results.json`.",
        "",
        "Versions: " + ", ".join(f"{package} {version}" for package, version in results["versions"].items()) + ".",
        "",
    ]
    return "\n".join(lines)


def _metrics_table(metrics: dict[str, dict[str, float]]) -> str:
    names = [name for name in next(iter(metrics.values())) if name != "epoch"]
    rows = [f"| metric | {' | '.join(metrics)} |", "|---" * (len(metrics) + 1) + "|"]
    for name in names:
        rows.append(f"| {name} | " + " | ".join(_number(split.get(name)) for split in metrics.values()) + " |")
    return "\n".join(rows)


def _number(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else "" if value is None else str(value)


def _thresholds_text(results: dict[str, Any]) -> list[str]:
    if results["thresholds"] is None:
        return []
    return [
        "A label counts as predicted where its score reaches its threshold in `config.thresholds`, tuned on validation "
        "(so the validation F1 is optimistic); `*_at_half` uses 0.5 for all.",
        "",
    ]


def _usage(trainer: SftTrainer, prepared: Prepared) -> list[str]:
    where = trainer.args.hub_model_id or "path/to/this/folder"
    imports = ["import sft_hf  # registers the architecture"] if prepared.model_source.architecture else []
    return [
        *imports,
        "from transformers import pipeline",
        "",
        f'classifier = pipeline("{trainer.task.pipeline_tag}", model="{where}")',
        'classifier("...", truncation=True)',
    ]


def command(parsed: Parsed) -> str:
    """The command of the run by the flags that differ from the recipe's, local folders left out."""
    explicit = {
        name: value for name, value in recordable(parsed).items() if parsed.layers.get(name, "recipe") != "recipe"
    }
    shareable = yaml.safe_load(without_local_paths(yaml.safe_dump(explicit))) or {}
    parts = ["accelerate launch", f"recipes/{Path(sys.argv[0]).name}"]
    for name, value in shareable.items():
        if value is None:  # has no form on the command line; recipe.yaml has it
            continue
        items = value if isinstance(value, list) else [str(value).lower() if isinstance(value, bool) else value]
        parts.append(f"--{name} " + " ".join(shlex.quote(str(item)) for item in items))
    return " ".join(parts)


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
        table.add_row(name, *(_number(values.get(name)) for values in metrics.values()), style=style)
    Console(soft_wrap=False).print(table)


def print_next_command(source: Source, output_dir: str) -> None:
    """Where everything is and, after a demo set, the command for the user's own data."""
    print(f"Model, card and results: {output_dir}")
    if source.kind == "builtin":
        print(
            "Your own data:\n"
            f"  accelerate launch {sys.argv[0]} --dataset_name ORG/DATASET --model_name_or_path ORG/MODEL --output_dir runs/mine\n"
            f"  python {sys.argv[0]} --train_file train.csv --test_file test.csv --model_name_or_path ORG/MODEL "
            "--output_dir runs/mine"
        )
