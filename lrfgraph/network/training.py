"""One-shot fine-tuning of a whole network with the original as its teacher."""

from __future__ import annotations

import json
import math
import os
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrfgraph.network.batches import Batches, Split
from lrfgraph.network.evaluating import compiled_forward, measure, predict
from lrfgraph.network.graph import input_structure
from lrfgraph.network.heads import Head, own_targets
from lrfgraph.options.recipe import FinetuneOptions

__all__ = ["History", "Split", "finetune"]

Array = NDArray[Any]
History = list[dict[str, Any]]
Progress = Callable[[int, int, str], None]

CHECKPOINT = "finetune.npz"
LARGEST_OUTPUTS = 1 << 28  # bytes of the teacher's outputs that are kept; beyond, it is asked anew each step


@dataclass(frozen=True)
class Course:
    """How a training goes: its options, what the output means, where its state is kept, whom it tells of progress."""

    options: FinetuneOptions
    head: Head
    scratch: Path
    progress: Progress


def finetune(
    student: Any,
    teacher: Any,
    training: Split,
    validation: Split,
    options: FinetuneOptions | Mapping[str, Any],
    head: Head,
    scratch: Path,
    progress: Progress = lambda done, total, message: None,
) -> tuple[Any, History]:
    """Train the whole student once and return it, with its best epoch's weights, and one entry per epoch.

    Loss: α·KL(teacher‖student at temperature T)·T² + (1 − α)·cross-entropy, or the same of mean squared errors of
    values; without labels α = 1. The epoch that is best by the head's first measure on validation (then by loss) is
    kept, the state before training included. After each epoch all state goes to `scratch`; called again with the same
    arguments and folder, it goes on there.  Eight parameters: two networks, two splits, and what a course consists of.
    """
    options = FinetuneOptions(**options) if isinstance(options, Mapping) else options
    if options.epochs == 0:
        return student, []
    with _all_trainable(student):
        return student, _Run(student, teacher, training, validation, Course(options, head, scratch, progress)).train()


@contextmanager
def _all_trainable(model: Any) -> Iterator[None]:
    """Let frozen layers learn, and leave the flags as they were."""
    flags = [(layer, layer.trainable) for layer in model._flatten_layers()]
    for layer, _ in flags:
        layer.trainable = True
    try:
        yield
    finally:
        for layer, flag in flags:  # outer ones first: a flag is handed down
            layer.trainable = flag


