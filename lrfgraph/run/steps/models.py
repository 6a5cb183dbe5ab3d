"""Steps that make and measure whole models: rebuild, repair, finetune, export, evaluate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from lrfgraph.engine.memory import BoundedCache, forget, give_back
from lrfgraph.engine.nodes import Input, Result, Step, Task
from lrfgraph.layers.pieces import Piece, whole
from lrfgraph.layers.spec import Array, LayerSpec
from lrfgraph.methods import METHODS
from lrfgraph.methods.base import parse_rank
from lrfgraph.run.steps.candidates import enumerate_names, factors_of
from lrfgraph.run.steps.common import fresh_network_of, layers_of, network_of, save_model
from lrfgraph.run.steps.sources import images_of
from lrfgraph.selection.problem import CandidateId

if TYPE_CHECKING:
    from lrfgraph.network.heads import Head
    from lrfgraph.network.repair.fit import Refit
    from lrfgraph.network.repair.streams import Streams, Substitute

__all__ = ["STEPS", "evaluate", "export", "finetune", "rebuild", "repair"]

STREAMS = BoundedCache(0, keep_last=True)
"""The last streams, whatever their size: without them each layer's repair would begin at the first layer."""

MOST_OUTPUTS = 16_000_000
"""Numbers of a model's outputs that are kept, so that others can be compared with them on the same images."""


def rebuild(task: Task) -> Result:
    from lrfgraph.network.operations import assign_weights, shift_batchnorm
    from lrfgraph.network.rebuilding import Chain, rebuild

    model = task.inputs["model"]
    layers = layers_of(model)
    chains, refits, shifts = {}, {}, {}
    for index, candidate in enumerate(map(_candidate, task.params["choices"])):
        layer = layers[candidate.layer]
        if f"{index}/repair" in task.inputs:
            refit = _refit(task.inputs[f"{index}/repair"])
            weights, bias = refit.weights, refit.bias
        else:
            weights, bias = factors_of(layer, *candidate[1:], *_factors_inputs(task, str(index))), None
        if bias is not None and not layer.bias and layer.batchnorm:
            shifts[layer.batchnorm], bias = bias, None
        if candidate.method:
            chains[layer.name] = Chain(candidate.method, _pieces(layer, candidate), weights, bias)
        else:
            refits[layer.name] = weights[0], bias
    rebuilt = rebuild(network_of(model, task.locators["trust"]), chains)
    for path, (kernel, bias) in refits.items():
        assign_weights(rebuilt, path, layers[path].family.order.native(kernel), bias)
    for path, bias in shifts.items():
        shift_batchnorm(rebuilt, path, bias)
    return Result(_inherited(model), files={"model.keras": save_model(rebuilt, task.scratch())})


def _candidate(written: Sequence[str]) -> CandidateId:
    return CandidateId(*written)


def _numbered(model: Input, written: Sequence[Any]) -> CandidateId:
    """A candidate whose layer is written as its number."""
    number, method, rank = written
    return CandidateId(model.data["layers"][number]["name"], method, rank)


def _pieces(layer: LayerSpec, candidate: CandidateId) -> tuple[Piece, ...]:
    """A chain's pieces; of a kept layer, the layer itself."""
    method = METHODS.get(candidate.method)
    return method.pieces(layer, parse_rank(candidate.rank)) if method else (whole(layer),)


def _inherited(model: Input) -> dict[str, Any]:
    """What every later reader of a model must know: the images' size, where it takes any."""
    return {"image_shape": model.data["image_shape"]}


def _factors_inputs(task: Task, prefix: str) -> tuple[Input, Input]:
    return task.inputs[f"{prefix}/factors"], task.inputs[f"{prefix}/prepared"]


def repair(task: Task) -> Result:
    """Refit one layer, in the streams of the layer before it if they are still at hand."""
    from lrfgraph.methods.refit import refit
    from lrfgraph.network.repair.streams import FitOptions

    model, options = task.inputs["model"], task.params["options"]
    candidate = _numbered(model, task.params["choice"])
    layer = layers_of(model)[candidate.layer]
    own = factors_of(layer, *candidate[1:], *_factors_inputs(task, "own")) if candidate.method else ()
    substitute = _substitute(layer, candidate, own)
    if "curvature" in task.inputs:
        substitute = replace(substitute, curvature=task.inputs["curvature"].array("curvature"))
    key = (model.identity, model.data["structure"]["signature"], task.inputs["data"].identity)
    streams = _streams(task, STREAMS.take(key))
    fit = FitOptions(options["rows"], options["rounds"], options["ridge"], options["seed"])
    result = streams.refit(substitute, partial(refit, steps=options["steps"]), fit)
    if not task.locators.get("last"):
        STREAMS.put(key, streams, 1)
    data = {"before": result.before, "after": result.after, "kept": result.kept, "pieces": len(result.weights)}
    arrays = dict(enumerate_names(result.weights)) | ({} if result.bias is None else {"bias": result.bias})
    return Result(data, arrays)


