"""Steps that train with shrinking ranks: matricize, epoch, absorb."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lrfgraph.engine.memory import BoundedCache, forget, give_back
from lrfgraph.engine.nodes import Input, Result, Step, Task, digest
from lrfgraph.layers.spec import Array, LayerSpec
from lrfgraph.run.steps.candidates import recorded_moments
from lrfgraph.run.steps.common import fresh_network_of, network_of, save_model
from lrfgraph.run.steps.sources import images_of

if TYPE_CHECKING:
    from lrfgraph.methods.weighting import Unweighting
    from lrfgraph.network.shrinking.trainer import State, Trainer
    from lrfgraph.selection.shrinking import Form

__all__ = ["STEPS", "absorb", "epoch", "forms_of", "matricize"]

TRAINERS = BoundedCache(0, keep_last=True)
"""The last training as it is between two epochs: without it, every epoch would build and compile the network anew."""

STATE = "state.npz"


def matricize(task: Task) -> Result:
    """Write every kernel as U·diag(s)·Vᵀ, of the trained weights or of fresh ones, weighted by what is recorded."""
    from lrfgraph.network.operations import kernel_variable, layer_at
    from lrfgraph.network.precision import to_single_precision
    from lrfgraph.network.shrinking.factors import decompose
    from lrfgraph.network.shrinking.student import fresh, others_of
    from lrfgraph.network.shrinking.trainer import State
    from lrfgraph.selection.shrinking import Form

    entry = task.inputs["model"]
    model = to_single_precision(fresh_network_of(entry, task.locators["trust"]))
    if task.params["scratch"]:
        model = fresh(model, task.params["seed"])
    forms: list[Form] = []
    factors: list[Array] = []
    undone: list[Unweighting] = []
    for number, methods in task.params["layers"]:
        layer = _layer(entry, number)
        kernel = np.asarray(kernel_variable(layer_at(model, layer.name)), np.float32)
        record, curvature = (task.inputs.get(f"{number}/{kind}") for kind in ("record", "curvature"))
        moments = recorded_moments(record, layer)
        output = None if curvature is None else curvature.array("curvature")
        canonical = layer.family.order.canonical(kernel, layer.groups)
        method, triple, undo = decompose(layer, tuple(methods), canonical, moments, output)
        forms.append(Form(layer, method, triple[1].shape[1]))
        factors += triple
        undone.append(undo)
    state = State(forms, factors, [], [], others_of(model, forms), undo=undone)
    return _result(task, state, [number for number, _ in task.params["layers"]], {})


def epoch(task: Task) -> Result:
    """Train one epoch, and let ranks shrink at its end."""
    started = time.monotonic()
    trainer = TRAINERS.take(task.inputs["state"].data["token"])
    if trainer is None:
        forget()  # what was kept for other work: a training takes long, and needs the memory for itself
        give_back()
        trainer = _trainer(task)
    row = trainer.epoch(task.params["plan"], task.progress)
    row["seconds"] = round(time.monotonic() - started, 3)
    numbers = [number for number, _, _, _ in task.inputs["state"].data["forms"]]
    result = _result(task, trainer.state, numbers, {"row": row})
    TRAINERS.put(result.data["token"], trainer, 1)
    return result


def _trainer(task: Task) -> Trainer:
    from lrfgraph.network.batches import Split
    from lrfgraph.network.precision import to_single_precision
    from lrfgraph.network.shrinking.trainer import Trainer
    from lrfgraph.options.dprp import DprpOptions
    from lrfgraph.run.steps.models import judging_head

    entry, data, params = task.inputs["model"], task.inputs["data"], task.params
    training, validation = (
        Split(*images_of(data, task.locators, part, task.scratch)) for part in ("train", "validation")
    )
    options = DprpOptions(enabled=True, **params["options"])
    return Trainer(
        original=to_single_precision(fresh_network_of(entry, task.locators["trust"])),
        teacher=None if options.from_scratch else network_of(entry, task.locators["trust"]),
        training=training,
        validation=validation,
        options=options,
        head=judging_head(params),
        size=(entry.data["parameters"], entry.data["macs"]),
        by_macs=params["by_macs"],
        state=_state(task.inputs["state"], entry),
    )


def absorb(task: Task) -> Result:
    """Write the trained network as plain layers, √s in both factors of each."""
    from lrfgraph.network.operations import kernel_variable
    from lrfgraph.network.shrinking.factors import absorbed, native
    from lrfgraph.network.shrinking.student import Student

    TRAINERS.clear()  # the last epoch is over
    entry = task.inputs["model"]
    state = _state(task.inputs["state"], entry)
    student = Student(network_of(entry, task.locators["trust"]), state.forms)
    student.assign(state.others)
    values = iter(state.values)
    for form, undo, layers in zip(state.forms, state.undo, student.kernels, strict=True):
        for layer, kernel in zip(layers, absorbed(form, next(values), next(values), next(values), undo), strict=True):
            kernel_variable(layer).assign(native(layer, kernel))
    size = entry.data["image_shape"]
    return Result({"image_shape": size}, files={"model.keras": save_model(student.finish(), task.scratch())})


# The state between two epochs ---------------------------------------------------------------------------------------


def _result(task: Task, state: State, numbers: Sequence[int], more: Mapping[str, Any]) -> Result:
    path: Path = task.scratch() / STATE
    with path.open("wb") as file:
        np.savez(file, allow_pickle=False, **state.arrays())
    forms = [[n, f.method, f.rank, f.dense] for n, f in zip(numbers, state.forms, strict=True)]
    identities = {name: value.identity for name, value in task.inputs.items()}
    token = digest([task.params, identities])
    data = {"forms": forms, "steps": state.steps, "weight": state.weight, "token": token, **more}
    return Result(data, files={STATE: path})


def _state(entry: Input, model: Input) -> State:
    from lrfgraph.network.shrinking.trainer import State

    with np.load(entry.file(STATE), allow_pickle=False) as arrays:
        return State.of_arrays(
            forms_of(entry.data, model), {name: arrays[name] for name in arrays.files}, entry.data["steps"],
            entry.data["weight"],
        )  # fmt: skip


def forms_of(data: Mapping[str, Any], model: Input) -> list[Form]:
    """Return the forms of layers that an epoch says, by the names that they have in `model`."""
    from lrfgraph.selection.shrinking import Form

    return [Form(_layer(model, number), method, rank, dense) for number, method, rank, dense in data["forms"]]


def _layer(model: Input, number: int) -> LayerSpec:
    return LayerSpec.from_json(model.data["layers"][number])


STEPS = (
    Step("matricize", 1, matricize),
    Step("epoch", 1, epoch),
    Step("absorb", 1, absorb),
)
