"""Steps that make and measure whole models: rebuild, repair, finetune, export, evaluate."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from lrfgraph.engine.memory import BoundedCache
from lrfgraph.engine.nodes import Input, Result, Task
from lrfgraph.layers.pieces import Piece, whole
from lrfgraph.layers.spec import Array, LayerSpec, native
from lrfgraph.methods import METHODS
from lrfgraph.methods.base import parse_rank
from lrfgraph.run.steps.candidates import enumerate_names, factors_of
from lrfgraph.run.steps.common import fresh_network_of, layers_of, network_of, save_model
from lrfgraph.run.steps.sources import images_of

__all__ = ["evaluate", "export", "finetune", "rebuild", "repair"]

WALKS = BoundedCache(0, keep_last=True)
"""The last walk, whatever its size: without it each layer's repair would begin at the first layer."""

MOST_OUTPUTS = 16_000_000
"""Numbers of a model's outputs that are kept, so that others can be compared with them."""


def rebuild(task: Task) -> Result:
    from lrfgraph.network.rebuilding import Chain, rebuild
    from lrfgraph.network.repair.streams import assign, shift_batchnorm

    model = task.inputs["model"]
    layers = layers_of(model)
    chains, kept, shifts = {}, {}, {}
    for index, (name, method, rank) in enumerate(task.params["choices"]):
        layer, pieces = layers[name], pieces_of(layers[name], method, rank)
        if f"{index}/repair" in task.inputs:
            refitted = _refitted(task.inputs[f"{index}/repair"])
            weights, bias = refitted.weights, refitted.bias
        else:
            weights, bias = factors_of(layer, method, rank, *_factors_inputs(task, str(index))), None
        if bias is not None and not layer.bias and layer.batchnorm:
            shifts[layer.batchnorm], bias = bias, None
        if method:
            chains[name] = Chain(method, pieces, weights, bias)
        else:
            kept[name] = weights[0], bias
    rebuilt = rebuild(network_of(model, task.locators["trust"]), chains)
    for path, (kernel, bias) in kept.items():
        assign(rebuilt, path, native(layers[path].family, kernel), bias)
    for path, bias in shifts.items():
        shift_batchnorm(rebuilt, path, bias)
    return Result(_carried(model), files={"model.keras": save_model(rebuilt, task.scratch())})


def pieces_of(layer: LayerSpec, method: str, rank: str) -> tuple[Piece, ...]:
    """A chain's pieces; of a kept layer, the layer itself."""
    return METHODS[method].pieces(layer, parse_rank(rank)) if method else (whole(layer),)


def _carried(model: Input) -> dict[str, Any]:
    """What every later reader of a model must know: the images' size, where it takes any."""
    return {"image_shape": model.data["image_shape"]}


def _factors_inputs(task: Task, prefix: str) -> tuple[Input, Input]:
    return task.inputs[f"{prefix}/factors"], task.inputs[f"{prefix}/prepared"]


def repair(task: Task) -> Result:
    """Refit one layer; the walk of the layer before it is taken up where it stopped, if it is still at hand."""
    from functools import partial

    from lrfgraph.methods.refit import refit
    from lrfgraph.network.repair.streams import Replaced, Walk

    model, options = task.inputs["model"], task.params["options"]
    layers = layers_of(model)

    def replaced(name: str, method: str, rank: str, weights: tuple[Array, ...]) -> Replaced:
        return Replaced(layers[name], pieces_of(layers[name], method, rank), weights)

    before = {choice[0]: _refitted(task.inputs[f"previous/{i}"]) for i, choice in enumerate(task.params["previous"])}
    name, method, rank = task.params["choice"]
    key = (model.identity, task.inputs["data"].identity)
    walk = WALKS.take(key)
    if walk is None or not walk.can_go_on(before, name):
        images, _ = images_of(task.inputs["data"], task.locators, "repair")
        walk = Walk(
            fresh_network_of(model, task.locators["trust"]), images[:], task.locators.get("max_memory"), task.scratch
        )
        for choice in task.params["previous"]:
            earlier, its_method, its_rank = choice
            walk.know(replaced(earlier, its_method, its_rank, before[earlier].weights), before[earlier])
    own = factors_of(layers[name], method, rank, *_factors_inputs(task, "own")) if method else ()
    plan = replaced(name, method, rank, own)
    if "curvature" in task.inputs:
        plan = replace(plan, curvature=task.inputs["curvature"].array("curvature"))
    solve = partial(refit, steps=options["steps"])
    found = walk.refit(plan, solve, options["rows"], options["rounds"], options["ridge"], options["seed"])
    if not task.locators.get("last"):
        WALKS.put(key, walk, 1)
    arrays = dict(enumerate_names(found.weights)) | ({} if found.bias is None else {"bias": found.bias})
    return Result(
        {"before": found.before, "after": found.after, "kept": found.kept, "pieces": len(found.weights)}, arrays
    )


def _refitted(entry: Input) -> Any:
    from lrfgraph.network.repair.streams import Refitted

    said = entry.data
    weights = tuple(entry.array(str(index)) for index in range(said["pieces"]))
    bias = entry.array("bias") if "bias" in entry.names() else None
    return Refitted(weights, bias, said["before"], said["after"], said["kept"])


def finetune(task: Task) -> Result:
    from lrfgraph.network.training import finetune

    data, student = task.inputs["data"], task.inputs["student"]
    x, y = images_of(data, task.locators, "train")
    x_val, y_val = images_of(data, task.locators, "validation")
    tuned, history = finetune(
        fresh_network_of(student, task.locators["trust"]),
        network_of(task.inputs["teacher"], task.locators["trust"]),
        x,
        y,
        x_val,
        y_val,
        task.params["options"],
        task.params["task"],
        task.scratch(),
        task.progress,
    )
    files = {"model.keras": save_model(tuned, task.scratch())}
    return Result(_carried(student) | {"history": history}, files=files)


def export(task: Task) -> Result:
    from lrfgraph.network.rebuilding import save, verify_files

    model = task.inputs["model"]
    folder = task.scratch()
    trust = task.locators["trust"]
    network = network_of(model, trust)
    save(network, folder)
    counted = verify_files(network, folder, trust, image_shape=model.data["image_shape"])
    files = {name: folder / name for name in ("compressed.keras", "compressed.h5")}
    return Result({**counted, "file_bytes": {name: path.stat().st_size for name, path in files.items()}}, files=files)


def evaluate(task: Task) -> Result:
    from lrfgraph.network.evaluating import compare, measure, predict

    x, y = images_of(task.inputs["data"], task.locators, task.params["part"])
    outputs = predict(network_of(task.inputs["model"], task.locators["trust"]), x)
    measured: dict[str, Any] = measure(outputs, x if y is None else y, task.params["task"])
    original = task.inputs.get("original")
    if original is not None and "outputs" in original.names():
        measured |= compare(outputs, original.array("outputs"), y, task.params["task"], task.params["output"])
    small = outputs.size <= MOST_OUTPUTS
    return Result(measured, {"outputs": outputs.astype(np.float32)} if small else {})