def _streams(task: Task, last: Streams | None) -> Streams:
    """Return the streams of this network, with the layers before this one refitted."""
    from lrfgraph.network.memory import stream_limit
    from lrfgraph.network.precision import to_single_precision
    from lrfgraph.network.repair.streams import Streams

    model = task.inputs["model"]
    previous = [_numbered(model, written) for written in task.params["previous"]]
    refits = {candidate.layer: _refit(task.inputs[f"previous/{i}"]) for i, candidate in enumerate(previous)}
    if last is not None and last.can_go_on(refits, _numbered(model, task.params["choice"]).layer):
        return last
    images, _ = images_of(task.inputs["data"], task.locators, "repair")
    network = to_single_precision(fresh_network_of(model, task.locators["trust"]))
    streams = Streams(network, images, stream_limit(task.locators.get("max_memory")), task.scratch)
    layers = layers_of(model)
    for candidate in previous:
        refit = refits[candidate.layer]
        streams.adopt(_substitute(layers[candidate.layer], candidate, refit.weights), refit)
    return streams


def _substitute(layer: LayerSpec, candidate: CandidateId, weights: tuple[Array, ...]) -> Substitute:
    from lrfgraph.network.repair.streams import Substitute

    return Substitute(layer, _pieces(layer, candidate), weights)


def _refit(entry: Input) -> Refit:
    from lrfgraph.network.repair.fit import Refit

    data = entry.data
    weights = tuple(entry.array(str(index)) for index in range(data["pieces"]))
    bias = entry.array("bias") if "bias" in entry.names() else None
    return Refit(weights, bias, data["before"], data["after"], data["kept"])


def finetune(task: Task) -> Result:
    from lrfgraph.network.precision import single_precision
    from lrfgraph.network.training import Split, finetune

    forget()  # what candidates were scored with: a course takes long, and needs the memory for itself
    give_back()
    data, student, teacher = (task.inputs[name] for name in ("data", "student", "teacher"))
    training, validation = (
        Split(*images_of(data, task.locators, part, task.scratch)) for part in ("train", "validation")
    )
    network = fresh_network_of(student, task.locators["trust"])
    with single_precision(network):
        tuned, history = finetune(
            network,
            network_of(teacher, task.locators["trust"]),
            training,
            validation,
            task.params["options"],
            judging_head(task.params),
            task.scratch(),
            task.progress,
        )
    files = {"model.keras": save_model(tuned, task.scratch())}
    return Result(_inherited(student) | {"history": history}, files=files)


def export(task: Task) -> Result:
    from lrfgraph.network import exporting

    model, trust = task.inputs["model"], task.locators["trust"]
    network = network_of(model, trust)
    paths, counted, notes = exporting.export(network, task.scratch(), trust, model.data["image_shape"])
    sizes = {path.name: path.stat().st_size for path in paths}
    return Result({**counted, "file_bytes": sizes, "notes": list(notes)}, files={path.name: path for path in paths})


def evaluate(task: Task) -> Result:
    """Measure a model, and compare it with what was kept of the original's measurement."""
    from lrfgraph.network.evaluating import compare, deciding, drop, measure, overconfidence, predict
    from lrfgraph.network.heads import own_targets

    head = judging_head(task.params)
    images, labels = images_of(task.inputs["data"], task.locators, task.params["part"], task.scratch)
    outputs = predict(network_of(task.inputs["model"], task.locators["trust"]), images)
    targets = own_targets(head, images, labels, outputs.shape[1:])
    measures: dict[str, Any] = measure(outputs, targets, head) | overconfidence(outputs, targets, head)
    each, some = deciding(outputs, targets, head), outputs[_kept_rows(outputs)]
    original = task.inputs.get("original")
    if original is not None:
        measures |= compare(some, original.array("outputs"), head)
        if each is not None and "each" in original.names():
            measures |= drop(original.array("each"), each)
    return Result(measures, {"outputs": some} | ({} if each is None else {"each": each}))


def judging_head(params: Mapping[str, Any]) -> Head:
    """The head of a node that measures, see `Network.judged_by`."""
    from lrfgraph.network.heads import head_of

    metric, _ = params.get("metric", (None, None))
    return head_of(params["head"], params["activation"], metric)


def _kept_rows(outputs: Array) -> Array:
    """Numbers of the images whose outputs are kept, evenly spread over all: as many as `MOST_OUTPUTS` allows."""
    count = len(outputs)
    return np.unique(np.linspace(0, count - 1, min(count, max(MOST_OUTPUTS * count // outputs.size, 1))).astype(int))


STEPS = (
    Step("rebuild", 3, rebuild),
    Step("repair", 4, repair),
    Step("finetune", 6, finetune),
    Step("export", 2, export),
    Step("evaluate", 5, evaluate),
)
