"""Our side: a recipe with its defaults, and what its results.json says."""

import json
from pathlib import Path
from typing import Any


def flags(case: dict[str, Any]) -> list[str]:
    """The case as flags of its recipe: what all sides share; everything else is the recipe's default."""
    shared = {
        "model_name_or_path": case["model"],
        "output_dir": case["output_dir"],
        "learning_rate": case["learning_rate"],
        "max_steps": case["max_steps"],
        "per_device_train_batch_size": case["batch_size"],
        "per_device_eval_batch_size": case["eval_batch_size"],
        "seed": case["seed"],
        "report_to": "none",
        "disable_tqdm": True,
        "eval_strategy": "no",
        "save_strategy": "no",
        "load_best_model_at_end": False,
    }
    given = [item for name, value in (shared | case["ours"]).items() for item in (f"--{name}", *_values(value))]
    return given + case["flags"]


def _values(value: Any) -> list[str]:
    return [str(one) for one in (value if isinstance(value, list) else [value])]


def figures(case: dict[str, Any]) -> dict[str, Any]:
    """From results.json of the run."""
    results = json.loads((Path(case["output_dir"]) / "results.json").read_text())
    training, metrics = results["training"], results["metrics"].get("test") or results["metrics"]["validation"]
    return {
        "train_samples_per_second": training["train_samples_per_second"],
        "seconds_to_first_step": training["seconds_to_first_step"],
        "eval_samples_per_second": training.get("eval_samples_per_second"),
        "metric": metrics[case["metric"]],
    }
