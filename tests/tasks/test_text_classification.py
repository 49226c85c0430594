"""Text classification, stage by stage, with values worked out by hand."""

import logging
import pickle

import pytest
import tiny
import torch
from datasets import ClassLabel, Dataset, Features, Value

from sft_hf.arguments import FinetuningArguments, ModelArguments
from sft_hf.data.labels import Labels
from sft_hf.errors import ArgumentError, DataError
from sft_hf.task import Columns
from sft_hf.tasks.text_classification import TextClassification

BINARY = Labels("single_label_classification", ("ham", "spam"))
TEXT = Columns(("text",), "label")
PAIR = Columns(("premise", "hypothesis"), "label")


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return str(tiny.save_bert(tmp_path_factory.mktemp("bert")))


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    return str(tiny.save_decoder(tmp_path_factory.mktemp("decoder")))


def rows(**columns) -> Dataset:
    return Dataset.from_dict({**columns, "example_id": list(range(len(next(iter(columns.values())))))})


def loaded(path: str, labels: Labels = BINARY, task: TextClassification | None = None, **model_args):
    task = task or TextClassification()
    arguments = ModelArguments(model_name_or_path=path, **model_args)
    tokenizer = task.load_processor(arguments, rows(text=["a cat", "a dog"]), TEXT)
    return task, tokenizer, task.load_model(arguments, labels, tokenizer)


def test_columns_are_found_or_named():
    features = Features({"idx": Value("int32"), "text": Value("string"), "label": ClassLabel(names=["a", "b"])})
    assert TextClassification().columns(features) == TEXT
    features = Features({"a": Value("string"), "b": Value("string"), "intent": Value("string")})
    task = TextClassification(text_column_names="a, b", label_column_name="intent")
    assert task.columns(features) == Columns(("a", "b"), "intent")


def test_a_pair_is_two_segments_and_a_delimiter_makes_it_one_text():
    sentences = {"premise": ["a cat", None], "hypothesis": ["a dog", "rain"]}
    assert TextClassification().joined(sentences, PAIR) == (["a cat", ""], ["a dog", "rain"])
    assert TextClassification(text_column_delimiter=" | ").joined(sentences, PAIR) == (
        ["a cat | a dog", " | rain"],
        None,
    )


def test_more_than_two_columns_need_a_delimiter():
    features = Features({name: Value("string") for name in ("title", "body", "tags", "label")})
    names = {"text_column_names": "title,body,tags"}
    with pytest.raises(ArgumentError, match=r"--text_column_names title,body,tags: one text, or two for a pair"):
        TextClassification(**names).columns(features)
    task = TextClassification(**names, text_column_delimiter=" / ")
    columns = task.columns(features)
    assert task.joined({"title": ["a"], "body": ["b"], "tags": ["c"]}, columns) == (["a / b / c"], None)


def test_preprocess_makes_unpadded_ids_labels_and_lengths(bert):
    task, tokenizer, _ = loaded(bert)
    examples = task.preprocess(
        rows(text=["the cat", "rain"], label=["ham", "spam"]), TEXT, BINARY, tokenizer, None, split="train"
    )
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    the, cat, rain = tokenizer.convert_tokens_to_ids(["the", "cat", "rain"])
    assert examples["input_ids"][:] == [[cls, the, cat, sep], [cls, rain, sep]]
    assert examples["labels"][:] == [0, 1]
    assert examples["length"][:] == [4, 3]
    assert "truncated" not in examples.column_names


def test_what_tokenizing_depends_on_names_the_result_in_the_cache(bert):
    """A call sets truncation in the tokenizer, for which datasets by itself would tokenize all splits anew."""
    task, tokenizer, model = loaded(bert)
    data = rows(text=["a cat and a dog", "rain"], label=["ham", "spam"])

    def fingerprint(task=task, tokenizer=tokenizer, model=model, data=data, labels=BINARY) -> str:
        return task.preprocess(data, TEXT, labels, tokenizer, model, split="train")._fingerprint

    first = fingerprint()
    assert fingerprint() == first
    assert fingerprint(labels=Labels("single_label_classification", ("spam", "ham"))) != first
    assert fingerprint(data=rows(text=["a dog", "rain"], label=["ham", "spam"])) != first
    shorter = TextClassification(max_length=4)
    assert fingerprint(**dict(zip(("task", "tokenizer", "model"), loaded(bert, task=shorter), strict=True))) != first
    tokenizer.add_tokens(["dog and"])
    assert fingerprint() != first


