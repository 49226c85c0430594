"""A fully convolutional network for semantic segmentation over any timm backbone.

    model = FcnForSemanticSegmentation(FcnConfig(**backbone_settings("timm/resnet18.a1_in1k"), num_labels=21))
    load_pretrained_backbone(model, "timm/resnet18.a1_in1k")
    logits = model(pixel_values).logits    # (batch, 3, height, width) -> (batch, 21, height / 8, width / 8)

Long, Shelhamer and Darrell 2015, https://arxiv.org/abs/1411.4038, the variant with a stride of 8: a linear classifier on
the features of each of the last three levels, and the sum of their scores. As in the paper, all classifiers start at
zero. Other than there, the levels are trained all at once from the first step, and a coarser level's scores are
upsampled by the bilinear formula, which in the paper is the start of learned weights.

The config alone builds the network, with random weights and without a download, so that a saved model is reloaded
from its own files. Importing this module registers it with AutoConfig and AutoModelForSemanticSegmentation; timm is
imported when a model is built.
"""

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HFValidationError, RemoteEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, AutoModelForSemanticSegmentation, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SemanticSegmenterOutput
from transformers.models.auto.modeling_auto import MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES
from transformers.utils.generic import can_return_tuple

from sft_hf import hub
from sft_hf.errors import ModelError

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
DECIDED_HERE = ("features_only", "out_indices", "pretrained")  # arguments of timm.create_model


class FcnConfig(PreTrainedConfig):
    """The backbone of a fully convolutional network, and what is on top of it.

    `backbone` is an architecture of timm, such as resnet18. `out_indices` count its levels of features from the finest,
    0, or with negative numbers from the coarsest, -1: the last three have the strides 8, 16 and 32 in convolutional
    backbones of four, five and six levels alike. (-1,) and (-2, -1) are the paper's variants with the strides 32 and 16.
    `backbone_kwargs` are further arguments of timm.create_model. `classifier_dropout_prob` applies to the coarsest
    features. `data_config` says what the pixels of pretrained weights were: see `backbone_data_config`.
    """

    model_type = "sft_hf_fcn"

    backbone: str = "resnet18"
    out_indices: list[int] | tuple[int, ...] = (-3, -2, -1)
    backbone_kwargs: dict[str, Any] | None = None
    classifier_dropout_prob: float = 0.1
    semantic_loss_ignore_index: int = 255
    data_config: dict[str, Any] | None = None

    def __post_init__(self, **kwargs: Any):
        self.out_indices = list(self.out_indices)  # as it comes back from config.json
        self.backbone_kwargs = dict(self.backbone_kwargs or {})
        super().__post_init__(**kwargs)


