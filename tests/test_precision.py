"""bfloat16, activation checkpointing and torch.compile against float32 on the CPU; `gpu/` has the rest."""

from collections.abc import Callable
from functools import wraps

import precision
import pytest
import tiny
import transformers.modeling_utils


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return precision.write_world(tmp_path_factory.mktemp("world"))


@pytest.mark.parametrize("name", precision.MODELS)
def test_bfloat16_autocast_trains_as_float32_does(name, world, tmp_path):
    """Pitfall 31: by --bf16; the launcher's mixed_precision is the same flag."""
    precision.check_bf16(name, world, tmp_path)


@pytest.mark.parametrize("name", precision.MODELS)
def test_activation_checkpointing_has_the_same_gradients(name, world, tmp_path, monkeypatch):
    calls = count_calls(monkeypatch)
    precision.check_activation_checkpointing(name, world, tmp_path)
    assert len(calls) >= 3 * 2  # steps, layers


def test_activation_checkpointing_with_a_frozen_base(world, tmp_path, monkeypatch):
    """There is no backward pass through it, so nothing is computed twice, and the head learns."""
    calls = count_calls(monkeypatch)
    precision.check_activation_checkpointing("text", world, tmp_path, frozen=True)
    assert calls == []


def count_calls(monkeypatch: pytest.MonkeyPatch) -> list[Callable]:
    """The layers that are called by way of torch's checkpoint, as they are called."""
    calls, checkpoint = [], transformers.modeling_utils.checkpoint

    @wraps(checkpoint)
    def counting(function, *args, **kwargs):
        calls.append(function)
        return checkpoint(function, *args, **kwargs)

    monkeypatch.setattr(transformers.modeling_utils, "checkpoint", counting)
    return calls


@pytest.mark.parametrize("flag", ["--activation_checkpointing", "--gradient_checkpointing"])
def test_a_model_that_cannot_checkpoint_says_so_before_preprocessing(flag, world, tmp_path):
    flags = precision.flags_of("text", world, tmp_path / "run")
    flags[flags.index("--model_name_or_path") + 1] = "builtin:lstm"
    run = tiny.run_recipe(*flags, flag, **precision.FLAGS)
    assert run.exit_code == 2
    assert "--activation_checkpointing (also --gradient_checkpointing): a LstmForSequenceClassification" in run.output
    assert "leave the flag out" in run.output


def test_a_compiled_model_is_saved_and_reloads_as_itself(world, tmp_path):
    """aot_eager traces forward and backward and needs no compiler. ViT is saved under the names of its original checkpoint."""
    precision.check_torch_compile("image", world, tmp_path, backend="aot_eager")