def test_pairs_have_token_types(bert):
    task, tokenizer, _ = loaded(bert)
    examples = task.preprocess(
        rows(premise=["the cat"], hypothesis=["rain"], label=["ham"]), PAIR, BINARY, tokenizer, None, split="train"
    )
    assert examples["token_type_ids"][0] == [0, 0, 0, 0, 1, 1]


def test_a_decoder_alone_with_an_empty_text_gets_one_padding_token(decoder):
    task, tokenizer, model = loaded(decoder)
    batch = task.data_collator(tokenizer, model)([{"input_ids": [], "attention_mask": [], "example_id": 0}])
    assert batch["input_ids"].tolist() == [[tokenizer.pad_token_id]]
    assert torch.isfinite(model(**{name: batch[name] for name in ("input_ids", "attention_mask")}).logits).all()


def test_the_share_of_truncated_texts_is_logged(bert, caplog):
    task, tokenizer, _ = loaded(bert, task=TextClassification(max_length=5))
    with caplog.at_level(logging.INFO, "sft_hf"):
        examples = task.preprocess(
            rows(text=["the cat", "the cat and the dog", "rain", "the the the"], label=["ham"] * 4),
            TEXT, BINARY, tokenizer, None, split="train",
        )  # fmt: skip
    assert examples["length"][:] == [4, 5, 3, 5]
    assert "25.0 % of the texts (1 of 4) are longer than --max_length 5" in caplog.text


def test_max_length_is_the_models_limit_unless_given(bert):
    assert loaded(bert)[1].model_max_length == 64
    assert loaded(bert, task=TextClassification(max_length=16))[1].model_max_length == 16
    with pytest.raises(ArgumentError, match=r"--max_length 65: the model has 64 positions"):
        loaded(bert, task=TextClassification(max_length=65))


