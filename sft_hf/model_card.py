"""The model card: README.md of a run, with its numbers in the metadata too, which is what the Hub shows beside the model.

    model-index: [{name: a, results: [{task: {type: text-classification}, metrics: [{type: accuracy, value: 0.9}]}]}]
    ## Results    | metric | validation | test |
    ## Use        classifier = pipeline("text-classification", model="ME/a")
    ## Training   accelerate launch recipes/text_cls.py --dataset_name PolyAI/banking77 --learning_rate 5e-5

It goes to the Hub with the model: no folder of the machine is in it, and no name that the Hub would refuse (pitfall 35). The names of
classes are whatever stands in somebody's data: they are shown, and are no markup.
"""

import re
import shlex
import sys
import unicodedata
from html import escape
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from sft_hf.data.sources import Source
from sft_hf.flags import Parsed
from sft_hf.hub import without_local_paths
from sft_hf.preparation import Prepared
from sft_hf.pretrained import license_of
from sft_hf.run_folder import recordable
from sft_hf.trainer import SftTrainer

METRIC_TYPES = {"f1_macro": "f1", "f1_micro": "f1", "f1_weighted": "f1", "mcc": "matthews_correlation", "loss": "loss"}


def make_card(trainer: SftTrainer, prepared: Prepared, results: dict[str, Any], parsed: Parsed) -> ModelCard:
    """A card whose metadata the Hub accepts also for data that it does not have (pitfall 35)."""
    source, args = prepared.source, trainer.args
    name = (args.hub_model_id or Path(args.output_dir).resolve().name).split("/")[-1]
    base_model = prepared.base_source.hub_id
    data = ModelCardData(
        model_name=name,
        base_model=base_model,
        datasets=[source.hub_id] if source.hub_id else None,
        license=license_of(prepared.base_source, parsed.instances[1]),
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
    began = "trained from random weights" if prepared.base_source.is_random else "fine-tuned"
    if prepared.base_source is not prepared.model_source:
        began = f"over the pretrained backbone {prepared.base_source.hub_id or Path(prepared.base_source.name).name} {began}"
    lines = [
        f"# {name}",
        "",
        f"{base} {began} on {literal(prepared.source.name)} with sft_hf for {trainer.task.pipeline_tag.replace('-', ' ')}.",
        "",
        "## Results",
        "",
        _metrics_table(results["metrics"]),
        "",
        *_thresholds_text(results),
        *_per_class_table(results),
        "## Use",
        "",
        "```python",
        *_usage(trainer, prepared),
        "```",
        "",
        "## Labels",
        "",
        f"{prepared.labels.problem_type}: {', '.join(map(literal, prepared.labels.names)) or literal(prepared.labels.column_name)}",
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
        rows.append(f"| {name} | " + " | ".join(cell(split.get(name)) for split in metrics.values()) + " |")
    return "\n".join(rows)


def _per_class_table(results: dict[str, Any]) -> list[str]:
    """The numbers of each class on the last split that has them."""
    if not results.get("per_class"):
        return []
    split, numbers = list(results["per_class"].items())[-1]
    classes = list(dict.fromkeys(name for values in numbers.values() for name in values))
    rows = [
        f"| {literal(name)} | " + " | ".join(cell(values.get(name)) for values in numbers.values()) + " |"
        for name in classes
    ]
    return [f"| class ({split}) | {' | '.join(numbers)} |", "|---" * (len(numbers) + 1) + "|", *rows, ""]


def literal(name: str) -> str:
    """A name in Markdown, on one line, that stands for itself: no HTML, link, emphasis or end of a table's cell."""
    line = "".join(" " if unicodedata.category(one) in ("Cc", "Zl", "Zp") else one for one in name)
    return re.sub(r"[\\`*\[\]|~]", r"\\\g<0>", escape(" ".join(line.split()), quote=False))


def cell(value: Any) -> str:
    """A number as a table shows it; nothing for None."""
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
    example = trainer.task.usage_example()
    name = example.split("(")[0]
    return [
        *imports,
        "from transformers import pipeline",
        "",
        f'{name} = pipeline("{trainer.task.pipeline_tag}", model="{where}")',
        example,
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
