"""HEADS: what a network's output means, decided once from its graph and the targets, and read by everybody.

A head turns outputs into answers: of all heads but one, the logits of one categorical choice or several (a yes or no
is a choice between 0 and the logit). Everything else follows from that: how far two networks' answers are from each
other, what a curvature is drawn from, what is distilled, what labels cost, and what is measured. All of it is computed
in float32 (in training) or float64 (in measuring), whatever the network's own precision.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrfgraph.images import targets
from lrfgraph.network import measures
from lrfgraph.network.own_measure import own_measure

__all__ = ["BLOCK", "HEADS", "OWN", "Head", "decide", "head_of", "in_percent", "own_targets", "propose", "titles"]

Array = NDArray[Any]
Shape = tuple[int | None, ...]
SMALLEST = 1e-12  # probability, in measuring
TINY = 1e-9  # probability, in training
BLOCK = 512  # images that are compared at once
OWN = "metric"  # what the user's own measure is called


@dataclass(frozen=True)
class Link:
    """From what a network puts out to logits: of an array in float64, and of a tensor in float32."""

    array: Callable[[Array], Array]
    tensor: Callable[[Any], Any]


@dataclass(frozen=True)
class Answers:
    """What can be said of answers.

    divergence : (answers, the original's) → (n,).  worth : the original's answers → (n,), see `Head.divergences`.
    distillation : (teacher's, student's, temperature) → loss.  labelled : (targets, student's) → loss.
    draw : shape of the answers → shape of the uniform numbers that a curvature is drawn with.
    surprise : (answers, numbers, mean worth of the network's answers) → the loss whose gradients' second moment is the
    curvature.
    chosen : whether answers are choices (with a temperature, and a likeliest one) rather than numbers.
    """

    divergence: Callable[[Array, Array], Array]
    worth: Callable[[Array], Array]
    distillation: Callable[[Any, Any, float], Any]
    labelled: Callable[[Any, Any], Any]
    draw: Callable[[tuple[int, ...]], tuple[int, ...]]
    surprise: Callable[[Any, Any, float], Any]
    chosen: bool


@dataclass(frozen=True)
class Head:
    """What a network's output means.

    answers : see `Answers`.  expand : (NumPy or TensorFlow, logits) → logits with the choices on the last axis.
    targets : (labels, output shape) → targets, or ``None`` where they cannot be such; raises DataError.
    chance : targets → what the first measure comes to without looking at the image, by what `blind` says.
    measures : by name; the first decides.  links : the activation at the graph's end → how outputs become logits.
    own_input : without targets, the network's own input is one where it has the output's shape.
    """

    name: str
    answers: Answers
    expand: Callable[[Any, Any], Any]
    targets: Callable[[Array, Shape], Array | None]
    chance: Callable[[Array], float | None]
    measures: measures.Measures
    links: Mapping[str, str] = field(default_factory=dict)
    link: str = "identity"
    own_input: bool = False
    blind: str = "always answering one class"

    def of_array(self, outputs: Array) -> Array:
        """Return the answers that a network's outputs give, float64."""
        answers: Array = self.expand(np, LINKS[self.link].array(outputs.astype(np.float64)))
        return answers

    def of_tensor(self, outputs: Any, logits: bool = False) -> Any:
        """Return the same of a tensor, float32; `logits` are outputs before the activation at the graph's end."""
        import tensorflow as tf

        outputs = tf.cast(outputs, tf.float32)
        return self.expand(tf, outputs if logits else LINKS[self.link].tensor(outputs))

    def divergences(self, outputs: Array, original: Array) -> tuple[Array, Array]:
        """Return how far outputs are from the original's, and what those were worth, image by image: (n,) each.

        Σ first / Σ second is the mean KL(original ‖ outputs), or of values the relative squared error.
        """
        pairs = []
        for start in range(0, len(outputs), BLOCK):
            ours, theirs = (self.of_array(each[start : start + BLOCK]) for each in (outputs, original))
            pairs.append((self.answers.divergence(ours, theirs), self.answers.worth(theirs)))
        each, worth = zip(*pairs, strict=True)
        return np.concatenate(each), np.concatenate(worth)


# Links -----------------------------------------------------------------------------------------------------------


def _identity(outputs: Any) -> Any:
    return outputs


def _log_array(probabilities: Array) -> Array:
    return np.asarray(np.log(np.maximum(probabilities, SMALLEST)))


def _log_tensor(probabilities: Any) -> Any:
    import tensorflow as tf

    return tf.math.log(probabilities + TINY)


def _logit_array(probabilities: Array) -> Array:
    clipped = np.clip(probabilities, SMALLEST, 1 - SMALLEST)
    return np.asarray(np.log(clipped) - np.log1p(-clipped))


def _logit_tensor(probabilities: Any) -> Any:
    import tensorflow as tf

    clipped = tf.clip_by_value(probabilities, 1e-7, 1 - 1e-7)
    return tf.math.log(clipped) - tf.math.log1p(-clipped)


LINKS = {
    "identity": Link(_identity, _identity),
    "softmax": Link(_log_array, _log_tensor),
    "sigmoid": Link(_logit_array, _logit_tensor),
}
SIGMOIDS = {"sigmoid": "sigmoid", "hard_sigmoid": "sigmoid"}


# Choices ---------------------------------------------------------------------------------------------------------


def _one(xp: Any, logits: Any) -> Any:
    return logits


def _each(xp: Any, logits: Any) -> Any:
    """Every number is a yes or no of its own."""
    return xp.stack([xp.zeros_like(logits), logits], axis=-1)


def _one_or_yes(xp: Any, logits: Any) -> Any:
    """The last axis is a choice, or a single yes or no."""
    return _each(xp, logits[..., 0]) if logits.shape[-1] == 1 else logits


def _log_probabilities(logits: Array) -> Array:
    top = logits.max(-1, keepdims=True)
    return np.asarray(logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True)))


def _divergence(logits: Array, original: Array) -> Array:
    """KL(original ‖ ours), mean over an image's choices. G. Hinton et al. distill with it, see below."""
    p, q = (_log_probabilities(each) for each in (original, logits))
    each = np.asarray(np.sum(np.exp(p) * (p - q), axis=-1))
    return np.asarray(each.reshape(len(each), -1).mean(1))


def _distillation(teacher: Any, student: Any, temperature: float) -> Any:
    """G. Hinton, O. Vinyals, J. Dean, "Distilling the Knowledge in a Neural Network", 2015."""
    import tensorflow as tf

    target = tf.nn.log_softmax(teacher / temperature)
    each = tf.reduce_sum(tf.exp(target) * (target - tf.nn.log_softmax(student / temperature)), -1)
    return tf.reduce_mean(each) * temperature**2


def _cross_entropy(labels: Any, student: Any) -> Any:
    import tensorflow as tf

    labels = labels if labels.dtype in (tf.int32, tf.int64) else tf.cast(labels, tf.int32)
    return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=student))


