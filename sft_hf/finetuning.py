"""The pipeline, top to bottom: flags -> data -> processor -> model -> Trainer -> train -> evaluate -> artefacts -> push.

`finetune` is what a recipe calls; `build_trainer` is the same up to the Trainer, for notebooks and tests.
"""

import json
import logging
import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from datasets import Dataset, IterableDataset
from transformers import EarlyStoppingCallback, PreTrainedModel, set_seed

from sft_hf import artefacts, hub, launching
from sft_hf.arguments import (
    DataArguments,
    FinetuningArguments,
    ModelArguments,
    Parsed,
    parse_arguments,
    resolve_cpu_precision,
)
from sft_hf.configuration import apply_environment, config_environment
from sft_hf.data.labels import Labels
from sft_hf.data.sources import EXAMPLE_ID, Source, from_memory, load_splits, sample
from sft_hf.data.splits import hold_out, overlapping_rows
from sft_hf.errors import ArgumentError, DataError
from sft_hf.method import Method
from sft_hf.pretrained import ModelSource, freeze_base_model, resolve_model
from sft_hf.task import AnyDataset, Columns, Task
from sft_hf.trainer import SftTrainer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """What the stages before the Trainer made."""

    source: Source
    columns: Columns
    labels: Labels
    rows: dict[str, AnyDataset]  # the rows that each split uses, as the source has them
    examples: dict[str, AnyDataset]  # the same, preprocessed
    held_out: list[int] | None  # example ids of the validation split, where it was held out
    processor: Any
    model: PreTrainedModel
    model_source: ModelSource


def finetune(
    task_class: type[Task],
    /,
    *,
    methods: Sequence[type[Method]] = (),
    model_defaults: Mapping[str, Mapping[str, Any]] | None = None,
    description: str | None = None,
    **defaults: Any,
) -> dict[str, float]:
    """Run a recipe by the flags of the command line; returns the metrics of the last evaluated split.

    `defaults` are the recipe's flags; `model_defaults` replace some of them for a model of that name, or, under
    "from_scratch", where the weights start random. Ends the process with the exit codes of `sft_hf.errors` when something
    goes wrong.
    """
    with launching.exit_codes():
        arguments = sys.argv[1:]
        if apply_environment(config_environment(arguments)):
            # The libraries read most variables when they are imported, which is over.
            os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
        parsed = parse_arguments(
            (DataArguments, ModelArguments, FinetuningArguments, task_class, *methods),
            arguments,
            defaults=defaults,
            model_defaults=model_defaults,
            description=description,
        )
        return _run(parsed)


def _run(parsed: Parsed) -> dict[str, float]:
    data_args, model_args, training_args, task, *methods = parsed.instances
    started = time.time()
    _set_up_logging(training_args)
    launching.check_world_size(training_args.world_size)
    state = _state_of(Path(training_args.output_dir), parsed, training_args.resume)
    if training_args.push_to_hub:
        training_args.hub_model_id = _check_hub(training_args)
    if state == "complete":
        return _finish_complete_run(training_args, parsed)
    if launching.is_main_process():
        artefacts.write_recipe(training_args.output_dir, parsed)
    trainer, prepared = _build(task, data_args, model_args, training_args, methods=tuple(methods), datasets=None)
    _train(trainer, training_args)
    results, predictions = _evaluate(trainer, prepared, started=started)
    _leave_behind(trainer, prepared, results, parsed, predictions)
    return results["metrics"].get("test") or results["metrics"]["validation"]


def build_trainer(
    task: Task,
    data_args: DataArguments,
    model_args: ModelArguments,
    training_args: FinetuningArguments,
    *,
    methods: Sequence[Method] = (),
    datasets: Mapping[str, AnyDataset] | None = None,
) -> SftTrainer:
    """Every stage up to the Trainer, ready for `.train()` and `.evaluate()`.

    `datasets` (a DatasetDict with `train`, and `validation` and `test` where there are any) takes the place of the source that
    `data_args` name. Raises the errors of `sft_hf.errors`.
    """
    return _build(task, data_args, model_args, training_args, methods=tuple(methods), datasets=datasets)[0]


