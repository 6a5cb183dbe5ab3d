"""STEPS: what each kind of node computes. This is where the engine meets the network and the mathematics.

A step reads its parameters and inputs and returns a result; it touches neither the store nor the graph. Each has
a version, raised by hand when its numbers change; it stands at the end of its file, beside what it computes.
TensorFlow is loaded only by the steps that run the network.
"""

from __future__ import annotations

from lrfgraph.engine.nodes import Step
from lrfgraph.run.steps import candidates, decisions, dprp, models, passes, probes, pruning, sources

__all__ = ["STEPS"]

_ALL = (sources, passes, pruning, dprp, candidates, probes, decisions, models)
STEPS: dict[str, Step] = {step.name: step for module in _ALL for step in module.STEPS}
