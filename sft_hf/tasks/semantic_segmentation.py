"""Semantic segmentation: a picture to a class for each of its pixels.

{"image": {"bytes": b"...", "path": "images/0002.jpg"}, "mask": {"bytes": b"...", "path": "masks/0002.png"}}
-> {"pixel_values": uint8 (3, 512, 512), "labels": int16 (512, 512)}       training: one window of both, augmented alike
-> {"pixel_values": uint8 (1, 3, 512, 512), "labels": int16 (400, 266)}    evaluation: the mask at its own resolution
-> logits (batch, num_labels, 128, 128), resampled to the labels' resolution before anything is computed of them

The mask's own ids become class ids once, when it is read (`vision.masks.MaskClasses`); -100 is a pixel that does not count.
"""

import logging
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from datasets import Dataset, Features, IterableDataset, Value
from torch import Tensor
from transformers import (
    AutoModelForSemanticSegmentation,
    AutoModelForUniversalSegmentation,
    OneFormerImageProcessor,
    PreTrainedModel,
    SegformerImageProcessor,
)

from sft_hf.arguments import FinetuningArguments, ModelArguments
from sft_hf.class_weights import resolve_class_weights
from sft_hf.data.columns import find_image_column, find_mask_column, require_column
from sft_hf.data.labels import SEMANTIC_SEGMENTATION, Labels
from sft_hf.data.paths import as_encoded_images
from sft_hf.data.rows import map_rows, refuse_or_skip, renamed
from sft_hf.data.sources import EXAMPLE_ID, Source
from sft_hf.errors import ArgumentError
from sft_hf.images import Images, adopt_image_size, in_channels_last
from sft_hf.losses import Loss, make_loss
from sft_hf.metrics import Metrics, SegmentationMetrics
from sft_hf.models.fcn import FcnConfig, backbone_data_config, backbone_settings, load_pretrained_backbone
from sft_hf.pretrained import (
    load_config,
    load_image_processor,
    load_model,
    load_tokenizer,
    new_head,
    resolve_backbone,
    resolve_model,
)
from sft_hf.report.overlays import overlay_sheet, write_palette_png
from sft_hf.task import AnyDataset, Batch, Columns
from sft_hf.vision import universal
from sft_hf.vision.augmentation import JointAugmentation
from sft_hf.vision.decoding import open_image, size_of
from sft_hf.vision.geometry import Geometry, fixed_size, without_crop
from sft_hf.vision.masks import MaskClasses, pixel_counts, read_color_table, read_mask, resolve_mask_classes
from sft_hf.vision.pairs import PairCollator, ReadPair, ScanPair, UsablePair
from sft_hf.vision.windows import logits_of_pictures, resampled, seen_once, window_boxes

logger = logging.getLogger(__name__)
MULTIPLE = 32  # what the sides of builtin:fcn's pictures are rounded to: the coarsest stride of its backbones
LARGEST_SIDE = 512
NUM_HEADERS = 200  # training pictures whose size is looked at
SMALLEST_SHARE = 1e-9  # of the pixels, for a class without any
NUM_STREAMED_MASKS = 100  # masks of a streamed split whose values are looked at before training


@dataclass(frozen=True)
class MaskLabels(Labels):
    """The classes of pixels, and how the ids that stand in masks become theirs."""

    classes: MaskClasses | None = None
    pixel_counts: tuple[int, ...] | None = None  # training pixels of each class; None of a stream


