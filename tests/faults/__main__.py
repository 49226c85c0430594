"""python -m tests.faults [NAME ...] [--tries 20] [--seed 0]: inject faults into runs; without a name, which there are."""

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from . import runs, warm
from .dead_worker import dead_worker
from .disk_full import disk_full, file_too_large
from .held import CannotHold
from .nan import nan
from .out_of_memory import out_of_memory
from .report import Row, Skipped
from .sigkill import sigkill, sigkill_ranks, sigkill_stream, sigkill_workers
from .signals import sigint, sigint_launchers, sigterm, sigterm_launchers
from .vanished_file import vanished_file

Fault = Callable[[Path, Path, int, int], list[Row]]  # world, folder, tries, seed

# Fresh processes under launchers take a quarter of a minute each, runs of a warm process two seconds.
TRIES: dict[Fault, int] = {
    sigkill: 20,
    sigkill_workers: 20,
    sigkill_stream: 20,
    sigkill_ranks: 3,
    sigterm: 20,
    sigint: 20,
    sigterm_launchers: 1,
    sigint_launchers: 1,
    disk_full: 8,
    file_too_large: 4,
    dead_worker: 4,
    vanished_file: 6,
    nan: 1,
    out_of_memory: 1,
}
FAULTS = {fault.__name__: fault for fault in TRIES}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*FAULTS, []], metavar="NAME")
    parser.add_argument("--tries", type=int, help="default: as many as the list says")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if not arguments.names:
        print(
            "\n".join(f"{name:18} {TRIES[fault]:3} {fault.__doc__.splitlines()[0]}" for name, fault in FAULTS.items())
        )
        return 0
    # Children read these when they are imported, and the server of warm processes is a child too.
    for name in set(os.environ) - set(warm.environment()):
        del os.environ[name]
    os.environ.update(warm.environment())
    is_lost = False
    with tempfile.TemporaryDirectory(prefix="faults_") as home:
        os.environ["HF_HOME"] = home
        folder = Path(tempfile.mkdtemp(prefix="faults_")).resolve()
        warm.serve(*warm.IMPORTS)
        world = runs.make_world(folder / "world")
        for name in arguments.names:
            is_lost |= _inject(FAULTS[name], world, folder / name, arguments)
    if is_lost:
        print(f"The runs are in {folder}", file=sys.stderr)
    else:
        shutil.rmtree(folder)
    return int(is_lost)


def _inject(fault: Fault, world: Path, folder: Path, arguments: argparse.Namespace) -> bool:
    folder.mkdir()
    began = time.monotonic()
    try:
        rows = fault(world, folder, arguments.tries or TRIES[fault], arguments.seed)
    except (Skipped, CannotHold) as error:
        print(f"| {fault.__name__} | skipped: {error} | 0 | | |")
        return False
    for row in rows:
        print(row, flush=True)
    print(f"{fault.__name__}: {time.monotonic() - began:.0f} s", file=sys.stderr)
    return any(row.lost for row in rows)


if __name__ == "__main__":
    sys.exit(main())
