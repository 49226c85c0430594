"""Runs that are killed and started again end as if nothing had happened; `python -m tests.faults` does it at length.

Each run is forked off a process that has imported everything, since to import costs eight seconds.
"""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
from faults import held, runs, sigkill, warm

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="system calls are held by Linux alone")


RUN = replace(runs.TEXT, options={**runs.TEXT.options, "num_train_epochs": 2})


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    warm.serve("text_cls")
    return runs.make_text_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def whole(world, tmp_path_factory) -> sigkill.Undisturbed:
    """Two epochs, four checkpoints, of which two stay."""
    try:
        return sigkill.undisturbed_but_held(RUN, world, tmp_path_factory.mktemp("runs").resolve())
    except held.CannotHold as error:
        pytest.skip(str(error))


def middle(whole: sigkill.Undisturbed, *names: str) -> sigkill.Kill:
    """Instead of the call in the middle of those of checkpoints that have one of these names."""
    numbers = [n for n, call in enumerate(whole.calls, 1) if call.is_of_a_checkpoint and call.name in names]
    return sigkill.Kill(call=numbers[len(numbers) // 2])


def test_a_run_is_followed_call_by_call(whole):
    """The tool itself: without the calls of checkpoints the tests below would kill nowhere."""
    assert whole.end.parts["the number of steps"] == 16
    for names in (("write", "writev"), ("unlink", "unlinkat"), ("mkdir",)):
        assert sum(call.is_of_a_checkpoint and call.name in names for call in whole.calls) >= 4


def test_a_run_killed_between_steps_and_in_the_middle_of_a_checkpoint(world, whole, tmp_path):
    """Pitfall 44 and the random states: dropout on, the order by length, the best of the checkpoints, bit for bit."""
    kills = (sigkill.Kill(seconds=0.8), sigkill.sooner(middle(whole, "write", "writev")))
    done, lost = sigkill.disturb(RUN, world, tmp_path.resolve() / "run", whole, kills)
    assert lost == []
    assert done.count("killed") == 2


def test_a_run_killed_while_it_deletes_a_checkpoint(world, whole, tmp_path):
    """--save_total_limit leaves a half of one behind, which is no checkpoint and is cleared away."""
    kill = middle(whole, "unlink", "unlinkat")
    done, lost = sigkill.disturb(RUN, world, tmp_path.resolve() / "run", whole, (kill,))
    assert lost == []
    assert "unlink" in done


def test_a_run_killed_before_it_knows_itself(world, whole, tmp_path):
    number = next(n for n, call in enumerate(whole.calls, 1) if call.name == "write" and call.path.startswith("run/"))
    done, lost = sigkill.disturb(RUN, world, tmp_path.resolve() / "run", whole, (sigkill.Kill(call=number),))
    assert "killed" in done
    assert lost == []