def _surprise_of_choices(logits: Any, draw: Any, worth: float) -> Any:
    """−log p of choices drawn from the network's own prediction, over the root of how many an image has.

    The choices are drawn apart: the second moment of this loss' gradient is then the Fisher matrix of their mean KL.
    """
    import tensorflow as tf

    probabilities = tf.stop_gradient(tf.nn.softmax(logits))
    chosen = tf.argmax(tf.cumsum(probabilities, -1) >= draw[..., None], -1)
    loss = tf.reduce_sum(tf.nn.sparse_softmax_cross_entropy_with_logits(chosen, logits))
    return loss / float(np.sqrt(np.prod([int(n) for n in draw.shape[1:]]))) if len(draw.shape) > 1 else loss


CHOICES = Answers(
    divergence=_divergence,
    worth=lambda original: np.ones(len(original)),
    distillation=_distillation,
    labelled=_cross_entropy,
    draw=lambda shape: shape[:-1],
    surprise=_surprise_of_choices,
    chosen=True,
)


# Numbers ---------------------------------------------------------------------------------------------------------


def _squares(values: Array, original: Array | float) -> Array:
    return np.asarray(np.square(values - original).reshape(len(values), -1).sum(1))


def _squared(teacher: Any, student: Any, temperature: float) -> Any:
    import tensorflow as tf

    return tf.reduce_mean(tf.square(teacher - student))


