"""What the machine refuses: memory, a disk, a process; and the largest batch that fits."""

import errno
import resource

import pytest
import torch

from sft_hf.arguments import FinetuningArguments
from sft_hf.errors import DataError, ResourceError, StorageError
from sft_hf.resources import explained, is_out_of_memory, largest_batch_size


@pytest.mark.parametrize(("start", "room", "found"), [(32, 32, 32), (32, 10, 8), (12, 5, 3), (7, 3, 1), (9, 4, 3)])
def test_a_divisor_is_found_so_that_accumulation_makes_up_for_it(start, room, found):
    tried = []

    def fits(size):
        tried.append(size)
        return size <= room

    assert largest_batch_size(start, fits) == found
    assert tried[0] == start
    assert start % found == 0


def test_no_room_for_one_example_is_an_error():
    with pytest.raises(ResourceError, match="no memory for a batch of one example.*--gradient_checkpointing true"):
        largest_batch_size(8, lambda size: False)


def allocate_too_much():
    """A real refusal of the C library: the process may not have so much address space."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + 2**28, before[1]))
    try:
        torch.empty(2**30)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.fixture
def arguments(tmp_path):
    sizes = {"per_device_train_batch_size": 16, "gradient_accumulation_steps": 2, "per_device_eval_batch_size": 64}
    return FinetuningArguments(output_dir=str(tmp_path), report_to="none", **sizes)


def test_out_of_memory_names_the_flags_that_keep_the_global_batch(arguments):
    with pytest.raises(ResourceError) as caught, explained(arguments):
        allocate_too_much()
    assert is_out_of_memory(caught.value.__cause__)
    assert "Training holds 16 examples per device at a time, evaluation 64" in str(caught.value)
    assert "--per_device_train_batch_size 8 --gradient_accumulation_steps 4, keeps the global batch" in str(
        caught.value
    )


def test_out_of_memory_of_batches_by_tokens_names_their_flag(arguments):
    arguments.tokens_per_batch = 800
    with pytest.raises(ResourceError) as caught, explained(arguments):
        allocate_too_much()
    assert "Training and evaluation hold --tokens_per_batch 800 per device at a time" in str(caught.value)
    assert "--per_device_train_batch_size" not in str(caught.value)


@pytest.mark.parametrize(
    "torch_s",
    [
        "DataLoader worker (pid 4711) is killed by signal: Killed. ",
        "DataLoader worker (pid(s) 4711, 4712) exited unexpectedly",
    ],
)
def test_a_dead_worker_is_named_with_its_flag(torch_s, arguments):
    arguments.dataloader_num_workers = 4
    with (
        pytest.raises(ResourceError, match=r"--dataloader_num_workers \(now 4; 0 reads in the process that trains\)"),
        explained(arguments),
    ):
        raise RuntimeError(torch_s)


def test_a_worker_that_dies_while_it_hands_a_batch_over_is_one_too(arguments):
    arguments.dataloader_num_workers = 2
    with (
        pytest.raises(ResourceError, match="broke off .Connection reset by peer.*--dataloader_num_workers"),
        explained(arguments),
    ):
        raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")
    arguments.dataloader_num_workers = 0
    with pytest.raises(ConnectionResetError), explained(arguments):
        raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")


def test_python_s_own_error_has_no_text(arguments):
    with pytest.raises(ResourceError, match=r"^Out of memory \(MemoryError\)"), explained(arguments):
        raise MemoryError


def test_other_errors_are_looked_at_whatever_they_hold():
    assert not is_out_of_memory(RuntimeError(OSError("x")))
    assert not is_out_of_memory(RuntimeError())
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))


def test_a_full_disk_that_is_not_named_may_be_any_of_three(arguments):
    with pytest.raises(StorageError) as caught, explained(arguments):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert str(caught.value).startswith("No space left on device; free are ")
    assert str(caught.value).count(" GB at /") + str(caught.value).count(" MB at /") == 3


def test_a_full_disk_is_named_with_the_file(arguments):
    with (
        pytest.raises(StorageError, match=r"cache/a.arrow could not be written: No space left.*Make room"),
        explained(arguments),
    ):
        raise OSError(errno.ENOSPC, "No space left on device", "cache/a.arrow")


@pytest.mark.parametrize(
    "error", [DataError("row 3"), RuntimeError("mat1 and mat2"), OSError(errno.ENOENT, "no such file")]
)
def test_everything_else_stays_what_it_is(error, arguments):
    with pytest.raises(type(error)) as caught, explained(arguments):
        raise error
    assert caught.value is error