@dataclass(frozen=True)
class SemanticSegmentation(Images):
    """Any AutoModelForSemanticSegmentation, the universal segmenters, and builtin:fcn."""

    pipeline_tag: ClassVar[str] = "image-segmentation"

    label_column_name: str | None = field(
        default=None, metadata={"help": "The masks' column; default: found by type and usual names."}
    )
    backbone_name_or_path: str | None = field(
        default=None,
        metadata={"help": "Pretrained backbone of builtin:fcn: timm/NAME.TAG on the Hub, or a folder of that layout."},
    )
    class_names: str | None = field(
        default=None,
        metadata={"help": "Names of the masks' ids in order, comma-separated; default: id2label.json of the dataset."},
    )
    ignore_label_ids: list[int] | None = field(
        default=None, metadata={"help": "Ids in the masks that do not count, beside 255 and classes named void."}
    )
    reduce_labels: bool = field(
        default=False, metadata={"help": "Id 0 is no class: it does not count, and the others move down by one."}
    )
    mask_colors: str | None = field(
        default=None, metadata={"help": "For masks in RGB: a json/yaml FILE {name: [red, green, blue]} in id order."}
    )
    loss: str = field(
        default="auto", metadata={"help": "cross_entropy (auto), focal, dice, lovasz, or a sum: cross_entropy+dice."}
    )
    focal_gamma: float = field(default=2.0, metadata={"help": "How strongly --loss focal turns from easy pixels."})
    class_weights: str = field(
        default="none", metadata={"help": "none, balanced, or a json/yaml FILE: {name: weight} or a list in id order."}
    )
    augmentation: Literal["none", "light", "full"] = field(
        default="light",
        metadata={"help": "light: scale, crop and flip picture and mask; full: brightness, contrast and colour too."},
    )
    scale_range: list[float] = field(
        default_factory=lambda: [0.5, 2.0], metadata={"help": "Smallest and largest scale of --augmentation."}
    )
    eval_window: list[int] | None = field(
        default=None,
        metadata={
            "help": "Height and width (or one number) in pixels of the windows that slide over large pictures, overlapping by "
            "half; training sees windows of that size. Default: the whole picture at once."
        },
    )

    def __post_init__(self):
        super().__post_init__()
        if len(self.scale_range) != 2 or not 0 < self.scale_range[0] <= self.scale_range[1] < math.inf:
            given = " ".join(map(str, self.scale_range))
            raise ArgumentError(f"--scale_range {given}: expected the smallest and the largest scale, such as 0.5 2.0.")
        if self.eval_window is not None and (len(self.eval_window) not in (1, 2) or min(self.eval_window) < 1):
            given = " ".join(map(str, self.eval_window))
            raise ArgumentError(f"--eval_window {given}: expected height and width in pixels, or one number for both.")

    @property
    def window(self) -> tuple[int, int] | None:
        """Height and width of --eval_window."""
        return (self.eval_window[0], self.eval_window[-1]) if self.eval_window else None

    # ---- what the data mean ----

    def columns(self, features: Features) -> Columns:
        """The picture's column, and the mask's."""
        mask = find_mask_column(features, given=self.label_column_name, exclude=(EXAMPLE_ID,))
        return Columns((find_image_column(features, given=self.image_column_name, exclude=(mask, EXAMPLE_ID)),), mask)

    @property
    def _colors(self) -> dict[tuple[int, int, int], int] | None:
        return read_color_table(Path(self.mask_colors))[0] if self.mask_colors else None

    def labels(self, source: Source, columns: Columns) -> MaskLabels:
        """The classes by name, once every value in every mask is accounted for; of a stream, in the first hundred masks."""
        pixels: dict[str, Counter] = {}
        files: dict[int, str] = {}
        for split, dataset in source.splits.items():
            if columns.label in (dataset.column_names or []) and not self._is_unlabelled(dataset, columns, split):
                pixels[split] = Counter()
                for row, scan in enumerate(self._scan(dataset, columns, split)):
                    for value, number in zip(scan["values"] or (), scan["pixels"] or (), strict=True):
                        pixels[split][value] += number
                        files.setdefault(value, f"{split}, row {row}" + (f" ({scan['file']})" if scan["file"] else ""))
        classes = resolve_mask_classes(
            self._names_of_colors() or source.id2label,
            class_names=[name.strip() for name in self.class_names.split(",")] if self.class_names else None,
            ignore_label_ids=self.ignore_label_ids or (),
            reduce_labels=self.reduce_labels,
            values=sum(pixels.values(), Counter()),
            files=files,
        )
        counts = None
        if isinstance(source.splits["train"], Dataset) and "train" in pixels:
            counts = tuple(pixel_counts(pixels["train"], classes).tolist())
        return MaskLabels(
            SEMANTIC_SEGMENTATION, tuple(classes.names), columns.label or "", classes=classes, pixel_counts=counts
        )

    def _names_of_colors(self) -> dict[int, str] | None:
        return dict(enumerate(read_color_table(Path(self.mask_colors))[1])) if self.mask_colors else None

    def _scan(self, dataset: AnyDataset, columns: Columns, split: str) -> list[dict]:
        """What ScanPair says of each row, or of a stream's first; DataError where one cannot be used and none may be skipped."""
        scan_pair = self._scan_pair(columns)
        encoded = dataset.select_columns([scan_pair.image, scan_pair.mask])
        for column in encoded.column_names:
            encoded = as_encoded_images(encoded, column, place=columns.place)
        if isinstance(dataset, IterableDataset):
            return [scan_pair(row) for row in encoded.take(NUM_STREAMED_MASKS)]
        scans = map_rows(encoded, scan_pair, f"reading the masks of {split}")
        reasons = [scan["reason"] for scan in scans]
        # To go on without any would end in an error that says less.
        on_bad_example = self.on_bad_example if None in reasons else "error"
        if on_bad_example == "error":
            refuse_or_skip(dataset, reasons, on_bad_example, what=_what(split))
        return scans

    def _scan_pair(self, columns: Columns) -> ScanPair:
        (image,) = columns.inputs
        return ScanPair(image, columns.label, self._colors)

    def _is_unlabelled(self, dataset: AnyDataset, columns: Columns, split: str) -> bool:
        """Whether it is a test split whose masks are all missing."""
        if split != "test":
            return False
        # The type of a column of a table without a value is any.
        is_plain = isinstance((dataset.features or {}).get(columns.label), Value)
        masks = dataset if is_plain else as_encoded_images(dataset, columns.label, place=columns.place)
        masks = masks.select_columns([columns.label])
        rows = masks.take(NUM_STREAMED_MASKS) if isinstance(masks, IterableDataset) else masks
        return not any(row[columns.label] for row in rows)

    def select_examples(self, dataset: AnyDataset, columns: Columns, labels: Labels, *, split: str) -> AnyDataset:
        """Drop pairs that cannot be used as --on_bad_example says; a test split may have no masks."""
        has_masks = columns.label in (dataset.column_names or [])
        if has_masks and self._is_unlabelled(dataset, columns, split):
            dataset, has_masks = dataset.remove_columns(columns.label), False
        if not has_masks and split == "test":
            logger.info("the test split has no masks: its predictions are written, nothing is scored")
            return self.decodable(dataset, columns, split=split)
        require_column(dataset.column_names, columns.label, split=split, flag="--label_column_name")
        # The masks first: a stream that was filtered no longer knows them undecoded.
        masked = as_encoded_images(dataset, columns.label, place=columns.place)
        dataset = self.decodable(masked, columns, split=split)
        if self.on_bad_example == "error":  # and so `labels` has refused them
            return dataset
        if isinstance(dataset, IterableDataset):
            return dataset.filter(UsablePair(self._scan_pair(columns)))
        reasons = [scan["reason"] for scan in self._scan(dataset, columns, split)]
        return refuse_or_skip(dataset, reasons, "skip", what=_what(split))

    def stratify(self, train: Dataset, columns: Columns, labels: Labels) -> None:
        """A hold-out is drawn at random: a picture has many classes."""
        return

    # ---- processor and model ----

    def load_processor(self, model_args: ModelArguments, train: AnyDataset, columns: Columns) -> Any:
        """The model's image processor without a crop, so that the pipeline sees what the evaluation saw."""
        if resolve_model(model_args).architecture == "fcn":
            height, width = self.given_image_size or _usual_size(train, columns, self.window)
            settings = backbone_data_config(self._fcn_config(model_args, Labels(SEMANTIC_SEGMENTATION, ("0", "1"))))
            statistics = {"image_mean": list(settings["mean"]), "image_std": list(settings["std"])}
            return SegformerImageProcessor(size={"height": height, "width": width}, **statistics)
        processor = load_image_processor(model_args)
        size = self.given_image_size or fixed_size(processor)
        logger.info("pictures are resampled to %d x %d, whatever their proportions; --image_size changes it", *size)
        # Masks are reduced here, once (pitfall 13), and 255 is what does not count in most of them.
        for name, value in {"do_reduce_labels": False, "ignore_index": 255, "num_labels": None}.items():
            if getattr(processor, name, None) is not None:
                setattr(processor, name, value)
        processor = without_crop(processor, size)
        is_oneformer = isinstance(processor, OneFormerImageProcessor)
        return universal.with_tokenizer(processor, load_tokenizer(model_args)) if is_oneformer else processor

    def load_model(self, model_args: ModelArguments, labels: Labels, processor: Any) -> PreTrainedModel:
        """The model with an output for each class."""
        if resolve_model(model_args).architecture == "fcn":
            return self._load_fcn(model_args, labels)
        config = load_config(model_args, labels)
        adopt_image_size(config, self.given_image_size, Geometry.of(processor))
        if universal.is_universal(config):
            universal.check_supported(config)
            self._refuse_what_universal_models_ignore(config.model_type)
            model = in_channels_last(load_model(AutoModelForUniversalSegmentation, config, model_args))
            model.main_input_name = "pixel_values"  # OneFormer's are two, and transformers' Trainer asks for one
            return model
        if getattr(config, "use_auxiliary_head", False):
            config.use_auxiliary_head = False  # a second head, for the model's own loss alone
        return in_channels_last(load_model(AutoModelForSemanticSegmentation, config, model_args))

    def _refuse_what_universal_models_ignore(self, model_type: str) -> None:
        given = {"loss": (self.loss, "auto"), "class_weights": (self.class_weights, "none")}
        for name, (value, default) in given.items():
            if value != default:
                raise ArgumentError(f"--{name} {value}: a {model_type} has a loss of its own; leave the flag out.")
        if self.window:
            raise ArgumentError(
                f"--eval_window: a {model_type} answers with masks of whole pictures, which windows would cut; leave the flag out."
            )

    @property
    def backbone(self) -> str | None:
        """--backbone_name_or_path."""
        return self.backbone_name_or_path

    def _backbone_options(self, model_args: ModelArguments) -> dict[str, Any]:
        source = resolve_backbone(self.backbone_name_or_path, model_args)
        return {"revision": source.revision, "token": model_args.token, "cache_dir": model_args.cache_dir}

    def _fcn_config(self, model_args: ModelArguments, labels: Labels) -> FcnConfig:
        config = load_config(model_args, labels)
        if self.backbone_name_or_path:
            settings = backbone_settings(self.backbone_name_or_path, **self._backbone_options(model_args))
            for name, value in settings.items():
                setattr(config, name, value)
        return config

    def _load_fcn(self, model_args: ModelArguments, labels: Labels) -> PreTrainedModel:
        model = load_model(AutoModelForSemanticSegmentation, self._fcn_config(model_args, labels), model_args)
        if self.backbone_name_or_path:
            load_pretrained_backbone(model, self.backbone_name_or_path, **self._backbone_options(model_args))
            logger.info("its backbone is pretrained: %s", self.backbone_name_or_path)
        return in_channels_last(model)

    def initialise(self, model: PreTrainedModel, train: AnyDataset, labels: Labels) -> None:
        """Start the bias of a new head at the classes' shares of the training pixels, in log, as --class_weights weigh them.

        A head that starts even spends its first steps, and the encoder's, on how much background there is. Balanced weights make
        all shares even.
        """
        head = None if universal.is_universal(model.config) else new_head(model, labels.num_labels, torch.nn.Conv2d)
        if head is None or labels.pixel_counts is None or self.class_weights == "balanced":
            return
        counts = torch.tensor(labels.pixel_counts, dtype=torch.float64)
        weights = resolve_class_weights(self.class_weights, names=labels.names, counts=lambda: None)
        shares = counts if weights is None else counts * weights
        with torch.no_grad():
            head.bias.copy_((shares / shares.sum()).clamp(min=SMALLEST_SHARE).log())
        logger.info("the new head starts at the classes' shares of the training pixels")

    # ---- examples ----

    def preprocess(
        self,
        dataset: AnyDataset,
        columns: Columns,
        labels: Labels,
        processor: Any,
        model: PreTrainedModel,
        *,
        split: str,
        num_workers: int | None = None,
    ) -> AnyDataset:
        """The encoded picture as `image`, the encoded mask as `labels`, `example_id`; nothing is decoded yet."""
        return renamed(dataset, {columns.inputs[0]: "image", columns.label: "labels", EXAMPLE_ID: EXAMPLE_ID})

    def load_reader(
        self, processor: Any, model: PreTrainedModel, columns: Columns, labels: Labels, *, split: str, seed: int
    ) -> Callable[[dict, int], dict]:
        """Decode both and, in training, draw one window of both."""
        geometry = Geometry.of(processor)
        augment = None
        if split == "train":
            is_off = self.augmentation == "none"
            augment = JointAugmentation(
                size=geometry.size,
                window=self.window,
                scale=(1.0, 1.0) if is_off else tuple(self.scale_range),
                flip=self.horizontal_flip and not is_off,
                photometric=self.augmentation == "full",
                fill=geometry.fill,
                interpolation=geometry.interpolation,
            )
        return ReadPair(geometry, labels.classes, self._colors, augment, self.window, seed)

    def data_collator(self, processor: Any, model: PreTrainedModel) -> Callable[[list[dict]], Batch]:
        """Stacks training masks; evaluation's keep their sizes."""
        return PairCollator(universal.task_inputs(processor, model.config))

    # ---- loss ----

    def load_loss(
        self, train: AnyDataset, labels: Labels, training_args: FinetuningArguments, model: PreTrainedModel
    ) -> Loss:
        """The loss of --loss, --class_weights, --label_smoothing_factor and --focal_gamma; a universal model's is its own."""
        if universal.is_universal(model.config):
            if training_args.label_smoothing_factor:
                raise ArgumentError(
                    f"--label_smoothing_factor: a {model.config.model_type} has a loss of its own; leave the flag out."
                )
            return universal.OwnLoss()
        return make_loss(
            self.loss,
            problem_type=SEMANTIC_SEGMENTATION,
            class_weights=resolve_class_weights(
                self.class_weights, names=labels.names, counts=lambda: labels.pixel_counts
            ),
            label_smoothing_factor=training_args.label_smoothing_factor,
            focal_gamma=self.focal_gamma,
        )

    def loss_denominators(self, loss: Loss, batch: Batch) -> dict[str, Tensor]:
        """One for each part of the loss: pixels, their weights, or pictures."""
        return _summed([loss.denominators(labels) for labels in _as_batches(batch["labels"])])

    def loss_sums(self, loss: Loss, model: PreTrainedModel, batch: Batch) -> tuple[Any, dict[str, Tensor]]:
        """Forward, logits at the labels' resolution, and the sums; in evaluation picture by picture, with the classes."""
        if isinstance(loss, universal.OwnLoss):
            return universal.loss_sums(model, batch)
        if "target_size" not in batch:
            outputs, labels = model(pixel_values=batch["pixel_values"]), batch["labels"].long()
            return outputs, loss.sums(resampled(outputs.logits, labels.shape[-2:]), labels)
        classes, sums = [], []
        for index, logits in enumerate(logits_of_pictures(model, batch)):
            classes.append(logits.argmax(dim=1)[0])
            if "labels" in batch:
                sums.append(loss.sums(logits, batch["labels"][index][None].long()))
        return classes, _summed(sums)

    # ---- evaluation ----

    def predict(self, model: PreTrainedModel, outputs: Any, batch: Batch, processor: Any) -> list[Tensor]:
        """Class ids `(height, width)` of each picture, at its own resolution."""
        if isinstance(outputs, list):
            return outputs
        return universal.answers(processor, outputs, batch["target_size"])

    def references(self, batch: Batch) -> list[Tensor]:
        """The masks, at their own resolution."""
        return batch["labels"]

    def load_metrics(self, labels: Labels, model_args: ModelArguments) -> Metrics:
        """One confusion matrix."""
        return SegmentationMetrics(labels.names)

    def keep_prediction(self, example_id: int, prediction: Tensor, *, folder: Path) -> dict[str, Any]:
        """Written at once, as a palette PNG of class ids; its path and the pixels of each class stay."""
        ids = prediction.cpu().numpy()
        path = folder / "masks" / f"{example_id}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_palette_png(ids, path, num_classes=int(ids.max()) + 1)
        values, pixels = np.unique(ids, return_counts=True)
        return {
            "predicted_mask": f"masks/{example_id}.png",
            "pixels": dict(zip(values.tolist(), pixels.tolist(), strict=True)),
        }

    def describe(self, kept: dict[str, Any], labels: Labels, thresholds: np.ndarray | None) -> dict[str, Any]:
        """The mask's file, and each class's share of the picture."""
        total = sum(kept["pixels"].values())
        shares = {labels.names[value]: round(number / total, 4) for value, number in kept["pixels"].items()}
        return {
            "predicted_mask": kept["predicted_mask"],
            "shares": dict(sorted(shares.items(), key=lambda item: -item[1])),
        }

    def describe_label(self, row: dict, columns: Columns, labels: Labels, feature: Any) -> None:
        """The true mask is the dataset's; it is not written again."""
        return

    def report_examples(
        self, rows: list[dict], predictions: list, columns: Columns, labels: Labels, *, folder: Path
    ) -> None:
        """Picture, truth and prediction side by side, `overlays/<example_id>.jpg`."""
        target = folder / "overlays"
        target.mkdir(parents=True, exist_ok=True)
        for row, prediction in zip(rows, predictions, strict=True):
            truth = labels.classes.encode(read_mask(row[columns.label], colors=self._colors))
            image = super().pipeline_inputs(row, columns, None)  # whole, also with --eval_window
            sheet = overlay_sheet(image, truth, prediction.cpu().numpy(), names=labels.names)
            sheet.save(target / f"{row[EXAMPLE_ID]}.jpg", quality=90)

    # ---- transformers.pipeline ----

    def pipeline_inputs(self, example: dict, columns: Columns, processor: Any) -> Any:
        """The picture; with --eval_window the first window of it, since the pipeline knows of none."""
        image = super().pipeline_inputs(example, columns, processor)
        top, left, bottom, right = window_boxes((image.height, image.width), self.window)[0]
        return image.crop((left, top, right, bottom))

    def pipeline_options(self) -> dict[str, Any]:
        """The semantic part of whatever the model can do."""
        return {"subtask": "semantic"}

    def reload_difference(self, predictions: list[Tensor], answers: list[Any], labels: Labels) -> float:
        """The share of the pixels that differ. An answer is a list of {label, mask}, one for each class in the picture.

        With --eval_window it is one for the first window, and compared where no other window had a say.
        """
        ids = labels.label2id
        different = total = 0
        for prediction, answer in zip(predictions, answers, strict=True):
            height, width = seen_once(tuple(prediction.shape), self.window)
            answered = np.full((height, width), -1)
            for part in answer:
                answered[np.asarray(part["mask"])[:height, :width] > 0] = ids[part["label"]]
            different += int((answered != prediction[:height, :width].cpu().numpy()).sum())
            total += answered.size
        return different / total

    def usage_example(self) -> str:
        """A line of the model card, and what the evaluation did beyond it."""
        if not self.window:
            return 'segmenter("picture.jpg", subtask="semantic")'
        height, width = self.window
        return (
            f'segmenter(picture.crop((0, 0, {width}, {height})), subtask="semantic")  # a PIL image\n'
            f"# The numbers above are of whole pictures, cut into windows of {height} x {width} pixels (height x width) that\n"
            "# overlap by half; where they overlap, their probabilities were averaged."
        )


