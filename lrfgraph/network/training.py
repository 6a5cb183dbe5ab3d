"""One-shot fine-tuning of a whole network with the original as its teacher."""

from __future__ import annotations

import itertools
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

from lrfgraph.network.batches import Batches, Split, blended, moved_split
from lrfgraph.network.evaluating import compiled_forward, measure, predict
from lrfgraph.network.graph import input_structure
from lrfgraph.network.heads import Head, own_targets
from lrfgraph.options.finetuning import FinetuneOptions

__all__ = ["History", "Split", "finetune"]

Array = NDArray[Any]
History = list[dict[str, Any]]
Progress = Callable[[int, int, str], None]

CHECKPOINT = "finetune.npz"
LARGEST_OUTPUTS = 1 << 28  # bytes of the teacher's outputs that are kept; beyond, it is asked anew each step

WARM_UP = 0.05
"""Share of a training in which the learning rate rises: Adam's first steps are as large as all others."""

FIRST_RATE, RATES = 3e-4, (3e-5, 1e-4, 3e-4, 1e-3, 3e-3)
"""Learning rates that are tried, and where the trials begin: networks differ by more than ten times in the best one."""

RATE_STEPS, LEAST_RATE_STEPS = 40, 10
"""Steps of a trial of a learning rate, down to 0: a quarter of the training's, but no more and no fewer."""

HARM = 1.3
"""How much higher the loss may be after such a trial than after the best one: what a rate gains comes later than what
it harms. Of three networks the rates that this finds were the best over hundreds of steps (1e-4, 1e-3, 3e-3)."""


