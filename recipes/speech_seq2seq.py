# /// script
# requires-python = ">=3.11"
# dependencies = [
#   "accelerate>=1.15", "datasets>=5.0", "espeakng-loader>=0.2.4", "evaluate>=0.4.6", "jiwer>=4", "pillow>=10", "psutil>=6",
#   "rich>=13", "scikit-learn>=1.5", "soundfile>=0.13", "soxr>=0.5", "timm>=1.0.20", "torch>=2.11", "torchvision>=0.26",
#   "transformers>=5.17", "typer>=0.12", "wrapt>=1.16",
# ]
# ///
"""Fine-tune a speech recogniser that writes the transcript token by token: Whisper, Moonshine and their kind.

    accelerate launch recipes/speech_seq2seq.py --dataset_name ORG/DATASET --model_name_or_path openai/whisper-small --language german
    python recipes/speech_seq2seq.py --dataset_name FOLDER --model_name_or_path ORG/MODEL   # train/metadata.csv: file_name,text
    python recipes/speech_seq2seq.py      # the embedded default, without a hub: synthesised commands, a small Moonshine from scratch

Hardware: 2 CPU cores are enough for models of 27 to 39 million parameters; any GPU, or several, through accelerate's own flags.
"""

from sft_hf import finetune
from sft_hf.tasks.speech_seq2seq import SpeechSeq2Seq

if __name__ == "__main__":
    finetune(
        SpeechSeq2Seq,
        description=__doc__,
        dataset_name="builtin:voice_commands",
        model_name_or_path="builtin:moonshine",
        output_dir="runs/speech_seq2seq",
        per_device_train_batch_size=8,
        per_device_eval_batch_size=8,
        learning_rate=1e-4,
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
            "builtin:moonshine": {"learning_rate": 1e-3, "num_train_epochs": 4},
            "from_scratch": {"learning_rate": 5e-4, "num_train_epochs": 30},
        },
    )
