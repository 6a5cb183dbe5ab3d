"""The step that replaces one layer at a time and measures what becomes of the network's output."""

from __future__ import annotations

from lrfgraph.engine.nodes import Result, Step, Task
from lrfgraph.methods import METHODS
from lrfgraph.methods.base import parse_rank
from lrfgraph.run.steps.candidates import factors_of
from lrfgraph.run.steps.common import fresh_network_of, named_layer
from lrfgraph.run.steps.sources import images_of

__all__ = ["STEPS"]


def probe_together(tasks: list[Task]) -> list[Result]:
    from lrfgraph.network.heads import head_of
    from lrfgraph.network.precision import to_single_precision
    from lrfgraph.network.probing import Probe, probe

    first = tasks[0]
    images, _ = images_of(first.inputs["data"], first.locators, "validation")
    model = fresh_network_of(first.inputs["model"], first.locators["trust"])
    probes = []
    for task in tasks:
        layer, method, rank = named_layer(task), task.params["method"], task.params["rank"]
        weights = factors_of(layer, method, rank, task.inputs["factors"], task.inputs["prepared"])
        probes.append(Probe(layer, METHODS[method].pieces(layer, parse_rank(rank)), weights))
    distances = probe(
        to_single_precision(model),  # its kernels are exchanged
        probes,
        images.first(first.params["images"]),
        head_of(first.params["head"], first.params["activation"]),
        first.progress,
    )
    return [Result({"kl": kl}) for kl in distances]


def probe(task: Task) -> Result:
    return probe_together([task])[0]


STEPS = (Step("probe", 2, probe, probe_together),)
