"""Steps that run the network once for all layers: record and curvature."""

from __future__ import annotations

from lrfgraph.engine.nodes import Result, Step, Task
from lrfgraph.options.recipe import RecordOptions
from lrfgraph.run.steps.common import float32_network_of, named_layer
from lrfgraph.run.steps.sources import images_of

__all__ = ["STEPS"]


def record_together(tasks: list[Task]) -> list[Result]:
    from lrfgraph.network.recording import record

    first = tasks[0]
    images, _ = images_of(first.inputs["data"], first.locators, "calibration")
    options = RecordOptions(**first.params["options"])
    layers = [named_layer(task) for task in tasks]
    network = float32_network_of(first.inputs["model"], first.locators["trust"])
    recordings = record(network, layers, images, options, first.progress)
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
    return record_together([task])[0]


def curvature(task: Task) -> Result:
    return curvature_together([task])[0]


STEPS = (
    Step("record", 1, record, record_together),
    Step("curvature", 4, curvature, curvature_together),
)
