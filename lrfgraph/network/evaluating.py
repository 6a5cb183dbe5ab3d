"""Prediction without leaks, and what is measured of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrfgraph.errors import DataError

__all__ = ["compare", "compiled_forward", "gain", "measure", "predict"]

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
    made = []
    for start in range(0, count, batch):
        piece = [np.asarray(part[start : start + batch]) for part in parts]
        size = len(piece[0])
        if model.inputs[0].shape[0]:  # a fixed batch takes no remainder
            piece = [np.resize(part, (batch, *part.shape[1:])) for part in piece]
        inputs = keras.tree.pack_sequence_as(x, piece) if isinstance(x, dict | list | tuple) else piece[0]
        made.append(forward(inputs).numpy()[:size])
    return np.concatenate(made) if made else np.zeros((0, *model.outputs[0].shape[1:]), np.float32)


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


def measure(outputs: Array, targets: Any, task: str) -> dict[str, float | int]:
    """Return what is known: ``accuracy`` or ``mse`` with its standard error (``…_se``), and ``n`` images.

    outputs : probabilities, logits, or one sigmoid (or logit) per image.  targets : class numbers, one-hot rows,
    arrays of the outputs' shape, or None; targets that cannot be compared leave ``n`` alone.
    """
    known: dict[str, float | int] = {"n": len(outputs)}
    if targets is None or len(outputs) == 0:
        return known
    if task == "regression":
        if tuple(targets.shape) != outputs.shape:
            return known
        each = np.concatenate(
            [
                np.square(outputs[i : i + 512] - np.asarray(targets[i : i + 512], np.float64)).reshape(-1, item).mean(1)
                for item in [math.prod(outputs.shape[1:])]
                for i in range(0, len(outputs), 512)
            ]
        )
        return known | {"mse": float(each.mean()), "mse_se": float(each.std() / math.sqrt(len(each)))}
    one_hot = tuple(targets.shape) == outputs.shape and outputs.shape[-1] > 1
    if not one_hot and len(targets.shape) != outputs.ndim - 1 and targets.shape != outputs.shape:
        return known
    labels = np.asarray(targets[:]).argmax(-1) if one_hot else np.asarray(targets[:]).reshape(outputs.shape[:-1])
    right = (_classes(outputs) == labels).reshape(len(outputs), -1).mean(1)
    accuracy = float(right.mean())
    return known | {"accuracy": accuracy, "accuracy_se": math.sqrt(accuracy * (1 - accuracy) / len(right))}


def compare(outputs: Array, original: Array, targets: Any, task: str, output: str) -> dict[str, float]:
    """Return how far a model's outputs are from the original's on the same images.

    output : ``probabilities``, ``logits`` or ``values``.  ``kl`` : mean KL(original ‖ model), or the relative squared
    error of values.  ``agreement`` : share of equal answers.  ``drop``, ``drop_se`` : accuracy lost and the standard
    error of the paired difference (McNemar's), much tighter than that of either accuracy and never below that of one
    image: no difference among few images is no certainty. Only with class labels.
    """
    if task == "regression" or output == "values":
        return {"kl": float(np.sum(np.square(outputs - original)) / max(float(np.sum(np.square(original))), 1e-30))}
    told = {"kl": float(np.mean(_divergence(outputs, original, output)))}
    ours, theirs = _classes(outputs), _classes(original)
    told["agreement"] = float(np.mean(ours == theirs))
    if targets is None:
        return told
    values = np.asarray(targets[:])
    labels = values.argmax(-1) if values.ndim == outputs.ndim and values.shape[-1] > 1 else values.reshape(ours.shape)
    lost = ((theirs == labels).astype(float) - (ours == labels)).reshape(len(ours), -1).mean(1)
    return told | {"drop": float(lost.mean()), "drop_se": float(max(lost.std() / math.sqrt(len(lost)), 1 / len(lost)))}


def gain(outputs: Array, rival: Array, original: Array, task: str, output: str) -> tuple[float, float]:
    """Return by how much a rival's ``kl`` (see `compare`) is lower, and the standard error of that.

    The difference is taken image by image: what makes an image hard for both cancels out.
    """

    def each(made: Array) -> Array:
        if task == "regression" or output == "values":
            power = max(float(np.sum(np.square(original, dtype=np.float64))), 1e-30) / len(original)
            return np.asarray(np.square(made - original, dtype=np.float64).reshape(len(made), -1).sum(1) / power)
        return np.asarray(_divergence(made, original, output).reshape(len(made), -1).mean(1))

    lower = each(outputs) - each(rival)
    return float(lower.mean()), float(lower.std() / math.sqrt(len(lower)))


def _divergence(outputs: Array, original: Array, output: str) -> Array:
    """KL(original ‖ outputs) of every single answer."""
    p, q = (_log_probabilities(each.astype(np.float64), output) for each in (original, outputs))
    return np.asarray(np.sum(np.exp(p) * (p - q), axis=-1))


def _log_probabilities(outputs: Array, output: str) -> Array:
    if outputs.shape[-1] == 1:  # one sigmoid: two classes
        one = outputs if output == "probabilities" else 1.0 / (1.0 + np.exp(-outputs))
        outputs, output = np.concatenate([1.0 - one, one], axis=-1), "probabilities"
    logits = np.log(np.maximum(outputs, 1e-12)) if output == "probabilities" else outputs
    top = logits.max(-1, keepdims=True)
    return np.asarray(logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True)))


def _classes(outputs: Array) -> Array:
    if outputs.shape[-1] > 1:
        return np.asarray(outputs.argmax(-1))
    threshold = 0.5 if outputs.min() >= 0 and outputs.max() <= 1 else 0.0
    return np.asarray(outputs[..., 0] > threshold)
