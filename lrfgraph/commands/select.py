"""One point of a measured front, carried out to the end."""

from __future__ import annotations

from pathlib import Path

from lrfgraph.commands.run import run_and_report
from lrfgraph.options.asked import Asked

__all__ = ["POLICY", "select_point"]

POLICY = "pareto"
"""The policy that measures a front."""


def select_point(model: Path, asked: Asked, *, as_json: bool = False) -> None:
    """Take a point of the front of a model and finish it."""
    run_and_report(model, asked, as_json=as_json)