def _build(task, data_args, model_args, training_args, *, methods, datasets) -> tuple[SftTrainer, Prepared]:
    launching.keep_freed_memory()
    for line in (
        launching.use_all_cores(training_args.num_cpu_threads_per_process),
        resolve_cpu_precision(training_args),
    ):
        if line:
            logger.info(line)
    resolve_model(model_args)  # a misspelt model is an error before the dataset is downloaded
    with training_args.main_process_first(desc="data"):
        prepared = prepare(task, data_args, model_args, training_args, datasets=datasets)
    if model_args.freeze_base_model:
        freeze_base_model(prepared.model)
    model = prepared.model
    for method in methods:
        model = method.wrap_model(model)
    loss = task.load_loss(prepared.examples["train"], prepared.labels, training_args)
    _choose_best_metric(task, prepared.labels, model_args, training_args)
    callbacks = [callback for method in methods for callback in method.callbacks()]
    if training_args.early_stopping_patience is not None:
        if training_args.eval_strategy == "no" or not training_args.load_best_model_at_end:
            raise ArgumentError("--early_stopping_patience needs --eval_strategy and --load_best_model_at_end true.")
        callbacks.append(EarlyStoppingCallback(training_args.early_stopping_patience))
    trainer = SftTrainer(
        task=task,
        loss=loss,
        make_metrics=lambda: task.load_metrics(prepared.labels, model_args),
        methods=methods,
        hub_model_id=training_args.hub_model_id,
        freeze_base_model=model_args.freeze_base_model,
        model=model,
        args=training_args,
        data_collator=task.data_collator(prepared.processor, model),
        train_dataset=prepared.examples["train"],
        eval_dataset=prepared.examples["validation"],
        processing_class=prepared.processor,
        callbacks=callbacks,
    )
    return trainer, prepared


def prepare(
    task: Task,
    data_args: DataArguments,
    model_args: ModelArguments,
    training_args: FinetuningArguments,
    *,
    datasets: Mapping[str, AnyDataset] | None = None,
) -> Prepared:
    """The stages from the source to the preprocessed splits and the model."""
    source = (
        from_memory(datasets, data_args)
        if datasets is not None
        else load_splits(data_args, token=model_args.token, cache_dir=model_args.cache_dir)
    )
    _check_streaming(source, data_args, training_args)
    columns = task.columns(source.splits["train"].features)
    labels = task.labels(source.splits, columns)
    rows = {
        split: task.select_examples(dataset, columns, labels, split=split) for split, dataset in source.splits.items()
    }
    rows, held_out = _with_validation(rows, task, columns, labels, data_args, training_args.seed)
    rows = _handle_overlap(rows, task, columns, data_args)
    rows = _sampled(rows, data_args, training_args.seed)
    _say_sizes(rows, labels, source)
    set_seed(training_args.seed)  # the new head's weights are a function of the seed, whatever ran before
    processor = task.load_processor(model_args, rows["train"], columns)
    model = task.load_model(model_args, labels, processor)
    examples = {
        split: task.preprocess(
            dataset, columns, labels, processor, split=split, num_workers=data_args.preprocessing_num_workers
        )
        for split, dataset in rows.items()
    }
    return Prepared(source, columns, labels, rows, examples, held_out, processor, model, resolve_model(model_args))


def _check_streaming(source: Source, data_args: DataArguments, training_args: FinetuningArguments) -> None:
    """A stream is never whole: what needs it whole is given by a flag or refused."""
    if not isinstance(source.splits["train"], IterableDataset):
        return
    # Rank 0 would put the ranks' batches together, which are padded to different lengths.
    training_args.accelerator_config.dispatch_batches = False
    if training_args.max_steps <= 0:
        raise ArgumentError("--streaming: the length of the training set is not known; give --max_steps.")
    if "validation" not in source.splits:
        raise ArgumentError(
            "--streaming: a hold-out needs the whole training set; name a split with --validation_split_name "
            "(or --validation_file)."
        )
    if data_args.drop_overlapping_examples:
        raise ArgumentError("--drop_overlapping_examples compares whole splits, --streaming never has them.")
    if training_args.train_sampling_strategy == "group_by_length":
        raise ArgumentError(
            "--streaming: grouping by length needs the whole training set; give --train_sampling_strategy random."
        )


