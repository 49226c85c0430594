"""The floor of every launch: what each of these programs has to import, and nothing else.

python -m tests.benchmarks.imports CASE.json FIGURES.json
"""

import json
import sys
from pathlib import Path


def main(case_file: str, figures_file: str) -> None:
    """Import, and write how long it took since the launch."""
    import datasets  # noqa: F401
    import torch  # noqa: F401
    from transformers import AutoConfig, AutoModel, Trainer, TrainingArguments  # noqa: F401

    from tests.benchmarks.clock import seconds_since_launch

    Path(figures_file).write_text(json.dumps({"seconds_to_first_step": seconds_since_launch()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
