"""Every row of HEADS: what is proposed and decided, how far outputs are apart, what is learned and drawn from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from lrfgraph.network.evaluating import compare, deciding, drop, gain, measure
from lrfgraph.network.heads import HEADS, Head, decide, head_of, own_targets, propose

RANDOM = np.random.default_rng(0)
DIGITS = np.arange(60) % 3
MASKS = (RANDOM.random((60, 8, 8)) < 0.3).astype(np.uint8)


@pytest.mark.parametrize(
    ("activation", "output", "inputs", "head"),
    [
        ("softmax", (10,), [(8, 8, 3)], "softmax"),
        ("softmax", (8, 8, 5), [(8, 8, 3)], "pixels"),
        ("linear", (10,), [(8, 8, 3)], "logits"),
        ("linear", (1,), [(8, 8, 3)], "values"),
        ("linear", (5,), [(5,)], "values"),
        ("sigmoid", (1,), [(8, 8, 3)], "binary"),
        ("sigmoid", (10,), [(8, 8, 3)], "multilabel"),
        ("sigmoid", (784,), [(784,)], "values"),
        ("sigmoid", (8, 8, 3), [(8, 8, 3)], "values"),
        ("relu", (4,), [(8, 8, 3), (2,)], "values"),
    ],
)
def test_what_the_graph_proposes(activation: str, output: Any, inputs: Sequence[Any], head: str) -> None:
    assert propose(activation, output, inputs) == head


@pytest.mark.parametrize(
    ("labels", "activation", "inputs", "outputs", "head"),
    [
        (DIGITS, "softmax", (8, 8, 3), (3,), "softmax"),
        (np.eye(3)[DIGITS], "softmax", (8, 8, 3), (3,), "softmax"),
        (np.eye(3)[DIGITS], "linear", (8, 8, 3), (3,), "logits"),
        (DIGITS, "sigmoid", (8, 8, 3), (3,), "logits"),
        (np.eye(3)[DIGITS], "sigmoid", (8, 8, 3), (3,), "multilabel"),
        (RANDOM.integers(0, 2, (60, 3)), "linear", (8, 8, 3), (3,), "multilabel"),
        (DIGITS % 2, "linear", (8, 8, 3), (1,), "binary"),
        (DIGITS[:, None] % 2, "sigmoid", (8, 8, 3), (1,), "binary"),
        (RANDOM.random(60), "linear", (8, 8, 3), (1,), "values"),
        (RANDOM.random(60), "sigmoid", (8, 8, 3), (1,), "values"),
        (RANDOM.random((60, 3)), "linear", (8, 8, 3), (3,), "values"),
        (DIGITS, "linear", (8, 8, 3), (8, 8, 3), "values"),
        (DIGITS, "linear", (3,), (3,), "values"),
        (MASKS, "sigmoid", (8, 8, 3), (8, 8, 1), "pixels"),
        (MASKS, "sigmoid", (8, 8, 1), (8, 8, 1), "pixels"),
        (MASKS[..., None], "linear", (8, 8, 1), (8, 8, 1), "pixels"),
        (MASKS * 255, "sigmoid", (8, 8, 3), (8, 8, 1), "pixels"),
        (RANDOM.random((60, 8, 8, 1)), "sigmoid", (8, 8, 1), (8, 8, 1), "values"),
        (MASKS, "linear", (8, 8, 3), (8, 8, 4), "pixels"),
        (MASKS, "softmax", (8, 8, 3), (None, None, 4), "pixels"),
        (np.eye(4)[MASKS], "linear", (8, 8, 3), (8, 8, 4), "pixels"),
        (RANDOM.integers(0, 2, (60, 8, 8, 4)), "sigmoid", (8, 8, 3), (8, 8, 4), "multilabel"),
        (RANDOM.random((60, 8, 8, 4)), "linear", (8, 8, 3), (8, 8, 4), "values"),
        (None, "softmax", (8, 8, 3), (3,), "softmax"),
        (None, "linear", (5,), (5,), "values"),
    ],
)
def test_what_the_labels_decide(labels: Any, activation: str, inputs: Any, outputs: Any, head: str) -> None:
    assert decide(propose(activation, outputs, [inputs]), activation, labels, outputs, [inputs]) == head


def softmax(logits: np.ndarray) -> np.ndarray:
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return np.asarray(e / e.sum(-1, keepdims=True))


def sigmoid(logits: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-logits)))


CASES = {
    "softmax": ("softmax", (5,)),
    "logits": ("linear", (5,)),
    "binary": ("linear", (1,)),
    "binary of a probability": ("sigmoid", (1,)),
    "multilabel": ("linear", (4,)),
    "multilabel of probabilities": ("sigmoid", (4,)),
    "pixels": ("linear", (6, 7, 3)),
    "pixels of probabilities": ("softmax", (6, 7, 3)),
    "pixels of one probability": ("sigmoid", (6, 7, 1)),
    "values": ("linear", (3, 2)),
}
"""By case, whose first word is the head: the graph's last activation and the output's shape."""


def case_of(name: str, count: int = 200, seed: int = 1) -> tuple[Head, np.ndarray, np.ndarray]:
    """Return a head, outputs of a network, and targets that have something to do with them."""
    activation, shape = CASES[name]
    head, rng = head_of(name.split(maxsplit=1)[0], activation), np.random.default_rng(seed)
    raw = 2 * rng.normal(size=(count, *shape))
    outputs = {"softmax": softmax, "sigmoid": sigmoid, "linear": np.asarray}[activation](raw).astype("float32")
    truth = raw + rng.normal(size=raw.shape)
    if head.name == "values":
        return head, outputs, truth.astype("float32")
    if head.name == "multilabel":
        return head, outputs, (truth > 1).astype(np.uint8)
    return head, outputs, (truth[..., 0] > 0).astype(int) if shape[-1] == 1 else truth.argmax(-1)


def test_every_head_has_a_case() -> None:
    assert {name.split()[0] for name in CASES} == HEADS.keys()


def explicit_divergence(name: str, outputs: np.ndarray, original: np.ndarray) -> float:
    """KL of distributions written out, mean over images and choices; relative squared error of values."""
    activation, _ = CASES[name]
    p, q = (each.astype(np.float64) for each in (original, outputs))
    if name == "values":
        return float(np.sum((p - q) ** 2) / np.sum(p**2))
    if name.split(maxsplit=1)[0] in ("softmax", "logits") or p.shape[-1] == 3:
        p, q = (softmax(each) if activation == "linear" else each for each in (p, q))
        return float(np.mean(np.sum(p * np.log(p / q), -1)))
    p, q = (sigmoid(each) if activation == "linear" else each for each in (p, q))
    return float(np.mean(p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))))


@pytest.mark.parametrize("name", CASES)
def test_the_distance_is_the_kl_and_the_loss_of_distillation_too(name: str) -> None:
    import tensorflow as tf

    head, original, _ = case_of(name)
    _, outputs, _ = case_of(name, seed=2)
    expected = explicit_divergence(name, outputs, original)
    assert compare(outputs, original, head)["kl"] == pytest.approx(expected, rel=1e-4)
    teacher, student = (head.of_tensor(tf.constant(each)) for each in (original, outputs))
    loss = float(head.answers.distillation(teacher, student, 1.0))
    if name == "values":
        expected *= float(np.mean(np.square(original)))
    assert loss == pytest.approx(expected, rel=1e-3)
    assert float(head.answers.distillation(teacher, teacher, 2.0)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_half_precision_outputs_are_taken_as_single_precision(name: str) -> None:
    import tensorflow as tf

    head, outputs, _ = case_of(name)
    half = tf.cast(outputs, tf.float16)
    assert head.of_tensor(half).dtype == tf.float32
    assert head.of_array(half.numpy()).dtype == np.float64


@pytest.mark.parametrize("name", CASES)
def test_labels_cost_least_at_what_is_right(name: str) -> None:
    import tensorflow as tf

    head, outputs, targets = case_of(name)
    loss = float(head.answers.labelled(tf.constant(targets), head.of_tensor(outputs)))
    wrong = float(head.answers.labelled(tf.constant(targets[::-1].copy()), head.of_tensor(outputs)))
    assert 0 < loss < wrong


@pytest.mark.parametrize("name", [name for name in CASES if name != "values"])
def test_the_curvature_of_the_answers_is_that_of_their_kl(name: str) -> None:
    """E[g gᵀ] of the drawn surprise's gradient g foretells the KL of a small step: ½·E[(g·step)²]."""
    import tensorflow as tf

    head, outputs, _ = case_of(name, count=20_000 if "pixels" not in name else 2000)
    logits = head.of_tensor(outputs)
    draw = np.random.default_rng(3).random(head.answers.draw(tuple(logits.shape))).astype("float32")
    with tf.GradientTape() as tape:
        tape.watch(logits)
        loss = head.answers.surprise(logits, draw, 1.0)
    slope = tape.gradient(loss, logits).numpy()
    step = 0.05 * np.random.default_rng(4).normal(size=slope.shape).astype("float32")
    predicted = 0.5 * np.mean(np.sum((slope * step).reshape(len(slope), -1), 1) ** 2)
    moved, still = (each.numpy().astype(np.float64) for each in (logits + step, logits))
    assert predicted == pytest.approx(head.answers.divergence(moved, still).mean(), rel=0.1)


