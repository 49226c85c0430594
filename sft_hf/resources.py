"""What the machine may refuse a run, and what is said then: memory, room on a disk, a process that it ended.

with explained(training_args):
    trainer.train()

largest_batch_size(32, fits=lambda size: size <= 10) == 8
"""

import gc
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from transformers import TrainingArguments

from sft_hf import storage
from sft_hf.errors import ResourceError, SftError, StorageError

# CUDA's and its kin's; the C library's, as torch reports it; oneDNN's, where it has no memory for what it computes in between.
NO_MEMORY = re.compile(r"out of memory|DefaultCPUAllocator: can't allocate memory|could not create a primitive")
DEAD_WORKER = re.compile(
    r"DataLoader worker \(pid(?:\(s\))? [\d, ]+\) (is killed by signal: [^.]*|exited unexpectedly)"
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device, or the C library, had no more memory to give."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and NO_MEMORY.search(str(error)) is not None
    )


def largest_batch_size(batch_size: int, fits: Callable[[int], bool]) -> int:
    """`batch_size`, or the largest of its divisors that fits, one prime factor less at a time; ResourceError if not even 1 does.

    A divisor, so that more accumulation steps make up for it exactly.
    """
    while not fits(batch_size):
        if batch_size == 1:
            raise ResourceError(
                "--auto_find_batch_size: there is no memory for a batch of one example. A smaller model, shorter or smaller inputs, "
                "--gradient_checkpointing true or --bf16 true need less."
            )
        batch_size //= next(factor for factor in range(2, batch_size + 1) if batch_size % factor == 0)
    return batch_size


def free_memory() -> None:
    """Give back what a failed attempt held."""
    gc.collect()
    if torch.accelerator.is_available():
        torch.accelerator.empty_cache()


@contextmanager
def explained(training_args: TrainingArguments) -> Iterator[None]:
    """Raise ResourceError, with the flags that help, for what would be a long traceback of torch's."""
    try:
        yield
    except SftError:
        raise
    except Exception as error:
        dead = DEAD_WORKER.search(str(error))
        if dead:
            raise ResourceError(_dead_worker(dead[1], training_args)) from error
        if isinstance(error, (ConnectionError, EOFError)) and training_args.dataloader_num_workers:
            # Dead while it handed a batch over; what comes from the Hub is a HubError by now.
            raise ResourceError(_dead_worker(f"broke off ({storage.first_line(error)})", training_args)) from error
        if is_out_of_memory(error):
            raise ResourceError(_out_of_memory(error, training_args)) from error
        if storage.is_failed_write(error):
            place = getattr(error, "filename", None)
            said = (
                storage.no_room(place, error) if place else storage.some_disk_is_full(error, training_args.output_dir)
            )
            raise StorageError(
                f"{said}. Make room and run the same command again: it goes on from the last checkpoint."
            ) from error
        raise


def _dead_worker(how: str, training_args: TrainingArguments) -> str:
    return (
        f"A process that reads examples {how}: most often the machine was out of memory, or /dev/shm was full. "
        f"Fewer of them need less: --dataloader_num_workers (now {training_args.dataloader_num_workers}; 0 reads in the process that "
        "trains). The same command goes on from the last checkpoint."
    )


def _out_of_memory(error: BaseException, training_args: TrainingArguments) -> str:
    size, steps = training_args.per_device_train_batch_size, training_args.gradient_accumulation_steps
    if training_args.tokens_per_batch:
        return (
            f"Out of memory ({storage.first_line(error)}). Training and evaluation hold --tokens_per_batch "
            f"{training_args.tokens_per_batch} per device at a time. --gradient_checkpointing true helps, and the run goes on from its last "
            "checkpoint; in another --output_dir also fewer tokens with more --gradient_accumulation_steps, --bf16 true, or a smaller model."
        )
    return (
        f"Out of memory ({storage.first_line(error)}). Training holds {size} examples per device at a time, "
        f"evaluation {training_args.per_device_eval_batch_size}: --auto_find_batch_size true, or "
        f"--per_device_train_batch_size {max(1, size // 2)} --gradient_accumulation_steps {steps * 2}, keeps the global batch, and the "
        "run goes on from its last checkpoint. --per_device_eval_batch_size and --gradient_checkpointing true help too; in another "
        "--output_dir also --bf16 true, or a smaller model."
    )
