"""Numbers that are none: in the labels, which is seen before training, and in the loss, which stops the run.

Expected: exit code 2 each time; for a label the row, for a loss the step, the examples, and what to change.
"""

import re
from pathlib import Path

import tiny

from . import runs, warm
from .report import Row
from .sigkill import last_lines


def nan(world: Path, folder: Path, tries: int, seed: int) -> list[Row]:
    """Labels inf, nan and 1e39 (more than float32 holds); a learning rate of 1e30."""
    labels = Row("nan", "a regression csv with the label inf, -inf, nan or 1e39 in one row")
    for number in range(tries):
        for value in ("inf", "-inf", "nan", "1e39"):
            labels.attempt(
                value, lambda value=value, number=number: _label(value, world, folder / f"label_{value}_{number}")
            )
    losses = Row("nan", "a learning rate of 1e30")
    for number in range(tries):
        for most in (None, 1, 4):
            losses.attempt(
                f"--max_nonfinite_steps {most}",
                lambda most=most, number=number: _loss(most, world, folder / f"loss_{most}_{number}"),
            )
    return [labels, losses]


def _label(value: str, world: Path, folder: Path) -> tuple[str, list[str]]:
    folder.mkdir()
    rows = tiny.rows(48, "regression")
    rows[17]["label"] = value
    tiny.write_rows(folder / "train.csv", rows)
    files = {"train_file": str(folder / "train.csv"), "model_name_or_path": "bert"}
    recipe = runs.Recipe("text_cls", files, {"max_steps": 8, "problem_type": "regression"})
    run = warm.start(recipe.name, recipe.flags(world), folder)
    code = run.wait()
    lost = _expected(code, run.output, r"\b17\b|example|row")
    return f"exit code {code}", lost + (["it was trained on"] if "'loss':" in run.output else [])


def _loss(most: int | None, world: Path, folder: Path) -> tuple[str, list[str]]:
    given = {} if most is None else {"max_nonfinite_steps": most}
    run = warm.start(runs.TEXT.name, runs.TEXT.flags(world, learning_rate=1e30, **given), folder)
    code = run.wait()
    lost = _expected(code, run.output, r"\bstep\b.*example|not finite in \d+ of \d+ examples")
    return f"exit code {code}", lost + (
        ["results.json says that it is complete"] if (folder / "run" / "results.json").exists() else []
    )


def _expected(code: int, output: str, named: str) -> list[str]:
    message = output.rpartition("error: ")[2]
    lost = [] if code == 2 else [f"exit code {code}"]
    lost += ["a traceback"] if "Traceback" in output else []
    return lost + (
        [] if re.search(named, message, flags=re.DOTALL | re.IGNORECASE) else [f"the message: {last_lines(output)}"]
    )
