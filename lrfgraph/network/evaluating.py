"""Prediction without leaks, and what is measured of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrfgraph.errors import DataError
from lrfgraph.network.graph import input_structure, is_graph
from lrfgraph.network.heads import BLOCK, Head
from lrfgraph.network.measures import standard_error
from lrfgraph.network.memory import images_forward

__all__ = [
    "compare",
    "compiled_forward",
    "deciding",
    "drop",
    "gain",
    "measure",
    "overconfidence",
    "predict",
    "pseudo_values",
]

Array = NDArray[Any]
MOST = 256
"""Images that run at once, at most."""


def predict(model: Any, x: Any, batch: int | None = None) -> Array:
    """Return the model's outputs for all images, float32, inference mode, without the growth of ``Model.predict``.

    x : array-like of images (`Images` are prepared batch by batch, of several inputs as tuples), or a dict or list of
    arrays for a model of several inputs.  batch : images that run at once, at most 256 by what they take by default.
    Raises DataError where the number of inputs or outputs does not fit.
    """
    import keras

    parts = keras.tree.flatten(x) if isinstance(x, dict | list | tuple) else None
    count = len(x if parts is None else parts[0])
    if len(model.outputs) != 1:
        raise DataError(f"the model has {len(model.outputs)} outputs; only a model of one output can be measured")
    forward = compiled_forward(model)
    fixed = model.inputs[0].shape[0]
    step = fixed or batch or _at_once(model, x if parts is None else parts[0])
    outputs = []
    for start in range(0, count, step):
        chosen = slice(start, start + step)
        piece = x[chosen] if parts is None else tuple(np.asarray(part[chosen]) for part in parts)
        arrays = [np.asarray(array) for array in (piece if isinstance(piece, tuple) else (piece,))]
        if len(arrays) != len(model.inputs):
            raise DataError(f"the model has {len(model.inputs)} inputs, received {len(arrays)}; give one array each")
        size = len(arrays[0])
        if fixed:  # a fixed batch takes no remainder
            arrays = [np.resize(array, (fixed, *array.shape[1:])) for array in arrays]
        outputs.append(forward(arrays).numpy()[:size])
    return np.concatenate(outputs) if outputs else np.zeros((0, *model.outputs[0].shape[1:]), np.float32)


def _at_once(model: Any, x: Any) -> int:
    """Images that run forward at once; of a model that is no graph, as many as of a small one."""
    return images_forward(model, MOST, tuple(x.shape[1:])) if is_graph(model) else MOST


def compiled_forward(model: Any) -> Callable[[Any], Any]:
    """Return the model as one compiled function of a list of its inputs, made once per model; outputs are float32."""
    import keras
    import tensorflow as tf

    # Kept in the instance's own dictionary: Keras would track an attribute, a global table would keep the model.
    if "_lrfgraph_forward" not in model.__dict__:
        structure = input_structure(model)

        def forward(inputs: Any) -> Any:
            outputs = model(keras.tree.pack_sequence_as(structure, inputs), training=False)
            return tf.cast(tf.nest.flatten(outputs)[0], tf.float32)

        signature = [[tf.TensorSpec(tensor.shape, tensor.dtype) for tensor in model.inputs]]
        model.__dict__["_lrfgraph_forward"] = tf.function(forward, signature)
    compiled: Callable[[Any], Any] = model.__dict__["_lrfgraph_forward"]
    return compiled


def measure(outputs: Array, targets: Any, head: Head) -> dict[str, float | int]:
    """Return the head's measures by name, each with its standard error (``…_se``), and ``n``, the number of images.

    The first is called ``accuracy`` besides: it decides.  targets : as `Head.targets` gives them, array-like (n, …);
    without any, ``n`` stands alone.
    """
    known: dict[str, float | int] = {"n": len(outputs)}
    for place, name in enumerate(head.measures if targets is not None else ()):
        each = pseudo_values(name, outputs, targets, head)
        if each is not None:
            value, error = float(each.mean()), standard_error(each)
            known |= {name: value, f"{name}_se": error}
            known |= {} if place else {"accuracy": value, "accuracy_se": error}
    return known


def pseudo_values(name: str, outputs: Array, targets: Any, head: Head) -> Array | None:
    """Return one of the head's measures image by image, (n,), or ``None`` where it is not defined."""
    one, blocks = head.measures[name], []
    if one.whole is not None and len(outputs):
        return one.whole(outputs, np.asarray(targets[: len(outputs)]))
    centre = (_mean(targets, len(outputs)),) if one.centred and len(outputs) else ()
    for start in range(0, len(outputs), BLOCK):
        part = slice(start, start + BLOCK)
        blocks.append(one.gather(head.of_array(outputs[part]), np.asarray(targets[part]), *centre))
    return one.finish(np.concatenate(blocks)) if blocks else None


