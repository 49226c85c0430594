"""Text classification: one text, a pair of texts or several columns, to classes, several labels, or numbers.

{"text": "When will my card arrive?", "label": "card_arrival"}
-> {"input_ids": [101, 2043, 2097, 2026, 4003, 7180, 1029, 102], "attention_mask": [1] * 8, "labels": 11, "length": 8}
-> logits (batch, num_labels)
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import numpy as np
import torch
import transformers
from datasets import Dataset, Features, IterableDataset
from datasets.fingerprint import Hasher
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

import sft_hf
from sft_hf.arguments import ModelArguments
from sft_hf.classification import ENCODED_LABEL, Classification, labels_tensor
from sft_hf.data.columns import find_text_columns, require_column
from sft_hf.data.labels import Labels, encode_column
from sft_hf.data.rows import shared_by_ranks
from sft_hf.data.sources import EXAMPLE_ID
from sft_hf.data.token_batches import Lengths
from sft_hf.errors import ArgumentError, DataError
from sft_hf.pretrained import load_config, load_model, load_tokenizer, resolve_model
from sft_hf.task import AnyDataset, Batch, Columns

logger = logging.getLogger(__name__)
DEFAULT_MAX_LENGTH = 512
# Attributes of a fast tokenizer that are all in its JSON, or say what it has warned of.
NO_SETTINGS = ("_tokenizer", "_vocab", "_merges", "deprecation_warnings")
LARGEST_BELIEVED_LENGTH = 1_000_000  # tokenizers without a limit state about 1e30


@dataclass(frozen=True)
class TextClassification(Classification):
    """Any AutoModelForSequenceClassification, encoder or decoder, and builtin:lstm."""

    pipeline_tag: ClassVar[str] = "text-classification"

    text_column_names: str | None = field(
        default=None,
        metadata={"help": "One column, two for pairs, or several; comma-separated. Default: found by name."},
    )
    text_column_delimiter: str | None = field(
        default=None, metadata={"help": "Joins the columns to one text; without it two columns are a pair."}
    )
    max_length: int | None = field(
        default=None, metadata={"help": "Longest text in tokens; default: the model's limit, at most 512."}
    )

    def columns(self, features: Features) -> Columns:
        """The text column or columns, and the label column where there is one."""
        label = self.find_label(features)
        given = [name.strip() for name in self.text_column_names.split(",")] if self.text_column_names else None
        inputs = find_text_columns(features, given=given, exclude=(label, EXAMPLE_ID))
        if len(inputs) > 2 and self.text_column_delimiter is None:
            raise ArgumentError(
                f"--text_column_names {','.join(inputs)}: one text, or two for a pair; --text_column_delimiter joins more."
            )
        return Columns(tuple(inputs), label)

    def select_examples(self, dataset: AnyDataset, columns: Columns, labels: Labels, *, split: str) -> AnyDataset:
        """Drop rows without a label and, from training alone, empty texts; evaluation keeps them as empty strings."""
        self._check_texts(dataset, columns, split)
        dataset = self.select_labelled(dataset, columns, labels, split=split)
        if isinstance(dataset, IterableDataset):
            return dataset.filter(_HasText(columns)) if split == "train" else dataset
        filled = [row for row, key in enumerate(self.example_keys(dataset, columns)) if key.strip()]
        empty = len(dataset) - len(filled)
        if not empty:
            return dataset
        if split != "train":
            logger.warning("%s: %d empty texts are scored like any other", split, empty)
            return dataset
        logger.warning("train: %d empty texts are left out", empty)
        return dataset.select(filled)

    def _check_texts(self, dataset: AnyDataset, columns: Columns, split: str) -> None:
        for column in columns.inputs:
            require_column(dataset.column_names, column, split=split, flag="--text_column_names")
            feature = dataset.features[column]
            if getattr(feature, "dtype", None) not in ("string", "large_string", "null"):
                raise DataError(
                    f"{split}: column {column!r} holds {getattr(feature, 'dtype', feature)}, expected texts. "
                    "Choose others with --text_column_names."
                )

    def example_keys(self, dataset: Dataset, columns: Columns) -> list[str]:
        """The texts of a row, white space folded and joined."""
        texts = [dataset[column][:] for column in columns.inputs]
        return [
            "\n".join(" ".join((text or "").split()) for text in row).strip("\n") for row in zip(*texts, strict=True)
        ]

    def load_processor(
        self, model_args: ModelArguments, train: AnyDataset, columns: Columns
    ) -> PreTrainedTokenizerBase:
        """The model's tokenizer, or one trained on the texts for builtin:lstm; with a padding token."""
        if resolve_model(model_args).architecture == "lstm" and not model_args.tokenizer_name:
            return self._train_tokenizer(train, columns)
        tokenizer = load_tokenizer(model_args)
        if tokenizer.pad_token is None:  # decoders (pitfall 23)
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
            logger.info("the tokenizer has no padding token; it pads with %s", tokenizer.pad_token)
        return tokenizer

    def _train_tokenizer(self, train: AnyDataset, columns: Columns) -> PreTrainedTokenizerBase:
        from sft_hf.models.lstm import train_tokenizer

        if isinstance(train, IterableDataset):
            raise ArgumentError(
                "builtin:lstm trains its tokenizer on the whole training set, --streaming never has it: "
                "give --tokenizer_name."
            )
        logger.info("a tokenizer is trained on the texts of the training split")
        texts = (text for column in columns.inputs for text in train[column][:] if text)
        return train_tokenizer(texts, model_max_length=self.max_length or DEFAULT_MAX_LENGTH)

    def load_model(
        self, model_args: ModelArguments, labels: Labels, processor: PreTrainedTokenizerBase
    ) -> PreTrainedModel:
        """A sequence classification head of the right size; its padding token is the tokenizer's."""
        config = load_config(model_args, labels)
        processor.model_max_length = self._resolve_max_length(config, processor)
        config.pad_token_id = processor.pad_token_id
        if resolve_model(model_args).architecture:
            config.vocab_size = len(processor)
        model = load_model(AutoModelForSequenceClassification, config, model_args)
        if len(processor) > model.get_input_embeddings().num_embeddings:
            model.resize_token_embeddings(len(processor))
        return model

    def _resolve_max_length(self, config: Any, tokenizer: PreTrainedTokenizerBase) -> int:
        """--max_length, else the limits of tokenizer and position embeddings, at most 512."""
        limits = [tokenizer.model_max_length, getattr(config, "max_position_embeddings", None)]
        limits = [limit for limit in limits if limit and 0 < limit < LARGEST_BELIEVED_LENGTH]
        positions = getattr(config, "max_position_embeddings", None)
        if self.max_length is None:
            return min([*limits, DEFAULT_MAX_LENGTH])
        if self.max_length < 4:
            raise ArgumentError(f"--max_length {self.max_length}: expected at least 4 tokens.")
        if positions and 0 < positions < self.max_length:
            raise ArgumentError(f"--max_length {self.max_length}: the model has {positions} positions.")
        return self.max_length

    def preprocess(
        self,
        dataset: AnyDataset,
        columns: Columns,
        labels: Labels,
        processor: PreTrainedTokenizerBase,
        model: PreTrainedModel,
        *,
        split: str,
        num_workers: int | None = None,
    ) -> AnyDataset:
        """`input_ids` (unpadded), `attention_mask` ..., `labels` where known, `length`, `example_id`."""
        tokenize = _Tokenize(self, processor, columns, labels, columns.label_feature(dataset))
        options: dict[str, Any] = {"batched": True, "remove_columns": list(dataset.column_names)}
        if isinstance(dataset, IterableDataset):
            return dataset.map(tokenize, **options)
        if num_workers and len(dataset):
            options["num_proc"] = min(num_workers, len(dataset))
        options["new_fingerprint"] = Hasher.hash((dataset._fingerprint, tokenize.identity()))
        options |= shared_by_ranks(dataset, options["new_fingerprint"])
        dataset = dataset.map(tokenize, desc=f"tokenizing {split}", **options)
        truncated = sum(dataset["truncated"][:])
        if truncated:
            logger.info(
                "%s: %.1f %% of the texts (%d of %d) are longer than --max_length %d and are cut",
                split,
                100 * truncated / len(dataset),
                truncated,
                len(dataset),
                processor.model_max_length,
            )
        return dataset.remove_columns("truncated")

    def lengths(self, examples: Dataset, processor: PreTrainedTokenizerBase, *, split: str) -> Lengths:
        """Tokens; of an empty text one, as the collator pads it."""
        return Lengths(np.maximum(examples["length"][:], 1), "tokens", "--max_length")

    def joined(self, rows: dict[str, list], columns: Columns) -> tuple[list[str], list[str] | None]:
        """The texts, and the second texts of pairs, of a batch of rows."""
        texts = [[text or "" for text in rows[column]] for column in columns.inputs]
        if len(texts) == 2 and self.text_column_delimiter is None:
            return texts[0], texts[1]
        delimiter = " " if self.text_column_delimiter is None else self.text_column_delimiter
        return [delimiter.join(parts) for parts in zip(*texts, strict=True)], None

    def data_collator(
        self, processor: PreTrainedTokenizerBase, model: PreTrainedModel
    ) -> Callable[[list[dict]], Batch]:
        """Pads to the longest text of the batch."""
        return TextCollator(processor, model.config.problem_type)

    def pipeline_inputs(self, example: dict, columns: Columns, processor: PreTrainedTokenizerBase) -> Any:
        """A string, or {"text", "text_pair"} for pairs."""
        texts, pairs = self.joined({column: [example[column]] for column in columns.inputs}, columns)
        return texts[0] if pairs is None else {"text": texts[0], "text_pair": pairs[0]}

    def pipeline_options(self) -> dict[str, Any]:
        """How the pipeline is called: all scores, and texts cut as in training."""
        return {"top_k": None, "truncation": True}

    def usage_example(self) -> str:
        """The card's example, with texts cut as in training."""
        return 'classifier("...", truncation=True)'


