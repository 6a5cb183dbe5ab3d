"""Steps that run the network once for all layers: record, curvature and probe."""

from __future__ import annotations

from lrfgraph.engine.nodes import Result, Task
from lrfgraph.layers.spec import LayerSpec
from lrfgraph.methods import METHODS
from lrfgraph.methods.base import parse_rank
from lrfgraph.run.steps.candidates import factors_of
from lrfgraph.run.steps.common import float32_network_of, fresh_network_of
from lrfgraph.run.steps.sources import images_of

__all__ = ["curvature", "curvature_together", "probe", "probe_together", "record", "record_together"]


def record_together(tasks: list[Task]) -> list[Result]:
    from lrfgraph.network.recording import record

    first = tasks[0]
    images, _ = images_of(first.inputs["data"], first.locators, "calibration")
    options = first.params["options"]
    layers = [_namedlayer_of(task) for task in tasks]
    recordings = record(float32_network_of(first.inputs["model"]), layers, images, **options, progress=first.progress)
    return [
        Result(
            {"count": r.count, "images": len(images)},
            {"rows": r.rows} | ({} if r.moments is None else {"moments": r.moments}),
        )
        for r in recordings
    ]


def curvature_together(tasks: list[Task]) -> list[Result]:
    from lrfgraph.network.curvature import curvature
    from lrfgraph.network.heads import head_of

    first = tasks[0]
    images, _ = images_of(first.inputs["data"], first.locators, "calibration")
    model = first.inputs["model"]
    layers = [_namedlayer_of(task) for task in tasks]
    found = curvature(
        float32_network_of(model),
        layers,
        images.first(first.params["images"]),
        head_of(first.params["head"], first.params["activation"]),
        first.params["seed"],
        progress=first.progress,
    )
    return [Result({}, {"curvature": h}) for h in found]


def probe_together(tasks: list[Task]) -> list[Result]:
    from lrfgraph.network.heads import head_of
    from lrfgraph.network.precision import to_single_precision
    from lrfgraph.network.probing import Probe, probe

    first = tasks[0]
    images, _ = images_of(first.inputs["data"], first.locators, "calibration")
    model = first.inputs["model"]
    probes = []
    for task in tasks:
        layer, method, rank = _namedlayer_of(task), task.params["method"], task.params["rank"]
        weights = factors_of(layer, method, rank, task.inputs["factors"], task.inputs["prepared"])
        probes.append(Probe(layer, METHODS[method].pieces(layer, parse_rank(rank)), weights))
    found = probe(
        to_single_precision(fresh_network_of(model)),  # its kernels are exchanged
        probes,
        images.first(first.params["images"]),
        head_of(first.params["head"], first.params["activation"]),
        first.progress,
    )
    return [Result({"kl": kl}) for kl in found]


def _namedlayer_of(task: Task) -> LayerSpec:
    by_name = {layer["name"]: layer for layer in task.inputs["model"].data["layers"]}
    return LayerSpec.from_json(by_name[task.locators["layer"]])


def record(task: Task) -> Result:
    return record_together([task])[0]


def curvature(task: Task) -> Result:
    return curvature_together([task])[0]


def probe(task: Task) -> Result:
    return probe_together([task])[0]
