"""Flags and YAML into typed values: command line beats YAML beats recipe beats defaults.

    text_cls.py      finetune(TextClassification, learning_rate=1e-4)           the recipe's defaults
    run.yaml         learning_rate: 5e-5                                        beats the recipe
    shell            text_cls.py --config run.yaml --learning_rate 2e-5         beats the file: 2e-5, a float

All three layers go through one parser, so that a value gets the same type and a misspelt name the same error
wherever it stands.
"""

import argparse
import difflib
import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from transformers import HfArgumentParser

from sft_hf.configuration import read_config, without_tokens
from sft_hf.errors import ArgumentError

logger = logging.getLogger(__name__)

# What transformers 5 removed and what replaces it (pitfall 27).
REPLACED = {
    "overwrite_output_dir": "choose another --output_dir, or continue the run there with --resume auto",
    "warmup_ratio": "--warmup_steps takes a fraction below 1 (0.1 is 10 % of the steps)",
    "group_by_length": "--train_sampling_strategy group_by_length",
    "logging_dir": "the environment variable TENSORBOARD_LOGGING_DIR",
    "no_cuda": "--use_cpu",
    "evaluation_strategy": "--eval_strategy",
    "per_gpu_train_batch_size": "--per_device_train_batch_size",
    "use_auth_token": "--token, or the environment variable HF_TOKEN",
    "fp16_backend": "--mixed_precision of accelerate launch, or --fp16",
    "task_name": "--dataset_name nyu-mll/glue --dataset_config_name TASK",
    "pad_to_max_length": "nothing: batches are padded to their longest example",
}
# TrainingArguments that its own Trainer reads nowhere, or that a whole run decides; taken, and said.
WITHOUT_EFFECT = {
    "do_train": "a run always trains",
    "do_eval": "a run always evaluates; --eval_strategy says when",
    "do_predict": "a test split is always used at the end",
    "remove_unused_columns": "each task keeps exactly the columns that it needs",
    "label_names": "each task knows its labels; --class_names names classes",
    "length_column_name": "each task knows its lengths",
    "prediction_loss_only": "evaluation always has metrics, accumulated batch by batch",
    "eval_accumulation_steps": "evaluation accumulates metrics batch by batch",
    "batch_eval_metrics": "evaluation accumulates metrics batch by batch",
    "eval_do_concat_batches": "evaluation accumulates metrics batch by batch",
    "eval_use_gather_object": "evaluation accumulates metrics batch by batch",
    "include_for_metrics": "evaluation accumulates metrics batch by batch",
    "fp16_full_eval": "evaluation computes in the precision of training",
    "bf16_full_eval": "evaluation computes in the precision of training",
}
SECRETS = ("token", "hub_token")
NOT_GIVEN = object()
EXPONENT = re.compile(r"[-+]?[0-9]+\.?[0-9]*[eE][-+]?[0-9]+")
DATA_SOURCES = ("dataset_name", "train_file")


@dataclass(frozen=True)
class Parsed:
    """The instances of the dataclasses, in their order, and where each explicit value came from."""

    instances: tuple[Any, ...]
    values: dict[str, Any]  # every flag's value before any __post_init__: what recipe.yaml records
    layers: dict[str, str]  # flag -> "recipe", the YAML file's name, or "command line"


