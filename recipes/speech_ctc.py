# /// script
# requires-python = ">=3.11"
# dependencies = [
#   "accelerate>=1.15", "datasets>=5.0", "espeakng-loader>=0.2.4", "evaluate>=0.4.6", "jiwer>=4", "pillow>=10", "psutil>=6",
#   "rich>=13", "scikit-learn>=1.5", "soundfile>=0.13", "soxr>=0.5", "timm>=1.0.20", "torch>=2.11", "torchvision>=0.26",
#   "transformers>=5.17", "typer>=0.12", "wrapt>=1.16",
# ]
# ///
"""Fine-tune a speech recogniser that names a character for each frame: connectionist temporal classification.

    accelerate launch recipes/speech_ctc.py --dataset_name ORG/DATASET --model_name_or_path ORG/MODEL --output_dir runs/a
    python recipes/speech_ctc.py --dataset_name FOLDER --model_name_or_path builtin:crnn    # train/metadata.csv: file_name,text
    python recipes/speech_ctc.py          # the embedded default, without a hub: synthesised commands, a recurrent network from scratch

Hardware: 2 CPU cores are enough for the default; any GPU, or several, through accelerate's own flags.
"""

from sft_hf import finetune
from sft_hf.tasks.speech_ctc import SpeechCtc

if __name__ == "__main__":
    finetune(
        SpeechCtc,
        description=__doc__,
        dataset_name="builtin:voice_commands",
        model_name_or_path="builtin:crnn",
        output_dir="runs/speech_ctc",
        per_device_train_batch_size=8,
        per_device_eval_batch_size=8,
        learning_rate=1e-4,
        num_train_epochs=10,
        warmup_steps=0.1,
        weight_decay=0.005,
        train_sampling_strategy="group_by_length",
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=1,
        load_best_model_at_end=True,
        logging_steps=0.05,
        model_defaults={
            "builtin:crnn": {"learning_rate": 2e-3, "num_train_epochs": 20, "warmup_steps": 50},
            ("builtin:crnn", "builtin:voice_commands"): {"num_train_epochs": 3},
            "from_scratch": {"learning_rate": 5e-4, "num_train_epochs": 30},
        },
    )
