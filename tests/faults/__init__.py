"""Faults injected for real into whole runs: `python -m tests.faults` lists them. No part of the test command.

    python -m tests.faults sigkill --tries 20 --seed 0

A fault prints a row of the table of docs/reliability.md: what was done, how often, and what was lost. The exit code is 1 if anything was.
"""

import sys
from pathlib import Path

# `python -m tests.faults` has the repository in its path, and not the folder in which pytest finds `tiny`.
if str(Path(__file__).parent.parent) not in sys.path:
    sys.path.insert(0, str(Path(__file__).parent.parent))