def _with_validation(
    rows: dict[str, AnyDataset],
    task: Task,
    columns: Columns,
    labels: Labels,
    data_args: DataArguments,
    seed: int,
) -> tuple[dict[str, AnyDataset], list[int] | None]:
    """A seeded hold-out of the training split where the source has no validation split (pitfall 15)."""
    if "validation" in rows:
        return rows, None
    train = rows["train"]
    groups = None
    if data_args.validation_group_column:
        column = data_args.validation_group_column
        if column not in train.column_names:
            raise DataError(f"--validation_group_column {column}: the columns are {', '.join(train.column_names)}.")
        groups = list(train[column])
    chosen = hold_out(
        num_rows=len(train),
        fraction=data_args.validation_fraction,
        seed=seed,
        stratify=task.stratify(train, columns, labels),
        groups=groups,
    )
    validation = train.select(chosen.validation)
    logger.info("no validation split: %d of %d rows are held out (seed %d)", len(validation), len(train), seed)
    split = {"train": train.select(chosen.train), "validation": validation}
    return {**split, **{name: data for name, data in rows.items() if name not in split}}, list(validation[EXAMPLE_ID])


def _handle_overlap(
    rows: dict[str, AnyDataset], task: Task, columns: Columns, data_args: DataArguments
) -> dict[str, AnyDataset]:
    """Count the training inputs that also stand in validation or test; --drop_overlapping_examples drops them."""
    if any(isinstance(dataset, IterableDataset) for dataset in rows.values()):
        return rows
    keys = {split: task.example_keys(dataset, columns) for split, dataset in rows.items()}
    overlapping: set[int] = set()
    for split in rows:
        if split != "train":
            found = overlapping_rows(keys["train"], keys[split])
            if found:
                logger.warning("%d training inputs also stand in %s", len(found), split)
            overlapping |= set(found)
    if not overlapping:
        return rows
    if not data_args.drop_overlapping_examples:
        logger.warning("scores may be too good by that; --drop_overlapping_examples drops them from training")
        return rows
    keep = [row for row in range(len(rows["train"])) if row not in overlapping]
    return {**rows, "train": rows["train"].select(keep)}


def _sampled(rows: dict[str, AnyDataset], data_args: DataArguments, seed: int) -> dict[str, AnyDataset]:
    limits = {
        "train": ("--max_train_samples", data_args.max_train_samples),
        "validation": ("--max_eval_samples", data_args.max_eval_samples),
        "test": ("--max_predict_samples", data_args.max_predict_samples),
    }
    buffer_size = data_args.shuffle_buffer_size
    rows = {
        split: sample(dataset, limits[split][1], seed=seed, flag=limits[split][0], buffer_size=buffer_size)
        for split, dataset in rows.items()
    }
    if isinstance(rows["train"], IterableDataset):
        return {**rows, "train": rows["train"].shuffle(seed=seed, buffer_size=buffer_size)}
    for split, dataset in rows.items():
        if isinstance(dataset, Dataset) and len(dataset) == 0:
            raise DataError(f"The {split} split has no usable row.")
    return rows


def _say_sizes(rows: dict[str, AnyDataset], labels: Labels, source: Source) -> None:
    sizes = ", ".join(
        f"{split} {len(data) if isinstance(data, Dataset) else 'streamed'}" for split, data in rows.items()
    )
    names = ", ".join(labels.names[:8]) + (", ..." if labels.num_labels > 8 else "")
    logger.info("%s: %s; %s with %d outputs: %s", source.name, sizes, labels.problem_type, labels.num_labels, names)