@dataclass(frozen=True)
class Course:
    """How a training goes: its options, what the output means, what learns, where its state is kept, whom it tells."""

    options: FinetuneOptions
    head: Head
    variables: list[Any]
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
    values; without labels α = 1. The epoch of the least loss on validation images, moved as training images are, is
    kept, the state before training included: a network that knows those images by heart loses accuracy on them while
    it gains on others. After each epoch all state goes to `scratch`; called again with the same arguments and folder,
    it goes on there.  Eight parameters: two networks, two splits, and what a course consists of.
    """
    options = FinetuneOptions(**options) if isinstance(options, Mapping) else options
    if options.epochs == 0:
        return student, []
    with _all_trainable(student, options.batchnorm == "fixed") as variables:
        course = Course(options, head, variables, scratch, progress)
        return student, _Run(student, teacher, training, validation, course).train()


@contextmanager
def _all_trainable(model: Any, fixed_statistics: bool) -> Iterator[list[Any]]:
    """Yield all variables that can learn, and leave layers as frozen as they were.

    fixed_statistics : BatchNorm normalizes by its statistics of inference meanwhile.
    """
    flags = [(layer, layer.trainable) for layer in model._flatten_layers()]
    for layer, _ in flags:
        layer.trainable = True
    variables = list(model.trainable_variables)
    for layer, _ in flags:
        if fixed_statistics and type(layer).__name__ == "BatchNormalization":
            layer.trainable = False  # inference mode; its scale and shift are learned all the same
    try:
        yield variables
    finally:
        for layer, flag in flags:  # outer ones first: a flag is handed down
            layer.trainable = flag


class _Run:
    """The state of one training: models, optimizer, best weights, history."""

    def __init__(self, student: Any, teacher: Any, training: Split, validation: Split, course: Course) -> None:
        import keras

        self.student, self.teacher, self.head, self.variables = student, teacher, course.head, course.variables
        self.options, self.scratch, self.progress = course.options, course.scratch, course.progress
        options, shape = self.options, tuple(self.student.outputs[0].shape[1:])
        self.training, self.validation = (
            replace(split, y=own_targets(self.head, split.x, split.y, shape)) for split in (training, validation)
        )
        self.labels = options.labels and self.training.y is not None and options.alpha < 1
        self.epochs, images = options.length(len(training))
        self.batches = Batches(self.training, "finetune", options, self.labels, images)
        self.steps = self.batches.steps
        self.judging = moved_split(self.validation, options)
        self.teacher_validation = predict(teacher, self.judging.x)
        size = 4 * len(training) * math.prod(self.teacher_validation.shape[1:])
        several = getattr(training.x, "several", False)
        blends = options.blend if len(training.x.shape) > 2 and not several else 0  # numbers of words have no mean
        self.blended = round(blends * self.batches.batch)
        keeps = (
            not (self.batches.augments or self.blended)
            and size <= LARGEST_OUTPUTS
            and self.epochs * images >= len(training)
        )
        self.teacher_outputs = predict(teacher, training.x) if keeps else None
        self.peak: float | None = options.learning_rate
        self.optimizer = keras.optimizers.AdamW(self.peak or FIRST_RATE, options.weight_decay)
        self.optimizer.exclude_from_weight_decay(_factors(self.variables, teacher))
        self.optimizer.build(self.variables)
        self.step = self._compiled_step()
        self.history: History = []
        self.spent = 0.0
        for index, variable in enumerate(self._seeds()):
            variable.assign(np.array([options.seed, index], variable.dtype))
        self.best = self._weights()
        self.best_loss = self._loss_on_validation()

    def train(self) -> History:
        """Train from where the last process stopped, and return the history; the best epoch's weights are assigned."""
        self._resume()
        if self.peak is None:
            self.peak = self._best_rate()
        self._started = time.monotonic() - self.spent
        for epoch in range(len(self.history), self.epochs):
            if self.history and (self._gone(epoch * self.steps) >= 1 or self.history[-1]["loss"] is None):
                break  # the minutes are over, or nothing is finite any more; the best epoch stands
            before = time.monotonic()
            loss, steps = self._epoch(epoch)
            judged, measured = self._loss_on_validation(), self._measures()
            entry = {"epoch": epoch + 1, "steps": steps, "loss": loss, **measured, "validation_loss": judged}
            entry |= {"learning_rate": self._rate(epoch * self.steps + steps), "peak": self.peak}
            entry |= {"seconds": round(time.monotonic() - before, 3), "kept": judged < self.best_loss}
            if judged < self.best_loss:
                self.best, self.best_loss = self._weights(), judged
                self.history = [{**other, "kept": False} for other in self.history]
            self.history.append({name: value if math.isfinite(value) else None for name, value in entry.items()})
            self.spent = time.monotonic() - self._started
            self._save()
        for variable, value in zip(self.student.variables, self.best, strict=True):
            variable.assign(value)
        return self.history

    def _epoch(self, epoch: int) -> tuple[float, int]:
        """Return the mean loss, and the steps there was time for."""
        losses: list[Any] = []
        for step, batch in enumerate(self.batches.epoch(epoch)):
            done = epoch * self.steps + step
            if losses and self._gone(done) >= 1:
                break
            losses.append(self._learn(batch, done, self._rate(done)))
            if step % 10 == 0:
                self._tell(done)
        return float(np.mean([float(loss) for loss in losses])), len(losses)

    def _learn(self, batch: tuple[Array, tuple[Array, ...], Array], number: int, rate: float) -> Any:
        """Make the step of this number at a learning rate, and return its loss."""
        chosen, images, labels = batch
        if self.blended:
            random = np.random.default_rng([self.options.seed, number])
            mixture, order = blended(images[0], self.blended, random)
            images, labels = (mixture,), labels[order]
        if self.teacher_outputs is None:
            teacher_outputs = compiled_forward(self.teacher)(list(images))
        else:
            teacher_outputs = self.teacher_outputs[chosen]
        self.optimizer.learning_rate.assign(rate)
        return self.step(list(images), teacher_outputs, labels)

    def _best_rate(self) -> float:
        """Return the largest learning rate that does little harm in a short training from the same weights."""
        steps = max(min(RATE_STEPS, self.epochs * self.steps // 4), LEAST_RATE_STEPS)
        weights, state = self._weights(), _values(self.optimizer.variables)
        judged: dict[int, float] = {}

        def loss_at(index: int) -> float:
            if index not in judged:
                for step, batch in enumerate(itertools.islice(self._all_batches(), steps)):
                    self._learn(batch, step, RATES[index] * _cosine(step / steps))
                judged[index] = self._loss_on_validation()
                for variables, values in ((self.student.variables, weights), (self.optimizer.variables, state)):
                    for variable, value in zip(variables, values, strict=True):
                        variable.assign(value)
            return judged[index]

        def harmless(index: int) -> bool:
            return loss_at(index) <= HARM * min(self.best_loss, *judged.values())

        index = RATES.index(FIRST_RATE)
        if harmless(index):
            while index + 1 < len(RATES) and harmless(index + 1):
                index += 1
        else:
            while index > 0 and not harmless(index):
                index -= 1
        return RATES[index]

    def _all_batches(self) -> Iterator[Any]:
        """Yield the batches of one epoch after the other, without an end."""
        for epoch in itertools.count():
            yield from self.batches.epoch(epoch)

    def _gone(self, done: int) -> float:
        """Return the share of the training that is over, by its steps or by its minutes."""
        gone: float = done / (self.epochs * self.steps)
        if self.options.minutes is not None:
            gone = max(gone, (time.monotonic() - self._started) / (60 * float(self.options.minutes)))
        return min(gone, 1.0)

    def _rate(self, done: int) -> float:
        """Up in a line, down to 0 in a cosine; in float64: Keras' CosineDecay rounds every second rate otherwise."""
        assert self.peak is not None
        gone, peak = self._gone(done), self.peak
        if gone < WARM_UP:
            return float(peak * max(gone / WARM_UP, 1 / (WARM_UP * self.epochs * self.steps + 1)))
        return peak * _cosine((gone - WARM_UP) / (1 - WARM_UP))

    def _tell(self, done: int) -> None:
        total, gone = self.epochs * self.steps, self._gone(done)
        left = f", {(time.monotonic() - self._started) / gone * (1 - gone):.0f} s left" if gone else ""
        last = self.history[-1] if self.history else {}
        first = next(iter(self.head.measures))
        share = self.head.measures[first].share
        known = last.get(first) is not None
        value = (f"{last[first]:.2%}" if share else f"{last[first]:.5g}") if known else ""
        score = f", validation {value}" if known else ""
        self.progress(done, total, f"epoch {done // self.steps + 1} of {self.epochs}{score}{left}")

    def _compiled_step(self) -> Callable[[Any, Any, Any], Any]:
        import keras
        import tensorflow as tf

        student, optimizer, structure = self.student, self.optimizer, input_structure(self.student)
        variables = self.variables

        @tf.function(reduce_retracing=True)  # type: ignore[untyped-decorator]
        def step(images: Any, teacher_outputs: Any, labels: Any) -> Any:
            with tf.GradientTape() as tape:
                outputs = student(keras.tree.pack_sequence_as(structure, images), training=True)
                loss = self._loss(tf.nest.flatten(outputs)[0], teacher_outputs, labels, self.blended)
            gradients = tape.gradient(loss, [v.value for v in variables], unconnected_gradients="zero")
            optimizer.apply(gradients, variables)
            return loss

        compiled: Callable[[Any, Any, Any], Any] = step
        return compiled

    def _loss(self, outputs: Any, teacher_outputs: Any, labels: Any, blended: int = 0) -> Any:
        """Return the loss of a batch; its first images, as many as are blended, have no labels."""
        import tensorflow as tf

        student, answers = self.head.of_tensor(outputs), self.head.answers
        loss = answers.distillation(self.head.of_tensor(teacher_outputs), student, self.options.temperature)
        if not self.labels or blended == self.batches.batch:
            return loss
        alpha = self.options.alpha
        labelled = answers.labelled(tf.convert_to_tensor(labels)[blended:], student[blended:])
        return alpha * loss + (1 - alpha) * labelled

    def _loss_on_validation(self) -> float:
        """Return the loss on validation images, moved as training images are; infinite where it is no number."""
        x, y = self.judging.x, self.judging.y
        outputs, total = predict(self.student, x), 0.0
        labels, self.labels = self.labels, self.labels and y is not None
        for start in range(0, len(outputs), 256):
            part = slice(start, start + 256)
            targets = np.asarray(y[part]) if self.labels else None
            loss = self._loss(outputs[part], self.teacher_validation[part], targets)
            total += float(loss) * len(outputs[part])
        self.labels = labels
        loss = total / len(outputs)
        return loss if math.isfinite(loss) else math.inf

    def _measures(self) -> dict[str, float]:
        """Return the head's measures on validation images as they are."""
        measured = measure(predict(self.student, self.validation.x), self.validation.y, self.head)
        return {name: float(measured[name]) for name in self.head.measures if name in measured}

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
        state = json.dumps(
            {"history": self.history, "best": self.best_loss, "spent": self.spent, "peak": self.peak}
        ).encode()
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
        self.best, self.history, self.best_loss = best, state["history"], state["best"]
        self.spent, self.peak = state["spent"], state["peak"]


def _factors(variables: list[Any], teacher: Any) -> list[Any]:
    """Return all variables but the kernels that the teacher has too, by their layer's name and their shape."""

    def place(variable: Any) -> tuple[Any, ...]:
        return (*variable.path.split("/")[-2:], tuple(variable.shape))

    original = {place(variable) for variable in teacher.variables if variable.name == "kernel"}
    return [variable for variable in variables if place(variable) not in original]


def _cosine(gone: float) -> float:
    """Fall from 1 to 0."""
    return 0.5 * (1 + math.cos(math.pi * gone))


def _values(variables: list[Any]) -> list[Array]:
    import keras

    return [np.array(keras.ops.convert_to_numpy(variable)) for variable in variables]
