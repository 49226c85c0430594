# /// script
# requires-python = ">=3.11"
# dependencies = [
#   "accelerate>=1.15", "datasets>=5.0", "evaluate>=0.4.6", "mlxtend>=0.23", "pillow>=10", "psutil>=6", "rich>=13",
#   "scikit-learn>=1.5", "timm>=1.0.20", "torch>=2.11", "torchvision>=0.26", "transformers>=5.17", "typer>=0.12", "wrapt>=1.16",
# ]
# ///
"""Fine-tune an image classifier: a picture to one class, several labels, or numbers.

    accelerate launch recipes/image_cls.py --dataset_name ORG/DATASET --model_name_or_path ORG/MODEL --output_dir runs/a
    python recipes/image_cls.py --dataset_name FOLDER --model_name_or_path timm/resnet18.a1_in1k    # train/cat/1.jpg ...
    python recipes/image_cls.py           # the embedded default, without a hub: the multilayer perceptron on 5,000 digits of MNIST

Hardware: 2 CPU cores are enough for the default; any GPU, or several, through accelerate's own flags.
"""

from sft_hf import finetune
from sft_hf.methods.mixup import Mixup
from sft_hf.tasks.image_classification import ImageClassification

if __name__ == "__main__":
    finetune(
        ImageClassification,
        methods=[Mixup],
        description=__doc__,
        dataset_name="builtin:mnist",
        model_name_or_path="builtin:mlp",
        output_dir="runs/image_cls",
        augmentation="light",
        per_device_train_batch_size=32,
        per_device_eval_batch_size=64,
        learning_rate=5e-5,
        num_train_epochs=5,
        warmup_steps=0.1,
        weight_decay=0.01,
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=1,
        load_best_model_at_end=True,
        logging_steps=0.05,
        model_defaults={
            # The multilayer perceptron of introductions: plain stochastic gradient descent, the loss of every epoch.
            "builtin:mlp": {
                "augmentation": "none",
                "optim": "sgd",
                "learning_rate": 0.01,
                "lr_scheduler_type": "constant",
                "warmup_steps": 0,
                "weight_decay": 0.0,
                "per_device_train_batch_size": 64,
                "num_train_epochs": 10,
                "logging_strategy": "epoch",
            },
            # Small convolutional networks want ten times the rate of a large transformer (docs/results.md).
            "*mobilenet*": {"learning_rate": 5e-4},
            "*efficientnet*": {"learning_rate": 5e-4},
            # Without augmentation the base runs once for each picture; the scores are alike (docs/results.md).
            "freeze_base_model": {"augmentation": "none", "learning_rate": 1e-2, "num_train_epochs": 10},
            "from_scratch": {"learning_rate": 1e-3, "weight_decay": 0.05, "num_train_epochs": 30},
        },
    )
