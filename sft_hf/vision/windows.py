"""Sliding windows: a picture too large for the model in parts that overlap by half, and one answer put together from theirs.

    boxes = window_boxes((600, 1000), window=(512, 512))       # 2 x 3 of them: [(0, 0, 512, 512), (0, 256, 512, 768), ...]
    merged(logits_of_each, boxes, size=(600, 1000))            # (1, classes, 600, 1000)

What is averaged where windows overlap are probabilities, not logits: how large a model's logits are is no matter of the class, and a
window that is sure without a reason, at its border, would outvote its neighbours by them. The mean is a distribution, so its
logarithm is to a loss what logits are.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

Box = tuple[int, int, int, int]  # top, left, bottom, right; pixels of the upright picture


def window_boxes(size: tuple[int, int], window: tuple[int, int] | None) -> list[Box]:
    """Where the windows of a picture of `size` (height, width) lie, row by row; without a `window` one, of all of it.

    Neighbours overlap by half a window, the last ones end at the border and overlap by more. A side that is smaller than the
    window's is covered by one.
    """
    if window is None:
        return [(0, 0, *size)]
    rows, columns = (_spans(side, length) for side, length in zip(size, window, strict=True))
    return [(top, left, bottom, right) for top, bottom in rows for left, right in columns]


def seen_once(size: tuple[int, int], window: tuple[int, int] | None) -> tuple[int, int]:
    """Height and width of the corner at the top left that is in the first window alone, and so is that window's answer."""
    if window is None:
        return size
    spans = [_spans(side, length) for side, length in zip(size, window, strict=True)]
    return tuple(span[1][0] if len(span) > 1 else side for span, side in zip(spans, size, strict=True))


def merged(logits: Iterable[Tensor], boxes: Sequence[Box], size: tuple[int, int]) -> Tensor:
    """Logits `(1, classes, height, width)` at a picture's `size` from those of its windows, `(1, classes, any, any)` in float32.

    Of several windows they are logarithms of mean probabilities. `logits` can be a generator: one map of the picture is all that is
    kept.
    """
    parts = iter(logits)
    if len(boxes) == 1:
        return resampled(next(parts), size)
    total = None
    for top, left, bottom, right in boxes:
        part = resampled(next(parts), (bottom - top, right - left)).softmax(dim=1)
        total = part.new_zeros(1, part.shape[1], *size) if total is None else total
        total[:, :, top:bottom, left:right] += part
    # The probabilities of one window add up to 1, so all of a pixel's to the number of windows that it is in.
    total /= total.sum(dim=1, keepdim=True)
    return total.clamp_(min=torch.finfo(total.dtype).tiny).log_()


def logits_of_pictures(model: PreTrainedModel, batch: dict[str, Any]) -> Iterator[Tensor]:
    """Logits `(1, classes, height, width)` of each picture of a PairCollator's batch, at its own resolution, one after the other.

    As many windows go through the model at once as the batch has pictures.
    """
    parts = _logits_of_windows(model, batch["pixel_values"], chunk_size=len(batch["target_size"]))
    for boxes, size in zip(batch["boxes"], batch["target_size"], strict=True):
        yield merged(parts, boxes, size)


def _logits_of_windows(model: PreTrainedModel, pixel_values: Tensor, *, chunk_size: int) -> Iterator[Tensor]:
    for chunk in pixel_values.split(chunk_size):
        yield from model(pixel_values=chunk).logits.split(1)


def resampled(logits: Tensor, size: Sequence[int]) -> Tensor:
    """Logits at `size` (height, width), as post_process_semantic_segmentation of transformers' processors resamples them."""
    return functional.interpolate(logits.float(), size=tuple(size), mode="bilinear", align_corners=False)


def _spans(side: int, length: int) -> list[tuple[int, int]]:
    """From where to where the windows reach on one side."""
    if side <= length:
        return [(0, side)]
    step = max(length // 2, 1)
    starts = [*range(0, side - length, step), side - length]
    return [(start, start + length) for start in starts]
