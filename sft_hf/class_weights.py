"""--class_weights none|balanced|FILE: what each class counts for in the loss.

resolve_class_weights("balanced", names=["ham", "spam"], counts=lambda: [900, 100])   -> tensor([0.556, 5.0])
"""

import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sft_hf.configuration import read_json_or_yaml
from sft_hf.errors import ArgumentError
from sft_hf.losses import balanced_class_weights

logger = logging.getLogger(__name__)


def resolve_class_weights(
    flag: str, *, names: Sequence[str], counts: Callable[[], Sequence[int] | None]
) -> Tensor | None:
    """Weights `(classes,)` in id order, None for "none".

    `counts` says how often each class is in the training split, None where that is not known (a stream). Raises
    ArgumentError for a file that is missing, cannot be read or does not fit the classes.
    """
    if flag == "none":
        return None
    if flag != "balanced":
        return _read(Path(flag), names)
    numbers = counts()
    if numbers is None:
        raise ArgumentError(
            "--class_weights balanced counts the whole training set first, --streaming never has it: "
            "give the weights in a FILE."
        )
    weights = balanced_class_weights([int(number) for number in numbers])
    logger.info("class weights: %s", dict(zip(names, [round(float(w), 3) for w in weights], strict=True)))
    return weights


def _read(path: Path, names: Sequence[str]) -> Tensor:
    flag = f"--class_weights {path}"
    if not path.is_file():
        raise ArgumentError(f"{flag}: expected none, balanced, or an existing json or yaml file.")
    content = read_json_or_yaml(path, flag=flag)
    if isinstance(content, dict):
        content = {str(name): weight for name, weight in content.items()}
        if set(content) != set(names):
            missing, unknown = sorted(set(names) - set(content)), sorted(set(content) - set(names))
            raise ArgumentError(f"{flag}: no weight for {missing or 'nothing'}; unknown classes {unknown or 'none'}.")
        content = [content[name] for name in names]
    if not isinstance(content, list) or len(content) != len(names):
        raise ArgumentError(f"{flag}: expected {len(names)} weights, in the order of {', '.join(names)}.")
    if not all(_is_weight(weight) for weight in content):
        raise ArgumentError(f"{flag}: weights are numbers of 0 or more, got {content}.")
    return torch.tensor(content, dtype=torch.float32)


def _is_weight(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < math.inf
