"""The one clock of all sides: seconds of the steps alone, and since the process began."""

import json
import time
from pathlib import Path

import psutil
from transformers import TrainerCallback


def seconds_since_launch() -> float:
    """Since the process was started, imports included."""
    return time.time() - psutil.Process().create_time()


class Clock(TrainerCallback):
    """Times each optimizer step, loading included, evaluation and saving not."""

    def __init__(self):
        self.steps: list[float] = []
        self.seconds_to_first_step: float | None = None
        self._mark = 0.0

    def restart(self, *args, **kwargs):
        """Leave out what was done since the last step."""
        self._mark = time.perf_counter()

    on_train_begin = on_epoch_begin = on_evaluate = on_save = restart

    def on_step_end(self, *args, **kwargs):
        now = time.perf_counter()
        self.steps.append(now - self._mark)
        self._mark = now
        if self.seconds_to_first_step is None:
            self.seconds_to_first_step = seconds_since_launch()


def write_figures(path: Path, clock: Clock, *, examples: int, evaluated: float | None, metric: float | None) -> None:
    """`examples` trained over all steps; `evaluated` a second."""
    figures = {
        "train_samples_per_second": examples / sum(clock.steps),
        "seconds_to_first_step": clock.seconds_to_first_step,
        "eval_samples_per_second": evaluated,
        "metric": metric,
    }
    path.write_text(json.dumps(figures))
