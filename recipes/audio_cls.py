# /// script
# requires-python = ">=3.11"
# dependencies = [
#   "accelerate>=1.15", "datasets>=5.0", "espeakng-loader>=0.2.4", "evaluate>=0.4.6", "pillow>=10", "psutil>=6", "rich>=13",
#   "scikit-learn>=1.5", "soundfile>=0.13", "soxr>=0.5", "timm>=1.0.20", "torch>=2.11", "torchvision>=0.26", "transformers>=5.17",
#   "typer>=0.12", "wrapt>=1.16",
# ]
# ///
"""Fine-tune an audio classifier: a clip of sound to one class, several labels, or numbers.

    accelerate launch recipes/audio_cls.py --dataset_name ORG/DATASET --model_name_or_path ORG/MODEL --output_dir runs/a
    python recipes/audio_cls.py --dataset_name FOLDER --model_name_or_path openai/whisper-tiny      # train/dog/1.wav ...
    python recipes/audio_cls.py           # the embedded default, without a hub: synthesised digits, a small encoder from scratch

Hardware: 2 CPU cores are enough for the default; any GPU, or several, through accelerate's own flags.
"""

from sft_hf import finetune
from sft_hf.tasks.audio_classification import AudioClassification

if __name__ == "__main__":
    finetune(
        AudioClassification,
        description=__doc__,
        dataset_name="builtin:spoken_digits",
        model_name_or_path="builtin:crnn",
        output_dir="runs/audio_cls",
        augmentation="light",
        per_device_train_batch_size=16,
        per_device_eval_batch_size=16,
        learning_rate=5e-5,
        num_train_epochs=5,
        warmup_steps=0.1,
        weight_decay=0.01,
        train_sampling_strategy="group_by_length",
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=1,
        load_best_model_at_end=True,
        logging_steps=0.05,
        model_defaults={
            "builtin:crnn": {"learning_rate": 2e-3, "num_train_epochs": 6},
            "*whisper-tiny*": {"learning_rate": 2e-4},
            # Without augmentation the base runs once for each clip.
            "freeze_base_model": {"augmentation": "none", "learning_rate": 1e-3, "num_train_epochs": 10},
            "from_scratch": {"learning_rate": 5e-4, "num_train_epochs": 30},
        },
    )
