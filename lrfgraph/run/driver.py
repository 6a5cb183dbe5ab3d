"""A walk along the graph, stage by stage, and what it comes to."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from lrfgraph.engine.events import Event
from lrfgraph.engine.execute import execute
from lrfgraph.engine.nodes import Node, Ref
from lrfgraph.engine.resolve import Resolution, resolve
from lrfgraph.engine.runs import LiveRun
from lrfgraph.engine.store import CorruptEntry, Store
from lrfgraph.engine.workers import Workers
from lrfgraph.options.recipe import Recipe
from lrfgraph.run.nodes import Network
from lrfgraph.run.search import Point
from lrfgraph.run.steps import STEPS

__all__ = ["Outcome", "Stopped", "Unplanned", "Walk"]

MOST_NAMED = 5
"""Damaged entries that are named one by one."""


class Stopped(Exception):  # noqa: N818 - control flow, not an error
    """The stage named by ``run.until`` is done; `refs` are its results."""

    def __init__(self, refs: dict[str, Ref]) -> None:
        super().__init__()
        self.refs = refs


class Unplanned(Exception):  # noqa: N818 - control flow, not an error
    """A plan has come to a decision that is not made yet; what follows depends on it."""


@dataclass
class Walk:
    """One walk along the graph: carries out each stage, or (``dry``) only looks up what is there.

    identity : digest of the model file's content.  live : the run's record, which keeps its entries from `cache gc`.
    run, reused : nodes by kind.  seconds : wall time by stage.  found : every stage as it was looked up on a dry
    walk, and the nodes that were wanted of it (``None`` for all).  damaged : what was found damaged, and why.
    """

    recipe: Recipe
    store: Store
    identity: str
    on_event: Callable[[Event], None] | None = None
    dry: bool = False
    workers: Workers | None = None
    live: LiveRun | None = None
    run: Counter[str] = field(default_factory=Counter)
    reused: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, float] = field(default_factory=dict)
    found: list[tuple[Resolution, list[str] | None]] = field(default_factory=list)
    damaged: dict[str, str] = field(default_factory=dict)

    @property
    def warnings(self) -> list[str]:
        """What was found damaged in the cache: a few by name, many as a number."""
        said = [f"{name}: damaged in the cache ({why}); computed again" for name, why in self.damaged.items()]
        if len(said) <= MOST_NAMED:
            return said
        return [*said[:MOST_NAMED], f"{len(said) - MOST_NAMED} more were damaged in the cache and computed again"]

    def stage(self, name: str, nodes: Sequence[Node], optional: bool = False) -> dict[str, Ref]:
        """Carry out one stage and return its results; raises Stopped after the kind in ``run.until``.

        optional : the stage is not the place to stop at, whatever kinds it has.
        """
        until = self.recipe.run.until
        last = not optional and until in {node.step for node in nodes}
        targets = [node.name for node in nodes if node.step == until] if last else None
        started = time.perf_counter()
        if self.dry:
            refs = self._look(nodes, targets)
        else:
            refs = execute(
                nodes,
                STEPS,
                self.store,
                targets=targets,
                on=self.workers,
                on_event=self.note,
                run=self.live,
            )
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started
        if last:
            raise Stopped(refs)
        return refs

    def _look(self, nodes: Sequence[Node], targets: list[str] | None) -> dict[str, Ref]:
        resolution = resolve(nodes, STEPS, self.store)
        self.found.append((resolution, targets))
        needed = resolution.needed(targets)
        for found in needed:
            (self.reused if found.cached else self.run)[found.node.step] += 1
        return {found.node.name: found.ref for found in needed}

    def note(self, event: Event) -> None:
        if event.kind == "finished":
            self.run[event.step] += 1
        elif event.kind in ("reused", "waited"):
            self.reused[event.step] += 1
        elif event.kind == "discarded":
            self.damaged.setdefault(event.node, event.message)
        if self.on_event:
            self.on_event(event)

    def discard(self, error: CorruptEntry) -> None:
        self.store.discard(error.key)
        self.note(Event("discarded", error.key, error.key.partition("/")[0], message=error.why))

    def data(self, ref: Ref) -> dict[str, Any]:
        """Return what a result says; raises Unplanned on a dry walk that comes to one not made yet."""
        if self.dry and not self.store.has(ref.key):
            raise Unplanned(ref.key)
        return self.store.open(ref).data

    def outputs(self, ref: Ref) -> NDArray[Any] | None:
        """Return what a model answered when it was measured, unless that was too much to be kept; see `data`."""
        if self.dry and not self.store.has(ref.key):
            raise Unplanned(ref.key)
        entry = self.store.open(ref)
        return entry.array("outputs") if "outputs" in entry.names() else None


@dataclass
class Outcome:
    """What a run came to; `report` writes it out.

    measured : by stage (``baseline``, ``factorized``, ``repaired``, ``finetuned``) and split.
    models : the entry of each stage.  final : the stage that is written out.  exported : entry with the two files.
    points : what a searching policy measured.
    scores : every candidate's score, by layer, method and rank.  refs : all results of the exploration, by name.
    """

    network: Network
    walk: Walk
    decision: dict[str, Any] | None = None
    measured: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    models: dict[str, Ref] = field(default_factory=dict)
    final: str = "factorized"
    exported: Ref | None = None
    baseline: Ref | None = None
    points: tuple[Point, ...] = ()
    refs: dict[str, Ref] = field(default_factory=dict)
    scores: dict[tuple[str, str, str], Ref] = field(default_factory=dict)
    history: list[dict[str, Any]] | None = None
    notes: list[str] = field(default_factory=list)
    stopped: bool = False
