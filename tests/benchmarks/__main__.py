"""The command: run the sides of a case in turns, print medians and ratios, write JSON."""

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from tests.benchmarks import ours
from tests.benchmarks.cases import CASES, Place

ROOT = Path(__file__).parent.parent.parent
SIDES = ("ours", "stock", "stock_best", "bare", "imports")
FIGURES = (
    "train_samples_per_second",
    "eval_samples_per_second",
    "seconds_to_first_step",
    "seconds",
    "peak_rss_mb",
    "metric",
)
LIBRARIES = ("torch", "transformers", "datasets", "accelerate", "timm")
RATIOS = ("train_samples_per_second", "seconds_to_first_step")


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks", description=sys.modules["tests.benchmarks"].__doc__
    )
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--data", type=Path, help="The folder of the data sets; without it, made-up ones.")
    parser.add_argument("--weights", type=Path, help="The folder of the pretrained models; without it, random weights.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES)
    parser.add_argument("--max_steps", type=int, help="Other than the case's.")
    parser.add_argument("--growth", type=int, nargs="+", default=[1], help="How many times the training rows.")
    parser.add_argument("--num_processes", type=int, default=1)
    parser.add_argument("--output", type=Path, help="JSON of every round.")
    parser.add_argument("--flags", nargs=argparse.REMAINDER, default=[], help="More flags of ours; the last option.")
    options = parser.parse_args()
    for growth in options.growth:
        name = options.case if growth == 1 else f"{options.case} x {growth}"
        rounds = in_turns(options, growth)
        Console(width=160).print(table(name, rounds))
        if options.output:
            record(options.output, name, options, rounds)


def in_turns(options: argparse.Namespace, growth: int) -> dict[str, list[dict[str, float]]]:
    """Every side once, as often as there are rounds."""
    rounds: dict[str, list[dict[str, float]]] = {side: [] for side in options.sides}
    with tempfile.TemporaryDirectory() as folder:
        data, weights = (path.absolute() if path else None for path in (options.data, options.weights))
        case = CASES[options.case](Place(data, weights, Path(folder), growth))
        case |= {"max_steps": options.max_steps or case["max_steps"], "seed": 42, "flags": options.flags}
        for number in range(options.rounds):
            for side in options.sides:
                figures = run(side, case, Path(folder) / f"{side}{number}", options.num_processes)
                rounds[side].append(figures)
                print(side, json.dumps(figures), flush=True)
    return rounds


def record(path: Path, name: str, options: argparse.Namespace, rounds: dict[str, list[dict[str, float]]]) -> None:
    """Add to a JSON file of all that was measured on this machine."""
    facts = {
        "date": datetime.date.today().isoformat(),
        "machine": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "versions": {library: version(library) for library in LIBRARIES},
        "num_processes": options.num_processes,
        "flags": options.flags,
        "rounds": rounds,
    }
    measured = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**measured, name: [*measured.get(name, []), facts]}, indent=1) + "\n")


def run(side: str, case: dict[str, Any], folder: Path, num_processes: int) -> dict[str, float]:
    """One side once, in processes of its own; its figures."""
    folder.mkdir()
    case = {**case, "output_dir": str(folder / "run"), "best": side == "stock_best"}
    (folder / "case.json").write_text(json.dumps(case))
    if side == "ours":
        program = [str(ROOT / "recipes" / f"{case['recipe']}.py"), *ours.flags(case)]
    else:
        program = ["-m", f"tests.benchmarks.{side.partition('_')[0]}"]
        program += [str(folder / "case.json"), str(folder / "figures.json")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1"}
    started = time.perf_counter()
    with (folder / "log").open("w") as log:
        command = [*launcher(num_processes), *program]
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=ROOT)
        peak = watch_memory(process)
    seconds = time.perf_counter() - started
    if process.returncode != 0:
        raise SystemExit(f"{side} failed:\n{(folder / 'log').read_text()[-3000:]}")
    figures = ours.figures(case) if side == "ours" else json.loads((folder / "figures.json").read_text())
    return {**figures, "seconds": seconds, "peak_rss_mb": peak}


def launcher(num_processes: int) -> list[str]:
    """The same for all sides."""
    if num_processes == 1:
        return [sys.executable]
    accelerate = [sys.executable, "-m", "accelerate.commands.launch"]
    configuration = str(ROOT / "accelerate_configs" / "multi_cpu.yaml")
    return [*accelerate, "--config_file", configuration, "--num_processes", str(num_processes)]


def watch_memory(process: subprocess.Popen) -> float:
    """Wait for a process; the largest sum of resident memory of it and its children, in MiB, looked at every 0.2 s."""
    peak, watched = 0.0, psutil.Process(process.pid)
    while process.poll() is None:
        try:
            family = [watched, *watched.children(recursive=True)]
            peak = max(peak, sum(member.memory_info().rss for member in family) / 2**20)
        except psutil.NoSuchProcess:
            pass  # one of them ended between two looks
        time.sleep(0.2)
    return peak


def table(name: str, rounds: dict[str, list[dict[str, float]]]) -> Table:
    """Medians, and what ours is of each."""
    medians = {side: {figure: median(runs, figure) for figure in FIGURES} for side, runs in rounds.items()}
    made = Table(title=f"{name}: medians of {len(next(iter(rounds.values())))} rounds")
    made.add_column("side")
    for figure in (*FIGURES, *(f"ours / it: {figure}" for figure in RATIOS)):
        made.add_column(figure.replace("_", " "), justify="right")
    own = medians.get("ours", {})
    for side, figures in medians.items():
        ratios = (own[name] / figures[name] if own.get(name) and figures[name] else None for name in RATIOS)
        made.add_row(side, *("" if value is None else f"{value:.4g}" for value in (*figures.values(), *ratios)))
    return made


def median(runs: list[dict[str, float]], figure: str) -> float | None:
    """Of what was measured; None where a side does not have it."""
    values = [run[figure] for run in runs if run.get(figure) is not None]
    return statistics.median(values) if values else None


if __name__ == "__main__":
    main()
