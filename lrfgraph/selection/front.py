"""The front of measured configurations: budgets on one fixed grid of shares, from large to small.

The grid is fixed so that what one question measured serves the next: another `max_drop`, the front, a point of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from lrfgraph.errors import ConfigurationError
from lrfgraph.selection.problem import Decision

__all__ = ["FINEST", "Budgets", "Front", "Point", "Search", "grid_share", "limit_note"]

RATIO = 0.95
FINEST = 80
"""The last step of the grid: share 0.95^81, about 0.016."""


@dataclass(frozen=True)
class Point:
    """One measured configuration.

    step : its place on the grid.  share : the budget asked for.  drop : points lost on validation images, of the
    head's first measure (of answers changed, or the relative squared error, where there are no targets), with its
    standard error.  accuracy : that measure.  trained : steps of fine-tuning that it had before, a trial of it.
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
    decision: Decision = field(repr=False)
    trained: int = 0

    @classmethod
    def measured(cls, step: int, decision: Decision, measures: Mapping[str, Any], trained: int = 0) -> Point:
        """Return a point of what was measured on validation images.  step : −1 where it is none of the grid."""
        return cls(
            step,
            grid_share(step),
            decision.parameters,
            decision.macs,
            100 * measures["drop"],
            100 * measures["drop_se"],
            measures.get("accuracy"),
            measures.get("accuracy_se"),
            measures.get("kl", 0.0),
            decision,
            trained,
        )

    def to_json(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name != "decision"}


@dataclass(frozen=True)
class Front:
    """What a search came to: the point it chose, all points by size, and what to say about it.

    limit : points that what is delivered may lose, ``None`` where that was not what was asked for.
    """

    chosen: Point
    points: tuple[Point, ...]
    notes: tuple[str, ...] = ()
    limit: float | None = None

    @property
    def decision(self) -> Decision:
        return self.chosen.decision


@dataclass(frozen=True)
class Budgets:
    """What a policy that measures is given.

    measure : the best configuration at a step of the grid, repaired and measured on validation images; ``None`` where
    none is that small.  feasible : whether there is one; nothing is measured for it.
    trial : the same after a short fine-tuning, ``None`` where nothing is going to be trained.
    """

    measure: Callable[[int], Point | None]
    feasible: Callable[[int], bool]
    trial: Callable[[int], Point | None] | None = None


class Search:
    """Measures budgets and asks for none twice."""

    def __init__(self, budgets: Budgets, cost: str) -> None:
        self.budgets, self.cost = budgets, cost
        self.measured: dict[int, Point | None] = {}

    def at(self, step: int) -> Point | None:
        """Measure the budget number `step`; ``None`` where no configuration is that small."""
        if step not in self.measured:
            self.measured[step] = self.budgets.measure(step)
        return self.measured[step]

    def size(self, point: Point) -> int:
        """What is to become small: parameters or MACs."""
        return point.macs if self.cost == "macs" else point.parameters

    def points(self) -> tuple[Point, ...]:
        """All points measured so far, largest first."""
        return tuple(point for _, point in sorted(self.measured.items()) if point is not None)

    def require_points(self) -> tuple[Point, ...]:
        """Return all points; raises ConfigurationError where there is none."""
        points = self.points()
        if not points:
            raise ConfigurationError("no configuration is smaller than the network; allow more methods and ranks")
        return points

    def smallest(self) -> int:
        """Return the last step at which a configuration exists; nothing is measured for it."""
        low, high = 0, FINEST
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.budgets.feasible(middle) else (low, middle - 1)
        return low


def grid_share(step: int) -> float:
    """Return the share of budget number `step`: 0.95, 0.9025, …"""
    return round(float(RATIO ** (step + 1)), 4)


def limit_note(point: Point, limit: float) -> str:
    """Say what a configuration loses and whether that is sure to be within the limit."""
    tail = ""
    if point.drop > limit:
        tail = "; that is more than the limit"
    elif point.drop + 2 * point.drop_se > limit:
        tail = f"; the true loss may exceed {limit:g}, more validation images would tell"
    lost = f"{point.drop:.2f} ± {point.drop_se:.2f} points"
    return f"the configuration loses {lost} on validation (limit {limit:g}){tail}"
