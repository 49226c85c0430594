"""The pipeline, top to bottom: flags -> data -> processor -> model -> Trainer -> train -> evaluate -> artefacts -> push.

`finetune` is what a recipe calls; `build_trainer` is the same up to the Trainer, for notebooks and tests.
"""

import json
import logging
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from datasets import IterableDataset
from transformers import EarlyStoppingCallback

from sft_hf import artefacts, checkpoints, features, hub, launching, resources, run_folder
from sft_hf.arguments import DataArguments, FinetuningArguments, ModelArguments, resolve_cpu_precision
from sft_hf.configuration import apply_environment, config_environment
from sft_hf.data.labels import Labels
from sft_hf.data.sources import EXAMPLE_ID
from sft_hf.errors import ArgumentError, HubError
from sft_hf.flags import Parsed, parse_arguments
from sft_hf.method import Method
from sft_hf.preparation import Prepared, first_rank_first, prepare
from sft_hf.pretrained import freeze_base_model, resolve_model
from sft_hf.sharding import whole_models
from sft_hf.task import AnyDataset, Task
from sft_hf.trainer import SftTrainer

logger = logging.getLogger(__name__)


def finetune(
    task_class: type[Task],
    /,
    *,
    methods: Sequence[type[Method]] = (),
    model_defaults: Mapping[str | tuple[str, str], Mapping[str, Any]] | None = None,
    description: str | None = None,
    **defaults: Any,
) -> dict[str, float]:
    """Run a recipe by the flags of the command line; returns the metrics of the last evaluated split.

    `defaults` are the recipe's flags; `model_defaults` replace some of them for a model of that name, for a pair of model and
    dataset, or, under "from_scratch", where the weights start random. Ends the process with the exit codes of `sft_hf.errors` when something
    goes wrong.
    """
    with launching.exit_codes():
        arguments = sys.argv[1:]
        if apply_environment(config_environment(arguments)):
            # The libraries read most variables when they are imported, which is over.
            os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
        if launching.is_launched():
            launching.end_with_the_launcher()
        launching.check_sharding()
        with launching.finding_each_other():  # the arguments of the Trainer join the process group
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
    launching.check_sharding(use_cpu=training_args.use_cpu)
    if line := launching.check_devices(use_cpu=training_args.use_cpu):
        logger.info(line)
    if not training_args.save_on_each_node:
        with launching.finding_each_other():
            launching.check_shared_folder(Path(training_args.output_dir))
    state = run_folder.state_of(Path(training_args.output_dir), parsed, training_args.resume)
    if training_args.push_to_hub:
        training_args.hub_model_id = _check_hub(training_args)
    if state == "complete":
        return _finish_complete_run(training_args, parsed)
    if launching.is_main_process():
        run_folder.write_recipe(training_args.output_dir, parsed)
    with resources.explained(training_args):
        with hub.explained():
            trainer, prepared = _build(
                task, data_args, model_args, training_args, methods=tuple(methods), datasets=None
            )
        with _saying_what_is_left(training_args), hub.explained():
            _train(trainer, training_args)
            results, predictions = _evaluate(trainer, prepared, started=started)
            _leave_behind(trainer, prepared, results, parsed, predictions)
    return _last_metrics(results)


@contextmanager
def _saying_what_is_left(training_args: FinetuningArguments) -> Iterator[None]:
    """A Hub that fails while a run streams ends it, and it can go on."""
    try:
        yield
    except HubError as error:
        left = checkpoints.last_whole(Path(training_args.output_dir))
        told = (
            f"The checkpoint {left} is whole; the same command goes on from there."
            if left
            else "No checkpoint was written yet; the same command begins anew."
        )
        raise HubError(f"{launching.message_of(error)} {told}") from error


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
    _use_one_accelerator(training_args)
    for line in (
        launching.use_all_cores(training_args.num_cpu_threads_per_process),
        launching.how_idle_threads_wait(use_cpu=training_args.use_cpu),
        resolve_cpu_precision(training_args),
    ):
        if line:
            logger.info(line)
    features.check_flags(task, training_args, freeze_base_model=model_args.freeze_base_model)
    resolve_model(model_args)  # a misspelt model is an error before the dataset is downloaded
    with first_rank_first(training_args), whole_models():
        prepared = prepare(task, data_args, model_args, training_args, datasets=datasets)
    if model_args.freeze_base_model:
        freeze_base_model(prepared.model)
    methods = tuple(method.prepare(labels=prepared.labels) for method in methods)
    model = prepared.model
    for method in methods:
        model = method.wrap_model(model)
    loss = task.load_loss(prepared.examples["train"], prepared.labels, training_args, model)
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
        **_readers(task, prepared, training_args),
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


def _use_one_accelerator(training_args: FinetuningArguments) -> None:
    """Of several GPUs that one process sees the first, not all by torch.nn.DataParallel with a batch as many times as large."""
    training_args._n_gpu = min(training_args.n_gpu, 1)


