"""What enters the head of a frozen base model, kept: the base runs once for each example, later epochs cost the head alone.

    head = HeadAlone(model, base_modules(model))
    kept = head.find_cut(run, batch)        # {"labels": ..., "example_id": ..., "features_of_the_base": float32 (8, 384)}
    model(features_of_the_base=...)         # the logits that the model gives for the texts themselves

The frozen part ends where the first weight that is trained, or the first random number (the head's dropout), comes in; autograd and the
state of the generator tell where that is. What passes there is kept. Given back, it runs through the model's own code: the frozen
modules hand on blanks of NaN, and at the cut the kept numbers take their place. So nothing of a head is written a second time, and a
head that looks at anything else, at an attention mask or at a second output of the base, gives other logits. Every batch is compared.
"""

import logging
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial, wraps
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, recursively_apply
from datasets import IterableDataset
from torch import Tensor
from torch.nn import Module
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from transformers import PreTrainedModel

from sft_hf import resources
from sft_hf.arguments import FinetuningArguments
from sft_hf.data.columns import EXAMPLE_ID
from sft_hf.errors import ArgumentError
from sft_hf.method import Method
from sft_hf.task import AnyDataset, Batch, Task

logger = logging.getLogger(__name__)
FEATURES = "features_of_the_base"  # the key under which a batch holds what enters the head
SHARE_OF_MEMORY = 0.5  # of what is free, for all processes of a machine together
SUMMED_BYTES = 2**26  # what ranks add up at once
TRIED_CUTS = 3  # the last places at which a frozen part may end
# Of the largest logit. The same numbers in another layout are added up in another order.
TOLERANCES = {torch.float32: 1e-4, torch.float64: 1e-4}
HALF_TOLERANCE = 2e-2
OTHERWISE = "--cache_features off runs it in every epoch"


class CannotKeep(Exception):
    """Why the features of this model or of these data are not kept, as the end of a sentence."""


# ---- whether ----


def check_flags(task: Task, training_args: FinetuningArguments, *, freeze_base_model: bool) -> None:
    """Refuse --cache_features on where the flags alone forbid it: ArgumentError, before anything is downloaded."""
    if training_args.cache_features != "on":
        return
    if not freeze_base_model:
        raise ArgumentError("--cache_features on keeps what a frozen base model gives: add --freeze_base_model true.")
    if task.randomness:
        given, without = task.randomness
        raise ArgumentError(
            f"--cache_features on: with {given} an example differs in every epoch, and nothing of it can be kept. "
            f"Give {without}, or --cache_features off."
        )


def check_applicable(
    training_args: FinetuningArguments,
    task: Task,
    methods: Sequence[Method],
    train: AnyDataset,
    processor: Any,
    model: PreTrainedModel,
    *,
    is_sharded: bool,
) -> None:
    """Raise CannotKeep where inputs differ from epoch to epoch, where hooks do not work, and, unless asked, where it gains nothing."""
    changing = [method for method in methods if type(method).wrap_batch is not Method.wrap_batch]
    if task.randomness:
        given, without = task.randomness
        raise CannotKeep(f"{given} changes every example anew ({without} does not)")
    if changing:
        raise CannotKeep(f"{changing[0]!r} changes every batch anew")
    if isinstance(train, IterableDataset):
        raise CannotKeep("a stream is read anew in every epoch")
    if is_sharded or training_args.torch_compile:
        raise CannotKeep("the model is sharded or compiled")
    if reason := task.why_inputs_vary(train, processor, model):
        raise CannotKeep(reason)
    if training_args.cache_features == "auto" and _num_passes(training_args, len(train)) <= 1:
        raise CannotKeep("no example is seen twice")


def _num_passes(training_args: FinetuningArguments, num_examples: int) -> float:
    if training_args.max_steps <= 0:
        return training_args.num_train_epochs
    per_step = training_args.train_batch_size * training_args.gradient_accumulation_steps * training_args.world_size
    return training_args.max_steps * per_step / num_examples


# ---- the head alone ----