class _Parser(HfArgumentParser):
    def __init__(self, dataclass_types: Sequence[type], description: str | None):
        super().__init__(
            dataclass_types,
            allow_abbrev=False,  # argparse would take --learning_rat for --learning_rate (pitfall 10)
            description=description,
            formatter_class=_HelpFormatter,
            usage="%(prog)s [--config FILE.yaml] [--flag value ...]",  # 180 flags in a row help nobody
        )
        self._action_groups.sort(key=lambda group: group.title == "training")  # the longest one last
        self.add_argument("--config", metavar="FILE.yaml", help="Keys are flag names; `env:` sets variables.")
        self.flags = {action.dest: action for action in self._actions if action.dest not in ("help", "config")}
        hints = {name: hint for kind in dataclass_types for name, hint in get_type_hints(kind).items()}
        for name, action in self.flags.items():
            action.required = False
            kinds = {get_origin(kind) or kind for kind in (hints[name], *get_args(hints[name]))}
            if dict in kinds:
                action.type = _mapping
            elif {str, bool} <= kinds:
                action.type = _word_or_bool  # the parent would refuse --include_num_input_tokens_seen all
            if bool in kinds and action.nargs is None:
                action.nargs, action.const = "?", True  # so that --hub_private_repo alone is true, as --push_to_hub is

    def error(self, message: str):
        raise ArgumentError(message)

    def explicit(self, arguments: list[str], where: str) -> dict[str, Any]:
        """The values that `arguments` really name, typed; ArgumentError with the nearest name for an unknown one."""
        # Defaults stay what they are, for --help; a name that is already there does not get its own.
        nothing = argparse.Namespace(**{action.dest: NOT_GIVEN for action in self._actions})
        try:
            namespace, unknown = self.parse_known_args(arguments, nothing)
        except ArgumentError as error:
            raise ArgumentError(f"{where}: {without_tokens(str(error))}") from None
        if unknown:
            raise ArgumentError(f"{where}: {without_tokens(self._unknown(unknown[0]))}")
        values = {name: value for name, value in vars(namespace).items() if value is not NOT_GIVEN}
        if "resume_from_checkpoint" in values:
            values["resume"] = values.pop("resume_from_checkpoint")
        return values

    def _unknown(self, argument: str) -> str:
        if not argument.startswith("-"):
            return f"unexpected argument {argument!r}; flags start with --"
        name = argument.lstrip("-").split("=")[0].replace("-", "_")
        return f"unknown flag --{name}. {self.advice(name)}"

    def advice(self, name: str) -> str:
        if name in REPLACED:
            return f"Use instead: {REPLACED[name]}."
        near = difflib.get_close_matches(name, self.flags, n=1, cutoff=0.5)
        return (f"Did you mean --{near[0]}? " if near else "") + "--help lists all flags."


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the recipe's docstring as it is written and shows defaults, the recipe's before the class's."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, "", []) else super()._get_help_string(action)


def _mapping(text: str) -> Any:
    """A JSON object; other text (a path, for the flags that also take a file) stays what it is."""
    if not text.startswith("{"):
        return text
    try:
        return json.loads(text, object_hook=_with_numbers)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"invalid JSON: {error}") from None


def _word_or_bool(text: str) -> str | bool:
    return {"true": True, "false": False}.get(text.lower(), text)


def _with_numbers(mapping: dict[str, Any]) -> dict[str, Any]:
    """YAML reads 1e-7 as a string inside of a mapping too (pitfall 9)."""
    return {
        key: float(value) if isinstance(value, str) and EXPONENT.fullmatch(value) else value
        for key, value in mapping.items()
    }


def parse_arguments(
    dataclass_types: Sequence[type],
    arguments: Sequence[str],
    *,
    defaults: Mapping[str, Any],
    model_defaults: Mapping[str | tuple[str, str], Mapping[str, Any]] | None = None,
    description: str | None = None,
) -> Parsed:
    """Merge recipe, YAML and command line into instances of `dataclass_types`.

    `model_defaults` replace some of `defaults` for a model of that name (or pattern, "*mobilenet*"), for a pair of model and
    dataset (the embedded default of a recipe), under "from_scratch" where the weights start random, or under "freeze_base_model"
    where the head alone is trained: a rate that fine-tunes a model of 110 million parameters does not train a small or a fresh one.

    Raises ArgumentError for an unknown, abbreviated or replaced name, for a value of the wrong type, and for values
    that the dataclasses themselves refuse.
    """
    parser = _Parser(dataclass_types, description)
    recipe = _explicit_mapping(parser, defaults, "recipe")
    parser.set_defaults(**recipe)  # for --help alone
    command_line = parser.explicit(list(arguments), "command line")
    config = command_line.pop("config", None)
    yaml_values = read_config(config)[0] if config else {}
    layers = [
        ("recipe", recipe),
        (str(config), _explicit_mapping(parser, yaml_values, str(config))),
        ("command line", command_line),
    ]
    special = _defaults_of_model(_merge(layers)[0], model_defaults or {})
    layers[0] = ("recipe", {**recipe, **_explicit_mapping(parser, special, "recipe")})
    merged, origin = _merge(layers)
    for name in sorted(set(merged) & set(WITHOUT_EFFECT)):
        logger.info("%s: --%s changes nothing: %s", origin[name], name, WITHOUT_EFFECT[name])
    return Parsed(_instantiate(dataclass_types, merged), _all_values(dataclass_types, merged), origin)


