"""--class_weights: none, balanced, or a file that fits the classes."""

import logging

import pytest

from sft_hf.class_weights import resolve_class_weights
from sft_hf.errors import ArgumentError

NAMES = ("a", "b")


def resolve(flag: object, *, counts=(3, 1)) -> list[float] | None:
    weights = resolve_class_weights(str(flag), names=NAMES, counts=lambda: counts)
    return None if weights is None else weights.tolist()


def test_none_counts_nothing():
    assert resolve_class_weights("none", names=NAMES, counts=lambda: pytest.fail("counted")) is None


def test_balanced_is_inversely_proportional_to_the_counts(monkeypatch, caplog):
    """n / (classes * count): both classes weigh 2 in the sum over the 4 examples."""
    monkeypatch.setattr(logging.getLogger("sft_hf"), "propagate", True)
    with caplog.at_level(logging.INFO, "sft_hf"):
        assert resolve("balanced") == pytest.approx([4 / (2 * 3), 4 / (2 * 1)])
    assert "class weights: {'a': 0.667, 'b': 2.0}" in caplog.text
    assert resolve("balanced", counts=[5, 0]) == [1, 1]  # a class that never occurs changes nothing


def test_balanced_needs_the_whole_training_set():
    with pytest.raises(ArgumentError, match="balanced counts the whole training set .* give the weights in a FILE"):
        resolve("balanced", counts=None)


@pytest.mark.parametrize(
    ("name", "content", "weights"),
    [
        ("weights.json", '{"b": 3, "a": 1}', [1, 3]),
        ("weights.yaml", "a: 0\nb: 1.5", [0, 1.5]),
        ("weights.yaml", "[0.5, 2]", [0.5, 2]),
    ],
)
def test_a_file_names_the_classes_or_has_their_order(tmp_path, name, content, weights):
    (tmp_path / name).write_text(content)
    assert resolve(tmp_path / name) == weights


def test_keys_that_yaml_reads_as_numbers_are_names(tmp_path):
    (tmp_path / "weights.yaml").write_text("0: 1.0\n1: 2.0")
    weights = resolve_class_weights(str(tmp_path / "weights.yaml"), names=("0", "1"), counts=lambda: None)
    assert weights.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a": 1}', r"no weight for \['b'\]; unknown classes none"),
        ('{"a": 1, "b": 1, "c": 1}', r"no weight for nothing; unknown classes \['c'\]"),
        ("[1, 2, 3]", "expected 2 weights, in the order of a, b"),
        ("3", "expected 2 weights, in the order of a, b"),
        ('["x", 1]', "weights are numbers of 0 or more, got"),
        ("[-1, 1]", "weights are numbers of 0 or more, got"),
        ("[1, NaN]", "weights are numbers of 0 or more, got"),
        ("[1, Infinity]", "weights are numbers of 0 or more, got"),
        ("[true, 1]", "weights are numbers of 0 or more, got"),
        ("[1, ", "cannot be read"),
    ],
)
def test_a_wrong_file_says_what_is_wrong(tmp_path, content, message):
    path = tmp_path / "weights.json"
    path.write_text(content)
    with pytest.raises(ArgumentError, match=rf"--class_weights {path}.*{message}"):
        resolve(path)


def test_a_word_that_is_no_choice_and_no_file():
    with pytest.raises(ArgumentError, match="--class_weights ballanced: expected none, balanced, or an existing json"):
        resolve("ballanced")
