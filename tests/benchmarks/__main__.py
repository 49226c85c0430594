"""The command: run the sides of a case in turns, print medians and ratios, write JSON."""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from tests.benchmarks.cases import CASES

ROOT = Path(__file__).parent.parent.parent
SIDES = ("ours", "stock", "stock_best", "bare")
FIGURES = (
    "train_samples_per_second",
    "eval_samples_per_second",
    "seconds_to_first_step",
    "seconds",
    "peak_rss_mb",
    "metric",
)


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks", description=sys.modules["tests.benchmarks"].__doc__
    )
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--data", type=Path, required=True, help="The folder of the data sets.")
    parser.add_argument("--weights", type=Path, required=True, help="The folder of the pretrained models.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES)
    parser.add_argument("--max_steps", type=int, help="Other than the case's.")
    parser.add_argument("--num_processes", type=int, default=1)
    parser.add_argument("--output", type=Path, help="JSON of every round.")
    options = parser.parse_args()
    rounds: dict[str, list[dict[str, float]]] = {side: [] for side in options.sides}
    with tempfile.TemporaryDirectory() as folder:
        case = CASES[options.case](options.data.absolute(), options.weights.absolute(), Path(folder))
        case |= {"max_steps": options.max_steps or case["max_steps"], "seed": 42}
        for number in range(options.rounds):
            for side in options.sides:
                figures = run(side, case, Path(folder) / f"{side}{number}", options.num_processes)
                rounds[side].append(figures)
                print(side, json.dumps(figures), flush=True)
    Console().print(table(options.case, rounds))
    if options.output:
        facts = {"case": options.case, "machine": platform.processor(), "cores": os.cpu_count(), "rounds": rounds}
        options.output.write_text(json.dumps(facts, indent=1) + "\n")


def run(side: str, case: dict[str, Any], folder: Path, num_processes: int) -> dict[str, float]:
    """One side once, in processes of its own; its figures."""
    folder.mkdir()
    case = {**case, "output_dir": str(folder / "run"), "best": side == "stock_best"}
    (folder / "case.json").write_text(json.dumps(case))
    launcher = [sys.executable]
    if num_processes > 1:
        launcher += [
            "-m",
            "accelerate.commands.launch",
            "--config_file",
            str(ROOT / "accelerate_configs" / "multi_cpu.yaml"),
        ]
        launcher += ["--num_processes", str(num_processes)]
    files = [str(folder / "case.json"), str(folder / "figures.json")]
    if side == "ours":
        from tests.benchmarks import ours

        program = [str(ROOT / "recipes" / f"{case['recipe']}.py"), *ours.flags(case)]
    else:
        program = ["-m", f"tests.benchmarks.{side.partition('_')[0]}", *files]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1"}
    started = time.perf_counter()
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([*launcher, *program], stdout=log, stderr=log, env=environment, cwd=ROOT)
        peak = watch_memory(process)
    seconds = time.perf_counter() - started
    if process.returncode != 0:
        raise SystemExit(f"{side} failed:\n{(folder / 'log').read_text()[-3000:]}")
    figures = ours.figures(case) if side == "ours" else json.loads((folder / "figures.json").read_text())
    return {**figures, "seconds": seconds, "peak_rss_mb": peak}


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
    """Medians, and of rates what ours is of each."""
    medians = {side: {figure: median(runs, figure) for figure in FIGURES} for side, runs in rounds.items()}
    made = Table(title=f"{name}: medians of {len(next(iter(rounds.values())))} rounds")
    made.add_column("side")
    for figure in FIGURES:
        made.add_column(figure.replace("_", " "), justify="right")
    made.add_column("ours / it, training", justify="right")
    for side, figures in medians.items():
        own = medians.get("ours", {}).get("train_samples_per_second")
        ratio = f"{own / figures['train_samples_per_second']:.2f}" if own else ""
        made.add_row(side, *("" if value is None else f"{value:.4g}" for value in figures.values()), ratio)
    return made


def median(runs: list[dict[str, float]], figure: str) -> float | None:
    """Of what was measured; None where a side does not have it."""
    values = [run[figure] for run in runs if run.get(figure) is not None]
    return statistics.median(values) if values else None


if __name__ == "__main__":
    main()
