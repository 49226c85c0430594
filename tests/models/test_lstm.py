"""The LSTM: padding changes nothing, a batch is learned, and transformers reloads what was saved."""

import json
import math

import pytest
import torch
from torch.nn import functional
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    pipeline,
)

from sft_hf.errors import ArgumentError
from sft_hf.models import lstm
from sft_hf.models.lstm import LstmConfig, LstmForSequenceClassification, LstmModel, train_tokenizer

TEXTS = [
    "the café is good, the food is good",
    "good food",
    "the café is bad",
    "bad food, bad music, bad service, bad coffee",
]
LABELS = torch.tensor([1, 1, 0, 0])


@pytest.fixture(autouse=True)
def _one_thread():
    """Threads cost more than they give on models this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, vocab_size=300, model_max_length=32)


def small(seed=0, **options):
    """Return a model in evaluation mode whose logits differ visibly from text to text."""
    torch.manual_seed(seed)
    options = {"vocab_size": 300, "embedding_size": 12, "hidden_size": 10, "num_hidden_layers": 2} | options
    model = LstmForSequenceClassification(LstmConfig(**options)).eval()
    torch.nn.init.normal_(model.classifier.weight)
    return model


def padded(tokenizer, length, texts=TEXTS):
    return tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")


# Padding


def test_padding_changes_nothing(tokenizer):
    model, texts = small(), TEXTS[1:3]
    to_10, to_50 = padded(tokenizer, 10, texts), padded(tokenizer, 50, texts)
    assert to_10["attention_mask"].sum(dim=1).tolist() != [10, 10]
    torch.testing.assert_close(model(**to_10).logits, model(**to_50).logits, atol=1e-6, rtol=0)
    alone = torch.cat([model(**tokenizer(text, return_tensors="pt")).logits for text in texts])
    torch.testing.assert_close(alone, model(**to_50).logits, atol=1e-6, rtol=0)


def test_what_stands_in_the_padding_changes_nothing(tokenizer):
    model, inputs = small(), padded(tokenizer, 30)
    other = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, 7)
    torch.testing.assert_close(model(other, inputs["attention_mask"]).logits, model(**inputs).logits)


def test_both_directions_are_those_of_a_packed_torch_lstm(tokenizer):
    """One layer with the same weights; the hidden states of every token agree."""
    model, inputs = small(num_hidden_layers=1).lstm, padded(tokenizer, 30)
    layer, reference = model.layers[0], torch.nn.LSTM(12, 10, batch_first=True, bidirectional=True)
    weights = dict(layer.left_to_right.named_parameters())
    weights |= {f"{name}_reverse": value for name, value in layer.right_to_left.named_parameters()}
    reference.load_state_dict(weights)
    lengths = inputs["attention_mask"].sum(dim=1)
    packed = torch.nn.utils.rnn.pack_padded_sequence(
        model.embeddings(inputs["input_ids"]), lengths, batch_first=True, enforce_sorted=False
    )
    expected, _ = torch.nn.utils.rnn.pad_packed_sequence(reference(packed)[0], batch_first=True, total_length=30)
    hidden_states = model(**inputs).last_hidden_state * inputs["attention_mask"][..., None]
    torch.testing.assert_close(hidden_states, expected, atol=1e-6, rtol=0)


def test_pooling_takes_max_and_mean_of_the_tokens(tokenizer):
    output = small().lstm(**padded(tokenizer, 30, TEXTS[1:2]))
    tokens = output.last_hidden_state[0, : len(tokenizer(TEXTS[1])["input_ids"])]
    expected = torch.cat([tokens.amax(dim=0), tokens.mean(dim=0)])
    assert output.pooler_output.shape == (1, 4 * 10)
    torch.testing.assert_close(output.pooler_output[0], expected)


def test_without_a_mask_the_padding_token_is_the_padding(tokenizer):
    model, inputs = small(), padded(tokenizer, 30)
    torch.testing.assert_close(model(inputs["input_ids"]).logits, model(**inputs).logits)


def test_a_text_without_tokens_has_finite_logits():
    ids = torch.zeros(1, 5, dtype=torch.long)
    logits = small()(ids, torch.zeros_like(ids)).logits
    torch.testing.assert_close(logits, small()(ids[:, :1], torch.zeros_like(ids[:, :1])).logits)
    assert logits.isfinite().all()


def test_padding_on_the_left_is_refused(tokenizer):
    with pytest.raises(ValueError, match="padding_side"):
        small()(torch.tensor([[0, 5, 6]]), torch.tensor([[0, 1, 1]]))


def test_embeddings_in_place_of_ids(tokenizer):
    model, inputs = small(), tokenizer(TEXTS[0], return_tensors="pt")
    embeddings = model.get_input_embeddings()(inputs["input_ids"])
    torch.testing.assert_close(model(inputs_embeds=embeddings).logits, model(**inputs).logits)
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        model(**inputs, inputs_embeds=embeddings)


# Loss and training


@pytest.mark.parametrize("num_labels", [2, 10])
def test_loss_at_initialisation_is_ln_classes(tokenizer, num_labels):
    model = LstmForSequenceClassification(LstmConfig(vocab_size=300, num_labels=num_labels))
    loss = model(**padded(tokenizer, 30), labels=LABELS).loss
    assert loss.item() == pytest.approx(math.log(num_labels), abs=0.1)


@pytest.mark.parametrize(
    ("problem_type", "num_labels", "labels", "reference"),
    [
        ("single_label_classification", 3, torch.tensor([0, 1, 2, -100]), functional.cross_entropy),
        (
            "multi_label_classification",
            3,
            torch.eye(4, 3),
            functional.binary_cross_entropy_with_logits,
        ),
        (
            "regression",
            1,
            torch.arange(4.0),
            lambda logits, labels: functional.mse_loss(logits[:, 0], labels),
        ),
    ],
)
@pytest.mark.parametrize("given", [True, False])
def test_loss_is_that_of_the_problem_type(tokenizer, problem_type, num_labels, labels, reference, given):
    """Inferred from the labels if not given, but never written into the config (pitfall 3)."""
    problem_type = problem_type if given else None
    model = small(num_labels=num_labels, problem_type=problem_type)
    output = model(**padded(tokenizer, 30), labels=labels)
    torch.testing.assert_close(output.loss, reference(output.logits, labels))
    assert model.config.problem_type == problem_type


def test_pitfall_1_the_loss_honours_num_items_in_batch(tokenizer):
    """One batch of four, or one and three: the same gradient."""
    model, inputs = small(), padded(tokenizer, 30)
    model(**inputs, labels=LABELS).loss.backward()
    whole = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    for rows in (slice(0, 1), slice(1, 4)):
        part = {name: value[rows] for name, value in inputs.items()}
        model(**part, labels=LABELS[rows], num_items_in_batch=torch.tensor(4)).loss.backward()
    torch.testing.assert_close([parameter.grad for parameter in model.parameters()], whole)


def test_it_learns_a_batch_by_heart(tokenizer):
    model, inputs = small(num_hidden_layers=1).train(), padded(tokenizer, 30)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(60):
        loss = model(**inputs, labels=LABELS).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    output = model.eval()(**inputs, labels=LABELS)
    assert output.loss.item() < 0.01
    assert output.logits.argmax(dim=-1).tolist() == LABELS.tolist()


@pytest.mark.parametrize("length", [30, None])
def test_bfloat16_autocast_on_a_cpu(tokenizer, length):
    """With and without padding, because oneDNN's own kernel has no bfloat16 LSTM on many CPUs."""
    model, texts = small(), TEXTS if length else TEXTS[:1] * 4
    inputs = padded(tokenizer, length) if length else tokenizer(texts, return_tensors="pt")
    with torch.autocast("cpu", torch.bfloat16):
        output = model(**inputs, labels=LABELS)
    output.loss.backward()
    assert output.logits.dtype == torch.bfloat16
    assert output.loss.dtype == torch.float32
    torch.testing.assert_close(output.logits.float(), model(**inputs).logits, atol=0.1, rtol=0.02)
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_bfloat16_weights(tokenizer):
    model, inputs = small(), padded(tokenizer, 30)
    expected = model(**inputs).logits
    torch.testing.assert_close(model.to(torch.bfloat16)(**inputs).logits.float(), expected, atol=0.1, rtol=0.05)


