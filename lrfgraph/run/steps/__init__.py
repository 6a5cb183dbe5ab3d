"""STEPS: what each kind of node computes. This is where the engine meets the network and the mathematics.

A step reads its parameters and inputs and returns a result; it touches neither the store nor the graph. Each has
a version, raised by hand when its numbers change. TensorFlow is loaded only by the steps that run the network.
"""

from __future__ import annotations

from lrfgraph.engine.nodes import Step
from lrfgraph.run.steps import candidates, decisions, models, passes, sources

__all__ = ["STEPS"]

STEPS: dict[str, Step] = {
    step.name: step
    for step in (
        Step("describe", 5, sources.describe, decides=True),
        Step("data", 3, sources.data, decides=True),
        Step("record", 1, passes.record, passes.record_together),
        Step("curvature", 4, passes.curvature, passes.curvature_together),
        Step("decompose", 1, candidates.decompose),
        Step("ranks", 2, candidates.ranks, decides=True),
        Step("noise", 1, candidates.noise),
        Step("factorize", 1, candidates.factorize),
        Step("score", 1, candidates.score),
        Step("probe", 1, passes.probe, passes.probe_together),
        Step("select", 3, decisions.select, decides=True),
        Step("rebuild", 3, models.rebuild),
        Step("repair", 2, models.repair),
        Step("finetune", 3, models.finetune),
        Step("export", 1, models.export),
        Step("evaluate", 3, models.evaluate),
    )
}