@dataclass(frozen=True)
class Cut:
    """A place in a forward pass: what enters or leaves a module, at which of its calls in one pass."""

    name: str
    leaves: bool
    call: int


@dataclass(frozen=True)
class _Blank:
    """A tensor of NaN (zeros for integers) in the shape of another, for any number of examples where it was of a batch."""

    value: Tensor
    is_of_batch: bool

    @classmethod
    def of(cls, tensor: Tensor, batch_size: int) -> "_Blank":
        is_of_batch = tensor.ndim > 0 and len(tensor) == batch_size
        like = tensor.detach()[:1] if is_of_batch else tensor.detach()
        return cls(torch.full_like(like, torch.nan if tensor.is_floating_point() else 0), is_of_batch)

    def expanded(self, batch_size: int) -> Tensor:
        return self.value.expand(batch_size, *self.value.shape[1:]) if self.is_of_batch else self.value


class HeadAlone:
    """A model that can also be given what enters its head, as `model(features_of_the_base=x)`; `base` are its frozen modules.

    It is patched in place, and what is saved of it stays the same. `close` takes the patches off.
    """

    def __init__(self, model: PreTrainedModel, base: list[Module]):
        self.model, self.base = model, base
        self.cut: Cut | None = None
        self.input_names: set[str] = set()  # what of a batch the model is called with
        self._given: Tensor | None = None  # in a pass of the head alone
        self._recorded: list[Tensor] | None = None  # in a pass that is kept, one for each call of the model
        self._candidates: deque[tuple[Cut, Tensor]] | None = None  # in the pass that looks for a place to cut
        self._is_past = False
        self._calls: Counter[tuple[str, bool]] = Counter()
        self._blank_inputs: dict[str, Any] = {}
        self._blanks: dict[Module, Any] = {}
        self._handles = [
            model.register_forward_pre_hook(self._begin, with_kwargs=True),
            model.register_forward_hook(self._end, always_call=True),
            *self._watching(),
        ]
        for module in base:
            module.forward = self._or_blanks(module)

    def close(self) -> None:
        """Leave the model as it was."""
        for handle in self._handles:
            handle.remove()
        for module in self.base:
            del module.forward

    def find_cut(self, run: Callable[[Batch], Tensor], batch: Batch) -> Batch:
        """Find where the frozen part ends, by one pass in training mode; what is kept of its batch. `run` gives a batch's logits.

        Raises CannotKeep where no single tensor, given back, leads to the same logits with the same random numbers.
        """
        self.model.train()
        for module in self.base:
            module.eval()
        with buffers_kept(self.model):
            with self._seeded(), torch.enable_grad(), self._looking() as candidates:
                logits = run(batch).detach()
            for self.cut, features in reversed(candidates):
                kept = self.kept(batch, [features])
                if self._leads_to(logits, run, kept):
                    return kept
        raise CannotKeep(f"the head of {type(self.model).__name__} sees more than one tensor of the base")

    def _leads_to(self, logits: Tensor, run: Callable[[Batch], Tensor], kept: Batch) -> bool:
        with self._seeded(), torch.no_grad():
            try:
                return are_alike(run(kept), logits)
            except Exception as error:  # whatever a head makes of blanks that it was not meant to see
                if resources.is_out_of_memory(error):
                    raise
                logger.debug("the frozen part does not end at %s: %r", self.cut, error)
                return False

    def record(self, run: Callable[[Batch], Tensor], batch: Batch) -> Batch:
        """What is kept of a batch, in the model's present mode; CannotKeep where it does not lead to the same logits."""
        self._recorded = features = []
        logits = run(batch)
        self._recorded = None
        kept = self.kept(batch, features)
        if not are_alike(run(kept), logits):
            raise CannotKeep(f"the head of {type(self.model).__name__} sees more than what enters it")
        return kept

    def kept(self, batch: Batch, features: list[Tensor]) -> Batch:
        """A batch with features in the place of what the model is called with."""
        if len({tuple(part.shape[1:]) for part in features}) > 1:
            raise CannotKeep("what enters its head has another shape from input to input")
        rest = {name: value for name, value in batch.items() if name not in self.input_names}
        return {**rest, FEATURES: torch.cat(features)}

    # ---- hooks ----

    def _watching(self) -> Iterator[Any]:
        """A hook on each side of every module that is no part of a frozen one."""
        inside = {part for module in self.base for part in module.modules() if part is not module}
        for name, module in self.model.named_modules():
            if module is self.model or module in inside:
                continue
            if module not in self.base:
                yield module.register_forward_pre_hook(partial(self._enters, name))
            yield module.register_forward_hook(partial(self._leaves, name))

    def _begin(self, model: Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        self._calls.clear()
        if FEATURES in kwargs:
            self._given = kwargs[FEATURES]
            return (), self._of_batch(self._blank_inputs)
        self.input_names |= kwargs.keys()
        if self._candidates is not None:
            self._is_past, self._state = False, self._random_state()
            self._batch_size = len(next(value for value in kwargs.values() if isinstance(value, Tensor)))
            self._blank_inputs = self._blanked(kwargs)
        return None

    def _end(self, *_: Any) -> None:
        self._given = None

    def _enters(self, name: str, module: Module, args: tuple) -> tuple | None:
        given = self._passes(name, False, args[0] if len(args) == 1 else None)
        # Detached from a gradient or not, behind its first weights nothing is frozen.
        self._is_past = self._is_past or any(weight.requires_grad for weight in module.parameters(recurse=False))
        return None if given is None else (given,)

    def _leaves(self, name: str, module: Module, args: tuple, output: Any) -> Tensor | None:
        return self._passes(name, True, output)

    def _passes(self, name: str, leaves: bool, value: Any) -> Tensor | None:
        cut = Cut(name, leaves, self._calls[name, leaves])
        self._calls[name, leaves] += 1
        if self._candidates is not None:
            self._look(cut, value)
        if cut != self.cut:
            return None
        if self._recorded is not None:
            self._recorded.append(value.detach().clone())  # what comes next may work in place
        return None if self._given is None else self._given.clone()

    def _look(self, cut: Cut, value: Any) -> None:
        assert self._candidates is not None
        if self._is_past:
            return
        states = zip(self._state, self._random_state(), strict=True)
        is_random = not all(torch.equal(before, now) for before, now in states)
        self._is_past = is_random or (isinstance(value, Tensor) and value.requires_grad)
        if not self._is_past and self._is_of_batch(value):
            self._candidates.append((cut, value.detach().clone()))

    def _is_of_batch(self, value: Any) -> bool:
        is_float = isinstance(value, Tensor) and value.is_floating_point()
        return is_float and value.ndim > 1 and len(value) == self._batch_size

    def _or_blanks(self, module: Module) -> Callable:
        """The forward pass of a frozen module, or what has its shape where the head runs alone."""
        forward = module.forward

        @wraps(forward)
        def or_blanks(*args, **kwargs):
            if self._given is not None:
                return self._of_batch(self._blanks[module])
            outputs = forward(*args, **kwargs)
            if self._candidates is not None:
                self._blanks[module] = self._blanked(outputs)
            return outputs

        return or_blanks

    def _blanked(self, outputs: Any) -> Any:
        return recursively_apply(_Blank.of, outputs, self._batch_size)

    def _of_batch(self, blanks: Any) -> Any:
        assert self._given is not None
        is_blank = lambda value: isinstance(value, _Blank)  # noqa: E731
        return recursively_apply(_Blank.expanded, blanks, len(self._given), test_type=is_blank)

    # ---- random numbers ----

    @contextmanager
    def _looking(self) -> Iterator[deque[tuple[Cut, Tensor]]]:
        self._candidates = candidates = deque(maxlen=TRIED_CUTS)
        try:
            yield candidates
        finally:
            self._candidates = None

    def _random_state(self) -> list[Tensor]:
        device = self.model.device
        own = [] if device.type == "cpu" else [torch.get_device_module(device).get_rng_state()]
        return [torch.get_rng_state(), *own]

    @contextmanager
    def _seeded(self) -> Iterator[None]:
        with random_numbers_kept(self.model.device):
            torch.manual_seed(0)
            yield


@contextmanager
def buffers_kept(model: Module) -> Iterator[None]:
    """A forward pass in training mode that is made inside, to try something out, leaves BatchNorm's statistics as they were."""
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        yield
    finally:
        for name, buffer in model.named_buffers():
            buffer.copy_(before[name])


@contextmanager
def random_numbers_kept(device: torch.device) -> Iterator[None]:
    """What is drawn inside changes nothing of what is drawn afterwards."""
    others = {} if device.type == "cpu" else {"device_type": device.type}
    with torch.random.fork_rng([device] if others else [], **others):
        yield


def are_alike(left: Tensor, right: Tensor) -> bool:
    """Whether two tensors of logits are the same but for rounding; NaN is like nothing."""
    if left.shape != right.shape:
        return False
    tolerance = TOLERANCES.get(right.dtype, HALF_TOLERANCE) * right.float().abs().max().clamp(min=1)
    return bool(((left.float() - right.float()).abs() <= tolerance).all())


# ---- what is kept ----


class KeptExamples(TorchDataset):
    """The kept columns of a set, row by row as the set has them; keys tell the epoch or not, as those of ReadExamples.

    A batch is made at once, so that the collator has nothing left to do.
    """

    def __init__(self, columns: Batch):
        self.columns = columns

    def __len__(self) -> int:
        return len(self.columns[EXAMPLE_ID])

    def __getitem__(self, key: int) -> Batch:
        return {name: column[key % len(self)] for name, column in self.columns.items()}

    def __getitems__(self, keys: list[int]) -> Batch:
        """What torch's dataloader asks for a whole batch."""
        rows = torch.tensor(keys) % len(self)
        return {name: column[rows] for name, column in self.columns.items()}


@dataclass(frozen=True)
class Collate:
    """The collator of a task, for batches that are none yet."""

    collate: Callable[[list[dict]], Batch]

    def __call__(self, examples: list[dict] | Batch) -> Batch:
        return examples if isinstance(examples, dict) else self.collate(examples)


@dataclass(frozen=True)
class KeptFeatures:
    """Of the training examples all, on every rank; of the validation examples this rank's batches, None where they are seen once."""

    train: KeptExamples
    validation: list[Batch] | None


@dataclass(frozen=True)
class OwnBatches:
    """The batches of one rank, as the model takes them, and the rows that each is made of.

    Those beyond `num_own` are there to keep ranks in step.
    """

    loader: DataLoader
    prepare: Callable[[Batch], Batch]

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.loader:  # begun here, since that alone draws a random number
            yield self.prepare(batch)

    @property
    def rows(self) -> list[list[int]]:
        return self.loader.batch_sampler.batches

    @property
    def num_own(self) -> int:
        return self.loader.batch_sampler.num_own


def keep_features(
    head: HeadAlone,
    run: Callable[[Batch], Tensor],
    *,
    train: OwnBatches,
    num_train: int,
    validation: OwnBatches | None,
    accelerator: Accelerator,
    is_stopped: Callable[[], bool] = lambda: False,
) -> KeptFeatures:
    """Run the base once over both splits, each rank over its part; CannotKeep, on every rank, where one rank cannot."""
    own: list[Any] = [None, None]
    reason = None
    room = _Room(is_stopped)
    try:
        with random_numbers_kept(head.model.device), torch.no_grad():
            own[0] = _own_rows(head, run, train, num_train, room)
            own[1] = validation and _own_batches(head, run, validation, room)
    except CannotKeep as error:
        reason = str(error)
    reasons = gather_object([reason]) if accelerator.num_processes > 1 else [reason]
    if reason := next((said for said in reasons if said), None):
        head.close()
        raise CannotKeep(reason)
    columns = {name: _over_ranks(column, accelerator) for name, column in own[0].items()}
    return KeptFeatures(KeptExamples(columns), own[1])


def _own_rows(
    head: HeadAlone, run: Callable[[Batch], Tensor], train: OwnBatches, num_train: int, room: "_Room"
) -> Batch:
    columns: Batch = {}
    for step, batch in enumerate(train):
        kept = head.record(run, batch) if columns else head.find_cut(run, batch)
        if not columns:
            head.model.eval()
            columns = _empty_columns(kept, num_train, room)
        room.check()
        if kept[FEATURES].shape[1:] != columns[FEATURES].shape[1:]:
            raise CannotKeep("what enters its head has another shape from batch to batch")
        if step < train.num_own:
            for name, column in columns.items():
                column[train.rows[step]] = kept[name].cpu()
    return columns


def _empty_columns(kept: Batch, number: int, room: "_Room") -> Batch:
    if any(len(value) != len(kept[EXAMPLE_ID]) for value in kept.values()):
        raise CannotKeep("the model is not called with one input for each example")
    room.take(number * sum(value[0].nbytes for value in kept.values()))
    return {name: value.new_zeros((number, *value.shape[1:]), device="cpu") for name, value in kept.items()}


def _own_batches(head: HeadAlone, run: Callable[[Batch], Tensor], validation: OwnBatches, room: "_Room") -> list[Batch]:
    batches = []
    for batch in validation:
        kept = {name: value.cpu() for name, value in head.record(run, batch).items()}
        room.take(sum(value.nbytes for value in kept.values()))
        room.check()
        batches.append(kept)
    return batches[: validation.num_own]


def _over_ranks(column: Tensor, accelerator: Accelerator) -> Tensor:
    """Rows of which each rank has its own and zeros elsewhere, put together: a sum of bytes is one of any dtype."""
    if accelerator.num_processes == 1:
        return column
    flat = column.view(-1).view(torch.uint8)
    for start in range(0, len(flat), SUMMED_BYTES):
        part = flat[start : start + SUMMED_BYTES]
        part.copy_(accelerator.reduce(part.to(accelerator.device), reduction="sum"))
    return column


class _Room:
    """How much more may be kept, in bytes; a signal that ends the run ends the keeping."""

    def __init__(self, is_stopped: Callable[[], bool]):
        self.is_stopped, self.left = is_stopped, available_bytes()

    def take(self, number: int) -> None:
        self.left -= number
        if self.left < 0:
            raise CannotKeep(
                f"what enters its head needs {-self.left / 2**20:,.0f} MiB more than {SHARE_OF_MEMORY:.0%} of the free memory"
            )

    def check(self) -> None:
        if self.is_stopped():
            raise CannotKeep("a signal ends the run")


def available_bytes() -> int:
    """What each process of this machine may keep of the memory that is free, also within the limits of a container."""
    free = psutil.virtual_memory().available
    for limit in ("memory.max", "memory/memory.limit_in_bytes"):
        path = Path("/sys/fs/cgroup") / limit
        if path.is_file() and (text := path.read_text().strip()).isdigit():
            free = min(free, int(text) - psutil.Process().memory_info().rss)
    return int(free * SHARE_OF_MEMORY) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


@contextmanager
def read_without_workers(training_args: FinetuningArguments) -> Iterator[None]:
    """A dataloader that is made inside has no processes: there is nothing to decode."""
    names = ("dataloader_num_workers", "dataloader_persistent_workers", "dataloader_prefetch_factor")
    before = [getattr(training_args, name) for name in names]
    for name, value in zip(names, (0, False, None), strict=True):
        setattr(training_args, name, value)
    try:
        yield
    finally:
        for name, value in zip(names, before, strict=True):
            setattr(training_args, name, value)


def say_what_is_kept(kept: KeptFeatures, mode: str) -> None:
    """One line: how much, and the flag."""
    columns, batches = kept.train.columns, kept.validation or []
    num_validation = sum(len(batch[EXAMPLE_ID]) for batch in batches)
    num_bytes = sum(value.nbytes for batch in (columns, *batches) for value in batch.values())
    logger.info(
        "--cache_features %s: what enters the head, %s numbers of each of %d training and %d validation examples, is kept "
        "(%.1f MB); the frozen base model ran once for each (%s)",
        mode, " x ".join(map(str, columns[FEATURES].shape[1:])), len(kept.train), num_validation, num_bytes / 1e6, OTHERWISE,
    )  # fmt: skip