class FcnForSemanticSegmentation(PreTrainedModel):
    """A timm backbone and a 1 x 1 convolution on each of its levels, whose scores are added from coarse to fine."""

    config_class = FcnConfig
    base_model_prefix = "backbone"
    main_input_name = "pixel_values"
    # transformers' Trainer counts the labels that differ from -100, and here another number is ignored.
    accepts_loss_kwargs = False

    def __init__(self, config: FcnConfig):
        super().__init__(config)
        self.backbone = _create_backbone(config)
        # timm has initialised them, each architecture in its own way: nothing is to do for the library's initialisation.
        for tensor in _named_tensors(self.backbone).values():
            # On the meta device they have no values, and from_pretrained would take the flag for a loaded weight's.
            tensor._is_hf_initialized = not tensor.is_meta
        channels = self.backbone.feature_info.channels()
        self.scores = nn.ModuleList(nn.Conv2d(number, config.num_labels, kernel_size=1) for number in channels)
        self.dropout = nn.Dropout(config.classifier_dropout_prob)
        self.post_init()

    def initialize_weights(self) -> None:
        """Initialise what a checkpoint lacked: of the backbone as timm does, its buffers that are not saved included."""
        tensors = _named_tensors(self.backbone)
        lacking = [name for name, tensor in tensors.items() if not getattr(tensor, "_is_hf_initialized", False)]
        fresh = _named_tensors(_create_backbone(self.config)) if lacking else {}
        with torch.no_grad():
            for name in lacking:
                tensors[name].copy_(fresh[name])
                tensors[name]._is_hf_initialized = True
        super().initialize_weights()

    def _init_weights(self, module: nn.Module) -> None:
        # At zero the loss starts at ln(classes), and the second step already reaches the backbone. The paper found
        # random scores neither better nor faster.
        if any(module is score for score in self.scores):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)

    @can_return_tuple
    def forward(self, pixel_values: Tensor, labels: Tensor | None = None, **kwargs: Any) -> SemanticSegmenterOutput:
        """Return logits `(batch, num_labels, height / stride, width / stride)` and, given labels, the loss.

        `pixel_values` are `(batch, channels, height, width)` of any size that the backbone takes, and `stride` is that of
        the finest level, rounded as the backbone does. `labels` are `(batch, height, width)`; the logits are upsampled to
        them bilinearly. The loss is the cross-entropy, mean over the pixels other than `semantic_loss_ignore_index`, 0
        where there are none.
        """
        levels = self._features(pixel_values)
        levels[-1] = self.dropout(levels[-1])
        logits = self.scores[-1](levels[-1])
        for score, features in zip(reversed(self.scores[:-1]), reversed(levels[:-1]), strict=True):
            finer = score(features)
            logits = finer + _upsampled(logits, size=finer.shape[-2:])
        loss = None if labels is None else self._loss(logits, labels)
        return SemanticSegmenterOutput(loss=loss, logits=logits)

    def _features(self, pixel_values: Tensor) -> list[Tensor]:
        """Return features `(batch, channels, height, width)` of each level, from fine to coarse."""
        try:
            levels = list(self.backbone(pixel_values))
        except AssertionError as error:
            height, width = pixel_values.shape[-2:]
            raise ModelError(
                f"The backbone {self.config.backbone} does not take pictures of {height} x {width} pixels: {error} "
                "Set the image processor's size, or backbone_kwargs of the config: img_size, or for vision transformers "
                "dynamic_img_size and dynamic_img_pad."
            ) from error
        if getattr(self.backbone, "output_fmt", "NCHW") == "NHWC":
            levels = [features.permute(0, 3, 1, 2) for features in levels]
        return levels

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        ignored = self.config.semantic_loss_ignore_index
        logits = _upsampled(logits.float(), size=labels.shape[-2:])
        total = functional.cross_entropy(logits, labels.long(), ignore_index=ignored, reduction="sum")
        return total / (labels != ignored).sum().clamp(min=1)


def backbone_settings(
    name_or_path: str, *, revision: str | None = None, token: str | None = None, cache_dir: str | None = None
) -> dict[str, Any]:
    """Return `backbone`, `backbone_kwargs` and `data_config` of a `FcnConfig` for pretrained weights.

    Arguments and errors are those of `load_pretrained_backbone`; the weights are not downloaded.
    """
    return _read_source(name_or_path, revision=revision, token=token, cache_dir=cache_dir).settings


def load_pretrained_backbone(
    model: FcnForSemanticSegmentation,
    name_or_path: str,
    *,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | None = None,
) -> None:
    """Load the weights of a timm classifier into the backbone, and its mean, std and size into the config.

    `name_or_path` is a repository of the Hub such as timm/resnet18.a1_in1k, or a folder, with config.json and
    model.safetensors as timm or transformers' TimmWrapper saves them. Raises `HubError` for a repository that is missing
    or cannot be read, and `ModelError` for one of another kind or another architecture, for weights of other shapes, and
    for weights that are missing: the backbone is loaded as a whole or not at all.
    """
    source = _read_source(name_or_path, revision=revision, token=token, cache_dir=cache_dir)
    _check_architecture(source, model.config)
    weights = _map_weights(source.weights(), source=source, config=model.config)
    model.backbone.load_state_dict(weights)
    model.config.data_config = source.settings["data_config"]


def backbone_data_config(config: FcnConfig) -> dict[str, Any]:
    """Return what the backbone's weights were trained on: input_size, mean, std, interpolation, crop_pct, crop_mode.

    `input_size` is (channels, height, width), `mean` and `std` are of pixels between 0 and 1, `interpolation` is a name
    such as bicubic: `timm.data.resolve_data_config`. Without pretrained weights it is what timm has for the architecture.
    """
    timm = _import_timm()
    settings = config.data_config
    if settings is None:
        registered = timm.get_pretrained_cfg(config.backbone, allow_unregistered=True)
        settings = registered.to_dict() if registered else {"architecture": config.backbone}
    return _data_config(settings)