def _squared_labels(labels: Any, student: Any) -> Any:
    import tensorflow as tf

    return tf.reduce_mean(tf.square(tf.cast(labels, student.dtype) - student))


def _surprise_of_values(values: Any, draw: Any, worth: float) -> Any:
    """A random ±1 projection, scaled by the outputs' power: for the relative squared error what −log p is for KL."""
    import tensorflow as tf

    signs = tf.where(draw < 0.5, -1.0, 1.0)
    return tf.reduce_sum(signs * values) / float(np.sqrt(0.5 * max(worth, SMALLEST)))


NUMBERS = Answers(
    divergence=_squares,
    worth=lambda original: _squares(original, 0.0),
    distillation=_squared,
    labelled=_squared_labels,
    draw=lambda shape: shape,
    surprise=_surprise_of_values,
    chosen=False,
)


# The table -------------------------------------------------------------------------------------------------------


def _prevalence(targets: Array) -> float:
    """Mean share of images that have a label: the average precision of an order by lot."""
    return float(targets.reshape(-1, targets.shape[-1]).mean())


def _iou_of_one_class(labels: Array) -> float:
    """Mean intersection over union where every position is given the most frequent class."""
    counts = np.bincount(np.ravel(labels))
    return float(counts.max() / counts.sum() / np.count_nonzero(counts))


_CLASSES: dict[str, Any] = {
    "answers": CHOICES,
    "expand": _one,
    "targets": targets.class_numbers,
    "chance": targets.share_of_largest_class,
    "measures": measures.CLASSES,
}

HEADS: dict[str, Head] = {
    head.name: head
    for head in (
        Head("softmax", **_CLASSES, link="softmax"),
        Head("logits", **_CLASSES, links=SIGMOIDS),
        Head("binary", **_CLASSES | {"expand": _one_or_yes, "measures": measures.BINARY}, links=SIGMOIDS),
        Head(
            "multilabel", CHOICES, _each, targets.label_sets, _prevalence, measures.LABELS, links=SIGMOIDS,
            blind="any order of the images",
        ),
        Head(
            "pixels", CHOICES, _one_or_yes, targets.class_numbers, _iou_of_one_class, measures.POSITIONS,
            links={"softmax": "softmax", **SIGMOIDS},
        ),
        Head("values", NUMBERS, _one, targets.numbers, lambda targets: None, measures.VALUES, own_input=True),
    )
}  # fmt: skip


def head_of(name: str, activation: str, metric: str | None = None) -> Head:
    """Return a row of HEADS for a network whose graph ends in this activation.

    metric : ``package.module:function`` of the user's, which then is the measure that decides.
    """
    head = HEADS[name]
    head = replace(head, link=head.links.get(activation, head.link))
    return head if metric is None else replace(head, measures={OWN: own_measure(metric), **_beside(head.measures)})


def titles(name: str, metric: str | None = None) -> dict[str, str]:
    """Return what is measured, by name, and what people call it; the first decides."""
    rows = HEADS[name].measures
    own = {} if metric is None else {OWN: metric.partition(":")[2]}
    return own | {measure: row.title for measure, row in (_beside(rows) if own else rows).items()}


def in_percent(name: str, metric: str | None = None) -> frozenset[str]:
    """Return the measures that are shares of 1, see `titles`; what one of the user's own is, nobody knows."""
    rows = _beside(HEADS[name].measures) if metric else HEADS[name].measures
    return frozenset(measure for measure, row in rows.items() if row.share)


