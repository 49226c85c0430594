"""What a run came to, and what another one lost against it.

lost(undisturbed, folder) == []                     the same model, metrics, predictions and history, and nothing left behind
lost(undisturbed, folder) == ["model.safetensors differs"]
"""

import hashlib
import json
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Of log_history, what a clock says, and the last entry, whose numbers are of the part since the last start alone.
CLOCK = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time")


@dataclass(frozen=True)
class Ending:
    """A finished run: `parts` is what has to be the same, by name; `files` is every path in its folder."""

    parts: dict[str, Any]
    files: frozenset[str]


def ending(folder: Path) -> Ending:
    """Read an output_dir; FileNotFoundError where the run is not finished."""
    results = json.loads((folder / "results.json").read_text())
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    predictions = folder / "predictions" / "test.jsonl"
    parts = {
        "model.safetensors": hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest(),
        "metrics": results["metrics"],
        "the best checkpoint": results["training"]["best_checkpoint"],
        "the number of steps": results["training"]["steps"],
        "predictions": predictions.read_text() if predictions.is_file() else None,
        "log_history": [_without_clock(entry) for entry in history if "train_runtime" not in entry],
    }
    return Ending(parts, files(folder))


def _without_clock(entry: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in entry.items() if not name.endswith(CLOCK)}


def files(folder: Path) -> frozenset[str]:
    """The path of each file in a folder, hidden ones too, and of each empty folder."""
    paths = (path for path in folder.rglob("*") if path.is_file() or not any(path.iterdir()))
    return frozenset(path.relative_to(folder).as_posix() for path in paths)


def lost(undisturbed: Ending, folder: Path, *, has_own_checkpoints: bool = False) -> list[str]:
    """One line for each thing that is not as the undisturbed run left it.

    With `has_own_checkpoints` other ones may have been kept beside the last and the best, since a signal writes one too.
    """
    try:
        found = ending(folder)
    except (OSError, ValueError, KeyError) as error:
        return [f"not finished: {error}"]
    different = [f"{name} differs{_where(undisturbed.parts[name], found.parts[name])}" for name in undisturbed.parts]
    different = [
        line
        for name, line in zip(undisturbed.parts, different, strict=True)
        if undisturbed.parts[name] != found.parts[name]
    ]
    there, expected = found.files, undisturbed.files
    if has_own_checkpoints:
        needed = undisturbed.parts["the number of steps"], undisturbed.parts["the best checkpoint"]
        wanted = {needed[0], int(needed[1].removeprefix("checkpoint-"))} - set(whole_checkpoints(folder))
        different += [f"checkpoint-{step} is not there, or not whole" for step in sorted(wanted)]
        there, expected = ({path for path in paths if "checkpoint-" not in path} for paths in (there, expected))
    missing, left = expected - there, there - expected
    different += [f"missing: {_some(missing)}"] if missing else []
    return different + ([f"left behind: {_some(left)}"] if left else [])


def _where(one: Any, other: Any) -> str:
    if not isinstance(one, list):
        return f" ({one} / {other})" if len(str(one)) < 40 else ""
    first = next((index for index, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), None)
    if first is None:
        return f": {len(other)} entries instead of {len(one)}"
    names = [name for name in {**one[first], **other[first]} if one[first].get(name) != other[first].get(name)]
    return f" from entry {first} of {len(one)} (step {one[first].get('step')}) in {', '.join(names)}"


def _some(paths: Set[str]) -> str:
    shown = sorted(paths)
    return ", ".join(shown[:4]) + (f" and {len(shown) - 4} more" if len(shown) > 4 else "")


def whole_checkpoints(folder: Path) -> list[int]:
    """The steps of the checkpoints that hold all that a checkpoint holds; files are read, not only counted."""
    steps = []
    for path in folder.glob("checkpoint-*"):
        if not path.name.split("-")[-1].isdigit():
            continue
        there = {file.name for file in path.iterdir()}
        has_all = {"model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json", "manifest.json"} <= there
        if has_all and any(name.startswith("rng_state") for name in there) and _is_readable(path):
            steps.append(int(path.name.split("-")[-1]))
    return sorted(steps)


def _is_readable(checkpoint: Path) -> bool:
    """Without torch: the safetensors header says where the file ends, a .pt is a zip, whose directory is its end."""
    import zipfile

    with open(checkpoint / "model.safetensors", "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        try:
            header = json.loads(file.read(length))
            json.loads((checkpoint / "trainer_state.json").read_text())
        except ValueError:
            return False
    end = 8 + length + max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
    torch_files = (checkpoint / name for name in ("optimizer.pt", "scheduler.pt"))
    return end == (checkpoint / "model.safetensors").stat().st_size and all(map(zipfile.is_zipfile, torch_files))
