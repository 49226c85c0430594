"""Modules of evaluate beside our own numbers: permission first, and no key taken twice."""

import math
import pickle
import textwrap

import numpy as np
import pytest

from metrics.examples import filled
from sft_hf.errors import ArgumentError
from sft_hf.metrics import EvaluateModules, MultiLabelMetrics, RegressionMetrics, SingleLabelMetrics


@pytest.fixture
def module(tmp_path):
    """Return what writes an evaluate module that reports given results, and returns its folder."""

    def write(name, result, feature='datasets.Value("int64")'):
        script = f"""
            import datasets
            import evaluate

            class Module(evaluate.Metric):
                def _info(self):
                    return evaluate.MetricInfo(
                        description="", citation="", inputs_description="",
                        features=datasets.Features(predictions={feature}, references={feature}),
                    )

                def _compute(self, predictions, references):
                    return {result}
        """
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.py").write_text(textwrap.dedent(script))
        return str(tmp_path / name)

    return write


def test_pitfall_21_a_hub_module_needs_permission_before_anything_is_loaded():
    with pytest.raises(ArgumentError, match=r"accuracy.*download code.*run it.*--trust_remote_code"):
        EvaluateModules(["accuracy"])
    assert EvaluateModules(["accuracy"], trust_remote_code=True).names == ("accuracy",)


def test_pitfall_21_a_folder_without_the_script_is_a_hub_name(tmp_path, monkeypatch):
    """`evaluate` asks the Hub for it, so a folder that only has the name is no permission."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "accuracy").mkdir()
    with pytest.raises(ArgumentError, match="--trust_remote_code"):
        EvaluateModules(["accuracy"])


def test_numbers_of_modules_stand_beside_ours(module):
    """Modules get class ids; what is no finite number is left out, a bare one is called like the module."""
    results = "{'hits': sum(p == r for p, r in zip(predictions, references)), 'nan': float('nan'), 'ids': [1]}"
    names = [module("hits", results), module("bare", "0.25")]
    metrics = filled(SingleLabelMetrics(2, extra=EvaluateModules(names)), np.eye(2)[[0, 1, 1]], np.array([0, 1, 0]))
    numbers = metrics.compute()
    sent = pickle.loads(pickle.dumps(metrics))
    assert sent.extra._modules == {}
    assert sent.compute() == numbers
    assert (numbers["hits"], numbers["bare"], type(numbers["hits"])) == (2, 0.25, float)
    assert "nan" not in numbers
    assert "ids" not in numbers


def test_modules_get_vectors_for_several_labels_and_values_for_regression(module):
    vectors = module("vectors", "{'first': predictions[0][1]}", 'datasets.Sequence(datasets.Value("int64"))')
    multi = MultiLabelMetrics(2, extra=EvaluateModules([vectors]))
    assert filled(multi, np.array([[-1, 1]]), np.array([[0, 1]])).compute()["first"] == 1
    values = module("values", "{'sum': sum(predictions)}", 'datasets.Value("float64")')
    regression = RegressionMetrics(extra=EvaluateModules([values]))
    labels = np.array([0.0, 1.0, math.nan])
    assert filled(regression, np.array([1.5, 2.0, 9.0]), labels).compute()["sum"] == 3.5


def test_keys_that_are_taken_are_refused(module):
    names = [
        module("ours", "{'accuracy': 1.0}"),
        module("one", "{'hits': 1.0}"),
        module("two", "{'hits': 1.0}"),
    ]
    metrics = SingleLabelMetrics(2, extra=EvaluateModules(names[:1]))
    with pytest.raises(ArgumentError, match="ours reports accuracy, which is reported already"):
        filled(metrics, np.eye(2), np.arange(2)).compute()
    with pytest.raises(ArgumentError, match="two reports hits"):
        EvaluateModules(names[1:]).compute([0], [0])
