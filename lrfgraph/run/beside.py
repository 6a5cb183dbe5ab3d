"""What is computed before its turn, where there is somebody idle to do it."""

from __future__ import annotations

from collections.abc import Collection

from lrfgraph.engine.nodes import Node
from lrfgraph.run import nodes
from lrfgraph.run.driver import Driver
from lrfgraph.run.state import Network

__all__ = ["passes_beside"]


def passes_beside(driver: Driver, network: Network, following: Collection[str]) -> list[Node]:
    """Return the passes over the original that exploring starts with, to run beside its measuring.

    following : names of the run's stages. Empty on one thread, which would only learn later that the original is at
    chance level; for a plan; and where the network that is explored is another one.
    """
    run = driver.recipe.run
    several = run.scheduler is not None or (run.workers or run.threads) > 1
    if driver.dry or not several or "explore" not in following or "prune" in following:
        return []
    return [*nodes.record_nodes(network).values(), *nodes.curvature_nodes(network).values()]
