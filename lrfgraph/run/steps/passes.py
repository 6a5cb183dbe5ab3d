"""Steps that run the network once for all layers: record and curvature."""

from __future__ import annotations

from collections.abc import Iterator

from lrfgraph.engine.nodes import Result, Step, Task
from lrfgraph.options.recipe import RecordOptions
from lrfgraph.run.steps.common import float32_network_of, named_layer
from lrfgraph.run.steps.sources import images_of

__all__ = ["STEPS"]


def record_together(tasks: list[Task]) -> Iterator[Result]:
    from lrfgraph.network.recording import record

    first = tasks[0]
    images, _ = images_of(first.inputs["data"], first.locators, "calibration")
    options = RecordOptions(**first.params["options"])
    layers = [named_layer(task) for task in tasks]
    network = float32_network_of(first.inputs["model"], first.locators["trust"])
    for one in record(network, layers, images, options, first.progress, first.scratch):
        arrays = {"rows": one.rows} | ({} if one.moments is None else {"moments": one.moments})
        yield Result({"count": one.count, "images": len(images)}, arrays)


def curvature_together(tasks: list[Task]) -> list[Result]:
    from lrfgraph.network.curvature import curvature
    from lrfgraph.network.heads import head_of

    first = tasks[0]
    images, _ = images_of(first.inputs["data"], first.locators, "calibration")
    layers = [named_layer(task) for task in tasks]
    curvatures = curvature(
        float32_network_of(first.inputs["model"], first.locators["trust"]),
        layers,
        images.first(first.params["images"]),
        head_of(first.params["head"], first.params["activation"]),
        first.params["seed"],
        progress=first.progress,
    )
    return [Result({}, {"curvature": h}) for h in curvatures]


def record(task: Task) -> Result:
    return next(record_together([task]))


def curvature(task: Task) -> Result:
    return curvature_together([task])[0]


STEPS = (
    Step("record", 1, record, record_together),
    Step("curvature", 6, curvature, curvature_together),
)
