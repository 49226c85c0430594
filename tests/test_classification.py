"""The half that all classification tasks share: class weights, scores, descriptions, losses by name."""

import numpy as np
import pytest
import torch
from datasets import Dataset

from sft_hf.arguments import FinetuningArguments, ModelArguments
from sft_hf.classification import labels_tensor, model_inputs
from sft_hf.data.labels import Labels
from sft_hf.errors import ArgumentError
from sft_hf.metrics import MultiLabelMetrics, RegressionMetrics, SingleLabelMetrics
from sft_hf.tasks.text_classification import TextClassification

SINGLE = Labels("single_label_classification", ("a", "b"))
MULTI = Labels("multi_label_classification", ("a", "b"))
NUMBER = Labels("regression", ("value",))
ARGUMENTS = FinetuningArguments(output_dir="unused")


def weights_of(loss) -> list[float]:
    return [float(weight) for weight in loss.class_weights]


def test_balanced_class_weights_come_from_the_training_split():
    train = Dataset.from_dict({"labels": [0, 0, 0, 1]})
    loss = TextClassification(class_weights="balanced").load_loss(train, SINGLE, ARGUMENTS)
    assert weights_of(loss) == pytest.approx([4 / (2 * 3), 4 / (2 * 1)])


def test_class_weights_from_a_file(tmp_path):
    by_name = tmp_path / "weights.json"
    by_name.write_text('{"b": 3, "a": 1}')
    assert weights_of(TextClassification(class_weights=str(by_name)).load_loss(None, SINGLE, ARGUMENTS)) == [1, 3]
    in_order = tmp_path / "weights.yaml"
    in_order.write_text("[0.5, 2]")
    assert weights_of(TextClassification(class_weights=str(in_order)).load_loss(None, SINGLE, ARGUMENTS)) == [0.5, 2]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a": 1}', r"no weight for \['b'\]"),
        ('{"a": 1, "b": 1, "c": 1}', r"unknown classes \['c'\]"),
        ("[1, 2, 3]", "expected 2 weights, in the order of a, b"),
        ('["x", 1]', "weights are numbers"),
        ("[1, ", "cannot be read"),
    ],
)
def test_a_wrong_weights_file_says_what_is_wrong(tmp_path, content, message):
    path = tmp_path / "weights.json"
    path.write_text(content)
    with pytest.raises(ArgumentError, match=message):
        TextClassification(class_weights=str(path)).load_loss(None, SINGLE, ARGUMENTS)


def test_class_weights_need_classes_and_a_file_that_exists():
    with pytest.raises(ArgumentError, match="--class_weights balanced: the labels are numbers"):
        TextClassification(class_weights="balanced").load_loss(None, NUMBER, ARGUMENTS)
    with pytest.raises(ArgumentError, match="expected none, balanced, or an existing"):
        TextClassification(class_weights="ballanced").load_loss(None, SINGLE, ARGUMENTS)


def test_a_loss_that_does_not_fit_the_labels_names_those_that_do():
    with pytest.raises(ArgumentError, match="--loss"):
        TextClassification(loss="mse").load_loss(None, SINGLE, ARGUMENTS)


def test_the_accumulator_fits_the_problem():
    task, arguments = TextClassification(), ModelArguments()
    for labels, kind in ((SINGLE, SingleLabelMetrics), (MULTI, MultiLabelMetrics), (NUMBER, RegressionMetrics)):
        assert type(task.load_metrics(labels, arguments)) is kind


def test_scores_are_on_the_pipelines_scale():
    task, logits = TextClassification(), np.array([[0.0, np.log(3)]], dtype=np.float32)
    assert task.scores(logits, SINGLE)[0] == pytest.approx([0.25, 0.75])
    assert task.scores(logits, MULTI)[0] == pytest.approx([0.5, 0.75])
    assert task.scores(np.array([[2.5]]), NUMBER)[0] == pytest.approx([2.5])


def test_predictions_in_words():
    task, logits = TextClassification(), np.array([0.0, np.log(3)], dtype=np.float32)
    assert task.describe(logits, SINGLE, None) == {"prediction": "b", "score": 0.75}
    assert task.describe(logits, MULTI, None)["prediction"] == ["a", "b"]
    assert task.describe(logits, MULTI, np.array([0.6, 0.6])) == {"prediction": ["b"], "scores": {"b": 0.75}}
    assert task.describe(np.array([2.5]), NUMBER, None) == {"prediction": [2.5]}


def test_pipeline_answers_come_in_any_order():
    answer = [{"label": "b", "score": 0.9}, {"label": "a", "score": 0.1}]
    assert TextClassification().pipeline_predictions([answer], SINGLE)[0] == pytest.approx([0.1, 0.9])


def test_label_tensors_and_model_inputs():
    assert labels_tensor([1, 0], "single_label_classification").dtype.is_floating_point is False
    assert labels_tensor([[1, 0]], "multi_label_classification").dtype.is_floating_point
    assert model_inputs({"input_ids": 1, "labels": 2, "example_id": 3, "length": 4}) == {"input_ids": 1}


def test_a_new_sigmoid_head_starts_at_the_log_odds_of_its_labels():
    """At 0.5 for a label of 5 % the encoder would first collapse to bring all logits down."""
    head = torch.nn.Linear(4, 2)
    head.bias.data.zero_()
    train = Dataset.from_dict({"labels": [[1.0, 0.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]]})
    TextClassification().initialise(torch.nn.Sequential(head), train, MULTI)
    assert head.bias.tolist() == pytest.approx([np.log(1 / 3), np.log(0.125 / 0.875)])  # never: half a row of four


def test_a_new_regression_head_starts_at_the_mean():
    head = torch.nn.Linear(4, 1)
    head.bias.data.zero_()
    train = Dataset.from_dict({"labels": [[3.0], [5.0]]})
    TextClassification().initialise(torch.nn.Sequential(head), train, NUMBER)
    assert head.bias.tolist() == [4.0]


def test_a_trained_head_and_a_softmax_head_start_where_they_are():
    trained = torch.nn.Linear(4, 2)
    before = trained.bias.tolist()
    train = Dataset.from_dict({"labels": [[1.0, 0.0]] * 4})
    TextClassification().initialise(torch.nn.Sequential(trained), train, MULTI)
    assert trained.bias.tolist() == before
    new = torch.nn.Linear(4, 2)
    new.bias.data.zero_()
    TextClassification().initialise(torch.nn.Sequential(new), Dataset.from_dict({"labels": [0, 0, 0, 1]}), SINGLE)
    assert new.bias.tolist() == [0.0, 0.0]