@pytest.mark.parametrize("name", CASES)
def test_measures_are_in_blocks_what_they_are_at_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from lrfgraph.network import evaluating, heads

    head, outputs, targets = case_of(name)
    original = case_of(name, seed=2)[1]
    whole = measure(outputs, targets, head), compare(outputs, original, head)
    for module in (evaluating, heads):
        monkeypatch.setattr(module, "BLOCK", 7)
    assert measure(outputs, targets, head) == pytest.approx(whole[0])
    assert compare(outputs, original, head) == pytest.approx(whole[1])
    assert measure(outputs, None, head) == {"n": 200}
    assert measure(outputs[:0], targets[:0], head) == {"n": 0}


@pytest.mark.parametrize(
    ("head", "outputs"),
    [
        ("softmax", [[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.1, 0.9]]),
        ("logits", [[5.0, -3.0], [-2.0, 8.0], [60.0, 4.0], [1.0, 9.0]]),
        ("binary", [[-3.0], [8.0], [-4.0], [9.0]]),
    ],
)
def test_accuracy_and_its_standard_error(head: str, outputs: list[list[float]]) -> None:
    measured = measure(np.array(outputs), np.array([0, 1, 0, 0]), HEADS[head])
    assert measured["n"] == 4
    assert (measured["accuracy"], measured["accuracy_se"]) == (0.75, pytest.approx(np.sqrt(0.75 * 0.25 / 4)))