def _readers(task: Task, prepared: Prepared, training_args: FinetuningArguments) -> dict[str, Any]:
    """What reads the rows of training and of evaluation, where they become examples on the fly."""
    make = partial(task.load_reader, prepared.processor, prepared.model, prepared.columns, prepared.labels)
    train, evaluation = (make(split=split, seed=training_args.order_seed) for split in ("train", "evaluation"))
    if training_args.chooses_num_workers and train:
        training_args.dataloader_num_workers = launching.num_reading_workers(on_cpu=training_args.use_cpu)
    return {"read_train": train, "read_evaluation": evaluation}


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
    return _last_metrics(results)


# ---- train, evaluate, leave behind ----


def _train(trainer: SftTrainer, training_args: FinetuningArguments) -> None:
    checkpoint = run_folder.checkpoint_to_resume(training_args)
    if checkpoint:
        logger.info("going on from %s", checkpoint)
    if training_args.should_save:
        checkpoints.discard_broken(Path(training_args.output_dir))
    with trainer.signals.watching():
        trainer.train(resume_from_checkpoint=checkpoint)
    left = checkpoints.last_whole(Path(training_args.output_dir))
    trainer.signals.check(str(left) if left else None)


def _evaluate(
    trainer: SftTrainer, prepared: Prepared, *, started: float
) -> tuple[dict[str, Any], dict[int, np.ndarray] | None]:
    """The best model on validation and, once, on test: the results, and the predictions for test."""
    measured, predictions = {"validation": trainer.validate()}, None
    test = prepared.examples.get("test")
    keep = partial(trainer.task.keep_prediction, folder=Path(trainer.args.output_dir) / "predictions")
    if test is not None and _is_labelled(test):
        measured["test"], predictions = trainer.evaluate_and_predict(test, metric_key_prefix="test", keep=keep)
    elif test is not None:
        predictions = trainer.predictions(test, keep=keep)
    metrics = {split: _plain(values, artefacts.SPLIT_PREFIXES[split]) for split, values in measured.items()}
    training = artefacts.training_facts(trainer, measured, started=started)
    training |= artefacts.speed_of_sound(trainer.task, prepared.examples, training, measured)
    details = {split: trainer.accumulated[artefacts.SPLIT_PREFIXES[split]].details() for split in measured}
    per_class = {split: numbers for split, numbers in details.items() if numbers}
    results = {"task": trainer.task.pipeline_tag, "metrics": metrics, "training": training}
    return {**results, **({"per_class": per_class} if per_class else {})}, predictions


def _is_labelled(dataset: AnyDataset) -> bool:
    if isinstance(dataset, IterableDataset):
        first = next(iter(dataset), {})
        return first.get("labels") is not None
    return "labels" in dataset.column_names


def _plain(metrics: dict[str, float], prefix: str) -> dict[str, float]:
    """`eval_f1_macro` -> `f1_macro`, without the Trainer's clock."""
    left_out = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time", "mem")
    plain = {name.removeprefix(f"{prefix}_"): value for name, value in metrics.items() if name.startswith(f"{prefix}_")}
    undefined = [name for name, value in plain.items() if not math.isfinite(value)]
    if undefined:
        logger.warning("%s: not finite, and left out of the results: %s", prefix, ", ".join(undefined))
    return {name: value for name, value in plain.items() if not name.startswith(left_out) and name not in undefined}


def _leave_behind(
    trainer: SftTrainer,
    prepared: Prepared,
    results: dict[str, Any],
    parsed: Parsed,
    predictions: dict[int, np.ndarray] | None,
) -> None:
    training_args = trainer.args
    sample_rows = artefacts.reload_sample(prepared.rows["validation"], prepared.columns)
    expected = trainer.predictions_for_the_reload_check(
        artefacts.matching(prepared.examples["validation"], sample_rows)
    )
    artefacts.save_model(trainer, prepared, training_args.output_dir)
    if not launching.is_main_process():
        return
    with whole_models():
        artefacts.check_reload(
            trainer,
            prepared,
            sample_rows,
            expected,
            training_args.output_dir,
            trust_remote_code=parsed.instances[1].trust_remote_code,
        )
    reports = Path(training_args.output_dir) / "reports"
    trainer.task.report_examples(
        sample_rows,
        [expected[row[EXAMPLE_ID]] for row in sample_rows],
        prepared.columns,
        prepared.labels,
        folder=reports,
    )
    for split, prefix in artefacts.SPLIT_PREFIXES.items():
        if prefix in trainer.accumulated:
            trainer.task.report_metrics(
                trainer.accumulated[prefix], prepared.rows[split], prepared.columns, folder=reports, split=split
            )
    artefacts.write_all(trainer, prepared, results, parsed, predictions)
    if training_args.push_to_hub:
        _push(training_args)
    artefacts.print_results(results)
    artefacts.print_next_command(trainer.task, prepared.source, training_args.output_dir)


def _last_metrics(results: dict[str, Any]) -> dict[str, float]:
    return results["metrics"].get("test") or results["metrics"]["validation"]


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