def _beside(rows: measures.Measures) -> measures.Measures:
    """A head's measures beside one that decides in their place, which is what ``accuracy`` stands for everywhere."""
    return {"top1" if name == "accuracy" else name: row for name, row in rows.items()}


def propose(activation: str, output_shape: Shape, input_shapes: Sequence[Shape]) -> str:
    """Name the head from the graph alone: the last activation says it, else the output's shape (no batch axis)."""
    if activation == "softmax":
        return "softmax" if len(output_shape) == 1 else "pixels"
    if output_shape in input_shapes or len(output_shape) != 1:
        return "values"
    if activation in SIGMOIDS:
        return "binary" if output_shape[0] == 1 else "multilabel"
    return "logits" if activation == "linear" and output_shape[0] != 1 else "values"


def decide(
    proposed: str, activation: str, labels: Array | None, output_shape: Shape, input_shapes: Sequence[Shape]
) -> str:
    """Name the head from the labels, where there are any: they say what the outputs are meant to be.

    labels : (n, …) as the source gives them.  Whether they fit says `Head.targets`.
    """
    vector = len(output_shape) == 1
    if labels is None or (vector and output_shape in input_shapes):
        return proposed
    single, classes = output_shape[-1] == 1, targets.classes_of(labels)
    if not single and targets.fits(labels.shape[1:], output_shape) and _are_sets(labels, activation):
        return "multilabel"
    if not vector:
        return "pixels" if activation == "softmax" or _are_masks(labels, activation, output_shape) else "values"
    if single:
        return "binary" if targets.are_switches(labels) else "values"
    if classes is None:
        return "values"
    return "softmax" if activation == "softmax" else "logits"


def unfit(name: str, activation: str, output_shape: Shape) -> str:
    """Say why a head cannot be that of a network whose graph ends so, or return ``""``."""
    vector, single = len(output_shape) == 1, output_shape[-1] == 1
    if name in ("softmax", "logits") and (not vector or single):
        return f"is for a vector of classes, the model's output has shape {output_shape}"
    if name == "binary" and not (vector and single):
        return f"is for a single number, the model's output has shape {output_shape}"
    if name == "pixels" and vector:
        return f"is for classes at every position, the model's output has shape {output_shape}"
    if activation == "softmax" and name in ("logits", "multilabel"):
        return "is not for a softmax, which the model ends in"
    return ""


def _are_sets(labels: Array, activation: str) -> bool:
    """Whether labels say of each whether an image has it: at linear outputs, rows of a single 1 are classes."""
    if activation not in SIGMOIDS and activation != "linear":
        return False
    return targets.are_switches(labels) and (activation in SIGMOIDS or not bool((labels.sum(-1) == 1).all()))


def _are_masks(labels: Array, activation: str, output_shape: Shape) -> bool:
    """Whether labels give every position a class: whole numbers, at a single linear output only 0 and 1."""
    if output_shape[-1] != 1 and targets.fits(labels.shape[1:], output_shape):
        return targets.are_switches(labels)
    if labels.ndim == len(output_shape) + 1 and labels.shape[-1] == 1:
        labels = labels[..., 0]
    if not targets.fits(labels.shape[1:], output_shape[:-1]):
        return False
    if output_shape[-1] == 1 and not (activation in SIGMOIDS and labels.dtype.kind in "bui"):
        return targets.are_switches(labels)
    return labels.dtype.kind in "bui" or bool((labels == np.round(labels)).all())


def own_targets(head: Head, images: Any, labels: Any, output_shape: Shape) -> Any:
    """Return the targets, or the images where a network without any gives back what it was given."""
    own = labels is None and head.own_input and not getattr(images, "several", False)
    return images if own and targets.fits(tuple(images.shape[1:]), output_shape) else labels