def _choose_best_metric(
    task: Task, labels: Labels, model_args: ModelArguments, training_args: FinetuningArguments
) -> None:
    """The task's own metric decides which checkpoint is best, unless the user names one."""
    metrics = task.load_metrics(labels, model_args)
    training_args.metric_for_best_model = training_args.metric_for_best_model or metrics.main
    name = training_args.metric_for_best_model.removeprefix("eval_")
    if name not in metrics.names and metrics.extra is not None:
        if training_args.greater_is_better is None:
            raise ArgumentError(
                f"--metric_for_best_model {name} is not one of ours: give --greater_is_better true or false."
            )
    elif name not in metrics.names:
        raise ArgumentError(
            f"--metric_for_best_model {name}: {labels.problem_type} has {', '.join(sorted(metrics.names))}."
        )
    if training_args.greater_is_better is None:
        training_args.greater_is_better = name not in metrics.lower_is_better


# ---- a run's folder ----

# Flags that may change when a run is continued: they say where it runs and what is told of it, not what is learned.
MAY_CHANGE = re.compile(
    r"output_dir|resume|cache_dir|hub_.*|push_.*|logging_.*|log_.*|report_to|run_name|project|trackio_.*|disable_tqdm"
    r"|dataloader_(num_workers|pin_memory|persistent_workers|prefetch_factor|multiprocessing_context)"
    r"|preprocessing_num_workers|num_cpu_threads_per_process|save_total_limit|ddp_.*|local_rank|debug"
)


def _state_of(folder: Path, parsed: Parsed, resume: str) -> str:
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
    now = yaml.safe_load(yaml.safe_dump(artefacts.recordable(parsed)))
    different = [
        key for key in sorted({*there, *now}) if there.get(key) != now.get(key) and not MAY_CHANGE.fullmatch(key)
    ]
    if different:
        shown = ", ".join(f"--{key} {now.get(key)} (there: {there.get(key)})" for key in different[:4])
        more = f" and {len(different) - 4} more" if len(different) > 4 else ""
        raise ArgumentError(
            f"--output_dir {folder} holds a run with other flags: {shown}{more}. Choose another --output_dir, or delete the folder."
        )
    return "complete" if (folder / "results.json").is_file() else "partial"


def _is_a_run_s(path: Path) -> bool:
    return path.name.startswith("checkpoint-") or path.name == "config.json" or path.suffix in (".safetensors", ".bin")


def _check_hub(training_args: FinetuningArguments) -> str:
    name = training_args.hub_model_id or Path(training_args.output_dir).resolve().name
    if not launching.is_main_process():
        return name
    return hub.check_write_access(name, token=training_args.hub_token, private=training_args.hub_private_repo)