@dataclass(frozen=True)
class _Tokenize:
    """A batch of rows to token ids, and whether each text was cut."""

    task: TextClassification
    tokenizer: PreTrainedTokenizerBase
    columns: Columns
    labels: Labels
    label_feature: Any

    def identity(self) -> tuple:
        """What the result depends on, for datasets' cache.

        By itself datasets pickles the whole tokenizer in Python, its vocabulary too, for every split, and takes it for another one as soon as it
        has been called: truncation is set in it by a call.
        """
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None:
            return (self,)
        backend.no_truncation()
        backend.no_padding()
        settings = {name: value for name, value in vars(self.tokenizer).items() if name not in NO_SETTINGS}
        others = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "tokenizer"}
        return sft_hf.__version__, transformers.__version__, backend.to_str(), settings, others

    def __call__(self, rows: dict[str, list]) -> dict[str, list]:
        texts, pairs = self.task.joined(rows, self.columns)
        limit = self.tokenizer.model_max_length
        encoded = self.tokenizer(texts, pairs, truncation=True, max_length=limit)
        result = dict(encoded)
        result["length"] = [len(ids) for ids in encoded["input_ids"]]
        result["truncated"] = self._truncated(texts, pairs, encoded, limit)
        result[EXAMPLE_ID] = rows[EXAMPLE_ID]
        if ENCODED_LABEL in rows:
            result["labels"] = rows[ENCODED_LABEL]
        elif self.columns.label in rows:
            values = encode_column(rows[self.columns.label], self.labels, feature=self.label_feature)
            if None not in values:
                result["labels"] = values
        return result

    def _truncated(self, texts: list[str], pairs: list[str] | None, encoded: Any, limit: int) -> list[bool]:
        if encoded.encodings is not None:
            return [bool(encoding.overflowing) for encoding in encoded.encodings]
        full = self.tokenizer(texts, pairs, truncation=False, verbose=False)["input_ids"]
        return [len(ids) > limit for ids in full]


