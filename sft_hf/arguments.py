"""The flags that every task has, as dataclasses: where data and model come from, and how a run trains.

    DataArguments(dataset_name="PolyAI/banking77", validation_fraction=0.2)
    ModelArguments(model_name_or_path="answerdotai/ModernBERT-base", freeze_base_model=True)
    FinetuningArguments(output_dir="runs/a", learning_rate=5e-5, resume="never")

A field is a flag and a key of the --config file, its metadata the text of --help; `flags.py` fills them in.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from accelerate.utils import parse_flag_from_env
from transformers import TrainingArguments

from sft_hf.errors import ArgumentError


@dataclass
class DataArguments:
    """Where the examples come from and how they split."""

    _argument_group_name = "data"

    dataset_name: str | None = field(
        default=None, metadata={"help": "ORG/NAME on the Hub, a folder (also one from save_to_disk), or builtin:NAME."}
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "The dataset's configuration."})
    dataset_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the dataset."})
    train_file: list[str] | None = field(
        default=None, metadata={"help": "csv, tsv, json, jsonl or parquet: a path, a glob, or several."}
    )
    validation_file: list[str] | None = field(default=None, metadata={"help": "Like --train_file."})
    test_file: list[str] | None = field(default=None, metadata={"help": "Like --train_file."})
    streaming: bool = field(
        default=False, metadata={"help": "Read while training; nothing is stored. Needs --max_steps."}
    )
    shuffle_buffer_size: int = field(default=1000, metadata={"help": "Examples held for shuffling when streaming."})
    train_split_name: str = field(default="train", metadata={"help": "The split to train on."})
    validation_split_name: str | None = field(
        default=None,
        metadata={"help": "Default: validation, valid, val or dev, else a hold-out of the training split."},
    )
    test_split_name: str | None = field(default=None, metadata={"help": "Default: test, where there is one."})
    validation_fraction: float = field(
        default=0.1,
        metadata={"help": "Share of the training split held out, seeded and stratified, if nothing else validates."},
    )
    validation_group_column: str | None = field(
        default=None, metadata={"help": "Rows with equal values here (speaker, patient, document) stay on one side."}
    )
    drop_overlapping_examples: bool = field(
        default=False, metadata={"help": "Drop training examples whose input also stands in validation or test."}
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "A seeded random sample of this size."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "The same for validation."})
    max_predict_samples: int | None = field(default=None, metadata={"help": "The same for test."})
    preprocessing_num_workers: int | None = field(default=None, metadata={"help": "Processes for the preprocessing."})


@dataclass
class ModelArguments:
    """Which model, from where, and what is changed in it before training."""

    _argument_group_name = "model"

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "ORG/NAME on the Hub, a folder, or builtin:NAME."}
    )
    model_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the model."})
    tokenizer_name: str | None = field(default=None, metadata={"help": "A tokenizer other than the model's own."})
    cache_dir: str | None = field(default=None, metadata={"help": "Where downloads are kept; default: under HF_HOME."})
    token: str | None = field(
        default=None, repr=False, metadata={"help": "Token for reading; default: HF_TOKEN or the login."}
    )
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Allow code from the model's repository, or of an evaluate metric, to run."}
    )
    from_scratch: bool = field(
        default=False, metadata={"help": "The architecture of --model_name_or_path with random weights."}
    )
    config_overrides: list[str] | None = field(
        default=None, metadata={"help": "key=value ... changes the model's configuration."}
    )
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = field(
        default="float32",
        metadata={
            "help": "Of the weights; auto is the checkpoint's own. For mixed precision use --bf16 or the launcher."
        },
    )
    freeze_base_model: bool = field(default=False, metadata={"help": "Train the head alone; see --cache_features."})


@dataclass(repr=False)  # the parent's own shows no token
class FinetuningArguments(TrainingArguments):
    """TrainingArguments, and what a whole run needs beside them."""

    _argument_group_name = "training"

    resume: str = field(
        default="auto",
        metadata={"help": "auto: go on from the last checkpoint in --output_dir; never; or the path of a checkpoint."},
    )
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "Stop after this many evaluations without a better metric_for_best_model."}
    )
    cpu_bf16: Literal["auto", "on", "off"] = field(
        default="auto", metadata={"help": "bfloat16 autocast on a CPU; auto: where the CPU computes in it."}
    )
    cache_features: Literal["auto", "on", "off"] = field(
        default="auto",
        metadata={
            "help": "With --freeze_base_model, run the base once for each example and keep what enters the head; auto: where no "
            "augmentation changes that from epoch to epoch."
        },
    )
    num_cpu_threads_per_process: int | None = field(
        default=None, metadata={"help": "Default: the user's OMP_NUM_THREADS, else all cores divided by the processes."}
    )
    dataloader_num_workers: int | None = field(
        default=None,
        metadata={
            "help": "Processes that read examples ahead; default: as the cores allow where they are decoded on the fly."
        },
    )
    ddp_timeout: int = field(
        default=6 * 60 * 60,
        metadata={
            "help": "Seconds that ranks wait for each other; the first one may download and preprocess for long."
        },
    )
    logging_nan_inf_filter: bool = field(
        default=False,
        metadata={"help": "Log the last finite loss where one is NaN; off, so that a diverged run is seen."},
    )
    max_nonfinite_steps: int = field(
        default=0,
        metadata={
            "help": "Steps in a row whose loss or gradient is NaN or infinite that are left out; one more stops the run."
        },
    )
    auto_find_batch_size: bool = field(
        default=False,
        metadata={
            "help": "Halve the batch and double the accumulation until a batch of the longest examples fits into memory."
        },
    )
    tokens_per_batch: int | None = field(
        default=None,
        metadata={
            "help": "Batches by what they hold, not by number: per device as many examples as fit, padded to the longest, in so many "
            "tokens (of clips: seconds), in place of both --per_device_*_batch_size. Each step is the mean over its own examples, so "
            "that in short texts, which come in large batches, one of them weighs less."
        },
    )
    push_examples: bool = field(
        default=False, metadata={"help": "Also push predictions and reports, which hold texts of the dataset."}
    )

    @property
    def order_seed(self) -> int:
        """Of the order of the examples and of what is drawn when one is read: --data_seed, else --seed."""
        return self.seed if self.data_seed is None else self.data_seed

    def __post_init__(self):
        import torch

        self._check_tokens_per_batch()
        if isinstance(self.report_to, str) and "," in self.report_to:
            self.report_to = [name.strip() for name in self.report_to.split(",")]
        # Without this, ranks that a MULTI_GPU file starts on a CPU machine never find each other (pitfall 29).
        self.chooses_num_workers = self.dataloader_num_workers is None
        self.dataloader_num_workers = self.dataloader_num_workers or 0
        asked = parse_flag_from_env("ACCELERATE_USE_CPU")  # of the launcher; the parent heeds it, and we decide by it
        self.use_cpu = self.use_cpu or asked or not torch.accelerator.is_available()
        self.dataloader_pin_memory = self.dataloader_pin_memory and not self.use_cpu
        # The tasks keep exactly what their collators need; dropping by the model's signature breaks that (pitfall 28).
        self.remove_unused_columns = False
        # The parent would choose the loss; which metric is best, and in which direction, is the task's to say.
        given = self.metric_for_best_model, self.greater_is_better
        self.fp16_full_eval = self.bf16_full_eval = False
        super().__post_init__()
        self.metric_for_best_model, self.greater_is_better = given

    def _check_tokens_per_batch(self) -> None:
        """ArgumentError for a number that holds nothing, and for flags that say otherwise which examples a batch has."""
        if self.tokens_per_batch is None:
            return
        given = f"--tokens_per_batch {self.tokens_per_batch}"
        if self.tokens_per_batch < 1:
            raise ArgumentError(f"{given}: expected at least 1.")
        if self.train_sampling_strategy != "group_by_length":
            raise ArgumentError(
                f"{given} groups by length, --train_sampling_strategy {self.train_sampling_strategy} does not: give "
                "--train_sampling_strategy group_by_length, or --per_device_train_batch_size in its place."
            )
        if self.auto_find_batch_size:
            raise ArgumentError(
                f"{given}: --auto_find_batch_size halves a number of examples. Give one of the two; fewer tokens with more "
                "--gradient_accumulation_steps need less memory."
            )
        if self.dataloader_drop_last:
            raise ArgumentError(
                f"{given} makes batches of unlike numbers, none of which is short: no --dataloader_drop_last."
            )


def resolve_cpu_precision(training_args: FinetuningArguments) -> str | None:
    """Switch bfloat16 autocast on where the CPU computes in it; returns the line to log, or None.

    Raises ArgumentError for float16 on a CPU, which would be a float32 run without a word.
    """
    import torch

    if training_args.use_cpu and training_args.mixed_precision == "fp16":
        raise ArgumentError(
            "--fp16 (or the launcher's mixed_precision): a CPU trains in float32 or, with --bf16, bfloat16."
        )
    if not training_args.use_cpu or training_args.cpu_bf16 == "off":
        return None
    has_bf16 = torch.ops.mkldnn._is_mkldnn_bf16_supported() and _cpu_flags() & {"amx_bf16", "avx512_bf16"}
    if training_args.mixed_precision != "no":  # the launcher or --bf16 has already decided (pitfall 31)
        return (
            None
            if has_bf16
            else "bfloat16, as --bf16 or the launcher says; this CPU has no units for it and emulates them"
        )
    if training_args.cpu_bf16 == "auto" and not has_bf16:
        return None
    training_args.bf16 = True
    training_args.mixed_precision = "bf16"
    return f"bfloat16 autocast on the CPU (--cpu_bf16 {training_args.cpu_bf16}; --cpu_bf16 off for float32)"


def _cpu_flags() -> set[str]:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((set(line.split()) for line in lines if line.startswith("flags")), set())
