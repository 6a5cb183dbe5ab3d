"""The reducer: all scores in, one configuration out."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from lrfgraph.engine.nodes import Result, Task, digest
from lrfgraph.errors import ConfigurationError
from lrfgraph.selection import POLICIES, Candidate, Decision, LayerChoices, Problem, totals
from lrfgraph.selection.sensitivity import calibrated

__all__ = ["decision_data", "problem_of", "select"]


def select(task: Task) -> Result:
    problem = problem_of(task.params, {name: entry.data for name, entry in task.inputs.items()})
    options = SimpleNamespace(**task.params["options"])
    try:
        data = decision_data(problem, POLICIES[options.policy](problem, options))
    except ConfigurationError as error:  # an answer like any other: the same question need not be asked again
        return Result({"infeasible": str(error)}, identity=digest(str(error)))
    said = [(c["layer"], c["method"], c.get("rank")) for c in data["choices"]]
    return Result(data, identity=digest(said))


def decision_data(problem: Problem, decision: Decision) -> dict[str, Any]:
    """Say a decision as plain data: every layer's choice and what the whole network then costs."""
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
    return {"choices": choices, "notes": decision.notes, "parameters": parameters, "macs": macs}


def problem_of(params: Mapping[str, Any], results: Mapping[str, Mapping[str, Any]]) -> Problem:
    """Gather what is known of all candidates.

    params : of a `select` node.  results : by name: scores as ``layer|method|rank``, probes as
    ``layer|probe|method/rank``, ranks above noise as ``layer|noise|ranks``.
    """
    found: dict[str, list[Candidate]] = {}
    noise: dict[str, tuple[tuple[int, int], ...]] = {}
    probed: dict[str, dict[tuple[str, str], float]] = {}
    for name, data in results.items():
        layer, method, rank = name.rsplit("|", 2)
        if method == "noise":
            noise[layer] = tuple((ours, full) for ours, full in data["ranks"])
        elif method == "probe":
            of, _, its_rank = rank.partition("/")
            probed.setdefault(layer, {})[of, its_rank] = data["kl"]
        else:
            found.setdefault(layer, []).append(Candidate(layer, method, rank, **data))
    layers = tuple(
        LayerChoices(
            name,
            parameters,
            macs,
            calibrated(found.get(name, ()), probed.get(name, {})),
            kept,
            noise.get(name, ()),
        )
        for name, parameters, macs, kept in params["layers"]
    )
    return Problem(layers, params["parameters"], params["macs"], params["metric"])
