"""Windows over pictures, and their answers put together, with boxes and probabilities worked out by hand."""

import math

import pytest
import torch
from transformers.modeling_outputs import SemanticSegmenterOutput

from sft_hf.vision.windows import logits_of_pictures, merged, resampled, seen_once, window_boxes


def test_windows_overlap_by_half_and_the_last_is_flush_with_the_border():
    """10 x 13 pixels in windows of 4 x 6: rows from 0, 2, 4 and 6, columns from 0, 3, 6 and 7."""
    boxes = window_boxes((10, 13), (4, 6))
    assert len(boxes) == 4 * 4
    assert boxes[:5] == [(0, 0, 4, 6), (0, 3, 4, 9), (0, 6, 4, 12), (0, 7, 4, 13), (2, 0, 6, 6)]
    assert boxes[-1] == (6, 7, 10, 13)
    assert seen_once((10, 13), (4, 6)) == (2, 3)


@pytest.mark.parametrize("size", [(1, 1), (3, 40), (16, 16), (17, 31), (45, 16), (100, 99)])
@pytest.mark.parametrize("window", [(16, 16), (2, 3), (5, 32)])
def test_each_pixel_is_in_a_window_and_each_window_in_the_picture(size, window):
    covered = torch.zeros(size)
    for top, left, bottom, right in window_boxes(size, window):
        assert 0 <= top < bottom <= size[0]
        assert 0 <= left < right <= size[1]
        assert (bottom - top, right - left) == (min(window[0], size[0]), min(window[1], size[1]))
        covered[top:bottom, left:right] += 1
    assert covered.min() >= 1
    height, width = seen_once(size, window)
    assert (covered[:height, :width] == 1).all()
    assert height == size[0] or covered[height, 0] > 1
    assert width == size[1] or covered[0, width] > 1


def test_a_picture_is_one_window_where_none_is_given_or_it_is_smaller():
    assert window_boxes((3, 5), None) == window_boxes((3, 5), (8, 8)) == [(0, 0, 3, 5)]
    assert window_boxes((1, 2), (1, 1)) == [(0, 0, 1, 1), (0, 1, 1, 2)], "a pixel has no half"
    assert seen_once((3, 5), None) == seen_once((3, 5), (8, 8)) == (3, 5)
    assert window_boxes((3, 9), (4, 6)) == [(0, 0, 3, 6), (0, 3, 3, 9)], "one side is"


def logits_of(probability: float, size: tuple[int, int]) -> torch.Tensor:
    """Two classes, the second with this probability, at an offset that means nothing."""
    logits = torch.tensor([0.0, math.log(probability / (1 - probability))]) + 7
    return logits.view(1, 2, 1, 1).expand(1, 2, *size)


def test_probabilities_are_averaged_and_not_logits():
    """1 x 6 pixels in windows of 4: the second class has 0.9 in the left one, 0.3 in the right one, 0.6 where both are."""
    boxes = window_boxes((1, 6), (1, 4))
    assert boxes == [(0, 0, 1, 4), (0, 2, 1, 6)]
    logits = merged([logits_of(0.9, (1, 2)), logits_of(0.3, (1, 3))], boxes, (1, 6))
    assert logits.shape == (1, 2, 1, 6)
    assert logits.exp()[0, 1, 0].tolist() == pytest.approx([0.9, 0.9, 0.6, 0.6, 0.3, 0.3])
    assert logits.softmax(dim=1)[0, 1, 0].tolist() == pytest.approx([0.9, 0.9, 0.6, 0.6, 0.3, 0.3])


def test_a_window_that_is_certain_leaves_finite_logits():
    boxes = window_boxes((1, 6), (1, 4))
    certain = torch.tensor([0.0, 1e4]).view(1, 2, 1, 1)
    logits = merged([certain, certain], boxes, (1, 6))
    assert logits.isfinite().all()
    assert (logits.argmax(dim=1) == 1).all()


def test_one_window_stays_as_it_is():
    """So that a picture which is no larger than the window gets the pipeline's answer, to the last digit."""
    logits = torch.randn(1, 3, 4, 4)
    assert torch.equal(merged([logits], [(0, 0, 9, 7)], (9, 7)), resampled(logits, (9, 7)))


class Counting(torch.nn.Module):
    """Two classes; the second one's logit is the mean of a window's pixels."""

    def __init__(self):
        super().__init__()
        self.chunks = []

    def forward(self, pixel_values):
        self.chunks.append(len(pixel_values))
        means = pixel_values.mean(dim=(1, 2, 3)).view(-1, 1, 1, 1)
        return SemanticSegmenterOutput(logits=torch.cat([0 * means, means], dim=1))


def test_the_windows_of_a_batch_go_through_the_model_in_chunks():
    """Two pictures of 3 and 2 windows in chunks of two, and not one before it is needed."""
    sizes = [(4, 8), (4, 6)]
    boxes = [window_boxes(size, (4, 4)) for size in sizes]
    assert [len(some) for some in boxes] == [3, 2]
    values = torch.tensor([5.0, 5.0, -5.0, -5.0, 5.0]).view(5, 1, 1, 1)
    batch = {"pixel_values": values.expand(5, 3, 2, 2), "boxes": boxes, "target_size": sizes}
    model = Counting()
    pictures = logits_of_pictures(model, batch)
    first = next(pictures)
    assert model.chunks == [2, 2]
    assert first.shape == (1, 2, 4, 8)
    # windows from 0, 2 and 4: in the middle a window that says yes and one that says no are even
    answers = first.softmax(dim=1)[0, 1, 0]
    assert answers.tolist() == pytest.approx([0.9933] * 4 + [0.5] * 2 + [0.0067] * 2, abs=1e-4)
    second = next(pictures)
    assert model.chunks == [2, 2, 1]
    assert second.argmax(dim=1)[0, 0].tolist()[::5] == [0, 1]
    assert next(pictures, None) is None
