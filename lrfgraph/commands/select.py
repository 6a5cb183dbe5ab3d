"""One point of a measured front, carried out to the end."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from lrfgraph.commands.run import run_and_report
from lrfgraph.errors import RecipeError
from lrfgraph.options.asked import Asked

__all__ = ["POLICY", "select_point"]

POLICY = "pareto"


def select_point(model: Path, asked: Asked, *, as_json: bool = False) -> None:
    """Take a point of the front of a model and finish it."""
    policy = asked.recipe.select.policy
    if "select.policy" in asked.origins and asked.origins["select.policy"] is None and policy != POLICY:
        raise RecipeError(f"select is for policy {POLICY}, received {policy!r}; use run")
    asked = replace(asked, recipe=asked.recipe.with_option("select.policy", POLICY))
    run_and_report(model, asked, as_json=as_json)
