"""The runs that are disturbed: small, and with all that a resume can get wrong.

TEXT.flags(world)      a BERT with dropout, AdamW, warm-up, accumulation, grouping by length, the best of six checkpoints
"""

import random
from dataclasses import dataclass, field
from pathlib import Path

import tiny
import tiny_speech

from . import warm

# 64 rows in global batches of 8 for three epochs: 24 steps, a checkpoint at every fourth.
EVERY_RUN = {
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "num_train_epochs": 3,
    "optim": "adamw_torch",
    "warmup_steps": 0.2,
    "weight_decay": 0.01,
    "logging_steps": 1,
    "eval_strategy": "steps",
    "save_strategy": "steps",
    "eval_steps": 4,
    "save_steps": 4,
    "load_best_model_at_end": True,
    "metric_for_best_model": "loss",
    "save_total_limit": 2,
}


@dataclass(frozen=True)
class Recipe:
    """A command: the recipe, its data and model in the world, and its other flags."""

    name: str
    files: dict[str, str]  # flag -> path in the world
    options: dict[str, object] = field(default_factory=dict)

    def flags(self, world: Path, **more: object) -> list[str]:
        """All but --output_dir."""
        paths = [item for flag, path in self.files.items() for item in (f"--{flag}", world / path)]
        return tiny.flags(*paths, **{**EVERY_RUN, **self.options, **more})

    def command(self, world: Path, folder: Path, **more: object) -> list[str]:
        """The recipe's file and all flags, for a launcher; the output_dir is `folder`/run, as that of warm.start."""
        recipe = warm.ROOT / "recipes" / f"{self.name}.py"
        return [str(recipe), *self.flags(world, **more), "--output_dir", str(folder / "run")]


TABLES = {"train_file": "train.csv", "validation_file": "validation.csv", "test_file": "test.csv"}
BERT = {"model_name_or_path": "bert"}
TEXT = Recipe("text_cls", TABLES | BERT, {"learning_rate": 1e-2, "train_sampling_strategy": "group_by_length"})
STREAM = Recipe(
    "text_cls",
    TABLES | BERT,
    {"learning_rate": 1e-2, "train_sampling_strategy": "random", "streaming": True, "max_steps": 24}
    | {"shuffle_buffer_size": 16, "class_names": "animals,kitchen,weather"},
)
IMAGE = Recipe(
    "image_cls",
    {"dataset_name": "pictures", "model_name_or_path": "vit"},
    {"learning_rate": 2e-3, "augmentation": "randaugment", "dataloader_num_workers": 2, "validation_fraction": 0.25},
)
CLIPS = Recipe(
    "audio_cls",
    {"dataset_name": "tones", "model_name_or_path": "wav2vec2"},
    {"learning_rate": 2e-3, "validation_fraction": 0.25, "num_train_epochs": 4},
)


def make_world(folder: Path) -> Path:
    """The data and the models of the runs."""
    make_text_world(folder)
    warm.call(_make_models, folder)
    return folder


def make_text_world(folder: Path) -> Path:
    """Those of TEXT and STREAM alone."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, (name, number) in enumerate({"train": 64, "validation": 24, "test": 24}.items()):
        tiny.write_rows(folder / f"{name}.csv", _of_unequal_length(tiny.rows(number, seed=seed), seed))
    warm.call(_make_bert, folder)
    return folder


def _of_unequal_length(rows: list[dict], seed: int) -> list[dict]:
    generator = random.Random(seed)
    return [
        {**row, "text": " ".join([row["text"], *generator.choices(tiny.FILLERS, k=generator.randrange(12))])}
        for row in rows
    ]


def _make_bert(folder: Path) -> None:
    tiny.save_bert(folder / "bert", hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1)


def _make_models(folder: Path) -> None:
    tiny.save_vit(folder / "vit", hidden_dropout_prob=0.1)
    tiny.write_class_folders(folder / "pictures", train=84, test=12)
    tiny_speech.save_wav2vec2(folder / "wav2vec2", layer_norm=True, vocabulary=False)
    tiny_speech.write_tone_folders(folder / "tones", train=60, test=12)
