"""sft_hf: supervised fine-tuning on the Hugging Face stack, from a Hub dataset and a Hub model to a documented model.

    from sft_hf import finetune                                 what a recipe calls
    from sft_hf import build_trainer, Task, Method              what a notebook or a new task needs
    import sft_hf                                               lets transformers load our architectures by name

Nothing heavy is imported until a name is used.
"""

from typing import TYPE_CHECKING

import wrapt

__version__ = "0.1.0"
__all__ = ["Method", "Task", "__version__", "build_trainer", "finetune"]

if TYPE_CHECKING:
    from sft_hf.finetuning import build_trainer, finetune
    from sft_hf.method import Method
    from sft_hf.task import Task

IDLE_SPINS = "10000"
_HOMES = {
    "finetune": "sft_hf.finetuning",
    "build_trainer": "sft_hf.finetuning",
    "Task": "sft_hf.task",
    "Method": "sft_hf.method",
}


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import gc
    import importlib
    import os

    # How often an idle thread of a CPU model looks for work before it sleeps; the library that counts it reads this when torch is imported, and
    # by itself says 300,000 times a core or more: beside one busy process a training step then takes three to ten times as long.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", IDLE_SPINS)
    # torch and transformers make millions of objects that stay; looking through them for garbage takes a tenth of their import.
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        return getattr(importlib.import_module(_HOMES[name]), name)
    finally:
        if was_enabled:
            gc.enable()


@wrapt.when_imported("transformers.models.auto.modeling_auto")
def _register_architectures(_module) -> None:
    """Register builtin:crnn, fcn, lstm and mlp as soon as transformers' Auto classes exist, and not before.

    Registering needs torch, and `import sft_hf` has to stay quick for `sft-hf --help`.
    """
    import sft_hf.models.crnn
    import sft_hf.models.fcn
    import sft_hf.models.lstm
    import sft_hf.models.mlp  # noqa: F401