def test_the_collator_pads_to_the_longest_of_the_batch_and_pickles(bert):
    """Pitfall 24: a lambda does not pickle, and loader workers die of it."""
    task, tokenizer, model = loaded(bert)
    collator = pickle.loads(pickle.dumps(task.data_collator(tokenizer, model)))
    batch = collator(
        [
            {
                "input_ids": [2, 9, 3],
                "attention_mask": [1, 1, 1],
                "token_type_ids": [0, 0, 0],
                "labels": 1,
                "example_id": 7,
            },
            {"input_ids": [2, 3], "attention_mask": [1, 1], "token_type_ids": [0, 0], "labels": 0, "example_id": 5},
        ]
    )
    pad = tokenizer.pad_token_id
    assert batch["input_ids"].tolist() == [[2, 9, 3], [2, 3, pad]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch["labels"].tolist() == [1, 0]
    assert batch["labels"].dtype == torch.int64
    assert batch["example_id"].tolist() == [7, 5]


def test_the_collator_agrees_with_the_tokenizers_own_padding(bert):
    task, tokenizer, model = loaded(bert)
    encoded = tokenizer(["the cat and the dog", "rain", "snow storm"])
    examples = [{name: encoded[name][row] for name in encoded} | {"example_id": row} for row in range(3)]
    ours = task.data_collator(tokenizer, model)(examples)
    theirs = tokenizer.pad(encoded, return_tensors="pt")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_decoder_without_padding_token_pads_with_its_end_token(decoder):
    """Pitfall 23."""
    task, tokenizer, model = loaded(decoder)
    assert tokenizer.pad_token == "<|endoftext|>"
    assert model.config.pad_token_id == tokenizer.pad_token_id
    collator = task.data_collator(tokenizer, model)
    alone = collator([{"input_ids": tokenizer("the cat")["input_ids"], "attention_mask": [1, 1], "example_id": 0}])
    longer = tokenizer("the cat and the dog")["input_ids"]
    padded = collator(
        [
            {"input_ids": tokenizer("the cat")["input_ids"], "attention_mask": [1, 1], "example_id": 0},
            {"input_ids": longer, "attention_mask": [1] * len(longer), "example_id": 1},
        ]
    )
    model.eval()
    with torch.no_grad():
        logits = [
            task.predict(model, task.loss_sums(None, model, batch)[0], batch, tokenizer)[0] for batch in (alone, padded)
        ]
    assert logits[0] == pytest.approx(logits[1], abs=1e-6)


def test_the_head_fits_the_labels_and_the_loss_starts_at_ln_of_the_classes(bert):
    labels = Labels("single_label_classification", ("a", "b", "c"))
    task, _, model = loaded(bert, labels)
    assert model.config.id2label == {0: "a", 1: "b", 2: "c"}
    assert model.config.problem_type == "single_label_classification"
    batch = {"input_ids": torch.tensor([[2, 9, 3]] * 6), "labels": torch.tensor([0, 1, 2] * 2)}
    loss = task.load_loss(rows(labels=[0]), labels, FinetuningArguments(output_dir="unused"), None)
    _, sums = task.loss_sums(loss, model.eval(), batch)
    assert sums["items"].item() / 6 == pytest.approx(1.0986, abs=0.05)
    assert float(task.loss_denominators(loss, batch)["items"]) == 6


def test_empty_texts_leave_training_and_stay_in_evaluation(caplog):
    task = TextClassification()
    data = rows(text=["a cat", "  ", None, "rain"], label=["ham", "ham", "spam", "spam"])
    assert task.select_examples(data, TEXT, BINARY, split="train")["example_id"][:] == [0, 3]
    assert task.select_examples(data, TEXT, BINARY, split="validation")["example_id"][:] == [0, 1, 2, 3]
    assert "train: 2 empty texts are left out" in caplog.text
    assert "validation: 2 empty texts are scored like any other" in caplog.text


def test_rows_without_a_label_are_left_out_and_counted(caplog):
    data = rows(text=["a", "b", "c"], label=["ham", None, "spam"])
    for split in ("train", "validation"):
        assert len(TextClassification().select_examples(data, TEXT, BINARY, split=split)) == 2
    assert "train: 1 of 3 rows have no label" in caplog.text


def test_a_test_split_without_labels_is_kept_for_predictions():
    task = TextClassification()
    assert len(task.select_examples(rows(text=["a", "b"], label=[None, None]), TEXT, BINARY, split="test")) == 2
    assert len(task.select_examples(rows(text=["a", "b"]), TEXT, BINARY, split="test")) == 2


def test_wrong_columns_are_named():
    task = TextClassification()
    with pytest.raises(DataError, match=r"The validation split has no column 'text'; it has body, label, example_id"):
        task.select_examples(rows(body=["a"], label=["ham"]), TEXT, BINARY, split="validation")
    with pytest.raises(DataError, match=r"column 'text' holds int64, expected texts.*--text_column_names"):
        task.select_examples(rows(text=[1], label=["ham"]), TEXT, BINARY, split="train")


def test_builtin_lstm_trains_its_tokenizer_or_takes_one(bert):
    _, tokenizer, model = loaded("builtin:lstm")
    assert type(model).__name__ == "LstmForSequenceClassification"
    assert model.config.vocab_size == len(tokenizer)
    _, tokenizer, model = loaded("builtin:lstm", tokenizer_name=bert)
    assert model.config.vocab_size == len(tokenizer) == len(tiny.vocabulary())


def test_one_batch_is_learnt_by_heart(bert):
    task, tokenizer, model = loaded(bert)
    texts = ["the cat saw rain", "butter and storm", "we liked snow", "spoon near goose"]
    examples = task.preprocess(
        rows(text=texts, label=["ham", "spam"] * 2), TEXT, BINARY, tokenizer, None, split="train"
    )
    batch = task.data_collator(tokenizer, model)(list(examples))
    loss = task.load_loss(examples, BINARY, FinetuningArguments(output_dir="unused"), None)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(60):
        optimizer.zero_grad()
        value = task.loss_sums(loss, model, batch)[1]["items"] / 4
        value.backward()
        optimizer.step()
    assert float(value) < 0.05
