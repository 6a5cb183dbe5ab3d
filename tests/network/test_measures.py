"""Measures against their definitions, and their pseudo-values against the definition of the infinitesimal jackknife."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from lrfgraph.network.evaluating import deciding, drop, measure, pseudo_values
from lrfgraph.network.heads import HEADS, Head, head_of

N = 80


def auc(weights: np.ndarray, outputs: np.ndarray, targets: np.ndarray) -> float:
    yes, no = targets == 1, targets == 0
    above = (outputs[yes] > outputs[no].T) + 0.5 * (outputs[yes] == outputs[no].T)
    pairs = weights[yes, None] * weights[None, no]
    return float((pairs * above).sum() / pairs.sum())


def mean_average_precision(weights: np.ndarray, outputs: np.ndarray, targets: np.ndarray) -> float:
    found = []
    for scores, there in zip(outputs.T, targets.T, strict=True):
        reached = scores[None] >= scores[:, None]
        precision = (reached * weights * there).sum(1) / np.maximum((reached * weights).sum(1), 1e-9)
        found.append((precision * weights * there).sum() / (weights * there).sum())
    return float(np.mean(found))


def macro_f1(weights: np.ndarray, outputs: np.ndarray, targets: np.ndarray) -> float:
    given = outputs > 0
    hits = (weights[:, None] * (given & (targets == 1))).sum(0)
    return float(np.mean(2 * hits / (weights[:, None] * (given + targets)).sum(0)))


def mean_iou(weights: np.ndarray, outputs: np.ndarray, targets: np.ndarray) -> float:
    answers, found = outputs.argmax(-1), []
    for number in range(outputs.shape[-1]):
        both, either = ((answers == number) & (targets == number)), ((answers == number) | (targets == number))
        found.append((weights * both.sum((1, 2))).sum() / (weights * either.sum((1, 2))).sum())
    return float(np.mean(found))


def determination(weights: np.ndarray, outputs: np.ndarray, targets: np.ndarray) -> float:
    mean = (weights[:, None] * targets).sum(0) / weights.sum()
    errors, distances = ((weights[:, None] * np.square(targets - other)).sum() for other in (outputs, mean))
    return float(1 - errors / distances)


def accuracy(weights: np.ndarray, outputs: np.ndarray, targets: np.ndarray) -> float:
    return float((weights * (outputs.argmax(-1) == targets)).sum() / weights.sum())


def top_five(weights: np.ndarray, outputs: np.ndarray, targets: np.ndarray) -> float:
    among = (np.argsort(-outputs, -1)[:, :5] == targets[:, None]).any(1)
    return float((weights * among).sum() / weights.sum())


def examples() -> dict[str, tuple[str, Callable[..., float], np.ndarray, np.ndarray]]:
    """By head and measure: a definition with weights, outputs and targets; rounded scores are tied."""
    rng = np.random.default_rng(0)
    twelve, one, labels = (np.round(rng.normal(size=(N, k)), 1) for k in (12, 1, 4))
    pixels = rng.normal(size=(N, 5, 6, 3))
    return {
        "logits/accuracy": ("logits", accuracy, twelve, (twelve + rng.normal(size=twelve.shape)).argmax(-1)),
        "logits/top5": ("logits", top_five, rng.normal(size=(N, 12)), rng.integers(0, 12, N)),
        "binary/auc": ("binary", auc, one, (one[:, 0] + rng.normal(size=N) > 0).astype(int)),
        "multilabel/map": ("multilabel", mean_average_precision, labels, (rng.random((N, 4)) < 0.3).astype(int)),
        "multilabel/f1": ("multilabel", macro_f1, labels + 0.05, (rng.random((N, 4)) < 0.3).astype(int)),
        "values/r2": ("values", determination, labels, labels + rng.normal(size=labels.shape)),
        "pixels/iou": ("pixels", mean_iou, pixels, (pixels + rng.normal(size=pixels.shape)).argmax(-1)),
    }


EXAMPLES = examples()


@pytest.mark.parametrize("example", EXAMPLES)
def test_a_measure_is_its_definition(example: str) -> None:
    head, definition, outputs, targets = EXAMPLES[example]
    name = example.split("/")[1]
    assert measure(outputs, targets, HEADS[head])[name] == pytest.approx(definition(np.ones(N), outputs, targets))


@pytest.mark.parametrize("example", EXAMPLES)
def test_pseudo_values_are_derivatives_by_the_images_weights(example: str) -> None:
    head, definition, outputs, targets = EXAMPLES[example]
    each = pseudo_values(example.split("/")[1], outputs, targets, HEADS[head])
    whole, step, slopes = definition(np.ones(N), outputs, targets), 1e-4, []
    for image in range(N):
        sides = (definition(np.ones(N) + sign * step * (np.arange(N) == image), outputs, targets) for sign in (1, -1))
        slopes.append(N * (next(sides) - next(sides)) / (2 * step))
    np.testing.assert_allclose(each, whole + np.array(slopes), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("example", EXAMPLES)
def test_the_standard_error_of_a_drop_is_that_of_many_draws(example: str) -> None:
    """Against the paired bootstrap, which draws images anew."""
    head, definition, outputs, targets = EXAMPLES[example]
    if example.split("/")[1] != next(iter(HEADS[head].measures)):
        pytest.skip("only the first measure decides")
    rng = np.random.default_rng(1)
    other = outputs + 0.5 * rng.normal(size=outputs.shape)
    compared = drop(*(deciding(each, targets, HEADS[head]) for each in (outputs, other)))
    drops = []
    for _ in range(400):
        weights = np.bincount(rng.integers(0, N, N), minlength=N).astype(float)
        drops.append(definition(weights, outputs, targets) - definition(weights, other, targets))
    assert compared["drop_se"] == pytest.approx(np.std(drops), rel=0.25)
    ones = np.ones(N)
    assert compared["drop"] == pytest.approx(definition(ones, outputs, targets) - definition(ones, other, targets))


def test_few_classes_have_no_top_five() -> None:
    outputs = np.eye(9)
    assert "top5" not in measure(outputs, np.arange(9), HEADS["logits"])


@pytest.mark.parametrize(
    ("head", "outputs", "targets", "missing"),
    [
        (HEADS["binary"], np.ones((4, 1)), np.ones(4, int), "auc"),
        (HEADS["multilabel"], np.ones((4, 2)), np.zeros((4, 2), int), "map"),
        (HEADS["values"], np.ones((4, 2)), np.ones((4, 2)), "r2"),
    ],
)
def test_what_is_not_defined_is_not_measured(
    head: Head, outputs: np.ndarray, targets: np.ndarray, missing: str
) -> None:
    assert missing not in measure(outputs, targets, head)


def test_classes_that_no_target_has_are_left_out() -> None:
    outputs = np.zeros((2, 3, 3, 4))
    outputs[..., 0] = 1
    outputs[1, 0, 0, 3] = 2  # a class that nothing has
    measured = measure(outputs, np.zeros((2, 3, 3), int), head_of("pixels", "linear"))
    assert measured["iou"] == pytest.approx(17 / 18)