class _HasText:
    """A picklable filter for streams."""

    def __init__(self, columns: Columns):
        self.columns = columns

    def __call__(self, example: dict) -> bool:
        return any((example[column] or "").strip() for column in self.columns.inputs)


class TextCollator:
    """Examples of preprocess to tensors: `input_ids`, `attention_mask` (batch, longest), `labels`, `example_id`."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, problem_type: str):
        self.tokenizer, self.problem_type = tokenizer, problem_type

    def __call__(self, examples: list[dict]) -> Batch:
        names = [name for name in self.tokenizer.model_input_names if name in examples[0]]
        longest = max(1, *(len(example["input_ids"]) for example in examples))  # decoders make nothing of empty texts
        batch: Batch = {name: self._padded([example[name] for example in examples], name, longest) for name in names}
        batch[EXAMPLE_ID] = torch.tensor([example[EXAMPLE_ID] for example in examples])
        if examples[0].get("labels") is not None:
            batch["labels"] = labels_tensor([example["labels"] for example in examples], self.problem_type)
        return batch

    def _padded(self, rows: list[list[int]], name: str, longest: int) -> torch.Tensor:
        """Padding by hand: `tokenizer.pad` takes 3 ms for a batch of 32 short texts, this a tenth."""
        value = {"input_ids": self.tokenizer.pad_token_id, "token_type_ids": self.tokenizer.pad_token_type_id}.get(
            name, 0
        )
        padded = np.full((len(rows), longest), value, dtype=np.int64)
        for index, row in enumerate(rows):
            if self.tokenizer.padding_side == "left":
                padded[index, longest - len(row) :] = row
            else:
                padded[index, : len(row)] = row
        return torch.from_numpy(padded)
