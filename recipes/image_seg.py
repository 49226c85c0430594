# /// script
# requires-python = ">=3.11"
# dependencies = [
#   "accelerate>=1.15", "datasets>=5.0", "evaluate>=0.4.6", "pillow>=10", "psutil>=6", "rich>=13", "scikit-learn>=1.5",
#   "timm>=1.0.20", "torch>=2.11", "torchvision>=0.26", "transformers>=5.17", "typer>=0.12", "wrapt>=1.16",
# ]
# ///
"""Fine-tune a semantic segmenter: a picture to a class for each of its pixels.

    accelerate launch recipes/image_seg.py --dataset_name ORG/DATASET --model_name_or_path ORG/MODEL --output_dir runs/a
    python recipes/image_seg.py --dataset_name FOLDER --model_name_or_path ORG/MODEL      # images/1.jpg and masks/1.png ...
    python recipes/image_seg.py           # the embedded default, without a hub: a fully convolutional network finds digits in scenes

Hardware: 2 CPU cores are enough for the default (mean IoU over 0.7 in 3 minutes); any GPU, or several, through accelerate's
own flags.
"""

from sft_hf import finetune
from sft_hf.tasks.semantic_segmentation import SemanticSegmentation

if __name__ == "__main__":
    finetune(
        SemanticSegmentation,
        description=__doc__,
        dataset_name="builtin:digit_scenes",
        model_name_or_path="builtin:fcn",
        output_dir="runs/image_seg",
        per_device_train_batch_size=8,
        per_device_eval_batch_size=8,
        learning_rate=6e-5,
        num_train_epochs=50,
        warmup_steps=0.1,
        weight_decay=0.01,
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=1,
        load_best_model_at_end=True,
        logging_steps=0.05,
        model_defaults={
            "*mobilenet*": {"learning_rate": 1e-3},  # small and convolutional: docs/results.md
            "from_scratch": {"learning_rate": 1e-3, "num_train_epochs": 100},
            # The embedded default: a small network that sees fine strokes, and digits that mean something else in a mirror.
            ("builtin:fcn", "builtin:digit_scenes"): {
                "config_overrides": ["backbone=test_resnet", "out_indices=[0, 1, 2, 3]", "classifier_dropout_prob=0.0"],
                "loss": "cross_entropy+dice",
                "horizontal_flip": False,
                "scale_range": [0.75, 1.33],
                "learning_rate": 8e-3,
                "warmup_steps": 50,
                "num_train_epochs": 22,
            },
        },
    )