def test_a_probability_says_yes_above_one_half() -> None:
    measured = measure(np.array([[0.1], [0.8], [0.4], [0.9]]), np.array([0, 1, 0, 0]), head_of("binary", "sigmoid"))
    assert measured["accuracy"] == 0.75


def test_mean_squared_error() -> None:
    outputs, targets = RANDOM.random((1100, 4, 4, 1)), RANDOM.random((1100, 4, 4, 1))
    each = ((outputs - targets) ** 2).mean((1, 2, 3))
    measured = measure(outputs, targets, HEADS["values"])
    assert measured["mse"] == pytest.approx(each.mean())
    assert measured["mse_se"] == pytest.approx(each.std() / np.sqrt(1100))


@pytest.mark.parametrize("head", ["logits", "values"])
def test_gain_is_the_difference_of_two_kls(head: str) -> None:
    rng = np.random.default_rng(0)
    original = rng.normal(size=(400, 5)).astype("float32")
    near, far = (original + size * rng.normal(size=original.shape) for size in (0.1, 0.2))
    lower, noise = gain(far, near, original, HEADS[head])
    kls = [compare(made, original, HEADS[head])["kl"] for made in (far, near)]
    assert lower == pytest.approx(kls[0] - kls[1], rel=1e-4)
    assert 0 < 5 * noise < lower
    assert gain(near, near, original, HEADS[head]) == (0.0, 0.0)


def test_no_difference_among_few_images_is_no_certainty() -> None:
    outputs = np.eye(4, dtype="float32")[[0, 1, 2, 3, 0]]
    each = deciding(outputs, np.array([0, 1, 2, 3, 0]), HEADS["softmax"])
    assert each is not None
    compared = drop(each, each)
    assert compared["drop"] == 0
    assert compared["drop_se"] == pytest.approx(1 / 5)


def test_a_network_that_gives_back_its_input_has_it_as_its_target() -> None:
    images, labels = np.ones((3, 8, 8, 1)), np.zeros(3)
    assert own_targets(HEADS["values"], images, None, (8, 8, 1)) is images
    assert own_targets(HEADS["values"], images, None, (8, 8, 2)) is None
    assert own_targets(HEADS["values"], images, labels, (8, 8, 1)) is labels
    assert own_targets(HEADS["pixels"], images, None, (8, 8, 1)) is None


def test_chance_is_what_blind_answers_come_to() -> None:
    rng = np.random.default_rng(0)
    for name in ("softmax", "binary", "multilabel", "pixels", "pixels of one probability"):
        head, outputs, targets = case_of(name, count=4000)
        first = next(iter(head.measures))
        often = np.bincount(np.ravel(targets)).argmax()
        blind = rng.random(outputs.shape)  # in any order
        if name != "multilabel":
            blind = np.full(outputs.shape, float(often)) if outputs.shape[-1] == 1 else np.zeros(outputs.shape)
            blind[..., often if outputs.shape[-1] > 1 else 0] = 1 if outputs.shape[-1] > 1 else often
        assert measure(blind, targets, head)[first] == pytest.approx(head.chance(targets), abs=0.03)
