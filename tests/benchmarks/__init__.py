"""Side by side on the same job: our recipe, transformers' Trainer as its example scripts use it, and a bare loop.

    python -m tests.benchmarks text_short --data DATA --weights WEIGHTS --rounds 3 --output text_short.json

No part of the test command. Each side is a process of its own, started in turns, so that a slow minute of the machine hits all alike;
the table has medians over the rounds and ratios of rates measured in the same call.
"""

import sys
from pathlib import Path

if str(Path(__file__).parent.parent) not in sys.path:
    sys.path.insert(0, str(Path(__file__).parent.parent))  # tiny and its like
