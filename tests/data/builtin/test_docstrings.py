"""The docstrings task: made of what is installed, the same each time, without what would give the answer away."""

import re
import subprocess
import sys
from collections import Counter

import pytest
from datasets import ClassLabel, Value

from sft_hf.data.builtin import builtin_dataset
from sft_hf.data.builtin.docstrings import TEXTS_PER_LIBRARY, _documented, _read, first_paragraph
from sft_hf.errors import DataError


@pytest.fixture(scope="module")
def docstrings():
    return builtin_dataset("docstrings")


def test_splits_columns_and_classes(docstrings):
    assert list(docstrings) == ["train", "validation", "test"]
    for dataset in docstrings.values():
        assert dataset.features["text"] == Value("string")
        assert dataset.features["label"] == ClassLabel(names=["numpy", "pandas", "scikit-learn", "scipy", "torch"])
        assert dataset.column_names == ["text", "label"]
    total = sum(dataset.num_rows for dataset in docstrings.values())
    assert 2500 <= total <= 5 * TEXTS_PER_LIBRARY
    assert docstrings["validation"].num_rows == pytest.approx(total / 10, abs=1)
    assert docstrings["test"].num_rows == pytest.approx(total / 10, abs=1)


def test_classes_are_stratified(docstrings):
    shares = [Counter(dataset["label"]) for dataset in docstrings.values()]
    for label in range(5):
        assert shares[1][label] == pytest.approx(shares[0][label] / 8, abs=1)
        assert shares[2][label] == pytest.approx(shares[0][label] / 8, abs=1)


def test_no_text_stands_twice(docstrings):
    texts = [text.rstrip(" .:").casefold() for dataset in docstrings.values() for text in dataset["text"]]
    assert len(set(texts)) == len(texts)


def test_texts_are_one_line_of_prose_without_the_answer(docstrings):
    names = re.compile(r"numpy|pandas|scipy|torch|sklearn|scikit|\bnp\b|\bpd\b|\bsp\b")
    for dataset in docstrings.values():
        for text in dataset["text"]:
            assert not names.search(text.replace("NP", "")), text
            assert len(text) >= 20
            assert text == " ".join(text.split())
            assert not text.startswith((">>>", ".. "))
            assert "----" not in text


def test_the_versions_are_recorded(docstrings):
    import numpy as np

    assert f"numpy {np.__version__}, pandas " in docstrings["test"].info.description


def test_the_same_in_another_process_and_silent(docstrings):
    code = (
        "from sft_hf.data.builtin import builtin_dataset; data = builtin_dataset('docstrings'); "
        "print([(name, data[name]._fingerprint, data[name][0]) for name in data])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    here = [(name, docstrings[name]._fingerprint, docstrings[name][0]) for name in docstrings]
    assert done.stdout.strip() == str(here)
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("docstring", "text"),
    [
        ("Sum of array elements\n    over a given axis.\n\n    Parameters", "Sum of array elements over a given axis."),
        ("sin(x, /, out=None)\n\nTrigonometric sine.", "Trigonometric sine."),
        ("\nadd(input, other) -> Tensor\n\nAdds :attr:`other`.", "Adds other."),
        ("Like :func:`~numpy.sum` or :class:`the mean <scipy.mean>`.", "Like library.sum or the mean."),
        (
            "Convert a torch.Tensor to_numpy; PyTorch, np.array, pd",
            "Convert a library.Tensor to_library; library, library.array, library",
        ),
        ("The NumPy, SciPy, scikit-learn and Scikitlearn docs", "The library, library, library and library docs"),
        ("Space, npz, spline and pdf stay", "Space, npz, spline and pdf stay"),
        (".. math::\n   x\n\nThe mean::\n\n    mean()", "The mean:"),
        ("Year and week.\n\nReturns\n-------\nint", "Year and week."),
        ("Year and week.\nReturns\n-------\nint", "Year and week."),
        ("", ""),
    ],
)
def test_first_paragraph(docstring, text):
    assert first_paragraph(docstring) == text


def test_a_broken_docstring_is_passed_over():
    class Broken:
        @property
        def __doc__(self):
            raise RuntimeError

    assert _read(Broken(), "__doc__") is None


def test_only_the_librarys_own_public_names_are_read():
    import json
    import types

    module = types.ModuleType("mine")

    def own():
        """Mine."""

    def hidden():
        """Not public."""

    own.__module__ = hidden.__module__ = "mine.core"
    module.own, module._hidden, module.dumps, module.json, module.number = own, hidden, json.dumps, json, 3
    assert list(_documented(module)) == [own]


def test_a_package_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(DataError, match=r"reads the docstrings of .*; pandas is not installed \(pip install pandas\)"):
        builtin_dataset("docstrings")
