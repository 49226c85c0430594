"""What the dataclasses of the flags decide on their own: the device, the precision, the best metric."""

import pytest
import torch

from sft_hf import arguments
from sft_hf.arguments import FinetuningArguments, resolve_cpu_precision
from sft_hf.errors import ArgumentError


def test_the_best_metric_is_left_to_the_task():
    """The parent would choose the loss, and whether greater is better by the name."""
    best = {"load_best_model_at_end": True, "eval_strategy": "epoch", "save_strategy": "epoch"}
    training_args = FinetuningArguments(**best)
    assert training_args.load_best_model_at_end is True
    assert training_args.metric_for_best_model is None
    assert training_args.greater_is_better is None
    training_args = FinetuningArguments(**best, metric_for_best_model="f1_macro", greater_is_better=False)
    assert training_args.metric_for_best_model == "f1_macro"
    assert training_args.greater_is_better is False


def test_several_trackers_in_one_flag():
    assert FinetuningArguments(report_to="tensorboard, trackio").report_to == ["tensorboard", "trackio"]
    assert FinetuningArguments(report_to="none").report_to == []


def test_the_cpu_is_chosen_where_there_is_no_accelerator(monkeypatch):
    """Pitfall 29."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    training_args = FinetuningArguments()
    assert training_args.use_cpu is True
    assert training_args.dataloader_pin_memory is False
    assert training_args.device == torch.device("cpu")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    assert FinetuningArguments().use_cpu is False
    assert FinetuningArguments(use_cpu=True).use_cpu is True


def test_bfloat16_on_a_cpu_is_asked_for_or_found(monkeypatch):
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    training_args = FinetuningArguments(use_cpu=True, cpu_bf16="on")
    assert resolve_cpu_precision(training_args) == (
        "bfloat16 autocast on the CPU (--cpu_bf16 on; --cpu_bf16 off for float32)"
    )
    assert (training_args.bf16, training_args.mixed_precision) == (True, "bf16")

    monkeypatch.setattr("sft_hf.arguments._cpu_flags", lambda: {"avx2"})
    for training_args in (FinetuningArguments(use_cpu=True), FinetuningArguments(use_cpu=True, cpu_bf16="off")):
        assert resolve_cpu_precision(training_args) is None
        assert (training_args.bf16, training_args.mixed_precision) == (False, "no")


def test_mixed_precision_has_one_home(monkeypatch):
    """Pitfall 31: what `accelerate launch --mixed_precision` chose stays."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    training_args = FinetuningArguments(use_cpu=True, cpu_bf16="on")
    assert training_args.mixed_precision == "bf16"
    resolve_cpu_precision(training_args)
    assert training_args.mixed_precision == "bf16"
    monkeypatch.setattr(arguments, "_cpu_flags", set)
    assert "this CPU has no units for it" in resolve_cpu_precision(training_args)


def test_float16_on_a_cpu_is_an_error_and_not_a_float32_run():
    training_args = FinetuningArguments(fp16=True, use_cpu=True)
    with pytest.raises(ArgumentError, match="a CPU trains in float32 or, with --bf16, bfloat16"):
        resolve_cpu_precision(training_args)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"tokens_per_batch": 0}, "--tokens_per_batch 0: expected at least 1"),
        (
            {"train_sampling_strategy": "random"},
            "--train_sampling_strategy random does not: give --train_sampling_strategy group_by_length, or --per_device_train_batch",
        ),
        ({"auto_find_batch_size": True}, "--auto_find_batch_size halves a number of examples. Give one of the two"),
        ({"dataloader_drop_last": True}, "none of which is short: no --dataloader_drop_last"),
    ],
)
def test_batches_by_tokens_and_what_says_otherwise(flags, message):
    flags = {"tokens_per_batch": 100, "train_sampling_strategy": "group_by_length", **flags}
    with pytest.raises(ArgumentError, match=message):
        FinetuningArguments(**flags)