def deciding(outputs: Array, targets: Any, head: Head) -> Array | None:
    """Return the measure that decides image by image, see `pseudo_values`; ``None`` without targets."""
    return None if targets is None else pseudo_values(next(iter(head.measures)), outputs, targets, head)


def overconfidence(outputs: Array, targets: Any, head: Head) -> dict[str, float]:
    """Return how much surer a network is of its choices than it is right, and the standard error of that.

    ``overconfidence`` : mean probability of what is chosen − share of right choices. Training by cross-entropy brings
    it to 0 on the images trained on; on others it stays above (C. Guo et al., "On Calibration of Modern Neural
    Networks", 2017).  Empty for numbers, and without targets.
    """
    if targets is None or not head.answers.chosen:
        return {}
    each = []
    for start in range(0, len(outputs), BLOCK):
        logits, labels = head.of_array(outputs[start : start + BLOCK]), np.asarray(targets[start : start + BLOCK])
        powers = np.exp(logits - logits.max(-1, keepdims=True))
        surplus = powers.max(-1) / powers.sum(-1) - (logits.argmax(-1) == labels)
        each.append(surplus.reshape(len(surplus), -1).mean(1))
    values = np.concatenate(each)
    return {"overconfidence": float(values.mean()), "overconfidence_se": float(values.std() / math.sqrt(len(values)))}


def _mean(targets: Any, count: int) -> Array:
    total = sum(np.asarray(targets[i : i + BLOCK], np.float64).sum(0) for i in range(0, count, BLOCK))
    return np.asarray(total / count)


def compare(outputs: Array, original: Array, head: Head) -> dict[str, float]:
    """Return how far a model's outputs are from the original's on the same images.

    ``kl`` : mean KL(original ‖ model), or the relative squared error of values.  ``agreement`` : share of equal
    choices.  ``drop``, ``drop_se`` : the share of choices that changed, or the relative squared error again, with its
    standard error: what can be said without targets, see `drop`.
    """
    each, worth = head.divergences(outputs, original)
    compared = {"kl": float(np.sum(each)) / max(float(np.sum(worth)), 1e-30)}
    lost = each / max(float(worth.mean()), 1e-30)
    if head.answers.chosen:
        equal = _choices(outputs, head) == _choices(original, head)
        compared["agreement"] = float(np.mean(equal))
        lost = 1 - equal.reshape(len(equal), -1).mean(1)
    return compared | drop(lost, np.zeros(len(lost)))


def drop(original: Array, each: Array) -> dict[str, float]:
    """Return what is lost of a measure, from its pseudo-values (n,), and the standard error of the paired difference.

    That is much tighter than the error of either measure; where answers are right or wrong it is never below that of
    one image: no difference among few images is no certainty.
    """
    lost = original - each
    noise = float(lost.std() / math.sqrt(len(lost)))
    least = 1 / len(lost) if np.isin(lost, (-1, 0, 1)).all() else 0.0
    return {"drop": float(lost.mean()), "drop_se": max(noise, least)}


def gain(outputs: Array, rival: Array, original: Array, head: Head) -> tuple[float, float]:
    """Return by how much a rival's ``kl`` (see `compare`) is lower, and the standard error of that.

    The difference is taken image by image: what makes an image hard for both cancels out.
    """
    (ours, worth), (its, _) = (head.divergences(each, original) for each in (outputs, rival))
    lower = (ours - its) / max(float(worth.mean()), 1e-30)
    return float(lower.mean()), float(lower.std() / math.sqrt(len(lower)))


def _choices(outputs: Array, head: Head) -> Array:
    blocks = [head.of_array(outputs[i : i + BLOCK]).argmax(-1) for i in range(0, len(outputs), BLOCK)]
    return np.concatenate(blocks)