def test_tuples_in_place_of_outputs(tokenizer):
    model, inputs = small(), padded(tokenizer, 30)
    loss, logits = model(**inputs, labels=LABELS, return_dict=False)
    assert (loss.shape, logits.shape) == ((), (4, 2))
    hidden_states, pooled = model.lstm(**inputs, return_dict=False)
    assert (hidden_states.shape, pooled.shape) == ((4, 30, 20), (4, 40))


# Initialisation, saving and reloading


def test_initialisation():
    model = LstmModel(LstmConfig(vocab_size=500, embedding_size=64, hidden_size=16))
    for module in (model.layers[0].left_to_right, model.layers[0].right_to_left):
        assert module.bias_ih_l0.tolist() == [0.0] * 16 + [1.0] * 16 + [0.0] * 32
        assert not module.bias_hh_l0.any()
        for gate in module.weight_hh_l0.chunk(4):
            torch.testing.assert_close(gate @ gate.T, torch.eye(16), atol=1e-5, rtol=0)
    assert not model.embeddings.weight[0].any()
    assert model.embeddings.weight[1:].std().item() == pytest.approx(1, abs=0.05)


def test_saved_and_reloaded_it_is_the_same(tmp_path, tokenizer):
    model, inputs = (
        small(id2label={0: "bad", 1: "good"}, problem_type="single_label_classification"),
        padded(tokenizer, 30),
    )
    model.save_pretrained(tmp_path)
    reloaded, info = AutoModelForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert type(reloaded) is LstmForSequenceClassification
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert reloaded.config.to_diff_dict() == {
        **model.config.to_diff_dict(),
        "architectures": reloaded.config.architectures,
    }
    torch.testing.assert_close(reloaded(**inputs).logits, model(**inputs).logits, atol=0, rtol=0)