def _finish_complete_run(training_args: FinetuningArguments, parsed: Parsed) -> dict[str, float]:
    folder = Path(training_args.output_dir)
    results = json.loads((folder / "results.json").read_text())
    logger.info("%s holds this run, complete; nothing is trained again. Delete the folder to repeat it.", folder)
    if launching.is_main_process():
        if training_args.push_to_hub:
            _push(training_args)
        artefacts.print_results(results)
    return results["metrics"].get("test") or results["metrics"]["validation"]


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end: the Trainer writes trainer_state.json last."""
    checkpoints = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[-1]), reverse=True)
    for checkpoint in checkpoints:
        if _is_whole(checkpoint):
            return checkpoint
        logger.warning("%s was not written to its end and is passed over", checkpoint)
    return None


def _is_whole(checkpoint: Path) -> bool:
    try:
        json.loads((checkpoint / "trainer_state.json").read_text())
    except (OSError, ValueError):
        return False
    return True


def _checkpoint_to_resume(training_args: FinetuningArguments) -> str | None:
    if training_args.resume == "never":
        return None
    if training_args.resume == "auto":
        found = last_checkpoint(Path(training_args.output_dir))
        return str(found) if found else None
    if not _is_whole(Path(training_args.resume)):
        raise ArgumentError(
            f"--resume {training_args.resume}: expected auto, never or the folder of a whole checkpoint."
        )
    return training_args.resume


# ---- train, evaluate, leave behind ----


def _train(trainer: SftTrainer, training_args: FinetuningArguments) -> None:
    checkpoint = _checkpoint_to_resume(training_args)
    if checkpoint:
        _check_same_world(Path(checkpoint), training_args.world_size)
        logger.info("going on from %s", checkpoint)
    with trainer.signals.watching():
        trainer.train(resume_from_checkpoint=checkpoint)
    left = last_checkpoint(Path(training_args.output_dir))
    trainer.signals.check(str(left) if left else None)


def _check_same_world(checkpoint: Path, world_size: int) -> None:
    """The Trainer writes one random state for each process; another number of them means another global batch."""
    before = max(1, len(list(checkpoint.glob("rng_state_*.pth"))))
    if before != world_size:
        raise ArgumentError(
            f"{checkpoint} was written by {before} process(es), now there are {world_size}: the global batch would be another. "
            "Go on with as many, or choose another --output_dir."
        )


def _evaluate(
    trainer: SftTrainer, prepared: Prepared, *, started: float
) -> tuple[dict[str, Any], dict[int, np.ndarray] | None]:
    """The best model on validation and, once, on test: the results, and the predictions for test."""
    metrics, predictions = {"validation": _plain(trainer.evaluate(), "eval")}, None
    test = prepared.examples.get("test")
    if test is not None and _is_labelled(test):
        on_test, predictions = trainer.evaluate_and_predict(test, metric_key_prefix="test")
        metrics["test"] = _plain(on_test, "test")
    elif test is not None:
        predictions = trainer.predictions(test)
    training = artefacts.training_facts(trainer, started=started)
    return {"task": trainer.task.pipeline_tag, "metrics": metrics, "training": training}, predictions


def _is_labelled(dataset: AnyDataset) -> bool:
    if isinstance(dataset, IterableDataset):
        first = next(iter(dataset), {})
        return first.get("labels") is not None
    return "labels" in dataset.column_names


def _plain(metrics: dict[str, float], prefix: str) -> dict[str, float]:
    """`eval_f1_macro` -> `f1_macro`, without the Trainer's clock."""
    left_out = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time", "mem")
    plain = {name.removeprefix(f"{prefix}_"): value for name, value in metrics.items() if name.startswith(f"{prefix}_")}
    return {name: value for name, value in plain.items() if not name.startswith(left_out)}


def _leave_behind(
    trainer: SftTrainer,
    prepared: Prepared,
    results: dict[str, Any],
    parsed: Parsed,
    predictions: dict[int, np.ndarray] | None,
) -> None:
    training_args = trainer.args
    sample_rows = artefacts.reload_sample(prepared.rows["validation"], prepared.columns)
    expected = trainer.predictions(artefacts.matching(prepared.examples["validation"], sample_rows))
    artefacts.save_model(trainer, prepared, training_args.output_dir)
    if not launching.is_main_process():
        return
    artefacts.check_reload(
        trainer,
        prepared,
        sample_rows,
        expected,
        training_args.output_dir,
        trust_remote_code=parsed.instances[1].trust_remote_code,
    )
    artefacts.write_all(trainer, prepared, results, parsed, predictions)
    if training_args.push_to_hub:
        _push(training_args)
    artefacts.print_results(results)
    artefacts.print_next_command(prepared.source, training_args.output_dir)


def _push(training_args: FinetuningArguments) -> str:
    url = hub.push_folder(
        training_args.output_dir,
        training_args.hub_model_id,
        token=training_args.hub_token,
        private=training_args.hub_private_repo,
        push_examples=training_args.push_examples,
        revision=training_args.hub_revision,
    )
    logger.info("pushed: %s", url)
    return url


def _set_up_logging(training_args: FinetuningArguments) -> None:
    root = logging.getLogger("sft_hf")
    root.setLevel(logging.INFO if launching.is_main_process() else logging.ERROR)
    if not root.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
        root.addHandler(handler)
        root.propagate = False
