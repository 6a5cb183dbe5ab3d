"""The reducer: all scores in, one configuration out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from lrfgraph.engine.nodes import Ref, Result, Step, Task, digest
from lrfgraph.errors import ConfigurationError
from lrfgraph.options.recipe import SelectOptions
from lrfgraph.selection.policies import POLICIES
from lrfgraph.selection.problem import Candidate, CandidateId, Decision, LayerChoices, Problem
from lrfgraph.selection.sensitivity import calibrated

__all__ = ["STEPS", "decision_of", "problem_of", "select", "select_inputs"]


def select(task: Task) -> Result:
    problem = problem_of(task.params, lambda name: task.inputs[name].data)
    options = SelectOptions(**task.params["options"])
    decide = POLICIES[options.policy].decide
    assert decide is not None
    try:
        decision = decide(problem, options)
    except ConfigurationError as error:  # an answer like any other: the same question need not be asked again
        return Result({"infeasible": str(error)}, identity=digest(str(error)))
    identity = [(c.layer, *(c.id[1:] if c.id else (None, None))) for c in decision.choices]
    return Result(decision.to_json(), identity=digest(identity))


def decision_of(data: Mapping[str, Any]) -> Decision:
    """Return the decision that a `select` node came to; raises ConfigurationError where there is none."""
    if "infeasible" in data:
        raise ConfigurationError(data["infeasible"])
    return Decision.from_json(data)


def select_inputs(
    scores: Mapping[CandidateId, Ref], probes: Mapping[CandidateId, Ref], noise: Mapping[str, Ref]
) -> tuple[dict[str, Any], dict[str, str | Ref]]:
    """Return the part of a `select` node's parameters that says what it reads about whom, and its inputs."""
    inputs: dict[str, str | Ref] = {_input("score", candidate): ref for candidate, ref in scores.items()}
    inputs |= {_input("probe", candidate): ref for candidate, ref in probes.items()}
    inputs |= {_input("noise", layer): ref for layer, ref in noise.items()}
    about = {"scores": [list(c) for c in scores], "probes": [list(c) for c in probes], "noise": list(noise)}
    return about, inputs


def _input(kind: str, about: CandidateId | str) -> str:
    return f"{about}/{kind}"


def problem_of(params: Mapping[str, Any], data: Callable[[str], Mapping[str, Any]]) -> Problem:
    """Gather what is known of all candidates.

    params : of a `select` node.  data : what an input of it says.
    """
    scored = _by_layer(Candidate(c, **data(_input("score", c))) for c in _ids(params["scores"]))
    measured = {c: float(data(_input("probe", c))["kl"]) for c in _ids(params["probes"])}
    noise = {layer: tuple(map(tuple, data(_input("noise", layer))["ranks"])) for layer in params["noise"]}
    layers = tuple(
        LayerChoices(name, parameters, macs, calibrated(scored.get(name, ()), measured), kept, noise.get(name, ()))
        for name, parameters, macs, kept in params["layers"]
    )
    return Problem(layers, params["parameters"], params["macs"], params["metric"])


def _ids(written: Iterable[tuple[str, str, str]]) -> list[CandidateId]:
    return [CandidateId(*parts) for parts in written]


def _by_layer(candidates: Iterable[Candidate]) -> dict[str, list[Candidate]]:
    layers: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        layers.setdefault(candidate.layer, []).append(candidate)
    return layers


STEPS = (Step("select", 3, select, decides=True),)