def test_the_base_model_reloads_and_a_missing_head_is_initialised(tmp_path, tokenizer):
    """The base's weights survive; a head of another size starts anew, near ln(classes)."""
    model, inputs = small(), padded(tokenizer, 30)
    model.save_pretrained(tmp_path)
    base = AutoModel.from_pretrained(tmp_path)
    assert type(base) is LstmModel
    torch.testing.assert_close(base(**inputs).pooler_output, model.lstm(**inputs).pooler_output)
    base.save_pretrained(tmp_path / "base")
    headed = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=5).eval()
    torch.testing.assert_close(headed.lstm(**inputs).pooler_output, base(**inputs).pooler_output)
    assert headed(**inputs, labels=LABELS).loss.item() == pytest.approx(math.log(5), abs=0.1)


def test_a_checkpoint_that_lacks_one_weight_keeps_the_others(tmp_path):
    model = small()
    there = {name: value for name, value in model.state_dict().items() if not name.endswith("bias_hh_l0")}
    model.save_pretrained(tmp_path, state_dict=dict(there))  # it empties what it is given
    reloaded = LstmForSequenceClassification.from_pretrained(tmp_path)
    for name, value in reloaded.state_dict().items():
        torch.testing.assert_close(value, there.get(name, torch.zeros_like(value)), atol=0, rtol=0)


def test_transformers_pipeline_reads_the_saved_folder(tmp_path, tokenizer):
    model = small(id2label={0: "bad", 1: "good"})
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    classify = pipeline("text-classification", model=str(tmp_path), device="cpu")
    results = classify([*TEXTS, "", "good food " * 100], truncation=True, batch_size=3)
    probabilities = model(**padded(tokenizer, 32)).logits.softmax(dim=-1)
    expected = [["bad", "good"][index] for index in probabilities.argmax(dim=-1)]
    assert [result["label"] for result in results[:4]] == expected
    assert [result["score"] for result in results[:4]] == pytest.approx(probabilities.amax(dim=-1).tolist(), abs=1e-6)


def test_the_config_alone_builds_a_model(tmp_path):
    config = LstmConfig(vocab_size=300, num_labels=4)
    config.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "sft_hf_lstm"
    assert AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(tmp_path)).num_labels == 4


def test_embeddings_can_be_resized(tokenizer):
    model, inputs = small(), padded(tokenizer, 30)
    expected = model(**inputs).logits
    model.resize_token_embeddings(310)
    assert (model.config.vocab_size, model.lstm.embeddings.num_embeddings) == (310, 310)
    torch.testing.assert_close(model(**inputs).logits, expected)


def test_registering_again_changes_nothing():
    lstm.register()
    assert type(AutoConfig.for_model("sft_hf_lstm")) is LstmConfig


# Tokenizer


def test_the_same_texts_give_the_same_tokenizer():
    first, second = (train_tokenizer(iter(TEXTS * 20), vocab_size=400) for _ in range(2))
    assert len(first) > 258
    assert first.backend_tokenizer.to_str() == second.backend_tokenizer.to_str()


def test_special_tokens(tokenizer):
    """[PAD] is 0, [CLS] opens every text, and an empty text still has a token."""
    assert (tokenizer.pad_token, tokenizer.pad_token_id) == ("[PAD]", 0)
    assert (tokenizer.cls_token, tokenizer.cls_token_id) == ("[CLS]", 1)
    assert tokenizer("")["input_ids"] == [1]
    assert tokenizer("good", "food")["input_ids"] == tokenizer("good food")["input_ids"]
    assert len(tokenizer("good food " * 100, truncation=True)["input_ids"]) == 32


def test_no_text_is_unknown(tokenizer):
    """Bytes cover what training never saw; NFC makes the two spellings of é one."""
    text = "Ünseen 漢字 🙂"
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True).strip() == text
    assert tokenizer("café")["input_ids"] == tokenizer("cafe\u0301")["input_ids"]


def test_auto_tokenizer_reloads_it_beside_the_config(tmp_path, tokenizer):
    LstmConfig(vocab_size=len(tokenizer)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    reloaded = AutoTokenizer.from_pretrained(tmp_path)
    texts = [*TEXTS, "", "unseen 漢字"]
    assert reloaded(texts, padding=True)["input_ids"] == tokenizer(texts, padding=True)["input_ids"]
    assert reloaded.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
    assert (reloaded.model_max_length, reloaded.padding_side) == (32, "right")
    assert "token_type_ids" not in reloaded("good")


def test_the_vocabulary_is_bounded_by_its_size_and_by_the_bytes(tokenizer):
    assert 258 < len(tokenizer) <= 300
    with pytest.raises(ArgumentError, match="vocab_size is 100, expected at least 258"):
        train_tokenizer(TEXTS, vocab_size=100)
