"""Policies that measure: the reducer asks the network itself, budget by budget, and every answer is a cached node.

Budgets lie on one fixed grid of shares, so that what one question measured serves the next: another `max_drop`, the
front, a point of it. A budget's configuration is solved for, rebuilt, repaired and evaluated on validation images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import log2
from typing import Any, Protocol

from numpy.typing import NDArray

from lrfgraph.engine.nodes import Node, Ref
from lrfgraph.errors import ConfigurationError
from lrfgraph.run import nodes as pipeline
from lrfgraph.run.nodes import Network

__all__ = ["SEARCHES", "Bench", "Found", "Point", "grid_share", "within_limit"]

RATIO = 0.95
FINEST = 80
START = 16
"""Where a search begins: share 0.95^17, about 0.42."""


DOUBLING = 4.5
"""Steps in which the drop doubles, about; only a first guess."""

LEAST = 0.05
"""Points below which one drop is as good as another."""


class Stages(Protocol):
    """What a search needs of the walk along the graph."""

    def stage(self, name: str, nodes: Sequence[Node], optional: bool = False) -> dict[str, Ref]: ...

    def data(self, ref: Ref) -> dict[str, Any]: ...

    def outputs(self, ref: Ref) -> NDArray[Any] | None: ...


@dataclass(frozen=True)
class Point:
    """One measured configuration.

    step : its place on the grid.  share : the budget asked for.  drop : points lost on validation images (percent of
    the mean squared error for a regression, of answers changed where there are no labels), with its standard error.
    """

    step: int
    share: float
    parameters: int
    macs: int
    drop: float
    drop_se: float
    accuracy: float | None
    accuracy_se: float | None
    kl: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Found:
    """What a search came to: the decision of its chosen point, all points by size, and what to say about it."""

    decision: dict[str, Any]
    chosen: Point
    points: tuple[Point, ...]
    notes: tuple[str, ...]


def grid_share(step: int) -> float:
    """Return the share of budget number `step`: 0.95, 0.9025, …"""
    return round(float(RATIO ** (step + 1)), 4)


class Bench:
    """Measures budgets of one network; asks for nothing twice."""

    def __init__(
        self, walk: Stages, network: Network, refs: Mapping[str, Ref], scores: Mapping[str, Ref], baseline: Ref
    ) -> None:
        self.walk, self.network, self.refs, self.scores, self.baseline = walk, network, refs, scores, baseline
        self.axis = "macs" if network.recipe.select.cost == "macs" else "params"
        self.known: dict[int, tuple[Point, dict[str, Any]] | None] = {}

    def at(self, step: int) -> Point | None:
        """Measure the budget number `step`; ``None`` where no configuration is that small."""
        if step not in self.known:
            self.known[step] = self._measure(step)
        found = self.known[step]
        return None if found is None else found[0]

    def decision(self, point: Point) -> dict[str, Any]:
        found = self.known[point.step]
        assert found is not None
        return found[1]

    def size(self, point: Point) -> int:
        """What is to become small: parameters or MACs."""
        return point.macs if self.axis == "macs" else point.parameters

    def points(self) -> tuple[Point, ...]:
        """All points measured so far, largest first."""
        return tuple(self.known[step][0] for step in sorted(self.known) if self.known[step] is not None)  # type: ignore[index]

    def smallest(self) -> int:
        """Return the last step at which a configuration exists; nothing is measured for it."""
        low, high = 0, FINEST
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self._decide(middle) else (low, middle - 1)
        return low

    def _decide(self, step: int) -> dict[str, Any] | None:
        node = pipeline.budget_node(self.network, self.scores, **{self.axis: grid_share(step)})
        decision = self.walk.data(self.walk.stage("search", [node], optional=True)[node.name])
        return None if "infeasible" in decision else decision

    def _measure(self, step: int) -> tuple[Point, dict[str, Any]] | None:
        decision = self._decide(step)
        return None if decision is None else (self.point(step, decision, self.judge(decision)), decision)

    def judge(self, decision: Mapping[str, Any]) -> Ref:
        """Rebuild and repair a configuration and measure it on validation images."""
        choices = [(c["layer"], c["method"], c["rank"]) for c in decision["choices"] if c["method"]]
        nodes = pipeline.rebuild_nodes(self.network, choices, self.refs, final_only=True)
        model = self.walk.stage("search", nodes, optional=True)[nodes[-1].name]
        judged = pipeline.evaluate_node(self.network, "search", model, "validation", self.baseline)
        return self.walk.stage("search", [judged], optional=True)[judged.name]

    def point(self, step: int, decision: Mapping[str, Any], measured: Ref) -> Point:
        said = self.walk.data(measured)
        drop, error = _drop(said, self.walk.data(self.baseline))
        accuracy = said.get("accuracy"), said.get("accuracy_se")
        size = decision["parameters"], decision["macs"]
        return Point(step, grid_share(step), *size, drop, error, *accuracy, said.get("kl", 0.0))


def _drop(said: Mapping[str, Any], baseline: Mapping[str, Any]) -> tuple[float, float]:
    """Points lost and their standard error: accuracy, else squared error, else answers that changed."""
    if "drop" in said:
        return 100 * said["drop"], 100 * said["drop_se"]
    if "mse" in said:
        whole = baseline["mse"]
        if whole == 0:
            raise ConfigurationError(
                "the original's squared error on the validation images is 0, no share of it can be lost; "
                "use --policy budget or threshold"
            )
        return 100 * (said["mse"] / whole - 1), 100 * said["mse_se"] / whole
    if "agreement" in said:
        changed = 1 - said["agreement"]
        return 100 * changed, 100 * float((changed * (1 - changed) / said["n"]) ** 0.5)
    raise ConfigurationError(
        "the policies accuracy and pareto need something to measure, received images without usable targets; "
        "use --policy threshold or budget"
    )


def accuracy(bench: Bench) -> Found:
    """Find the smallest configuration that loses at most ``select.max_drop`` points on validation, after repair.

    The curve from budget to drop is nearly monotone: the search closes in from both sides, guessing where the
    logarithm of the drop crosses the limit.
    """
    limit = bench.network.recipe.select.max_drop
    low, high, step = -1, FINEST + 1, START
    while high - low > 1:
        point = bench.at(step)
        low, high = (step, high) if point is not None and point.drop <= limit else (low, step)
        step = _next(bench, low, high, limit)
    passing = [p for p in bench.points() if p.drop <= limit]
    if not passing:
        largest = max(bench.points(), key=lambda p: p.parameters, default=None)
        if largest is None:
            raise ConfigurationError("no configuration is smaller than the network; allow more methods and ranks")
        said = f"even the largest one measured loses {largest.drop:.2f} ± {largest.drop_se:.2f} points on validation"
        raise ConfigurationError(f"no configuration loses at most {limit:g} points: {said}; raise --max-drop")
    chosen = min(passing, key=bench.size)
    return Found(bench.decision(chosen), chosen, bench.points(), (within_limit(chosen, limit),))


def _next(bench: Bench, low: int, high: int, limit: float) -> int:
    """Guess the next step strictly between a good one and a bad one (either may be unknown)."""
    wanted = log2(max(limit, LEAST))
    below, above = (bench.at(low) if low >= 0 else None), (bench.at(high) if high <= FINEST else None)
    start, end = (log2(max(p.drop, LEAST)) if p is not None else None for p in (below, above))
    if start is not None and end is not None and end > start:
        guess = low + (high - low) * (wanted - start) / (end - start)
    elif start is not None and high > FINEST:
        guess = low + max(DOUBLING * (wanted - start), 2)
    elif end is not None and low < 0:
        guess = high - max(DOUBLING * (end - wanted), 2)
    else:
        guess = (low + high) / 2
    return min(max(round(guess), low + 1), high - 1)


def within_limit(point: Point, limit: float) -> str:
    """Say what a configuration loses and whether that is sure to be within the limit."""
    tail = ""
    if point.drop > limit:
        tail = "; that is more than the limit"
    elif point.drop + 2 * point.drop_se > limit:
        tail = f"; the true loss may exceed {limit:g}, more validation images would tell"
    lost = f"{point.drop:.2f} ± {point.drop_se:.2f} points"
    return f"the configuration loses {lost} on validation (limit {limit:g}){tail}"


def pareto(bench: Bench) -> Found:
    """Measure ``select.points`` budgets and choose ``select.point``, else the smallest within ``select.max_drop``."""
    options = bench.network.recipe.select
    last = bench.smallest()
    steps = sorted({round(last * k / (options.points - 1)) for k in range(options.points)})
    for step in steps:
        bench.at(step)
    points = bench.points()
    if not points:
        raise ConfigurationError("no configuration is smaller than the network; allow more methods and ranks")
    if options.point is not None:
        if options.point >= len(points):
            raise ConfigurationError(f"the front has points 0 to {len(points) - 1}, received --point {options.point}")
        chosen = points[options.point]
    else:
        passing = [p for p in points if p.drop <= options.max_drop] or [points[0]]
        chosen = min(passing, key=bench.size)
    return Found(bench.decision(chosen), chosen, points, (within_limit(chosen, options.max_drop),))


SEARCHES: dict[str, Callable[[Bench], Found]] = {"accuracy": accuracy, "pareto": pareto}
