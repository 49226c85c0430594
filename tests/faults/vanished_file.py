"""Files that were there before training and are not while it trains: deleted, cut off in the middle, or empty.

Expected: a DataError (exit code 2, no traceback) that names the file and the example; with the file back, the same command goes on to
the same end.
"""

import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from . import endings, runs, warm
from .report import Row
from .sigkill import last_lines, undisturbed


def vanished_file(world: Path, folder: Path, tries: int, seed: int) -> list[Row]:
    """A picture or a clip that is deleted, cut off or emptied after the first checkpoint."""
    faults = [(recipe, harm) for harm in (_delete, _cut, _empty) for recipe in (runs.IMAGE, runs.CLIPS)]
    generator, rows = random.Random(seed), []
    wholes = {recipe.name: undisturbed(recipe, world, folder / recipe.name) for recipe in (runs.IMAGE, runs.CLIPS)}
    for name in wholes:
        row = Row("vanished_file", f"{name}: a file is deleted, cut off or emptied while it trains")
        for index in range(tries):
            recipe, harm = faults[index % len(faults)]
            if recipe.name == name:
                where, number = folder / f"try_{index}", generator.randrange(1000)
                end = wholes[name].end
                row.attempt(
                    harm.__name__[1:], lambda w=where, r=recipe, h=harm, n=number, e=end: _harmed(r, h, n, world, w, e)
                )
        rows.append(row)
    return rows


def _delete(path: Path) -> None:
    path.unlink()


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _harmed(
    recipe: runs.Recipe, harm: Callable[[Path], None], number: int, world: Path, folder: Path, whole: endings.Ending
) -> tuple[str, list[str]]:
    folder.mkdir()
    mine = folder / "world"
    shutil.copytree(world, mine)
    run = warm.start(recipe.name, recipe.flags(mine), folder)
    if not warm.sleep_until(lambda: 4 in endings.whole_checkpoints(folder / "run"), of=run):
        return "ended before", [last_lines(run.output)]
    files = sorted(path for path in (mine / recipe.files["dataset_name"] / "train").rglob("*") if path.is_file())
    path = files[number % len(files)]
    kept = path.read_bytes()
    harm(path)
    code = run.wait()
    path.write_bytes(kept)
    message = run.output.rpartition("error: ")[2]
    lost = [] if code == 2 else [f"exit code {code}"]
    lost += ["a traceback"] if "Traceback" in run.output else []
    is_named = path.name in message and re.search(r"example(_id)? \d+", message)
    lost += [] if is_named else [f"the message about {path.name}: {last_lines(run.output)}"]
    again = warm.start(recipe.name, recipe.flags(mine), folder, log=folder.with_name(f"{folder.name}_again.log"))
    lost += [] if again.wait() == 0 else [f"again: {last_lines(again.output)}"]
    return f"exit code {code}", lost + endings.lost(whole, folder / "run")
