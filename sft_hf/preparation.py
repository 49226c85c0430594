"""The stages before the Trainer: source -> columns, labels -> hold-out, samples -> processor -> model -> examples."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from datasets import Dataset, IterableDataset
from torch import distributed
from transformers import PreTrainedModel, set_seed

from sft_hf.arguments import DataArguments, FinetuningArguments, ModelArguments
from sft_hf.data.labels import Labels
from sft_hf.data.sources import EXAMPLE_ID, Source, from_memory, load_splits, sample
from sft_hf.data.splits import hold_out, overlapping_rows
from sft_hf.errors import ArgumentError, DataError, ModelError
from sft_hf.pretrained import ModelSource, resolve_backbone, resolve_model
from sft_hf.task import AnyDataset, Columns, Task

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
    base_source: ModelSource  # whose weights it starts from: the model's, or a backbone's


@contextmanager
def first_rank_first(training_args: FinetuningArguments) -> Iterator[None]:
    """The first rank of each machine does what is inside, then the others do, with what it left in the caches.

    They wait for as long as --ddp_timeout says. transformers tells it to the backends of GPUs alone: gloo would give up after its own
    half hour (pitfall 25).
    """
    if training_args.world_size > 1 and distributed.is_initialized():
        # Public since torch 2.14.
        set_timeout = getattr(distributed, "set_timeout", None) or distributed.distributed_c10d._set_pg_timeout
        set_timeout(timedelta(seconds=training_args.ddp_timeout))
    with training_args.main_process_first(desc="data"):
        yield


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
    columns = replace(task.columns(source.splits["train"].features), place=source.place)
    labels = task.labels(source, columns)
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
    _check_checkpointing(model, training_args)
    examples = {
        split: task.preprocess(
            dataset, columns, labels, processor, model, split=split, num_workers=data_args.preprocessing_num_workers
        )
        for split, dataset in rows.items()
    }
    task.initialise(model, examples["train"], labels)
    model_source = resolve_model(model_args)
    base_source = resolve_backbone(task.backbone, model_args) if task.backbone else model_source
    return Prepared(source, columns, labels, rows, examples, held_out, processor, model, model_source, base_source)


def _check_checkpointing(model: PreTrainedModel, training_args: FinetuningArguments) -> None:
    # The Trainer would raise a bare ValueError, after all preprocessing. The older name of the flag follows the newer one.
    if training_args.gradient_checkpointing and not model.supports_gradient_checkpointing:
        raise ModelError(
            f"--activation_checkpointing (also --gradient_checkpointing): a {type(model).__name__} cannot compute its activations "
            "anew in backward; leave the flag out. A smaller --per_device_train_batch_size with more "
            "--gradient_accumulation_steps saves memory too."
        )


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
    if training_args.tokens_per_batch is not None:
        raise ArgumentError(
            f"--streaming: --tokens_per_batch {training_args.tokens_per_batch} needs the lengths of the whole training set; give "
            "--per_device_train_batch_size and --train_sampling_strategy random."
        )
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
        groups = train[column][:]
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
    return {**split, **{name: data for name, data in rows.items() if name not in split}}, validation[EXAMPLE_ID][:]


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
    outputs = f" with {labels.num_labels} outputs: {names}" if names else ""
    logger.info("%s: %s; %s%s", source.name, sizes, labels.problem_type, outputs)
