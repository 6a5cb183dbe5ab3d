"""Losses by what a network's outputs are; a teacher's answers, or labels, against the student.

Distillation: G. Hinton, O. Vinyals, J. Dean, "Distilling the Knowledge in a Neural Network", 2015.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["FORMS", "Form", "form_of"]

Array = NDArray[Any]
TINY = 1e-9


@dataclass(frozen=True)
class Form:
    """How losses of one form of outputs are made.

    logits : outputs to logits.  compare : (teacher, student, temperature), both logits.  labelled : (labels, student).
    """

    logits: Callable[[Any], Any]
    compare: Callable[[Any, Any, float], Any]
    labelled: Callable[[Any, Any], Any]


def form_of(answers: Array, task: str) -> str:
    """Say what a network's outputs are, from the values it gives."""
    if task == "regression":
        return "values"
    bounded = answers.min() >= 0 and answers.max() <= 1
    if answers.shape[-1] == 1:
        return "sigmoid" if bounded else "logit"
    return "softmax" if bounded and np.allclose(answers.sum(-1), 1, atol=1e-3) else "logits"


def _from_softmax(outputs: Any) -> Any:
    import tensorflow as tf

    return tf.math.log(outputs + TINY)


def _from_sigmoid(outputs: Any) -> Any:
    import tensorflow as tf

    clipped = tf.clip_by_value(outputs, 1e-7, 1 - 1e-7)
    return tf.math.log(clipped) - tf.math.log1p(-clipped)


def _divergence(teacher: Any, student: Any, temperature: float) -> Any:
    import tensorflow as tf

    target = tf.nn.log_softmax(teacher / temperature)
    each = tf.reduce_sum(tf.exp(target) * (target - tf.nn.log_softmax(student / temperature)), -1)
    return tf.reduce_mean(each) * temperature**2


def _binary_divergence(teacher: Any, student: Any, temperature: float) -> Any:
    import tensorflow as tf

    target = tf.sigmoid(teacher / temperature)
    cross = tf.nn.sigmoid_cross_entropy_with_logits(labels=target, logits=student / temperature)
    entropy = tf.nn.sigmoid_cross_entropy_with_logits(labels=target, logits=teacher / temperature)
    return tf.reduce_mean(cross - entropy) * temperature**2


def _squared(teacher: Any, student: Any, temperature: float) -> Any:
    import tensorflow as tf

    return tf.reduce_mean(tf.square(teacher - student))


def _cross_entropy(labels: Any, student: Any) -> Any:
    import tensorflow as tf

    return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=student))


def _binary_cross_entropy(labels: Any, student: Any) -> Any:
    import tensorflow as tf

    targets = tf.reshape(tf.cast(labels, student.dtype), tf.shape(student))
    return tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(labels=targets, logits=student))


def _squared_labels(labels: Any, student: Any) -> Any:
    import tensorflow as tf

    return tf.reduce_mean(tf.square(tf.cast(labels, student.dtype) - student))


def _same(outputs: Any) -> Any:
    return outputs


FORMS: dict[str, Form] = {
    "softmax": Form(_from_softmax, _divergence, _cross_entropy),
    "logits": Form(_same, _divergence, _cross_entropy),
    "sigmoid": Form(_from_sigmoid, _binary_divergence, _binary_cross_entropy),
    "logit": Form(_same, _binary_divergence, _binary_cross_entropy),
    "values": Form(_same, _squared, _squared_labels),
}
