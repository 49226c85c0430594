"""Modules of the `evaluate` library, whose numbers are reported beside ours.

EvaluateModules(["metrics/cer"]).compute(predictions, references)      # {"cer": 0.12}
"""

import logging
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sft_hf.errors import ArgumentError

logger = logging.getLogger(__name__)


class EvaluateModules:
    """Modules of the `evaluate` library, whose numbers are reported beside ours.

    A name is the path of a script, or of a folder `name` that holds `name.py`, or else a module on the Hub.
    Raises `ArgumentError` for a Hub module without `trust_remote_code`, because loading one downloads code
    and runs it. `HF_EVALUATE_OFFLINE=1` keeps `evaluate` to modules downloaded before; `HF_HUB_OFFLINE` does
    not.
    """

    def __init__(self, names: Sequence[str], *, trust_remote_code: bool = False):
        self.names = tuple(names)
        self._modules: dict[tuple[str, str | None], Any] = {}
        remote = [name for name in self.names if _local_script(name) is None]
        if remote and not trust_remote_code:
            raise ArgumentError(
                f"No script on this machine is called {', '.join(remote)}, so `evaluate` would download code "
                "from the Hub and run it. Allow that with --trust_remote_code, or give the path of a script."
            )

    def compute(
        self,
        predictions: Sequence,
        references: Sequence,
        *,
        reserved: Collection[str] = (),
        config_name: str | None = None,
    ) -> dict[str, float]:
        """Return the numbers of every module, under the module's own keys.

        Predictions and references are lists of class ids, of 0/1 vectors or of floats. `config_name` picks a
        variant of the modules, such as `multilabel`. What is not a finite number is left out. Raises
        `ArgumentError` for a key that is `reserved` or that two modules share.
        """
        results: dict[str, float] = {}
        for name in self.names:
            module = self._load(name, config_name=config_name)
            output = module.compute(predictions=predictions, references=references)
            # Some modules, wer among them, return a bare number.
            numbers = finite_numbers(output if isinstance(output, dict) else {Path(name).stem: output})
            if not numbers:
                logger.warning("The evaluate module %s returned no finite number: %s", name, output)
            _refuse_taken_keys(numbers, taken={*reserved, *results}, module_name=name)
            results |= numbers
        return results

    def _load(self, name: str, *, config_name: str | None) -> Any:
        if (name, config_name) not in self._modules:
            import evaluate

            script = _local_script(name)
            # In memory, because ranks that share a disk would wait for each other's cache file.
            self._modules[name, config_name] = evaluate.load(
                name if script is None else str(script), config_name, keep_in_memory=True
            )
        return self._modules[name, config_name]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_modules": {}}


def finite_numbers(values: dict[str, Any]) -> dict[str, float]:
    scalars = {key: float(value) for key, value in values.items() if np.isscalar(value) or np.ndim(value) == 0}
    return {key: value for key, value in scalars.items() if np.isfinite(value)}


def _refuse_taken_keys(numbers: dict[str, float], *, taken: Collection[str], module_name: str) -> None:
    if both := sorted(numbers.keys() & taken):
        raise ArgumentError(
            f"The evaluate module {module_name} reports {', '.join(both)}, which is reported already. "
            "Remove the module."
        )


def _local_script(name: str) -> Path | None:
    """Return the script that `evaluate` would find on this machine under a name, if there is one."""
    path = Path(name)
    script = path if path.suffix == ".py" else path / f"{path.name}.py"
    return script.absolute() if script.is_file() else None
