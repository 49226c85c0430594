"""The clock, and the stop at a signal."""

import json
import signal
from types import SimpleNamespace

from test_trainer import make_trainer, topic_rows
from transformers import TrainerControl

from sft_hf.callbacks import StopOnSignal, peak_rss_mb


def test_timing_counts_steps_alone(tmp_path):
    trainer = make_trainer(tmp_path, topic_rows(8), batch_size=4, max_steps=3, eval_strategy="steps", eval_steps=1)
    trainer.train()
    assert 0 < trainer.timing.step_seconds < trainer.state.log_history[-1]["train_runtime"]
    assert json.dumps(trainer.timing.seconds_to_first_step)


def stopping(received: int | None) -> StopOnSignal:
    return StopOnSignal(SimpleNamespace(received=received), SimpleNamespace(num_processes=1))


def test_a_signal_saves_and_stops_after_the_step_and_keeps_a_due_evaluation():
    control = TrainerControl(should_evaluate=True)
    stopping(signal.SIGTERM).on_step_end(None, None, control)
    assert control.should_save
    assert control.should_training_stop
    assert control.should_evaluate
    untouched = stopping(None).on_step_end(None, None, TrainerControl())
    assert not untouched.should_training_stop


def test_the_end_of_the_loop_is_not_the_end_of_an_epoch():
    callback = stopping(signal.SIGINT)
    callback.on_step_end(None, None, TrainerControl())
    inside = callback.on_epoch_end(
        None, SimpleNamespace(epoch=1.5), TrainerControl(should_save=True, should_evaluate=True)
    )
    at_its_end = callback.on_epoch_end(
        None, SimpleNamespace(epoch=2.0), TrainerControl(should_save=True, should_evaluate=True)
    )
    assert (inside.should_save, inside.should_evaluate) == (False, False)
    assert (at_its_end.should_save, at_its_end.should_evaluate) == (True, True)


def test_peak_memory_is_in_mebibytes():
    assert 50 < peak_rss_mb() < 50_000
