"""Training with shrinking ranks (our reading of DPRP, arXiv 2401.08014; METHODS §6), one epoch at a time."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np

from lrfgraph.errors import ModelError
from lrfgraph.layers.pieces import layer_cost
from lrfgraph.layers.spec import Array
from lrfgraph.methods.weighting import Unweighting
from lrfgraph.network.batches import Batches, Split
from lrfgraph.network.evaluating import compiled_forward, measure, predict
from lrfgraph.network.graph import input_structure
from lrfgraph.network.heads import Head, own_targets
from lrfgraph.network.shrinking import factors as algebra
from lrfgraph.network.shrinking.student import Student, values_of
from lrfgraph.options.dprp import DprpOptions
from lrfgraph.selection.shrinking import Form, next_forms, next_weight, size_of

__all__ = ["State", "Trainer"]

Progress = Callable[[int, int, str], None]


@dataclass
class State:
    """Everything that the next epoch reads, as arrays.

    forms : of the layers that shrink.  values : U, s, V of one after the other.  momentum, velocity : of the same, and
    of all other variables that learn, none at the beginning.  others : every other variable.  steps : of the optimizer.
    weight : of the rank-reduction loss, ``None`` at the beginning.  undo : how to take the weighting out of each
    form's matrix; no epoch changes it, and none where matrices are those of the kernels themselves.
    """

    forms: list[Form]
    values: list[Array]
    momentum: list[Array]
    velocity: list[Array]
    others: list[Array]
    steps: int = 0
    weight: float | None = None
    undo: list[Unweighting] = field(default_factory=list)

    LISTS: ClassVar = ("values", "momentum", "velocity", "others")

    def arrays(self) -> dict[str, Array]:
        """Return all arrays by name."""
        arrays = {f"{name}/{index}": a for name in self.LISTS for index, a in enumerate(getattr(self, name))}
        for index, undo in enumerate(self.undo):
            arrays |= {f"undo/{index}/{side}": array.astype(np.float32) for side, array in undo.to_arrays().items()}
        return arrays

    @classmethod
    def of_arrays(cls, forms: list[Form], arrays: Mapping[str, Array], steps: int, weight: float | None) -> State:
        """Return the state that `arrays` made, read again."""
        counts = Counter(name.partition("/")[0] for name in arrays)
        lists = {name: [arrays[f"{name}/{i}"] for i in range(counts[name])] for name in cls.LISTS}
        undo = [
            Unweighting(arrays.get(f"undo/{index}/left"), arrays.get(f"undo/{index}/right"))
            for index in range(len(forms))
        ]
        return cls(forms=forms, steps=steps, weight=weight, undo=undo, **lists)


@dataclass
class Trainer:
    """A training between two epochs: what it trains, and the networks as they are now.

    original : the network that is trained, as a model of its own layers.  teacher : ``None`` where there is none.
    size : parameters and MACs of the original.  by_macs : whether layers weigh by their MACs.
    """

    original: Any
    teacher: Any
    training: Split
    validation: Split
    options: DprpOptions
    head: Head
    size: tuple[int, int]
    by_macs: bool
    state: State
    student: Student | None = None
    variables: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        options, shape = self.options, tuple(self.original.outputs[0].shape[1:])
        self.training, self.validation = (
            replace(split, y=own_targets(self.head, split.x, split.y, shape))
            for split in (self.training, self.validation)
        )
        self.labels = self.training.y is not None and (self.teacher is None or (options.labels and options.alpha < 1))
        if self.teacher is None and self.training.y is None:
            raise ModelError("fresh weights learn from labels, received none; leave --from-scratch out, or give labels")
        self.batches = Batches(self.training, "dprp", options, self.labels, options.images)
        self._build()

    # The networks ---------------------------------------------------------------------------------------------------

    def _build(self) -> None:
        """Make the network, its variables and its compiled step for the forms that layers have now."""
        import keras

        state, options = self.state, self.options
        fixed = (options.batchnorm or ("batch" if options.from_scratch else "fixed")) == "fixed"
        self.student = Student(self.original, state.forms, fixed)
        self.student.assign(state.others)
        self.factors = [keras.Variable(value, dtype="float32") for value in state.values]
        self.fisher = [keras.Variable(np.zeros_like(s), trainable=False) for s in state.values[1::3]]
        self.variables = [*self.factors, *self.student.trainable]
        self.optimizer = keras.optimizers.Adam()
        self.optimizer.build(self.variables)
        if state.momentum:
            slots = [*self.optimizer._momentums, *self.optimizer._velocities]
            for slot, value in zip(slots, [*state.momentum, *state.velocity], strict=True):
                slot.assign(value)
        self.optimizer.iterations.assign(state.steps)
        self.step = self._compiled_step()

    def _triples(self, values: Iterable[Any]) -> list[tuple[Any, Any, Any]]:
        return list(zip(*[iter(values)] * 3, strict=True))

    def _kernels(self, values: Iterable[Any]) -> list[Any]:
        """The kernels of the network's layers that U, s, V make, tensors in Keras' order."""
        import keras

        assert self.student is not None
        made, state = [], self.state
        each = zip(state.forms, state.undo, self.student.kernels, self._triples(values), strict=True)
        for form, undo, layers, triple in each:
            canonical = algebra.kernels(form, *triple, keras.ops, undo)
            if form.dense:
                canonical = (keras.ops.reshape(canonical[0], form.layer.kernel),)
            made += [algebra.native(layer, kernel) for layer, kernel in zip(layers, canonical, strict=True)]
        return made

    @property
    def shares(self) -> list[float]:
        """Each layer's share of what is to become small."""
        costs = [layer_cost(form.layer) for form in self.state.forms]
        return [cost.macs / self.size[1] if self.by_macs else cost.parameters / self.size[0] for cost in costs]

    def _compiled_step(self) -> Callable[..., Any]:
        import keras
        import tensorflow as tf

        assert self.student is not None
        model, kernels, shares = self.student.model, self.student.kernel_variables, self.shares
        structure, variables, optimizer = input_structure(model), self.variables, self.optimizer
        count, orthogonality = len(self.factors), self.options.orthogonality
        moving = self.student.moving

        @tf.function(reduce_retracing=True, autograph=False)  # type: ignore[untyped-decorator]
        def step(images: Any, teacher_outputs: Any, labels: Any, weight: Any) -> Any:
            sources = [variable.value for variable in variables]
            scales = sources[1:count:3]
            with tf.GradientTape() as tape:
                tape.watch(sources)
                pairs = list(zip(kernels, self._kernels(map(tf.convert_to_tensor, sources[:count])), strict=True))
                with keras.StatelessScope(state_mapping=pairs) as scope:
                    outputs = model(keras.tree.pack_sequence_as(structure, images), training=True)
                task = self._task_loss(tf.nest.flatten(outputs)[0], teacher_outputs, labels)
            gradients = tape.gradient(task, sources, unconnected_gradients="zero")
            with tf.GradientTape() as tape:
                tape.watch(scales)
                reduction = algebra.rank_loss([tf.convert_to_tensor(scale) for scale in scales], shares)
            pulls = tape.gradient(reduction, scales, unconnected_gradients="zero")
            for fisher, gradient in zip(self.fisher, gradients[1:count:3], strict=True):
                fisher.assign_add(tf.square(gradient))
            gradients[1:count:3] = [g + weight * p for g, p in zip(gradients[1:count:3], pulls, strict=True)]
            optimizer.apply(gradients, variables)
            apart = tf.constant(0.0)
            for index in range(count):
                if index % 3 != 1:  # a step of its own: in Adam's moments it would drown the task's gradient
                    loss, move = algebra.orthogonality_step(tf.convert_to_tensor(sources[index]))
                    variables[index].assign_sub(orthogonality * move)
                    apart += loss
            for variable in moving:
                value = scope.get_current_value(variable)
                if value is not None:
                    variable.assign(value)
            return tf.stack([task, apart, reduction])

        compiled: Callable[..., Any] = step
        return compiled

    def _task_loss(self, outputs: Any, teacher_outputs: Any, labels: Any) -> Any:
        import tensorflow as tf

        student, answers, options = self.head.of_tensor(outputs), self.head.answers, self.options
        labelled = answers.labelled(tf.convert_to_tensor(labels), student) if self.labels else 0.0
        if self.teacher is None:
            return labelled
        loss = answers.distillation(self.head.of_tensor(teacher_outputs), student, options.temperature)
        return options.alpha * loss + (1 - options.alpha) * labelled if self.labels else loss

    # An epoch -------------------------------------------------------------------------------------------------------

    def epoch(self, plan: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
        """Train one epoch, let ranks shrink as `plan` says (`selection.shrinking.course`), and say what came of it."""
        if self.state.weight is None:
            self.state.weight = self.options.rank
        weight = self.state.weight if plan["shrinks"] else 0.0
        losses, (seconds, cpu) = self._train(plan, weight, progress)
        if not all(map(math.isfinite, losses)):
            raise ModelError(
                f"training diverged in epoch {plan['number']}: its loss is {losses[0]}; set dprp.learning_rate "
                f"below {max(plan['rates']):g}"
            )
        importances = self._importances()
        self._read_state()
        lost = self._shrink(plan, importances) if plan["shrinks"] else []
        parameters, macs = size_of(self.state.forms, *self.size)
        row = {
            "epoch": plan["number"],
            "parameters": parameters,
            "macs": macs,
            "task_loss": losses[0],
            "orthogonality_loss": losses[1],
            "rank_loss": losses[2],
            "rank_weight": weight,
            "lost": max(lost, default=0.0),
            "orthogonality": self.orthogonality(),
            "step_seconds": seconds,
            "step_cpu_seconds": cpu,
            "ranks": [form.rank for form in self.state.forms],
            "dense": [form.dense for form in self.state.forms],
        }
        return row | self._measures()

    def _train(self, plan: Mapping[str, Any], weight: float, progress: Progress) -> tuple[list[float], list[float]]:
        """Return the mean losses, and the median seconds of a step, by the clock and of processors."""
        import tensorflow as tf

        assert self.student is not None
        first, last = plan["rates"]
        for index, variable in enumerate(self.student.seeds):
            variable.assign(np.array([self.options.seed + plan["number"], index], variable.dtype))
        steps, sums, seconds = self.batches.steps, [], []
        for fisher in self.fisher:
            fisher.assign(np.zeros(fisher.shape, np.float32))
        for number, (_, images, labels) in enumerate(self.batches.epoch(plan["number"])):
            started = time.perf_counter(), time.process_time()
            answers = np.zeros(len(labels), np.float32)
            if self.teacher is not None:
                answers = compiled_forward(self.teacher)(list(images))
            self.optimizer.learning_rate.assign(first + (last - first) * number / steps)
            sums.append(self.step(list(images), answers, labels, tf.constant(weight, tf.float32)))
            seconds.append((time.perf_counter() - started[0], time.process_time() - started[1]))
            if number % 10 == 0:
                progress(number, steps, f"epoch {plan['number']}")
        losses = [float(value) for value in np.mean([each.numpy() for each in sums], axis=0)]
        return losses, [round(float(each), 4) for each in np.median(seconds, axis=0)]  # the first step compiles

    def _importances(self) -> list[Array]:
        """(groups, rank) of each layer: what tells how much each singular value matters."""
        scales = values_of(self.factors[1::3])
        if self.options.rule == "energy":
            return [np.square(s) / max(float(np.square(s).sum()), 1e-30) for s in scales]
        return [np.square(s) * fisher for s, fisher in zip(scales, values_of(self.fisher), strict=True)]

    def _read_state(self) -> None:
        assert self.student is not None
        self.state.values = values_of(self.factors)
        self.state.momentum, self.state.velocity = (
            values_of(slots) for slots in (self.optimizer._momentums, self.optimizer._velocities)
        )
        self.state.others = values_of(self.student.others)
        self.state.steps = int(self.optimizer.iterations.numpy())

    def _shrink(self, plan: Mapping[str, Any], importances: Sequence[Array]) -> list[float]:
        """Cut every layer to the rank it keeps, its optimizer slots too; what goes is of least importance."""
        state = self.state
        orders = [np.argsort(-each, axis=1, kind="stable") for each in importances]
        ranked = [np.take_along_axis(each, order, 1) for each, order in zip(importances, orders, strict=True)]
        energies = [np.take_along_axis(np.square(s), o, 1) for s, o in zip(state.values[1::3], orders, strict=True)]
        now = size_of(state.forms, *self.size)
        sizes = {"params": (self.size[0], now[0]), "macs": (self.size[1], now[1])}
        forms, lost = next_forms(state.forms, energies, ranked, sizes, plan["left"], self.options.tolerance)
        if plan["left"] is not None and state.weight is not None:
            state.weight = next_weight(state.weight, lost, self.shares, self.options.tolerance)
        if forms == state.forms:
            return lost
        for index, (form, order) in enumerate(zip(forms, orders, strict=True)):
            places = np.sort(order[:, : form.rank], axis=1)
            for slots in (state.values, state.momentum, state.velocity):
                for part in range(3 * index, 3 * index + 3):
                    slots[part] = algebra.keep(slots[part], places)
        state.forms = forms
        self._build()
        return lost

    def orthogonality(self) -> float:
        """Return the largest entry of |UᵀU − I| and |VᵀV − I| over all layers."""
        worst = 0.0
        for left, _, right in self._triples(self.state.values):
            for side in (left, right):
                gram = np.swapaxes(side, -1, -2) @ side
                worst = max(worst, float(np.abs(gram - np.eye(gram.shape[-1])).max()))
        return worst

    def _measures(self) -> dict[str, float]:
        assert self.student is not None
        for variable, kernel in zip(self.student.kernel_variables, self._kernels(self.state.values), strict=True):
            variable.assign(kernel)
        measured = measure(predict(self.student.model, self.validation.x), self.validation.y, self.head)
        return {name: float(measured[name]) for name in self.head.measures if name in measured}