class _Run:
    """The state of one training: models, optimizer, best weights, history."""

    def __init__(self, student: Any, teacher: Any, training: Split, validation: Split, course: Course) -> None:
        import keras

        self.student, self.teacher, self.head = student, teacher, course.head
        self.options, self.scratch, self.progress = course.options, course.scratch, course.progress
        options, shape = self.options, tuple(student.outputs[0].shape[1:])
        self.training, self.validation = (
            replace(split, y=own_targets(self.head, split.x, split.y, shape)) for split in (training, validation)
        )
        x = training.x
        self.labels = options.labels and self.training.y is not None and options.alpha < 1
        self.batches = Batches(self.training, "finetune", options, self.labels)
        self.steps = self.batches.steps
        self.teacher_validation = predict(teacher, validation.x)
        size = 4 * len(x) * math.prod(self.teacher_validation.shape[1:])
        self.teacher_outputs = None if self.batches.augments or size > LARGEST_OUTPUTS else predict(teacher, x)
        self.optimizer = keras.optimizers.AdamW(options.learning_rate, options.weight_decay)
        self.optimizer.exclude_from_weight_decay(_factors(student, teacher))
        self.optimizer.build(student.trainable_variables)
        self.step = self._compiled_step()
        self.history: History = []
        for index, variable in enumerate(self._seeds()):
            variable.assign(np.array([options.seed, index], variable.dtype))
        self.best = self._weights()
        self.best_score = self._score()[0]

    def train(self) -> History:
        self._resume()
        self._started, self._resumed_at = time.monotonic(), len(self.history)
        for epoch in range(len(self.history), self.options.epochs):
            before = time.monotonic()
            loss = self._epoch(epoch)
            score, measured = self._score()
            rate = self._rate((epoch + 1) * self.steps)
            self.history.append({"epoch": epoch + 1, "loss": loss, **measured, "learning_rate": rate})
            self.history[-1]["seconds"] = round(time.monotonic() - before, 3)
            if score > self.best_score:
                self.best, self.best_score = self._weights(), score
                for entry in self.history:
                    entry["kept"] = False
            self.history[-1]["kept"] = self.best_score == score
            self._save()
            if not math.isfinite(loss):
                break  # nothing after it is finite either; the best epoch stands
        for variable, value in zip(self.student.variables, self.best, strict=True):
            variable.assign(value)
        return self.history

    def _epoch(self, epoch: int) -> float:
        losses = []
        for step, (chosen, images, labels) in enumerate(self.batches.epoch(epoch)):
            if self.teacher_outputs is None:
                teacher_outputs = compiled_forward(self.teacher)(list(images))
            else:
                teacher_outputs = self.teacher_outputs[chosen]
            done = epoch * self.steps + step
            self.optimizer.learning_rate.assign(self._rate(done))
            losses.append(self.step(list(images), teacher_outputs, labels))
            if step % 10 == 0:
                self._tell(done)
        return float(np.mean([float(loss) for loss in losses]))

    def _rate(self, done: int) -> float:
        """A cosine from the learning rate to 0, in float64: Keras' CosineDecay rounds every second rate otherwise."""
        return 0.5 * self.options.learning_rate * (1 + math.cos(math.pi * done / (self.options.epochs * self.steps)))

    def _tell(self, done: int) -> None:
        total, start = self.options.epochs * self.steps, self._resumed_at * self.steps
        spent = time.monotonic() - self._started
        left = f", {spent / (done - start) * (total - done):.0f} s left" if done > start else ""
        last = self.history[-1] if self.history else {}
        first = next(iter(self.head.measures))
        share = self.head.measures[first].share
        value = f"{last[first]:.2%}" if share and first in last else f"{last.get(first, 0):.5g}"
        score = f", validation {value}" if first in last else ""
        self.progress(done, total, f"epoch {done // self.steps + 1} of {self.options.epochs}{score}{left}")

    def _compiled_step(self) -> Callable[[Any, Any, Any], Any]:
        import keras
        import tensorflow as tf

        student, optimizer, structure = self.student, self.optimizer, input_structure(self.student)
        variables = student.trainable_variables

        @tf.function(reduce_retracing=True)  # type: ignore[untyped-decorator]
        def step(images: Any, teacher_outputs: Any, labels: Any) -> Any:
            with tf.GradientTape() as tape:
                outputs = student(keras.tree.pack_sequence_as(structure, images), training=True)
                loss = self._loss(tf.nest.flatten(outputs)[0], teacher_outputs, labels)
            gradients = tape.gradient(loss, [v.value for v in variables], unconnected_gradients="zero")
            optimizer.apply(gradients, variables)
            return loss

        compiled: Callable[[Any, Any, Any], Any] = step
        return compiled

    def _loss(self, outputs: Any, teacher_outputs: Any, labels: Any) -> Any:
        import tensorflow as tf

        student, answers = self.head.of_tensor(outputs), self.head.answers
        loss = answers.distillation(self.head.of_tensor(teacher_outputs), student, self.options.temperature)
        if not self.labels:
            return loss
        alpha = self.options.alpha
        return alpha * loss + (1 - alpha) * answers.labelled(tf.convert_to_tensor(labels), student)

    def _score(self) -> tuple[tuple[float, float], dict[str, float]]:
        """Return what epochs are ordered by, and the validation's measures."""
        outputs = predict(self.student, self.validation.x)
        total = 0.0
        for start in range(0, len(outputs), 256):
            part = slice(start, start + 256)
            labels = np.asarray(self.validation.y[part]) if self.validation.y is not None else None
            loss = self._validation_loss(outputs[part], self.teacher_validation[part], labels)
            total += loss * len(outputs[part])
        loss = total / len(outputs)
        measured = measure(outputs, self.validation.y, self.head)
        known = {name: float(measured[name]) for name in self.head.measures if name in measured}
        finite = loss if math.isfinite(loss) else math.inf
        return (known.get(next(iter(self.head.measures)), 0.0), -finite), {**known, "validation_loss": loss}

    def _validation_loss(self, outputs: Array, teacher_outputs: Array, labels: Array | None) -> float:
        without, self.labels = self.labels, self.labels and labels is not None
        loss = float(self._loss(outputs, teacher_outputs, labels))
        self.labels = without
        return loss

    def _seeds(self) -> list[Any]:
        return [v for v in self.student.variables if "seed_generator" in v.path]

    def _weights(self) -> list[Array]:
        return _values(self.student.variables)

    def _save(self) -> None:
        """Write all state of the finished epoch; renamed into place, so that a half-written file is never read."""
        groups = {"weights": self._weights(), "optimizer": _values(self.optimizer.variables)}
        arrays = {
            f"{name}/{i}": a for name, group in (groups | {"best": self.best}).items() for i, a in enumerate(group)
        }
        state = json.dumps({"history": self.history, "score": self.best_score}).encode()
        temporary = self.scratch / f"{CHECKPOINT}.{os.getpid()}.tmp"
        with temporary.open("wb") as opened:
            np.savez(opened, allow_pickle=False, state=np.frombuffer(state, np.uint8), **arrays)
            opened.flush()
            os.fsync(opened.fileno())
        temporary.replace(self.scratch / CHECKPOINT)

    def _resume(self) -> None:
        """Take up the last finished epoch, where there is one that can be read whole."""
        targets = {"weights": self.student.variables, "optimizer": self.optimizer.variables}
        try:
            with (self.scratch / CHECKPOINT).open("rb") as opened, np.load(opened, allow_pickle=False) as saved:
                state = json.loads(saved["state"].tobytes())
                values = {name: [saved[f"{name}/{i}"] for i in range(len(v))] for name, v in targets.items()}
                best = [saved[f"best/{i}"] for i in range(len(self.best))]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return
        pairs = [(v, a) for name in targets for v, a in zip(targets[name], values[name], strict=True)]
        if any(tuple(variable.shape) != value.shape for variable, value in pairs):
            return
        for variable, value in pairs:
            variable.assign(value)
        self.best, self.history, self.best_score = best, state["history"], tuple(state["score"])


def _factors(student: Any, teacher: Any) -> list[Any]:
    """Return all variables but the kernels that the teacher has too, by their layer's name and their shape."""

    def place(variable: Any) -> tuple[Any, ...]:
        return (*variable.path.split("/")[-2:], tuple(variable.shape))

    original = {place(variable) for variable in teacher.variables if variable.name == "kernel"}
    return [variable for variable in student.trainable_variables if place(variable) not in original]


def _values(variables: list[Any]) -> list[Array]:
    import keras

    return [np.array(keras.ops.convert_to_numpy(variable)) for variable in variables]