def register() -> None:
    """Make the Auto classes of transformers know the network; calling it again changes nothing."""
    AutoConfig.register(FcnConfig.model_type, FcnConfig, exist_ok=True)
    AutoModelForSemanticSegmentation.register(FcnConfig, FcnForSemanticSegmentation, exist_ok=True)
    # The image-segmentation pipeline copies these names, and logs an error for what is not among them.
    MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES[FcnConfig.model_type] = FcnForSemanticSegmentation.__name__


# ---- the backbone ----


def _import_timm() -> Any:
    try:
        import timm
    except ModuleNotFoundError:
        raise ModelError("builtin:fcn needs timm for its backbone: pip install timm") from None
    return timm


def _create_backbone(config: FcnConfig) -> nn.Module:
    """Return timm's feature extractor with random weights; nothing is downloaded."""
    _check_backbone(config)
    try:
        backbone = _build(config)
    except IndexError as error:
        raise _wrong_indices(config, _build(config, out_indices=(-1,))) from error
    except (AssertionError, TypeError, ValueError, RuntimeError) as error:
        raise ModelError(
            f"The backbone {config.backbone} with out_indices {config.out_indices} and backbone_kwargs "
            f"{config.backbone_kwargs} cannot be built: {error}"
        ) from error
    number = len(backbone.feature_info.info)
    levels = [index % number for index in config.out_indices]
    if not levels or levels != sorted(set(levels)):
        raise _wrong_indices(config, backbone)
    return backbone


def _build(config: FcnConfig, **options: Any) -> nn.Module:
    options = {"pretrained": False, "features_only": True, "out_indices": tuple(config.out_indices)} | options
    return _import_timm().create_model(config.backbone, **options, **config.backbone_kwargs)


def _check_backbone(config: FcnConfig) -> None:
    timm = _import_timm()
    if not timm.is_model(config.backbone):
        near = get_close_matches(config.backbone, timm.list_models(), n=3) or ["resnet18", "convnext_tiny"]
        raise ModelError(
            f"backbone is {config.backbone!r}, expected an architecture of timm, such as {', '.join(near)}."
        )
    reserved = [name for name in config.backbone_kwargs if name in DECIDED_HERE]
    if reserved:
        raise ModelError(f"backbone_kwargs hold {', '.join(reserved)}, which the model sets itself: leave them out.")


def _wrong_indices(config: FcnConfig, backbone: nn.Module) -> ModelError:
    strides = [level["reduction"] for level in backbone.feature_info.info]
    return ModelError(
        f"out_indices are {config.out_indices}, expected rising indices of the {len(strides)} levels of {config.backbone}, "
        f"whose strides are {strides}, such as [-3, -2, -1]."
    )


