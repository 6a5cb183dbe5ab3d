"""How a run chooses its configuration: policies are pure, this is where they meet the graph.

Every answer is a cached node: a budget's configuration, its repair, its measurement on validation images.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from lrfgraph.engine.events import Event
from lrfgraph.engine.nodes import Ref
from lrfgraph.network.evaluating import gain
from lrfgraph.network.heads import head_of
from lrfgraph.run import nodes
from lrfgraph.run.driver import Driver
from lrfgraph.run.finishing import with_known_rate
from lrfgraph.run.forecast import trials_of
from lrfgraph.run.state import Compression
from lrfgraph.run.steps.decisions import decision_of, problem_of
from lrfgraph.selection.exchanges import Judge, refine
from lrfgraph.selection.front import Budgets, Front, Point, grid_share, limit_note
from lrfgraph.selection.policies import POLICIES
from lrfgraph.selection.problem import Candidate, CandidateId, Decision, Problem
from lrfgraph.selection.sensitivity import to_probe

__all__ = ["choose", "probe"]


def probe(driver: Driver, compression: Compression) -> Compression:
    """Probe a few candidates of each layer, where the policy stands on predictions and probes are asked for."""
    network, exploration = compression.network, compression.exploration
    if network.data is None or not network.policy.refines:
        return compression
    count = network.probes(driver.data(network.data)["parts"]["calibration"]["images"])
    if not count:
        return compression
    layers: dict[str, list[Candidate]] = {}
    for candidate, ref in exploration.scores.items():
        layers.setdefault(candidate.layer, []).append(Candidate(candidate, **driver.data(ref)))
    chosen = [candidate.id for candidates in layers.values() for candidate in to_probe(candidates, count)]
    probes = nodes.probe_nodes(network, exploration, chosen)
    refs = driver.carry_out("probe", list(probes.values()))
    return replace(compression, exploration=replace(exploration, probes=nodes.refs_of(probes, refs)))


def choose(driver: Driver, compression: Compression) -> Compression:
    """Let the policy decide, and refine its decision where the policy and the recipe say so."""
    options, policy = compression.network.recipe.select, compression.network.policy
    bench = _Bench(driver, compression)
    if policy.search is None:
        return _decided(bench, _decide(bench, policy.name))
    trial = bench.trial if policy.trials and compression.network.finetunes else None
    front = policy.search(Budgets(bench.measure, lambda step: bench.solution(step) is not None, trial), options)
    front = _refined_front(bench, front) if policy.refines else front
    decision = replace(front.decision, policy=policy.name)
    return compression.noted(
        *front.notes, decision=decision, points=front.points, limit=front.limit, trials=bench.trials
    )


def _decide(bench: _Bench, policy: str) -> Decision:
    compression = bench.compression
    node = nodes.select_node(compression.network, compression.exploration, POLICIES[policy])
    ref = bench.driver.carry_out("select", [node])[node.name]
    return decision_of(bench.driver.data(ref))


def _decided(bench: _Bench, decision: Decision) -> Compression:
    """Refine what a policy without measurements came to, if it is one of those that exchanges may better."""
    network, options = bench.compression.network, bench.compression.network.recipe.select
    if network.policy.refines and options.refine and bench.compression.baseline is not None:
        refinement = refine(
            bench.problem(), decision, options.refine, bench.judge(), params=options.params, macs=options.macs
        )
        if refinement is not None:
            return bench.compression.noted(refinement.note, decision=refinement.decision)
    return replace(bench.compression, decision=decision)


def _refined_front(bench: _Bench, front: Front) -> Front:
    """Refine the chosen point; the drop may not grow beyond the limit, or beyond what it was."""
    options, chosen = bench.compression.network.recipe.select, front.chosen
    if not options.refine:
        return front
    if chosen.trained:
        why = "exchanges between layers are left out: the run goes on from the trial of fine-tuning that was chosen"
        return replace(front, notes=(*front.notes, why))
    limit = max(options.max_drop, chosen.drop)

    def allowed(decision: Decision, measured: Ref) -> bool:
        return bench.point(chosen.step, decision, measured).drop <= limit

    judge = replace(bench.judge(), allowed=allowed)
    refinement = refine(bench.problem(), front.decision, options.refine, judge, **bench.budget(chosen.step))
    if refinement is None:
        return front
    point = bench.point(chosen.step, refinement.decision, refinement.measured)
    place = chosen.step, 0
    points = tuple(point if (other.step, other.trained) == place else other for other in front.points)
    return replace(
        front,
        chosen=point,
        points=points,
        notes=(*([limit_note(point, options.max_drop)] if front.notes else []), refinement.note),
    )


class _Bench:
    """Solves for budgets, measures configurations and compares them, all through the graph."""

    def __init__(self, driver: Driver, compression: Compression) -> None:
        self.driver, self.compression = driver, compression
        self.network, self.tried = compression.network, 0
        self.trials: dict[tuple[CandidateId, ...], Ref] = {}

    def budget(self, step: int) -> dict[str, float]:
        """The share that is kept at a step of the grid, of what is to become small."""
        return {"macs" if self.network.recipe.select.cost == "macs" else "params": grid_share(step)}

    def problem(self) -> Problem:
        node = nodes.select_node(self.network, self.compression.exploration, POLICIES["budget"])
        refs = {name: ref for name, ref in node.inputs.items() if isinstance(ref, Ref)}
        return problem_of(node.params, lambda name: self.driver.data(refs[name]))

    def solution(self, step: int) -> Decision | None:
        """The configuration of least predicted loss within a budget, ``None`` where none is that small."""
        options: dict[str, Any] = {"params": None, "macs": None, **self.budget(step)}
        node = nodes.select_node(self.network, self.compression.exploration, POLICIES["budget"], options)
        data = self.driver.data(self.driver.carry_out("search", [node])[node.name])
        return None if "infeasible" in data else decision_of(data)

    def measure(self, step: int) -> Point | None:
        """Measure the configuration of a budget, repaired, on validation images."""
        decision = self.solution(step)
        if decision is None:
            return None
        kept = f"{self._share(decision):.1%} of the {self._cost()}"
        self._tell("trial", f"trying {kept}")
        point = self.point(step, decision, self.evaluate(decision))
        self._tell("outcome", f"{kept} lost {point.drop:.2f} ± {point.drop_se:.2f} points")
        return point

    def trial(self, step: int) -> Point | None:
        """Measure a budget like `measure`, after a short trial of the fine-tuning that is going to follow."""
        decision, network = self.solution(step), self.network
        if decision is None or network.data is None:
            return None
        whole = self.driver.data(network.data)["parts"]["train"]["images"]
        options = with_known_rate(self.driver, network.recipe.finetune.trial(whole), self.trials)
        self._tell("trial", f"fine-tuning {self._share(decision):.1%} of the {self._cost()} for {options.steps} steps")
        model, teacher = self.repaired(decision), self.compression.original.original
        node = nodes.finetune_node(network, "trial", model, teacher, options)
        tuned = self.driver.carry_out("trial", [node])[node.name]
        point = self.point(step, decision, self._measured("trial", tuned), options.steps)
        self.trials[decision.configuration] = tuned
        self._tell("outcome", f"fine-tuned, it lost {point.drop:.2f} ± {point.drop_se:.2f} points")
        return point

    def _cost(self) -> str:
        return "MACs" if self.network.recipe.select.cost == "macs" else "parameters"

    def _share(self, decision: Decision) -> float:
        original, cost = self.compression.original, self._cost().lower()
        share: float = getattr(decision, cost) / max(getattr(original, cost), 1)
        return share

    def _tell(self, kind: Literal["trial", "outcome"], message: str) -> None:
        self.tried += kind == "trial"
        tries = trials_of(self.network) + self.network.recipe.select.refine
        self.driver.tell(Event(kind, "", "select", done=self.tried, total=tries, message=message))

    def repaired(self, decision: Decision) -> Ref:
        """Rebuild and repair a configuration."""
        rebuilt = nodes.rebuild_nodes(self.network, decision.configuration, self.compression.exploration, True)
        return self.driver.carry_out("search", rebuilt)[rebuilt[-1].name]

    def evaluate(self, decision: Decision) -> Ref:
        """Rebuild and repair a configuration and measure it on validation images."""
        return self._measured("search", self.repaired(decision))

    def _measured(self, stage: str, model: Ref) -> Ref:
        assert self.compression.baseline is not None
        node = nodes.evaluate_node(self.network, stage, model, "validation", self.compression.baseline)
        return self.driver.carry_out(stage, [node])[node.name]

    def point(self, step: int, decision: Decision, measured: Ref, trained: int = 0) -> Point:
        return Point.measured(step, decision, self.driver.data(measured), trained)

    def judge(self) -> Judge[Ref]:
        baseline = self.compression.baseline
        assert baseline is not None

        def difference(first: Ref, second: Ref) -> tuple[float, float] | None:
            outputs, rival, original = map(self.driver.outputs, (first, second, baseline))
            if outputs is None or rival is None or original is None:
                return None
            return gain(outputs, rival, original, head_of(self.network.head, self.network.activation))

        def kl(measured: Ref) -> float:
            return float(self.driver.data(measured).get("kl", 0.0))

        def measure(decision: Decision) -> Ref:
            self._tell("trial", f"exchanging ranks between layers at {self._share(decision):.1%} of the {self._cost()}")
            measured = self.evaluate(decision)
            self._tell("outcome", f"KL to the original {kl(measured):.4f}")
            return measured

        return Judge(measure, kl, difference)
