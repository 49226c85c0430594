"""A run's output_dir before and between trainings: whose it is, and from which checkpoint to go on."""

import logging
import math
import re
from pathlib import Path
from typing import Any

import yaml
from accelerate.utils import gather_object

import sft_hf
from sft_hf import checkpoints, launching, storage
from sft_hf.arguments import FinetuningArguments
from sft_hf.errors import ArgumentError
from sft_hf.flags import SECRETS, Parsed

logger = logging.getLogger(__name__)

# Flags that may change when a run is continued: they say where it runs and what is told of it, not what is learned.
MAY_CHANGE = re.compile(
    r"output_dir|resume|cache_dir|hub_.*|push_.*|logging_.*|log_.*|report_to|run_name|project|trackio_.*|disable_tqdm"
    r"|dataloader_(num_workers|pin_memory|persistent_workers|prefetch_factor|multiprocessing_context)"
    r"|preprocessing_num_workers|num_cpu_threads_per_process|save_total_limit|ddp_.*|local_rank|debug"
    r"|max_nonfinite_steps|auto_find_batch_size|cache_features|per_device_eval_batch_size|(gradient|activation)_checkpointing.*|save_only_model"
)
# They may change together, if the global batch stays what it is, and is a number of examples.
OF_THE_BATCH = ("per_device_train_batch_size", "gradient_accumulation_steps")


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
    storage.write_whole(folder / "recipe.yaml", f"# sft_hf {sft_hf.__version__}\n{text}")


def state_of(folder: Path, parsed: Parsed, resume: str) -> str:
    """new | partial | complete; ArgumentError if the folder holds another run, or --resume never would overwrite one."""
    if not launching.is_main_process():  # the main process checks; by now it may have begun to write
        return "complete" if (folder / "results.json").is_file() else "partial"
    recipe = folder / "recipe.yaml"
    if not recipe.is_file():
        theirs = [path.name for path in (folder.glob("*") if folder.is_dir() else ()) if _is_a_run_s(path)]
        if theirs:
            raise ArgumentError(
                f"--output_dir {folder} holds something that is not a run of sft_hf ({', '.join(sorted(theirs)[:3])}). "
                "Choose another --output_dir."
            )
        return "new"
    if resume == "never":
        raise ArgumentError(
            f"--output_dir {folder} holds a run, and --resume never forbids to go on with it. "
            "Choose another --output_dir, or delete the folder."
        )
    there = yaml.safe_load(recipe.read_text()) or {}
    now = yaml.safe_load(yaml.safe_dump(recordable(parsed)))
    is_same_batch = _global_batch(there) == _global_batch(now) and now.get("tokens_per_batch") is None
    may_change = OF_THE_BATCH if is_same_batch else ()
    different = [
        key
        for key in sorted({*there, *now})
        if there.get(key) != now.get(key) and not MAY_CHANGE.fullmatch(key) and key not in may_change
    ]
    if different:
        shown = ", ".join(f"--{key} {now.get(key)} (there: {there.get(key)})" for key in different[:4])
        more = f" and {len(different) - 4} more" if len(different) > 4 else ""
        raise ArgumentError(
            f"--output_dir {folder} holds a run with other flags: {shown}{more}. Choose another --output_dir, or delete the folder."
        )
    return "complete" if (folder / "results.json").is_file() else "partial"


def _global_batch(values: dict[str, Any]) -> int:
    """Of one process; the number of processes is that of the checkpoint."""
    return math.prod(values.get(key) or 1 for key in OF_THE_BATCH)


def _is_a_run_s(path: Path) -> bool:
    return path.name.startswith("checkpoint-") or path.name == "config.json" or path.suffix in (".safetensors", ".bin")


def checkpoint_to_resume(training_args: FinetuningArguments) -> str | None:
    """The checkpoint that --resume means, None to begin; ArgumentError for one that is not whole or not of this run."""
    if training_args.resume == "never":
        return None
    if training_args.resume == "auto":
        checkpoint = _last_common(Path(training_args.output_dir), training_args.world_size)
        if checkpoint is None:
            return None
        if not checkpoints.can_be_resumed(checkpoint):
            logger.warning("%s has no optimizer (--save_only_model): the run begins anew", checkpoint)
            return None
    else:
        checkpoint = Path(training_args.resume)
        missing = checkpoints.what_is_missing(checkpoint)
        if missing:
            raise ArgumentError(
                f"--resume {checkpoint}: {missing}; expected auto, never or the folder of a whole checkpoint."
            )
        if not checkpoints.can_be_resumed(checkpoint):
            raise ArgumentError(
                f"--resume {checkpoint}: it has no optimizer (--save_only_model), so no run can go on from it."
            )
    _check_same_world(checkpoint, training_args.world_size)
    return str(checkpoint)


def _last_common(folder: Path, world_size: int) -> Path | None:
    """The newest checkpoint that is whole as every rank sees it: on a disk of its own, or in an older view of a shared one."""
    newest = checkpoints.last_whole(folder)
    if world_size == 1:
        return newest
    seen = gather_object(
        [{path.name for path in checkpoints.checkpoints(folder) if not checkpoints.what_is_missing(path)}]
    )
    common = set.intersection(*seen)
    return next((path for path in checkpoints.checkpoints(folder) if path.name in common), None)


def _check_same_world(checkpoint: Path, world_size: int) -> None:
    """The Trainer writes one random state for each process; another number of them means another global batch."""
    before = checkpoints.read_manifest(checkpoint)["num_processes"]
    if before != world_size:
        raise ArgumentError(
            f"{checkpoint} was written by {before} process(es), now there are {world_size}: the global batch would be another. "
            "Go on with as many, or choose another --output_dir."
        )
