"""The reducer: all scores in, one configuration out."""

from __future__ import annotations

from types import SimpleNamespace

from lrfgraph.engine.nodes import Result, Task, digest
from lrfgraph.selection import POLICIES, Candidate, LayerChoices, Problem, totals

__all__ = ["select"]


def select(task: Task) -> Result:
    problem = _problem(task)
    options = SimpleNamespace(**task.params["options"])
    decision = POLICIES[options.policy](problem, options)
    parameters, macs = totals(problem, decision.choices)
    choices = [
        {
            "layer": c.layer,
            "method": c.candidate.method,
            "rank": c.candidate.rank,
            "similarity": dict(c.candidate.similarity),
        }
        | {"parameters": c.candidate.parameters, "macs": c.candidate.macs, "reason": ""}
        if c.candidate
        else {"layer": c.layer, "method": None, "reason": c.reason}
        for c in decision.choices
    ]
    said = [(c["layer"], c["method"], c.get("rank")) for c in choices]
    data = {"choices": choices, "notes": decision.notes, "parameters": parameters, "macs": macs}
    return Result(data, identity=digest(said))


def _problem(task: Task) -> Problem:
    """Gather the scores of all candidates; an input's name is ``layer|method|rank``, or ``layer|noise|ranks``."""
    found: dict[str, list[Candidate]] = {}
    noise: dict[str, tuple[tuple[int, int], ...]] = {}
    for name, entry in task.inputs.items():
        layer, method, rank = name.rsplit("|", 2)
        if method == "noise":
            noise[layer] = tuple((ours, full) for ours, full in entry.data["ranks"])
        else:
            found.setdefault(layer, []).append(Candidate(layer, method, rank, **entry.data))
    layers = tuple(
        LayerChoices(name, parameters, macs, tuple(found.get(name, ())), kept, noise.get(name, ()))
        for name, parameters, macs, kept in task.params["layers"]
    )
    return Problem(layers, task.params["parameters"], task.params["macs"], task.params["metric"])
