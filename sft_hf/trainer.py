"""The Trainer, with only what has no hook of its own: the loss, the evaluation, what is saved and what is pushed.

    gradient of a step  =  d/dw  sum over micro-batches and ranks of loss_sums  /  sum over both of loss_denominators

whatever the number of accumulation steps and processes is (pitfalls 1 and 2).
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from datasets import Dataset, IterableDataset
from torch.utils.data import DataLoader, Sampler
from transformers import PreTrainedModel, Trainer
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import EvalLoopOutput, HubStrategy

from sft_hf import checkpoints, features, hub, resources
from sft_hf.arguments import FinetuningArguments
from sft_hf.callbacks import StopOnSignal, Timing
from sft_hf.data.order import (
    REPEATED_ID,
    EvaluationBatches,
    EvaluationStream,
    GroupedByLength,
    KeyedByEpoch,
    ReadExamples,
    Shuffled,
    TrainingStream,
    longest_first,
    longest_first_by,
)
from sft_hf.data.token_batches import TokenBatches, evaluation_batches, say_batches
from sft_hf.divergence import StepRecord, StopOnDivergence
from sft_hf.errors import ArgumentError, ModelError, PushError
from sft_hf.features import FEATURES
from sft_hf.launching import SignalWatch
from sft_hf.losses import Loss
from sft_hf.method import Method
from sft_hf.metrics import Metrics
from sft_hf.pretrained import base_modules
from sft_hf.sharding import fit_fsdp, whole_weights
from sft_hf.task import Batch, Task
from sft_hf.validation import ValidationPass, ValidationPasses, fingerprint

logger = logging.getLogger(__name__)
Reader = Callable[[dict[str, Any], int], dict[str, Any]]  # a row and the epoch -> an example
Keep = Callable[[int, Any], Any]  # an example id and its prediction -> what is kept of it
REPEATED = "repeated"  # the key of a batch that is there to keep ranks in step and does not count


class SftTrainer(Trainer):
    """transformers' Trainer over the stages of a Task."""

    # The loss of compute_loss is already divided by what the whole accumulated batch holds.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        *,
        task: Task,
        loss: Loss,
        make_metrics: Callable[[], Metrics],
        methods: tuple[Method, ...] = (),
        read_train: Reader | None = None,
        read_evaluation: Reader | None = None,
        hub_model_id: str | None = None,
        freeze_base_model: bool = False,
        **kwargs,
    ):
        self.task, self.loss, self.make_metrics, self.methods = task, loss, make_metrics, methods
        self.train_loss = loss
        for method in methods:
            self.train_loss = method.wrap_loss(self.train_loss)
        self._read_train = read_train
        self._read_evaluation = read_evaluation
        self._train_stream: TrainingStream | None = None
        self._token_batches: TokenBatches | None = None  # of --tokens_per_batch
        self._checked_hub_model_id = hub_model_id
        self._freeze_base_model = freeze_base_model
        self._features: features.KeptFeatures | None = None  # what enters the head of a frozen base
        self._push_thread = ThreadPoolExecutor(max_workers=1)
        self._push: Future | None = None
        self._pushed_folder: str | None = None
        self.accumulated: dict[str, Metrics] = {}  # of the last pass of each kind
        self.thresholds: np.ndarray | None = None  # of multi-label classes, from the last validation
        self._validations = ValidationPasses()
        self._num_own_examples = 0
        self._keep: Keep | None = None  # what is done with each prediction of the pass under way
        self._kept: dict[int, Any] = {}
        self._record = StepRecord()
        super().__init__(**kwargs)
        # Before transformers had loss_is_scaled_for_ga (5.18), this was what kept it from dividing once more.
        self.model_accepts_loss_kwargs = True
        if self.is_fsdp_enabled:
            fit_fsdp(self.accelerator.state.fsdp_plugin, self.model)
        self.timing = Timing()
        self.signals = SignalWatch()
        self.add_callback(self.timing)
        self.add_callback(StopOnSignal(self.signals, self.accelerator))
        if self.is_deepspeed_enabled and self.args.max_nonfinite_steps:
            raise ArgumentError(
                "--max_nonfinite_steps: DeepSpeed updates before a step can be judged, so none can be left out; give 0."
            )
        self.add_callback(StopOnDivergence(self._record, self.accelerator, self.args.max_nonfinite_steps))

    def train(self, *args, **kwargs):
        """As the Trainer's; --auto_find_batch_size is ours, and is done before the first step."""
        if self.args.auto_find_batch_size:
            # The Trainer's own begins anew with the weights that it has by then, and with another global batch.
            self.args.auto_find_batch_size = False
            self._fit_batch_size()
        if self._freeze_base_model and self.args.cache_features != "off" and self._features is None:
            self._keep_features()
        return super().train(*args, **kwargs)

    # ---- order ----

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        """An order that is a function of seed and epoch, and keys that tell the epoch to what is read on the fly."""
        dataset = self.train_dataset
        if isinstance(dataset, IterableDataset):
            return None
        sampler = self._train_order(dataset)
        return sampler if self._read_train is None else KeyedByEpoch(sampler)

    def _train_order(self, dataset: Dataset) -> Sampler:
        if self.args.train_sampling_strategy == "random":
            return Shuffled(len(dataset), seed=self.args.order_seed)
        if self.args.train_sampling_strategy != "group_by_length" or "length" not in dataset.column_names:
            return super()._get_train_sampler(dataset)
        return GroupedByLength(
            dataset["length"][:],
            batch_size=self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size,
            seed=self.args.order_seed,
        )

    def _get_dataloader(self, dataset: Dataset | IterableDataset, *args, **kwargs) -> DataLoader:
        if isinstance(dataset, IterableDataset):
            return self._get_train_stream(dataset)
        examples, context = self._reading(dataset, self._read_train), nullcontext()
        if self._features is not None:
            examples, context = self._features.train, features.read_without_workers(self.args)
        with context:
            if self.args.tokens_per_batch is not None:
                return self._get_token_batches(dataset, examples)
            return super()._get_dataloader(examples, *args, **kwargs)

    def _reading(self, dataset: Dataset, read: Reader | None) -> Any:
        """The dataset whose rows are read on the fly, in the dataloader's workers."""
        return dataset if read is None else ReadExamples(dataset, read)

    def _get_train_stream(self, dataset: IterableDataset) -> DataLoader:
        """Batches of this rank alone, by one reader: several would each have an order of their own."""
        self._train_stream = TrainingStream(
            dataset,
            self.data_collator,
            read=self._read_train,
            batch_size=self._train_batch_size,
            num_micro_batches=self.args.gradient_accumulation_steps,
            rank=self.args.process_index,
            world_size=self.args.world_size,
        )
        num_workers = min(1, self.args.dataloader_num_workers)
        return DataLoader(
            self._train_stream,
            batch_size=None,
            collate_fn=_the_same,
            num_workers=num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            persistent_workers=self.args.dataloader_persistent_workers and num_workers > 0,
            prefetch_factor=self.args.dataloader_prefetch_factor if num_workers else None,
        )

    def _get_token_batches(self, dataset: Dataset, examples: Any) -> DataLoader:
        lengths = self.task.lengths(dataset, self.processing_class, split="train")
        if lengths is None:
            raise ArgumentError(
                f"--tokens_per_batch {self.args.tokens_per_batch}: here examples are of one size whatever they hold; give "
                "--per_device_train_batch_size."
            )
        batches = self._token_batches = TokenBatches(
            lengths,
            self.args.tokens_per_batch,
            seed=self.args.order_seed,
            world_size=self.args.world_size,
            tells_epoch=self._read_train is not None,
        )
        num_micro_batches = self.args.gradient_accumulation_steps * self.args.world_size
        say_batches(batches, lengths, self.args.tokens_per_batch, self.args.train_batch_size, num_micro_batches)
        loader = DataLoader(
            examples,
            batch_sampler=batches,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            persistent_workers=self.args.dataloader_persistent_workers,
            multiprocessing_context=self.args.dataloader_multiprocessing_context,
            prefetch_factor=self.args.dataloader_prefetch_factor,
        )
        return self.accelerator.prepare_data_loader(loader)

    def get_total_train_batch_size(self, args: FinetuningArguments) -> int:
        """As the Trainer's, for what it logs; by tokens the examples of a mean step."""
        if self._token_batches is None:
            return super().get_total_train_batch_size(args)
        per_batch = self._token_batches.num_rows / len(self._token_batches)
        return round(per_batch * args.gradient_accumulation_steps * args.world_size)

    def _init_training_state(
        self, max_steps: int, num_update_steps_per_epoch: int, num_train_epochs: int, checkpoint: str | None, trial: Any
    ) -> tuple[int, int]:
        """As the Trainer's: epochs, and micro-batches of the next one, that are trained.

        The best checkpoint is found again if the folder of the run was moved, or is named from elsewhere. How long an epoch of a
        stream is the Trainer does not know and takes max_steps for it, of which `epoch` in a checkpoint tells the part.
        """
        trained = super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, checkpoint, trial
        )
        best = Path(self.args.output_dir) / f"{checkpoints.PREFIX}{self.state.best_global_step}"
        if self.state.best_model_checkpoint is None and best.is_dir():
            self.state.best_model_checkpoint = str(best)
        if checkpoint is not None:
            self._rotate(
                self.args.save_total_limit, Path(checkpoint)
            )  # killed before it could, the run left one too many
        if checkpoint is None or not isinstance(self.train_dataset, IterableDataset):
            return trained
        if self.state.global_step >= max_steps:
            return num_train_epochs, 0
        before = TrainerState.load_from_json(str(Path(checkpoint) / TRAINER_STATE_NAME))
        epochs = int(before.epoch)
        return epochs, round((before.epoch - epochs) * before.max_steps) * self.args.gradient_accumulation_steps

    def _run_epoch(
        self,
        *,
        epoch: int,
        train_dataloader: DataLoader,
        resume_from_checkpoint: str | None,
        epochs_trained: int,
        steps_trained_in_current_epoch: int,
        **kwargs,
    ) -> None:
        """Tell the sampler which epoch begins: behind the wrappers of a resumed epoch on several ranks nobody else does."""
        sampler = getattr(train_dataloader, "batch_sampler", None)
        while hasattr(sampler, "batch_sampler"):
            sampler = sampler.batch_sampler
        for reader in (sampler, getattr(sampler, "sampler", None), self._train_stream):
            if hasattr(reader, "set_epoch"):
                reader.set_epoch(epoch)
        if self._train_stream is not None:
            is_resumed = resume_from_checkpoint is not None and epoch == epochs_trained
            self._train_stream.num_skipped = steps_trained_in_current_epoch if is_resumed else 0
        super()._run_epoch(
            epoch=epoch,
            train_dataloader=train_dataloader,
            resume_from_checkpoint=resume_from_checkpoint,
            epochs_trained=epochs_trained,
            steps_trained_in_current_epoch=steps_trained_in_current_epoch,
            **kwargs,
        )

    # ---- batch size ----

    def _fit_batch_size(self) -> None:
        """Halve the batch and double the accumulation until a batch of the longest examples fits on every rank."""
        if self._is_sharded:
            raise ArgumentError(
                "--auto_find_batch_size tries a whole model, and this one is sharded: give --per_device_train_batch_size."
            )
        before = self.args.per_device_train_batch_size
        chosen = resources.largest_batch_size(before, self._fits)
        if chosen == before:
            return
        self.args.per_device_train_batch_size = chosen
        self.args.gradient_accumulation_steps *= before // chosen
        self._train_batch_size = self.args.train_batch_size
        logger.info(
            "--auto_find_batch_size: %d examples per device do not fit; --per_device_train_batch_size %d "
            "--gradient_accumulation_steps %d do, with the same global batch",
            before,
            chosen,
            self.args.gradient_accumulation_steps,
        )

    def _fits(self, per_device_batch_size: int) -> bool:
        """Forward and backward over the longest examples on all ranks, in what the optimizer's states will leave of the memory."""
        fits = True
        try:
            self._try_out(per_device_batch_size * max(1, self.args.n_gpu))
        except Exception as error:
            if not resources.is_out_of_memory(error):
                raise
            fits = False
        resources.free_memory()
        return bool(self.accelerator.gather(torch.tensor([int(fits)], device=self.args.device)).min())

    def _try_out(self, batch_size: int) -> None:
        trained = sum(parameter.numel() for parameter in self.model.parameters() if parameter.requires_grad)
        # Two states of Adam's in float32, what it computes in between, and the buckets of data parallel.
        room = [torch.empty(trained, device=self.args.device) for _ in range(3 + (self.args.world_size > 1))]
        batch = self.data_collator(self._longest_examples(batch_size))
        for method in self.methods:
            batch = method.wrap_batch(batch, step=0, seed=self.args.seed)
        try:
            with torch.random.fork_rng(), features.buffers_kept(self.model), self.accelerator.autocast():
                self.model.train()
                self.compute_loss(self.model, self._prepare_inputs(batch)).backward()
        finally:
            self.model.zero_grad(set_to_none=True)
            del room

    def _longest_examples(self, number: int) -> list[dict[str, Any]]:
        if isinstance(self.train_dataset, IterableDataset):
            first = islice(hub.read_stream(self.train_dataset), number)
            return [row if self._read_train is None else self._read_train(row, 0) for row in first]
        dataset = self._reading(self.train_dataset, self._read_train)
        return [dataset[row] for row in longest_first(self.train_dataset)[:number]]

    # ---- the head alone ----

    def _keep_features(self) -> None:
        """--cache_features: run the frozen base model once for each example, where that is the same and gains something."""
        mode, started = self.args.cache_features, time.perf_counter()
        try:
            features.check_applicable(
                self.args, self.task, self.methods, self.train_dataset, self.processing_class, self.model,
                is_sharded=self._is_sharded,
            )  # fmt: skip
            train, validation = self._rank_s_batches(self.train_dataset, self._read_train), None
            if self.args.eval_strategy != "no" and not isinstance(self.eval_dataset, IterableDataset):
                validation = features.OwnBatches(self.get_eval_dataloader(), self._prepare_inputs)
            self._features = features.keep_features(
                features.HeadAlone(self.model, base_modules(self.model)),
                self._logits,
                train=features.OwnBatches(train, self._prepare_inputs),
                num_train=len(self.train_dataset),
                validation=validation,
                accelerator=self.accelerator,
                is_stopped=lambda: self.signals.received is not None,
            )
        except features.CannotKeep as error:
            if mode == "on" and self.signals.received is None:
                raise ArgumentError(f"--cache_features on: {error}. Give auto or off.") from error
            logger.info("--cache_features auto: the frozen base model runs in every epoch, since %s", error)
            return
        self.data_collator = features.Collate(self.data_collator)
        self.timing.step_seconds += time.perf_counter() - started  # the steps' own work, done before them
        features.say_what_is_kept(self._features, mode)

    def _logits(self, batch: Batch) -> torch.Tensor:
        with self.accelerator.autocast():
            return self.task.loss_sums(self.train_loss, self.model, batch)[0].logits

    # ---- loss ----

    def training_step(
        self, model: torch.nn.Module, inputs: Batch, num_items_in_batch: dict[str, torch.Tensor] | None = None
    ) -> torch.Tensor:
        """As the Trainer's; the loss is remembered until the step was found to be finite, and not logged if it is not."""
        example_ids = inputs["example_id"]
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._record.add(example_ids, loss)
        return torch.where(torch.isfinite(loss), loss, 0) if self.args.max_nonfinite_steps else loss

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> Any:
        self._record.gradient_norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        return self._record.gradient_norm

    def _prepare_inputs(self, inputs: Batch) -> Batch:
        inputs = super()._prepare_inputs(inputs)
        if FEATURES in inputs:
            return inputs  # has been on the device, and in the model
        return self.task.on_device(inputs, self.processing_class, dtype=self.model.dtype)

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list[Batch], dict[str, torch.Tensor] | None]:
        """The micro-batches of one optimizer step, and what their sums are divided by over all ranks."""
        batches = []
        for _ in range(num_batches):
            batch = next(epoch_iterator, None)
            if batch is None:
                break
            batch = self._without_repeats(batch)
            self._num_own_examples += 0 if REPEATED in batch else len(batch["example_id"])
            for method in self.methods:
                batch = method.wrap_batch(batch, step=self.state.global_step, seed=self.args.seed)
            batches.append(batch)
        if not batches and self._train_stream is not None:
            self.state.epoch = self._train_stream.rows.epoch + 1.0  # its end, which only now is known
        return batches, self._denominators(batches, device) if batches else None

    def _without_repeats(self, batch: Batch) -> Batch:
        """Cut off the examples with which accelerate fills the last batch of an epoch up to equal sizes.

        They are the first ones of the epoch and would count twice. A rank left without any of its own keeps one, since all
        ranks have to run backward together, and marks it REPEATED: its loss does not count.
        """
        if isinstance(self.train_dataset, IterableDataset):
            return {**batch, REPEATED: True} if batch["example_id"][0] == REPEATED_ID else batch
        is_last = self.accelerator.gradient_state.end_of_dataloader
        if self.args.world_size == 1 or not is_last:
            return batch
        # accelerate's own remainder is unknown to the loader of a resumed epoch.
        remainder = len(self.train_dataset) % (self._train_batch_size * self.args.world_size)
        if self._token_batches is not None:
            remainder = self._token_batches.num_left
        if remainder == 0 or self.args.dataloader_drop_last:
            return batch
        size = len(batch["example_id"])
        own = min(max(remainder - self.args.process_index * size, 0), size)
        batch = {name: value[: max(own, 1)] for name, value in batch.items()}
        return batch if own else {**batch, REPEATED: True}

    def _denominators(self, batches: list[Batch], device: torch.device) -> dict[str, torch.Tensor]:
        parts = [self._denominators_of(batch) for batch in batches]
        totals = {name: sum(part[name] for part in parts).to(device) for name in parts[0]}
        if self._averages_over_ranks():
            names = sorted(totals)
            gathered = self.accelerator.gather(torch.stack([totals[name] for name in names])[None]).sum(dim=0)
            totals = dict(zip(names, gathered, strict=True))
        return totals

    def _denominators_of(self, batch: Batch) -> dict[str, torch.Tensor]:
        denominators = self.task.loss_denominators(self.train_loss, batch)
        return {name: value * (REPEATED not in batch) for name, value in denominators.items()}

    def _averages_over_ranks(self) -> bool:
        return self.args.world_size > 1 and self.args.average_tokens_across_devices

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: dict[str, torch.Tensor] | None = None,
    ):
        """This micro-batch's share of the global batch's loss; the shares of a step add up to its mean."""
        if self._freeze_base_model:
            for module in base_modules(self.accelerator.unwrap_model(model)):
                module.eval()  # frozen weights under dropout are only noise
        counts = inputs.pop(REPEATED, None) is None
        outputs, sums = self.task.loss_sums(self.train_loss, model, inputs)
        denominators = num_items_in_batch or self.task.loss_denominators(self.train_loss, inputs)
        smallest = torch.finfo(torch.float32).tiny
        loss = sum(sums[name] * counts / denominators[name].clamp(min=smallest) for name in sums)
        if self._averages_over_ranks():
            loss = loss * self.accelerator.num_processes  # data parallel averages the ranks' gradients
        return (loss, outputs) if return_outputs else loss

    @property
    def num_examples_trained(self) -> int:
        """Over all ranks, in this process's part of the run. Every rank has to ask."""
        return sum(gather_object([self._num_own_examples])) if self.args.world_size > 1 else self._num_own_examples

    # ---- evaluation ----

    def get_eval_dataloader(
        self, eval_dataset: str | Dataset | None = None, *, batch_size: int | None = None
    ) -> DataLoader:
        """Batches of this rank alone, none of them padded with examples of another (nothing is counted twice)."""
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        kept = self._features and self._features.validation
        if kept is not None and dataset is self.eval_dataset and batch_size is None:
            return DataLoader(kept, batch_size=None, collate_fn=_the_same)
        return self._rank_s_batches(dataset, self._read_evaluation, batch_size)

    get_test_dataloader = get_eval_dataloader

    def _rank_s_batches(
        self, dataset: Dataset | IterableDataset, read: Reader | None, batch_size: int | None = None
    ) -> DataLoader:
        options: dict[str, Any] = {
            "collate_fn": self.data_collator,
            "num_workers": self.args.dataloader_num_workers,
            "pin_memory": self.args.dataloader_pin_memory,
        }
        rank, world_size = self.args.process_index, self.args.world_size
        # The bare model works, on one device also under DataParallel.
        size = batch_size or self.args.per_device_eval_batch_size
        if isinstance(dataset, IterableDataset):
            options["num_workers"] = min(1, options["num_workers"])
            stream = EvaluationStream(dataset, read=read, rank=rank, world_size=world_size)
            return DataLoader(stream, batch_size=size, **options)
        by_tokens = self.args.tokens_per_batch is not None and batch_size is None
        lengths = self.task.lengths(dataset, self.processing_class, split="evaluation") if by_tokens else None
        batches = (
            longest_first_by(size, dataset)
            if lengths is None
            else evaluation_batches(lengths, self.args.tokens_per_batch)
        )
        batches = EvaluationBatches(batches, rank=rank, world_size=world_size)
        return DataLoader(self._reading(dataset, read), batch_sampler=batches, **options)

    def predict(self, test_dataset, ignore_keys=None, metric_key_prefix="test"):
        """Not the Trainer's, which keeps every logit: `predictions` or `evaluate_and_predict` give what it would."""
        raise NotImplementedError("Use trainer.predictions(dataset), or trainer.evaluate_and_predict(dataset, ...).")

    def evaluate(
        self,
        eval_dataset: Dataset | IterableDataset | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """As the Trainer's; what a validation during training gave is remembered for `validate`."""
        # No rank has the whole of a model that is sharded.
        is_remembered = eval_dataset is None and self.is_in_train and not self._is_sharded
        weights = fingerprint(self.model) if is_remembered else ""
        values = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        if is_remembered:
            self._validations.add(
                ValidationPass(
                    step=self.state.global_step,
                    weights=weights,
                    conditions=self._validation_conditions(),
                    values=dict(values),
                    metrics=self.accumulated[metric_key_prefix],
                    thresholds=self.thresholds,
                )
            )
        return values

    def validate(self) -> dict[str, float]:
        """evaluate(), or what it gave during training, where that was over these very weights on every rank."""
        if self._is_sharded:
            return self.evaluate()
        found = self._validations.of(fingerprint(self.model), self._validation_conditions())
        step = None if found is None else found.step
        steps = [step] if self.args.world_size == 1 else gather_object([step])
        if found is None or len(set(steps)) > 1:
            return self.evaluate()
        logger.info("validation: these weights were evaluated at step %d, and are not once more", found.step)
        self.accumulated["eval"], self.thresholds = found.metrics, found.thresholds
        values = dict(found.values)
        self.log(values)
        return values

    def _validation_conditions(self) -> tuple[Any, ...]:
        """What the numbers of a validation depend on beside the weights."""
        return (
            self.eval_dataset,
            self._read_evaluation,
            self.data_collator,
            self.task,
            self.loss,
            self.args.per_device_eval_batch_size,
        )

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Accumulate metrics per rank and merge them; memory holds scores, never the logits of every pixel (pitfall 19)."""
        metrics, sums, num_examples = self._run_over(dataloader)
        if self.args.world_size > 1:
            states = gather_object([(metrics, sums, num_examples)])
            metrics, sums, num_examples = states[0]
            for other, other_sums, other_num in states[1:]:
                metrics.merge(other)
                sums = _added(sums, other_sums)
                num_examples += other_num
        if metric_key_prefix == "eval":
            self.thresholds = metrics.tune()
        elif self.thresholds is not None:
            metrics.thresholds = self.thresholds
        self.accumulated[metric_key_prefix] = metrics
        values = {"loss": sum(total / max(weight, 1e-38) for total, weight in sums.values()), **metrics.compute()}
        prefixed = {f"{metric_key_prefix}_{name}": value for name, value in values.items()}
        return EvalLoopOutput(predictions=None, label_ids=None, metrics=prefixed, num_samples=num_examples)

    def _run_over(self, dataloader: DataLoader) -> tuple[Metrics, dict[str, tuple[float, float]], int]:
        metrics, parts, num_examples = self.make_metrics(), [], 0
        self.callback_handler.eval_dataloader = dataloader
        for example_id, batch, outputs, sums in self._forward_over(dataloader):
            denominators = self.task.loss_denominators(self.loss, batch)
            parts.append({name: (total, denominators[name]) for name, total in sums.items()})
            predictions = self._predict(outputs, batch)
            metrics.update(predictions, self.task.references(batch), example_id=example_id)
            if self._keep is not None:
                self._kept |= {
                    key: self._keep(key, one) for key, one in zip(example_id.tolist(), predictions, strict=True)
                }
            num_examples += len(example_id)
            self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        return metrics, _totals(parts), num_examples

    @torch.no_grad()
    def _forward_over(self, dataloader: DataLoader) -> Iterator[tuple[np.ndarray, Batch, Any, dict[str, torch.Tensor]]]:
        """Of each batch the example ids, itself on the device, the model's outputs and the sums of the loss."""
        model = self._evaluation_model()
        model.eval()
        own = getattr(dataloader.batch_sampler, "num_own", None)
        gather_again = not self.is_fsdp_enabled or self.accelerator.state.fsdp_plugin.reshard_after_forward
        with whole_weights(model, gather_again=gather_again):
            for step, batch in enumerate(dataloader):
                example_id = batch["example_id"].numpy()  # read from the device, it would wait for it
                batch = self._prepare_inputs(batch)
                with self.compute_loss_context_manager():
                    outputs, sums = self.task.loss_sums(self.loss, model, batch)
                if own is None or step < own:
                    yield example_id, batch, outputs, sums

    def _evaluation_model(self) -> torch.nn.Module:
        """The wrapped model where weights are shared; any other rank works on its own copy and at its own pace."""
        if self._is_sharded:
            return self.model_wrapped
        if not self.accelerator._models:
            self.accelerator.prepare_model(self.model, evaluation_mode=True)
        return self.model

    def _predict(self, outputs: Any, batch: Batch) -> Sequence:
        return self.task.predict(self._evaluation_model(), outputs, batch, self.processing_class)

    def evaluate_and_predict(
        self, dataset: Dataset | IterableDataset, *, metric_key_prefix: str, keep: Keep | None = None
    ) -> tuple[dict[str, float], dict[int, Any]]:
        """evaluate(), and example_id -> prediction of the same pass over all ranks; of each what `keep` makes of it."""
        self._keep, self._kept = keep or _as_it_is, {}
        try:
            metrics = self.evaluate(dataset, metric_key_prefix=metric_key_prefix)
            return metrics, self._over_ranks(self._kept)
        finally:
            self._keep, self._kept = None, {}

    def predictions_for_the_reload_check(self, dataset: Dataset | IterableDataset) -> dict[int, Any]:
        """As the pipeline predicts: one by one, in the weights' own precision, by what it can do of the task.

        A batch changes the order of summation, and of two texts that are about as likely autocast can find another one.
        Nothing is trained or evaluated afterwards.
        """
        self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)  # takes autocast off its forward
        self.compute_loss_context_manager = nullcontext
        task, self.task = self.task, self.task.as_the_pipeline_does
        try:
            return self.predictions(dataset, batch_size=1)
        finally:
            self.task = task

    def predictions(
        self, dataset: Dataset | IterableDataset, *, keep: Keep | None = None, batch_size: int | None = None
    ) -> dict[int, Any]:
        """example_id -> prediction (what `keep` makes of it) over all ranks; a split needs no labels for it."""
        found, keep = {}, keep or _as_it_is
        for keys, batch, outputs, _ in self._forward_over(self.get_eval_dataloader(dataset, batch_size=batch_size)):
            predictions = self._predict(outputs, batch)
            found |= {key: keep(key, one) for key, one in zip(keys.tolist(), predictions, strict=True)}
        return self._over_ranks(found)

    def _over_ranks(self, found: dict[int, Any]) -> dict[int, Any]:
        if self.args.world_size == 1:
            return found
        return {key: value for part in gather_object([found]) for key, value in part.items()}

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """As the Trainer's; a metric that is undefined on this evaluation (AUC of one class) makes no checkpoint the best."""
        name = f"eval_{self.args.metric_for_best_model.removeprefix('eval_')}"
        if name not in metrics:
            there = ", ".join(sorted(key.removeprefix("eval_") for key in metrics))
            logger.warning("--metric_for_best_model: %s is undefined on this evaluation, which has %s", name, there)
            return False
        is_best = super()._determine_best_metric(metrics, trial)
        if is_best:
            self._validations.keep_as_best()
        return is_best

    # ---- what is loaded, saved and pushed ----

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        if self._is_sharded_or_wrapped:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            self._load_weights(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        if self._is_sharded_or_wrapped:
            super()._load_best_model()
        else:
            self._load_weights(self.state.best_model_checkpoint)

    @property
    def _is_sharded(self) -> bool:
        return self.is_deepspeed_enabled or self.is_fsdp_enabled

    @property
    def _is_sharded_or_wrapped(self) -> bool:
        return self._is_sharded or not isinstance(self.model, PreTrainedModel)

    def _load_weights(self, checkpoint: str) -> None:
        """Every weight of a checkpoint, by from_pretrained; ModelError where one is missing.

        transformers saves ViT, Swin, SegFormer and others under the names of their original checkpoints, and its Trainer
        looks for the model's own: the encoder would not be loaded, with a warning alone (transformers#43701, #48805).
        """
        saved, info = type(self.model).from_pretrained(
            checkpoint, config=self.model.config, dtype=self.model.dtype, output_loading_info=True
        )
        if info["missing_keys"]:
            raise ModelError(f"{checkpoint} lacks weights of the model: {', '.join(sorted(info['missing_keys'])[:5])}.")
        self.model.load_state_dict(saved.state_dict())

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """As the Trainer's, and then its manifest: whatever ends the process before that leaves no checkpoint that counts.

        Earlier ones are deleted after it, not before.
        """
        folder = Path(self.args.output_dir) / f"{checkpoints.PREFIX}{self.state.global_step}"
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            if self.args.should_save and folder.exists():
                checkpoints.discard(folder)  # of a run that was taken up again before this step
            self.accelerator.wait_for_everyone()
            with checkpoints.writing(folder):
                super()._save_checkpoint(model, trial)
                self.accelerator.wait_for_everyone()  # each rank writes its own random state
                if self.args.should_save:
                    checkpoints.write_manifest(folder, num_processes=self.args.world_size)
        finally:
            self.args.save_total_limit = limit
        if self.args.should_save and self.args.push_to_hub:
            self._push_whole_checkpoint(str(folder))
        # A stop at the end of an epoch writes twice; what is older goes with the resume.
        if self.signals.received is None:
            self._rotate(limit, folder)

    def _rotate(self, limit: int | None, *keep: Path) -> None:
        """--save_total_limit: delete what is over it, but for the best, the newest and `keep`."""
        if self.args.should_save:
            best = self.state.best_model_checkpoint
            pushing = self._pushed_folder if self._push is not None and not self._push.done() else None
            keep = (*keep, *(Path(folder) for folder in (best, pushing) if folder))
            checkpoints.rotate(Path(self.args.output_dir), limit=limit, keep=keep)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Nothing: the Trainer calls it before the checkpoint is whole."""

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """As the Trainer's, but training_args.bin holds no token (pitfall 40)."""
        token, self.args.hub_token = self.args.hub_token, None
        try:
            super()._save(output_dir, state_dict)
        finally:
            self.args.hub_token = token

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """The repository was made, and the right to write checked, before anything was downloaded."""
        self.hub_model_id = self._checked_hub_model_id

    def _push_whole_checkpoint(self, checkpoint_folder: str) -> None:
        """--hub_strategy: the allow-list at every save, or a whole checkpoint; in the background, never fatal."""
        if not self.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END:
            return
        if self._push is not None and not self._push.done() and not self.args.hub_always_push:
            return
        message = f"Training in progress, step {self.state.global_step}"
        # The token is read here: while a checkpoint is written it is not in the arguments.
        token = self.args.hub_token
        self._pushed_folder = checkpoint_folder
        self._push = self._push_thread.submit(self._push_in_background, checkpoint_folder, message, token)

    def _push_in_background(self, folder: str, message: str, token: str | None) -> None:
        revision = self.args.hub_revision
        try:
            hub.push_folder(folder, self.hub_model_id, token=token, commit_message=message, revision=revision)
            if self.args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
                last = self.args.hub_strategy == HubStrategy.CHECKPOINT
                name = "last-checkpoint" if last else Path(folder).name
                hub.push_checkpoint(folder, self.hub_model_id, path_in_repo=name, token=token, revision=revision)
        except PushError as error:
            logger.warning("%s was not pushed (%r); the run goes on and pushes at its end", folder, error.__cause__)

    def _finish_current_push(self) -> None:
        if self._push is not None:
            self._push.result()


def _the_same(batch: Batch) -> Batch:
    return batch


def _as_it_is(_: int, prediction: Any) -> Any:
    return prediction


def _totals(parts: list[dict[str, tuple[torch.Tensor, torch.Tensor]]]) -> dict[str, tuple[float, float]]:
    """Over the batches, each sum of the loss and what it is divided by, in double precision.

    They are read from the device at the end and together: each number that is read by itself waits for it.
    """
    totals = {}
    for name in dict.fromkeys(name for part in parts for name in part):
        columns = zip(*(part[name] for part in parts if name in part), strict=True)
        totals[name] = tuple(sum(torch.stack(column).tolist()) for column in columns)
    return totals


def _added(
    left: dict[str, tuple[float, float]], right: dict[str, tuple[float, float]]
) -> dict[str, tuple[float, float]]:
    names = [*left, *(name for name in right if name not in left)]
    return {
        name: tuple(a + b for a, b in zip(left.get(name, (0.0, 0.0)), right.get(name, (0.0, 0.0)), strict=True))
        for name in names
    }
