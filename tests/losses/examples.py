"""What the tests of several losses share: every loss with its options, batches, and the mean of a loss."""

import math

import pytest
import torch

SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
SEGMENTATION = "semantic_segmentation"
WEIGHTS = [0.5, 1.0, 4.0]

EVERY_LOSS = [
    pytest.param(name, problem_type, options, id=f"{problem_type.split('_')[0]}-{name}-{'-'.join(options) or 'plain'}")
    for name, problem_type, variants in [
        ("cross_entropy", SINGLE, 4),
        ("focal", SINGLE, 4),
        ("bce", SINGLE, 4),
        ("bce", MULTI, 4),
        ("focal", MULTI, 4),
        ("mse", REGRESSION, 1),
        ("huber", REGRESSION, 1),
        ("cross_entropy", SEGMENTATION, 4),
        ("focal", SEGMENTATION, 4),
        ("dice", SEGMENTATION, 1),
        ("lovasz", SEGMENTATION, 1),
        ("cross_entropy+dice", SEGMENTATION, 4),
        ("focal+lovasz", SEGMENTATION, 1),
    ]
    for options in [
        {},
        {"class_weights": WEIGHTS},
        {"label_smoothing_factor": 0.1},
        {"class_weights": WEIGHTS, "label_smoothing_factor": 0.1},
    ][:variants]
]


def batch(problem_type, size=8):
    """Return logits `(size, 3, ...)` and labels with something to ignore: an item, a target, or a whole image."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(size, 3, *(4, 5) * (problem_type == SEGMENTATION), generator=generator) * 2
    if problem_type == REGRESSION:
        labels = torch.randn(size, 3, generator=generator)
        labels[1, 2] = math.nan
    elif problem_type == MULTI:
        labels = torch.randint(0, 2, (size, 3), generator=generator).float()
    elif problem_type == SINGLE:
        labels = torch.randint(0, 3, (size,), generator=generator)
        labels[1] = -100
    else:
        labels = torch.randint(0, 3, (size, 4, 5), generator=generator)
        labels[0, :2], labels[1], labels[2, 0, 1:] = -100, -100, -100
        labels[3][labels[3] == 2] = 1
    return logits, labels


def mean(loss, logits, labels):
    """Return what is trained: the sum over the parts of each sum over its denominator."""
    denominators = loss.denominators(labels)
    return sum(value / denominators[name] for name, value in loss.sums(logits, labels).items())