def _named_tensors(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _upsampled(scores: Tensor, *, size: torch.Size) -> Tensor:
    return functional.interpolate(scores, size=size, mode="bilinear", align_corners=False)


# ---- pretrained weights ----


@dataclass(frozen=True)
class _Source:
    """A repository or a folder of a timm model: what its config.json says, and where its weights are."""

    name: str
    architecture: str
    settings: dict[str, Any]  # fields of FcnConfig
    find: Callable[[str], Path]  # a file of it

    def weights(self) -> dict[str, Tensor]:
        """Its weights by their names in timm."""
        try:
            tensors = load_file(self.find(WEIGHTS_FILE))
        except SafetensorError as error:
            raise ModelError(f"The backbone {self.name} has a {WEIGHTS_FILE} that cannot be read: {error}") from error
        # What transformers saved carries the name of its attribute.
        return {name.removeprefix("timm_model."): tensor for name, tensor in tensors.items()}


def _read_source(name_or_path: str, *, revision: str | None, token: str | None, cache_dir: str | None) -> _Source:
    def find(file: str) -> Path:
        folder = Path(name_or_path).expanduser()
        path = folder / file if folder.is_dir() else _download(name_or_path, file, revision, token, cache_dir)
        if path is None or not path.is_file():
            raise ModelError(
                f"The backbone {name_or_path} has no {file}, expected {CONFIG_FILE} and {WEIGHTS_FILE} of a timm model."
            )
        return path

    content = json.loads(find(CONFIG_FILE).read_text(encoding="utf-8"))
    if "architecture" not in content:
        raise ModelError(
            f"The backbone {name_or_path} is no timm model: its {CONFIG_FILE} names no architecture, but the model_type "
            f"{content.get('model_type')!r}."
        )
    settings = {
        "backbone": content["architecture"],
        "backbone_kwargs": content.get("model_args") or {},
        # Old repositories of timm have it all at the top.
        "data_config": _data_config(content.get("pretrained_cfg") or content),
    }
    return _Source(name_or_path, content["architecture"], settings, find)


def _download(repo_id: str, file: str, revision: str | None, token: str | None, cache_dir: str | None) -> Path | None:
    """Return where a file of the Hub is in the cache; None if the repository is there without it."""
    options = {"revision": revision, "token": token, "cache_dir": cache_dir}
    try:
        return Path(hub.with_retries(lambda: hf_hub_download(repo_id, file, **options), f"{file} of {repo_id}"))
    except HFValidationError as error:
        raise ModelError(f"The backbone {repo_id}: no such folder, and no name of the Hub: {error}") from None
    except RemoteEntryNotFoundError:
        return None
    except Exception as error:
        if hub.is_from_hub(error):
            raise hub.explain(error, kind="model", repo_id=repo_id, flag="The backbone") from error
        raise


def _check_architecture(source: _Source, config: FcnConfig) -> None:
    if source.architecture != config.backbone.partition(".")[0]:
        raise ModelError(
            f"The weights of {source.name} are of the architecture {source.architecture}, the model's backbone is "
            f"{config.backbone}: set backbone of the config to {source.architecture}, or name other weights."
        )
    lacking = {
        name: value for name, value in source.settings["backbone_kwargs"].items() if name not in config.backbone_kwargs
    }
    if lacking:
        raise ModelError(
            f"The weights of {source.name} are of a {source.architecture} built with {lacking}, which backbone_kwargs of the "
            f"config, {config.backbone_kwargs}, do not say: add them."
        )


def _map_weights(weights: dict[str, Tensor], *, source: _Source, config: FcnConfig) -> dict[str, Tensor]:
    """Return a classifier's weights as those of its feature extractor: timm itself renames, filters and leaves out.

    It does not tell what stayed random, so the same is first done with NaN in the place of every weight.
    """
    blanks = {
        name: torch.full_like(tensor, torch.nan) for name, tensor in weights.items() if tensor.is_floating_point()
    }
    mapped = _loaded_by_timm({**weights, **blanks}, source=source, config=config)
    missing = [name for name, tensor in mapped.items() if tensor.is_floating_point() and not tensor.isnan().any()]
    if missing:
        raise ModelError(
            f"{source.name} lacks {len(missing)} of the {len(mapped)} weights of the backbone {config.backbone}: "
            f"{', '.join(missing[:10])}{' ...' if len(missing) > 10 else ''}."
        )
    return _loaded_by_timm(weights, source=source, config=config)


def _loaded_by_timm(weights: dict[str, Tensor], *, source: _Source, config: FcnConfig) -> dict[str, Tensor]:
    # Nothing but the weights given: timm would else go on to where it has the architecture's own.
    overlay = {"state_dict": weights, "source": None, "file": None, "hf_hub_id": None, "url": None}
    try:
        with _without_warnings("timm"):  # of the classifier's weights, for which there is no place
            return _build(config, pretrained=True, pretrained_cfg_overlay=overlay).state_dict()
    except RuntimeError as error:
        raise ModelError(
            f"The weights of {source.name} do not fit the backbone {config.backbone} with backbone_kwargs "
            f"{config.backbone_kwargs}: {error}"
        ) from error


@contextmanager
def _without_warnings(name: str) -> Iterator[None]:
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _data_config(settings: dict[str, Any]) -> dict[str, Any]:
    _import_timm()
    from timm.data import resolve_data_config

    resolved = resolve_data_config(pretrained_cfg=settings)
    # Lists, as they come back from config.json.
    return {name: list(value) if isinstance(value, tuple) else value for name, value in resolved.items()}


register()
