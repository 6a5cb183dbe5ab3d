"""Steps that prune: couple, importance, widths, prune, adjust. Choosing loads no TensorFlow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from lrfgraph.engine.nodes import Input, Result, Step, Task, digest
from lrfgraph.errors import ConfigurationError
from lrfgraph.layers.spec import Array, LayerSpec
from lrfgraph.pruning import SCORES
from lrfgraph.pruning.base import Filters, Ranking, Writer
from lrfgraph.pruning.channels import Dependencies, Kernel
from lrfgraph.pruning.features import refit
from lrfgraph.pruning.reading import Record, kernel_and_bias, reader_of
from lrfgraph.pruning.widths import SPREADS, by_share
from lrfgraph.run.steps.common import fresh_network_of, layers_of, network_of, save_model
from lrfgraph.run.steps.sources import images_of

__all__ = ["STEPS", "adjust", "couple", "dependencies_of", "importance", "prune", "removed_channels", "widths"]


def couple(task: Task) -> Result:
    """Find the channels that can only be removed together, and what keeps others."""
    from lrfgraph.network.pruning.walking import walk

    entry = task.inputs["model"]
    model = network_of(entry, task.locators["trust"])
    size = entry.data["image_shape"]
    data, arrays = walk(model, tuple(size) if size else None).dependencies(int(model.count_params())).to_data()
    identity = digest([data, {name: digest(array) for name, array in arrays.items()}])
    return Result(data, arrays, identity=identity)


def dependencies_of(entry: Input) -> Dependencies:
    """Read what a `couple` node found."""
    return Dependencies.from_data(entry.data, entry.array)


def importance(task: Task) -> Result:
    """Rank the channels of one group by one score."""
    dependencies = dependencies_of(task.inputs["dependencies"])
    group, score = dependencies.groups[task.params["group"]], SCORES[task.params["score"]]
    kernels = {kernel.layer: kernel for kernel in dependencies.kernels}
    writers = tuple(Writer(_kernel(task, layer), kernels[layer].outputs) for layer in group.layers)
    readers = tuple(
        reader_of(_record(task.inputs, layer, _layer(task, layer)), _inputs(kernels[layer]))
        for layer in (group.readers if score.reads else ())
    )
    ranking = score.rank(Filters(group.channels, writers, readers))
    return Result({"order": list(map(int, ranking.order)), "losses": list(map(float, ranking.losses))})


def _inputs(kernel: Kernel) -> Any:
    assert kernel.inputs is not None
    return kernel.inputs


def _kernel(task: Task, layer: str) -> Array:
    return task.inputs[f"{layer}/weights"].array("kernel")


def _layer(task: Task, name: str) -> LayerSpec:
    return LayerSpec.from_json({"name": name, "class_name": "", **task.params["layers"][name]})


def _record(inputs: Mapping[str, Input], name: str, layer: LayerSpec) -> Record:
    weights, recorded = inputs[f"{name}/weights"], inputs[f"{name}/record"]
    arrays = {each: weights.array(each) if each in weights.names() else None for each in ("bias", "scale")}
    moments = recorded.array("moments") if "moments" in recorded.names() else None
    curvature = inputs[f"{name}/curvature"].array("curvature") if f"{name}/curvature" in inputs else None
    kernel = weights.array("kernel")
    return Record(layer, kernel, arrays["bias"], arrays["scale"], recorded.array("rows"), moments, curvature)


def widths(task: Task) -> Result:
    """Say how many channels of each group go, and which."""
    dependencies = dependencies_of(task.inputs["dependencies"])
    groups = [dependencies.groups[index] for index in task.params["groups"]]
    rankings = {}
    for index, group in zip(task.params["groups"], groups, strict=True):
        data = task.inputs[f"{index}/importance"].data
        rankings[group.name] = Ranking(tuple(data["order"]), tuple(data["losses"]))
    keep, spread = task.params["keep"], SPREADS[task.params["spread"]]
    try:
        if keep is not None:
            chosen = by_share(dependencies, rankings, keep)
        else:
            chosen = spread(dependencies, rankings, task.params["params"], task.params["macs"])
    except ConfigurationError as error:  # an answer like any other: the same question need not be asked again
        return Result({"infeasible": str(error)}, identity=digest(str(error)))
    removed = sorted(c for name, count in chosen.removed.items() for c in rankings[name].order[:count])
    losses = {name: (0.0, *rankings[name].losses)[count] for name, count in chosen.removed.items()}
    rows = [
        {
            "name": group.name,
            "layers": list(group.layers),
            "channels": [len(group.channels), len(group.channels) - chosen.removed[group.name]],
            "loss": losses[group.name],
            "note": group.note if chosen.removed[group.name] else "",
        }
        for group in groups
    ]
    data = {"groups": rows, "kept": dict(dependencies.kept), "parameters": chosen.parameters, "macs": chosen.macs}
    return Result({"removed": removed, **data}, identity=digest([task.inputs["dependencies"].identity, removed]))


def removed_channels(data: Mapping[str, Any]) -> list[int]:
    """Return the channels that a `widths` node removes; raises ConfigurationError where there is no answer."""
    if "infeasible" in data:
        raise ConfigurationError(data["infeasible"])
    return list(data["removed"])


def prune(task: Task) -> Result:
    """Remove channels for real, the layers that read them refitted to what is left where that is asked for."""
    from lrfgraph.network.pruning.narrowing import narrow
    from lrfgraph.network.pruning.walking import walk

    entry = task.inputs["model"]
    model, size = network_of(entry, task.locators["trust"]), entry.data["image_shape"]
    removed = np.array(removed_channels(task.inputs["widths"].data), np.int64)
    narrower = narrow(model, walk(model, tuple(size) if size else None), removed, _refits(task, model, removed))
    return Result({"image_shape": size}, files={"model.keras": save_model(narrower, task.scratch())})


def adjust(task: Task) -> Result:
    """Remove the same channels, and refit every layer in order to what it then receives."""
    from lrfgraph.network.precision import to_single_precision
    from lrfgraph.network.pruning.narrowing import narrow
    from lrfgraph.network.pruning.repairing import repair
    from lrfgraph.network.pruning.walking import walk
    from lrfgraph.network.repair.streams import FitOptions

    entry, options = task.inputs["model"], task.params["options"]
    size = entry.data["image_shape"]
    model = to_single_precision(fresh_network_of(entry, task.locators["trust"]))
    removed = np.array(removed_channels(task.inputs["widths"].data), np.int64)
    images, _ = images_of(task.inputs["data"], task.locators, "repair")
    repaired = repair(
        model,
        walk(model, tuple(size) if size else None),
        removed,
        _refits(task, model, removed),
        images[:],
        FitOptions(options["rows"], options["rounds"], options["ridge"], options["seed"]),
        {
            name.removesuffix("/curvature"): task.inputs[name].array("curvature")
            for name in task.inputs
            if name.endswith("/curvature")
        },
        task.progress,
    )
    data = {"image_shape": size, "errors": repaired.errors, "images": repaired.images}
    own = network_of(entry, task.locators["trust"])
    adjusted = narrow(own, walk(own, tuple(size) if size else None), removed)  # in the original's own precision
    for target, source in zip(adjusted.variables, repaired.model.variables, strict=True):
        target.assign(source)
    return Result(data, files={"model.keras": save_model(adjusted, task.scratch())})


def _refits(task: Task, model: Any, removed: Any) -> dict[str, dict[str, Array]]:
    """New weights of the layers that read removed channels, by layer and name."""
    from lrfgraph.network.operations import layer_at

    layers = layers_of(task.inputs["model"])
    dependencies = dependencies_of(task.inputs["dependencies"])
    kernels = {kernel.layer: kernel for kernel in dependencies.kernels}
    refits: dict[str, dict[str, Array]] = {}
    for name in task.params["refits"]:
        layer = layers[name]
        record = _record(task.inputs, name, layer)
        kernel, bias = kernel_and_bias(layer, refit(reader_of(record, _inputs(kernels[name])), removed))
        refits.setdefault(name, {})[layer.family.kernel] = layer.family.order.native(kernel).astype(np.float32)
        if bias is not None and layer.bias:
            refits[name]["bias"] = bias.astype(np.float32)
        elif bias is not None:  # the BatchNormalization behind it takes it up
            mean = np.asarray(layer_at(model, layer.batchnorm).moving_mean)
            refits.setdefault(layer.batchnorm, {})["moving_mean"] = (mean - bias).astype(np.float32)
    return refits


STEPS = (
    Step("couple", 1, couple, decides=True),
    Step("importance", 1, importance),
    Step("widths", 1, widths, decides=True),
    Step("prune", 1, prune),
    Step("adjust", 1, adjust),
)
