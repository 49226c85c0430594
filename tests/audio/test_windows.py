"""Windows that leave out no sample, and the mean of their probabilities."""

import itertools
import math

import numpy as np
import pytest
import torch

from sft_hf.audio.windows import mean_of_windows, windows_of


def spans(num_samples: int, size: int | None) -> list[tuple[int, int]]:
    """First and last sample of each window of 0, 1, 2, ..."""
    return [(int(window[0]), int(window[-1])) for window in windows_of(np.arange(num_samples), size)]


@pytest.mark.parametrize(
    ("num_samples", "size", "expected"),
    [
        (25_000, 10_000, [(0, 9_999), (7_500, 17_499), (15_000, 24_999)]),
        (20_000, 10_000, [(0, 9_999), (10_000, 19_999)]),
        (10_001, 10_000, [(0, 9_999), (1, 10_000)]),
        (10_000, 10_000, [(0, 9_999)]),
        (3, 10_000, [(0, 2)]),
        (25_000, None, [(0, 24_999)]),
    ],
)
def test_windows_cover_a_clip_and_the_last_one_ends_where_it_ends(num_samples, size, expected):
    assert spans(num_samples, size) == expected


def test_no_sample_is_left_out():
    for num_samples in range(1, 200):
        for size in (1, 7, 16, 33):
            found = spans(num_samples, size)
            assert len(found) == max(1, math.ceil(num_samples / size))
            assert found[0][0] == 0
            assert found[-1][1] == num_samples - 1
            assert all(later[0] <= earlier[1] + 1 for earlier, later in itertools.pairwise(found))
            assert num_samples < size or all(last - first == size - 1 for first, last in found)


def test_windows_are_views():
    """An hour at 16 kHz is 230 MB."""
    waveform = np.zeros(100, dtype=np.float32)
    assert all(np.shares_memory(window, waveform) for window in windows_of(waveform, 30))


LOGITS = torch.tensor([[2.0, 0.0, -1.0], [0.0, 1.0, 0.0], [-3.0, 0.5, 4.0]])


def test_single_label_probabilities_are_averaged():
    """softmax(2, 0, -1) = (.843795, .114195, .042010), softmax(0, 1, 0) = (.211942, .576117, .211942)."""
    means = mean_of_windows(LOGITS, [2, 1], "single_label_classification")
    probabilities = means.softmax(dim=-1)
    assert probabilities[0].tolist() == pytest.approx([0.527868, 0.345156, 0.126976], abs=1e-5)
    torch.testing.assert_close(probabilities[1], LOGITS[2].softmax(dim=-1))
    torch.testing.assert_close(means.exp(), probabilities)  # so that their cross-entropy is that of the mean


def test_multi_label_probabilities_are_averaged():
    """sigmoid(2) = .8808, sigmoid(0) = .5, sigmoid(1) = .7311, sigmoid(-1) = .2689."""
    means = mean_of_windows(LOGITS, [2, 1], "multi_label_classification")
    assert means[0].sigmoid().tolist() == pytest.approx([0.69040, 0.61553, 0.38447], abs=1e-5)
    torch.testing.assert_close(means[1], LOGITS[2])


def test_numbers_are_averaged_as_they_are():
    assert mean_of_windows(LOGITS, [2, 1], "regression").tolist() == [[1.0, 0.5, -0.5], [-3.0, 0.5, 4.0]]


def test_probabilities_that_no_float_holds():
    """A confident mistake has the loss that it has without windows: 2,000, not infinity and not a floor."""
    logits = torch.tensor([[2000.0, 0.0], [2000.0, 0.0]])
    assert mean_of_windows(logits, [2], "single_label_classification").tolist() == [[0.0, -2000.0]]
    assert mean_of_windows(logits[:, :1], [2], "multi_label_classification").tolist() == [[2000.0]]
    assert mean_of_windows(-logits[:, :1], [2], "multi_label_classification").tolist() == [[-2000.0]]


@pytest.mark.parametrize("problem_type", ["single_label_classification", "multi_label_classification", "regression"])
def test_half_precision_is_left_and_one_window_changes_no_probability(problem_type):
    logits = LOGITS.to(torch.bfloat16)
    means = mean_of_windows(logits, [1, 1, 1], problem_type)
    assert means.dtype == torch.float32
    same = (lambda x: x.softmax(-1)) if problem_type.startswith("single") else (lambda x: x)
    torch.testing.assert_close(same(means), same(logits.float()))
