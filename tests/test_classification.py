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
from sft_hf.task import Columns
from sft_hf.tasks.text_classification import TextClassification

SINGLE = Labels("single_label_classification", ("a", "b"))
MULTI = Labels("multi_label_classification", ("a", "b"))
NUMBER = Labels("regression", ("value",))
ARGUMENTS = FinetuningArguments(output_dir="unused")


def weights_of(loss) -> list[float]:
    return [float(weight) for weight in loss.class_weights]


def test_balanced_class_weights_come_from_the_training_split():
    train = Dataset.from_dict({"labels": [0, 0, 0, 1]})
    loss = TextClassification(class_weights="balanced").load_loss(train, SINGLE, ARGUMENTS, None)
    assert weights_of(loss) == pytest.approx([4 / (2 * 3), 4 / (2 * 1)])


def test_class_weights_need_classes():
    with pytest.raises(ArgumentError, match="--class_weights balanced: the labels are numbers"):
        TextClassification(class_weights="balanced").load_loss(None, NUMBER, ARGUMENTS, None)


def test_a_loss_that_does_not_fit_the_labels_names_those_that_do():
    with pytest.raises(ArgumentError, match="--loss"):
        TextClassification(loss="mse").load_loss(None, SINGLE, ARGUMENTS, None)


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
    logits = np.log([0.1, 0.9])
    assert TextClassification().reload_difference([logits], [answer], SINGLE) < 1e-6
    assert TextClassification().reload_difference([logits[::-1]], [answer], SINGLE) == pytest.approx(0.8)


def test_a_difference_of_numbers_is_relative_to_large_ones():
    answers = [[{"label": "value", "score": 199.0}]]
    assert TextClassification().reload_difference([np.array([200.0])], answers, NUMBER) == pytest.approx(0.005)


def test_labels_in_words():
    task, columns = TextClassification(), Columns(("text",), "label")
    assert task.describe_label({"label": "b"}, columns, SINGLE, None) == "b"
    assert task.describe_label({"label": ["b", "a"]}, columns, MULTI, None) == ["a", "b"]
    assert task.describe_label({"label": 2.5}, columns, NUMBER, None) == [2.5]
    assert task.describe_label({"text": "unlabelled"}, columns, SINGLE, None) is None


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
