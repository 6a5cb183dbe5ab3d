"""Prediction without leaks, and what is measured of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrfgraph.errors import DataError
from lrfgraph.network.heads import BLOCK, Head
from lrfgraph.network.measures import standard_error

__all__ = ["compare", "compiled_forward", "gain", "measure", "predict", "pseudo_values"]

Array = NDArray[Any]


def predict(model: Any, x: Any, batch: int = 256) -> Array:
    """Return the model's outputs for all images, inference mode, without the memory growth of ``Model.predict``.

    x : array-like of images (`Images` are prepared batch by batch), or a dict or list of arrays for a model of
    several inputs. Raises DataError where the number of inputs or outputs does not fit.
    """
    import keras

    parts = keras.tree.flatten(x) if isinstance(x, dict | list | tuple) else [x]
    if len(parts) != len(model.inputs):
        raise DataError(f"the model has {len(model.inputs)} inputs, received {len(parts)}; give one array each")
    if len(model.outputs) != 1:
        raise DataError(f"the model has {len(model.outputs)} outputs; only a model of one output can be measured")
    forward, count = compiled_forward(model), len(parts[0])
    batch = model.inputs[0].shape[0] or batch
    outputs = []
    for start in range(0, count, batch):
        piece = [np.asarray(part[start : start + batch]) for part in parts]
        size = len(piece[0])
        if model.inputs[0].shape[0]:  # a fixed batch takes no remainder
            piece = [np.resize(part, (batch, *part.shape[1:])) for part in piece]
        inputs = keras.tree.pack_sequence_as(x, piece) if isinstance(x, dict | list | tuple) else piece[0]
        outputs.append(forward(inputs).numpy()[:size])
    return np.concatenate(outputs) if outputs else np.zeros((0, *model.outputs[0].shape[1:]), np.float32)


def compiled_forward(model: Any) -> Callable[[Any], Any]:
    """Return the model as one compiled function, made once per model."""
    import tensorflow as tf

    # Kept in the instance's own dictionary: Keras would track an attribute, a global table would keep the model.
    if "_lrfgraph_forward" not in model.__dict__:

        def forward(inputs: Any) -> Any:
            return tf.nest.flatten(model(inputs, training=False))[0]

        signature = None  # several inputs come in any nesting, so each is traced as it comes
        if len(model.inputs) == 1:
            signature = [tf.TensorSpec(model.inputs[0].shape, model.inputs[0].dtype)]
        model.__dict__["_lrfgraph_forward"] = tf.function(forward, signature, reduce_retracing=signature is None)
    compiled: Callable[[Any], Any] = model.__dict__["_lrfgraph_forward"]
    return compiled


def measure(outputs: Array, targets: Any, head: Head) -> dict[str, float | int]:
    """Return the head's measures by name, each with its standard error (``…_se``), and ``n``, the number of images.

    targets : as `Head.targets` gives them, array-like (n, …); without any, ``n`` stands alone.
    """
    known: dict[str, float | int] = {"n": len(outputs)}
    for name in head.measures if targets is not None else ():
        each = pseudo_values(name, outputs, targets, head)
        if each is not None:
            known |= {name: float(each.mean()), f"{name}_se": standard_error(each)}
    return known


def pseudo_values(name: str, outputs: Array, targets: Any, head: Head) -> Array | None:
    """Return one of the head's measures image by image, (n,), or ``None`` where it is not defined."""
    one, starts = head.measures[name], range(0, len(outputs), BLOCK)
    blocks = [one.gather(head.of_array(outputs[i : i + BLOCK]), np.asarray(targets[i : i + BLOCK])) for i in starts]
    return one.finish(np.concatenate(blocks)) if blocks else None


def compare(outputs: Array, original: Array, targets: Any, head: Head) -> dict[str, float]:
    """Return how far a model's outputs are from the original's on the same images.

    ``kl`` : mean KL(original ‖ model), or the relative squared error of values.  ``agreement`` : share of equal
    choices.  ``drop``, ``drop_se`` : what is lost of the measure that decides and the standard error of the paired
    difference, much tighter than that of either measure; where answers are right or wrong never below that of one
    image: no difference among few images is no certainty. Only with targets.
    """
    each, worth = head.divergences(outputs, original)
    compared = {"kl": float(np.sum(each)) / max(float(np.sum(worth)), 1e-30)}
    if not head.answers.chosen:
        return compared
    compared["agreement"] = float(np.mean(_choices(outputs, head) == _choices(original, head)))
    name = next(iter(head.measures))
    ours, theirs = (None if targets is None else pseudo_values(name, o, targets, head) for o in (outputs, original))
    if ours is None or theirs is None:
        return compared
    lost = theirs - ours
    noise = float(lost.std() / math.sqrt(len(lost)))
    least = 1 / len(lost) if np.isin(lost, (-1, 0, 1)).all() else 0.0
    return compared | {"drop": float(lost.mean()), "drop_se": max(noise, least)}


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
