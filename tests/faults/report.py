"""What a fault came to, as a row of the table of docs/reliability.md."""

import re
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from .held import CannotHold


class Skipped(Exception):
    """This machine cannot show the fault."""


@dataclass
class Row:
    """A fault, how it was injected, what the tries showed, and all that they lost."""

    fault: str
    injected: str
    lost: list[str] = field(default_factory=list)
    seen: Counter[str] = field(default_factory=Counter)
    tries: int = 0

    def attempt(self, what: str, one: Callable[[], tuple[str, list[str]]]) -> None:
        """Count one try: what was seen, and what was lost. A try that fails in itself has lost something."""
        self.tries += 1
        try:
            seen, lost = one()
        except (CannotHold, Skipped):
            raise
        except Exception:
            seen, lost = "the try failed", [traceback.format_exc(limit=-2)]
        self.seen[seen] += 1
        self.lost += lost
        print(f"{self.fault} {self.tries} ({what}): {seen}; {'; '.join(lost) or 'nothing lost'}", file=sys.stderr)

    def __str__(self) -> str:
        seen = ", ".join(f"{number} x {what}" for what, number in self.seen.most_common())
        alike = Counter(_without_numbers(line) for line in self.lost).most_common()
        lost = "; ".join(f"{number} x {line}" for line, number in alike).replace("\n", " ").replace("|", "/")
        command = f"`python -m tests.faults {self.fault}`"
        return f"| {self.fault} | {self.injected} | {self.tries}: {seen} | {lost or 'nothing'} | {command} |"


def _without_numbers(line: str) -> str:
    """So that alike tries are counted together: without numbers, folders, and [where it was killed]."""
    return re.sub(r"\d+", "N", re.sub(r"(?<!\S)/\S*/", "", re.sub(r" \[.*\]$", "", line, flags=re.DOTALL)))
