"""Image classification: a picture to one class, several labels, or numbers.

{"image": {"bytes": b"...", "path": "cat/1.jpg"}, "label": "cat"}
-> {"pixel_values": uint8 (3, 224, 224), "labels": 0}          read on the fly, in the dataloader's workers
-> logits (batch, num_labels)                                  pixels are normalised on the device
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from datasets import Features, IterableDataset
from transformers import AutoModelForImageClassification, PreTrainedModel, ViTImageProcessor

from sft_hf.arguments import ModelArguments
from sft_hf.classification import ENCODED_LABEL, Classification, EncodeLabel, labels_tensor
from sft_hf.data.columns import find_image_column
from sft_hf.data.labels import Labels
from sft_hf.data.rows import renamed
from sft_hf.data.sources import EXAMPLE_ID
from sft_hf.errors import ArgumentError
from sft_hf.images import Images, adopt_image_size, in_channels_last, read_image, stacked_pixels, unreadable
from sft_hf.pretrained import load_config, load_model, resolve_model
from sft_hf.task import AnyDataset, Batch, Columns
from sft_hf.vision.augmentation import ImageAugmentation
from sft_hf.vision.decoding import UnreadableImage, to_rgb
from sft_hf.vision.geometry import Geometry

# Mean and standard deviation of the pixels of MNIST's 60,000 training pictures, as its tutorials have them.
MNIST_MEAN, MNIST_STD = 0.1307, 0.3081
ALL_LABELS = 1_000_000  # top_k of the pipeline, which takes None for its default of 5


@dataclass(frozen=True)
class ImageClassification(Images, Classification):
    """Any AutoModelForImageClassification, timm models by the Hub or by architecture, and builtin:mlp."""

    pipeline_tag: ClassVar[str] = "image-classification"

    augmentation: Literal["none", "light", "trivial", "randaugment", "autoaugment"] = field(
        default="none",
        metadata={"help": "light: random crop and flip; the others add TrivialAugmentWide, RandAugment, AutoAugment."},
    )
    random_erasing: float = field(
        default=0.0, metadata={"help": "Probability that a rectangle of a training picture is blanked."}
    )

    def __post_init__(self):
        super().__post_init__()
        if self.random_erasing and self.augmentation == "none":
            raise ArgumentError(
                f"--random_erasing {self.random_erasing} is a part of the augmentation, and --augmentation is none; give light."
            )

    @property
    def randomness(self) -> tuple[str, str] | None:
        """--augmentation."""
        return None if self.augmentation == "none" else (f"--augmentation {self.augmentation}", "--augmentation none")

    def columns(self, features: Features) -> Columns:
        """The picture's column, and the label's."""
        label = self.find_label(features)
        return Columns((find_image_column(features, given=self.image_column_name, exclude=(label, EXAMPLE_ID)),), label)

    def select_examples(self, dataset: AnyDataset, columns: Columns, labels: Labels, *, split: str) -> AnyDataset:
        """Drop pictures that cannot be decoded as --on_bad_example says, and rows without a label."""
        return self.select_labelled(self.decodable(dataset, columns, split=split), columns, labels, split=split)

    def load_processor(self, model_args: ModelArguments, train: AnyDataset, columns: Columns) -> Any:
        """The model's image processor; for builtin:mlp one of 28 x 28."""
        if resolve_model(model_args).architecture == "mlp":
            side, _ = self.given_image_size or (28, 28)
            statistics = {"image_mean": [MNIST_MEAN] * 3, "image_std": [MNIST_STD] * 3}
            return ViTImageProcessor(size={"height": side, "width": side}, **statistics)
        return super().load_processor(model_args, train, columns)

    def load_model(self, model_args: ModelArguments, labels: Labels, processor: Any) -> PreTrainedModel:
        """The model with a head for the labels, whose pictures have the processor's size."""
        config = load_config(model_args, labels)
        adopt_image_size(config, self.given_image_size, Geometry.of(processor))
        return in_channels_last(load_model(AutoModelForImageClassification, config, model_args))

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
        """The encoded picture as `image`, `labels` where known, `example_id`; nothing is decoded yet."""
        if isinstance(dataset, IterableDataset):
            encode = EncodeLabel("image", columns, labels, columns.label_feature(dataset))
            return dataset.map(encode, remove_columns=list(dataset.column_names))
        return renamed(dataset, {columns.inputs[0]: "image", ENCODED_LABEL: "labels", EXAMPLE_ID: EXAMPLE_ID})

    def load_reader(
        self, processor: Any, model: PreTrainedModel, columns: Columns, labels: Labels, *, split: str, seed: int
    ) -> Callable[[dict, int], dict]:
        """Decode, and either augment or do what the processor does."""
        geometry, augment = Geometry.of(processor), None
        if split == "train" and self.augmentation != "none":
            augment = ImageAugmentation(
                size=geometry.size,
                policy=self.augmentation,
                random_erasing=self.random_erasing,
                flip=self.horizontal_flip,
                interpolation=geometry.interpolation,
                fill=geometry.fill,
            )
        return ReadImage(geometry, augment, seed)

    def data_collator(self, processor: Any, model: PreTrainedModel) -> Callable[[list[dict]], Batch]:
        """Stacks pixels and labels."""
        return ImageCollator(model.config.problem_type)

    def pipeline_options(self) -> dict[str, Any]:
        """All scores."""
        return {"top_k": ALL_LABELS}

    def usage_example(self) -> str:
        """A line of the model card."""
        return 'classifier("picture.jpg")'


@dataclass(frozen=True)
class ReadImage:
    """A preprocessed row and the epoch to `pixel_values`, uint8 (3, height, width), beside what else the row has."""

    geometry: Geometry
    augment: ImageAugmentation | None
    seed: int

    def __call__(self, row: dict, epoch: int) -> dict:
        image = read_image(row, "image")
        try:
            if self.augment is None:
                pixels = self.geometry.pixels(to_rgb(image))
            else:
                pixels = self.augment(image, seed=self.seed, epoch=epoch, example_id=row[EXAMPLE_ID])
        except UnreadableImage as error:
            raise unreadable(row, error) from None
        return {**{name: value for name, value in row.items() if name != "image"}, "pixel_values": pixels}


@dataclass(frozen=True)
class ImageCollator:
    """Examples to `pixel_values` (batch, 3, height, width), `labels` and `example_id`."""

    problem_type: str

    def __call__(self, examples: list[dict]) -> Batch:
        batch = stacked_pixels(examples)
        if examples[0].get("labels") is not None:
            batch["labels"] = labels_tensor([example["labels"] for example in examples], self.problem_type)
        return batch