def _explicit_mapping(parser: _Parser, values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A mapping's values as the command line would have typed them; None takes a lower layer's value back."""
    arguments, unparsed = [], {}
    for name, value in values.items():
        if name not in parser.flags:
            raise ArgumentError(f"{where}: unknown key {name!r}. {parser.advice(str(name))}")
        # An empty list has no form on the command line, but recipe.yaml holds some.
        if value is None or (parser.flags[name].nargs == "+" and value in ([], "")):
            unparsed[name] = value
        else:
            arguments += _as_arguments(parser.flags[name], name, value)
    return {**unparsed, **parser.explicit(arguments, where)}


def _as_arguments(action: argparse.Action, name: str, value: Any) -> list[str]:
    if isinstance(value, Mapping):
        if action.nargs == "+":
            return [f"--{name}", *(f"{key}={_as_text(item)}" for key, item in value.items())]
        return [f"--{name}={json.dumps(value)}"]
    if isinstance(value, (list, tuple)):
        items = [str(item) for item in value]
        return [f"--{name}", *items] if action.nargs == "+" else [f"--{name}={','.join(items)}"]
    if action.nargs == "+":
        return [f"--{name}", str(value)]
    if value is True and action.const is True:
        return [f"--{name}"]
    if isinstance(value, bool) and action.choices:
        # YAML reads `save_strategy: no` and `cpu_bf16: off` as booleans.
        words = ("on", "yes") if value else ("off", "no")
        value = next((word for word in words if word in action.choices), value)
    return [f"--{name}={_as_text(value)}"]


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _merge(layers: Sequence[tuple[str, Mapping[str, Any]]]) -> tuple[dict[str, Any], dict[str, str]]:
    merged: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for layer, values in layers:
        if any(values.get(source) for source in DATA_SOURCES):
            # One source replaces another of a lower layer whole: a user's --train_file, the recipe's demo set.
            for name in (*DATA_SOURCES, "dataset_config_name", "dataset_revision", "validation_file", "test_file"):
                merged.pop(name, None)
                origin.pop(name, None)
        for name, value in values.items():
            if value is None:
                merged.pop(name, None)
                origin[name] = layer  # so that recipe.yaml can take the recipe's default back again
            else:
                merged[name], origin[name] = value, layer
    return merged, origin


def _defaults_of_model(
    merged: Mapping[str, Any], model_defaults: Mapping[str | tuple[str, str], Mapping[str, Any]]
) -> Mapping[str, Any]:
    """Those of the model's name, else of from_scratch; above them those of a frozen base, or of the model on one demo set.

    A name with a * stands for all whose last part is like it. Of the builtin models minilm is pretrained, and one that is given a
    pretrained backbone.
    """
    model, dataset = merged.get("model_name_or_path", ""), merged.get("dataset_name")
    is_fresh = model.startswith("builtin:") and model != "builtin:minilm" and not merged.get("backbone_name_or_path")
    if merged.get("from_scratch") or (is_fresh and model not in model_defaults):
        name = "from_scratch"
    else:
        patterns = [key for key in model_defaults if isinstance(key, str) and "*" in key]
        last = Path(model).name.lower()
        name = next((pattern for pattern in patterns if fnmatchcase(last, pattern)), model)
    above = "freeze_base_model" if merged.get("freeze_base_model") else (model, dataset) if is_fresh else None
    return {**model_defaults.get(name, {}), **model_defaults.get(above, {})}


def _instantiate(dataclass_types: Sequence[type], merged: Mapping[str, Any]) -> tuple[Any, ...]:
    instances = []
    for dataclass_type in dataclass_types:
        names = {item.name for item in fields(dataclass_type) if item.init}
        try:
            instances.append(dataclass_type(**{name: merged[name] for name in merged if name in names}))
        except (ValueError, TypeError) as error:
            raise ArgumentError(f"{dataclass_type.__name__}: {error}") from error
    return tuple(instances)


def _all_values(dataclass_types: Sequence[type], merged: Mapping[str, Any]) -> dict[str, Any]:
    values = {}
    for dataclass_type in dataclass_types:
        for item in fields(dataclass_type):
            if not item.init or item.name in SECRETS:
                continue
            default = item.default_factory() if item.default_factory is not MISSING else item.default
            values[item.name] = merged.get(item.name, None if default is MISSING else default)
    return values
