"""Policy `pareto`: a front of measured configurations, and one point of it."""

from __future__ import annotations

from lrfgraph.errors import ConfigurationError
from lrfgraph.options.recipe import SelectOptions
from lrfgraph.selection.front import Budgets, Front, Search, limit_note
from lrfgraph.selection.policy import Policy

__all__ = ["POLICY"]


def pareto(budgets: Budgets, options: SelectOptions) -> Front:
    """A front of `select.points` measured configurations; point `--point`, else the smallest within `--max-drop`."""
    search = Search(budgets, options.cost)
    last = search.smallest()
    for step in sorted({round(last * k / (options.points - 1)) for k in range(options.points)}):
        search.at(step)
    points = search.require_points()
    if options.point is not None:
        if options.point >= len(points):
            raise ConfigurationError(f"the front has points 0 to {len(points) - 1}, received --point {options.point}")
        chosen = points[options.point]
    else:
        passing = [point for point in points if point.drop <= options.max_drop] or [points[0]]
        chosen = min(passing, key=search.size)
    return Front(chosen, points, (limit_note(chosen, options.max_drop),))


POLICY = Policy(
    "pareto",
    search=pareto,
    needs=frozenset({"curvature", "images"}),
    without_images="threshold",
    options=("points", "point", "max_drop", "cost"),
    implied_by=("point",),
    refines=True,
)
