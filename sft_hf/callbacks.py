"""What the Trainer calls at its events: stopping on a signal, and the clock."""

import resource
import sys
import time

import psutil
import torch
from accelerate import Accelerator
from transformers import TrainerCallback

from sft_hf.launching import SignalWatch


class StopOnSignal(TrainerCallback):
    """A signal on any rank: all ranks finish the step, write a checkpoint and stop.

    An evaluation that is due at that step is still made; without it the resumed run could never choose that checkpoint.
    """

    def __init__(self, signals: SignalWatch, accelerator: Accelerator):
        self.signals, self.accelerator = signals, accelerator
        self.is_agreed = False  # by all ranks, in the step that is the last one

    def _is_stopping(self) -> bool:
        if self.accelerator.num_processes > 1:
            mine = torch.tensor([self.signals.received or 0], device=self.accelerator.device)
            self.signals.received = int(self.accelerator.gather(mine).max()) or None
        return self.signals.received is not None

    def on_step_end(self, args, state, control, **kwargs):
        if self._is_stopping():
            self.is_agreed = control.should_save = control.should_training_stop = True
        return control

    def on_epoch_end(self, args, state, control, **kwargs):
        if self.is_agreed and not float(state.epoch).is_integer():
            control.should_save = control.should_evaluate = False  # it is not the end of an epoch, only of the loop
        return control


class Timing(TrainerCallback):
    """How long the steps alone took (loading included, evaluation and saving not), and the launch before them."""

    def __init__(self):
        self.step_seconds = 0.0
        self.seconds_to_first_step: float | None = None
        self._mark = 0.0

    def _restart(self, args, state, control, **kwargs):
        self._mark = time.perf_counter()

    on_train_begin = on_epoch_begin = on_evaluate = on_save = _restart

    def on_step_end(self, args, state, control, **kwargs):
        now = time.perf_counter()
        self.step_seconds += now - self._mark
        self._mark = now
        if self.seconds_to_first_step is None:
            self.seconds_to_first_step = time.time() - psutil.Process().create_time()


def peak_rss_mb() -> float:
    """The largest resident memory of this process so far, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