def _what(split: str) -> str:
    return f"{split}: pairs of a picture and a mask that cannot be used"


def _usual_size(train: AnyDataset, columns: Columns, window: tuple[int, int] | None) -> tuple[int, int]:
    """Height and width that fit a window or most training pictures: their medians as multiples of 32, at most 512."""
    if isinstance(train, IterableDataset):
        raise ArgumentError("--streaming: builtin:fcn takes its size from the training pictures; give --image_size.")
    (column,) = columns.inputs
    rows = train.select(range(min(NUM_HEADERS, len(train))))
    widths, heights = zip(*(size_of(open_image(row[column])) for row in rows.select_columns([column])), strict=True)
    medians = np.minimum(window or math.inf, [np.median(heights), np.median(widths)])
    height, width = (int(np.clip(round(side / MULTIPLE), 1, LARGEST_SIDE // MULTIPLE)) * MULTIPLE for side in medians)
    logger.info("pictures are resampled to %d x %d, the training set's median; --image_size changes it", height, width)
    return height, width


# ---- numbers ----


def _as_batches(labels: Tensor | list[Tensor]) -> list[Tensor]:
    return [labels.long()] if isinstance(labels, Tensor) else [one[None].long() for one in labels]


def _summed(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([part[name] for part in parts]).sum(dim=0) for name in parts[0]} if parts else {}
