"""The driver carries stages out, or (for a plan) only looks them up."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from lrfgraph.engine.costs import Costs
from lrfgraph.engine.events import Event
from lrfgraph.engine.execute import execute
from lrfgraph.engine.memory import give_back
from lrfgraph.engine.nodes import Node, Ref
from lrfgraph.engine.resolve import Resolution, resolve
from lrfgraph.engine.runs import LiveRun
from lrfgraph.engine.store import CorruptEntry, Store
from lrfgraph.engine.workers import Workers
from lrfgraph.errors import CapacityError
from lrfgraph.images.reading import Reading
from lrfgraph.options.recipe import Recipe
from lrfgraph.run.steps import STEPS

__all__ = ["Driver", "Lookup", "Unplanned"]

LONG = 2.0
"""Seconds after which work is thought to have left much behind, models that refer to themselves for one."""

SIDE_BY_SIDE = frozenset({"decompose", "ranks", "factorize", "score", "noise", "importance"})
"""Kinds of nodes that do not wait for each other, and are not computed in one pass."""

MOST_NAMED = 5
"""Damaged entries that are named one by one."""


class Unplanned(Exception):  # noqa: N818 - control flow, not an error
    """A plan has come to a decision that is not made yet; what follows depends on it."""


@dataclass(frozen=True)
class Lookup:
    """Nodes of a stage as a plan looked them up. targets : those that are asked for, ``None`` for all."""

    resolution: Resolution
    targets: list[str] | None


@dataclass
class Driver:
    """Carries out the nodes of one stage after another, or (``dry``) only looks up what is there.

    model, identity : the model file and the digest of its content.  base : folder that relative paths of the recipe's
    data start from.  live : the run's record, which keeps its entries from `cache gc`.
    only : the kind of node after which the run stops, while its last stage is carried out.
    run, reused : nodes by kind.  seconds : wall time by stage.  lookups : of a dry run.
    told : what a person was told at once.
    damaged : entries that turned out damaged, and why.  unreadable : keys of those that a dry run came upon and leaves
    as they are.
    memory : bytes that a process takes in a stage, where somebody divides it among tasks.
    guard : called once before anything of a stage is computed; raises CapacityError where it cannot be.
    refused : what it said of a dry run.
    costs : what nodes take, by kind.
    """

    recipe: Recipe
    store: Store
    model: Path
    identity: str
    base: Path = Path()
    on_event: Callable[[Event], None] | None = None
    dry: bool = False
    workers: Workers | None = None
    live: LiveRun | None = None
    only: str | None = None
    run: Counter[str] = field(default_factory=Counter)
    reused: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, float] = field(default_factory=dict)
    lookups: list[Lookup] = field(default_factory=list)
    damaged: dict[str, str] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)
    memory: Mapping[str, int] = field(default_factory=dict)
    guard: Callable[[], None] | None = None
    refused: str = ""
    told: list[str] = field(default_factory=list)
    costs: Costs = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.costs = Costs(self.store)

    @property
    def warnings(self) -> list[str]:
        """What was told at once, what lies unused in the cache, and what turned out damaged: a few by name."""
        older = [*self.told, *([line] if (line := self.store.older()) else [])]
        each = [f"{name}: damaged in the cache ({why}); computed again" for name, why in self.damaged.items()]
        if len(each) <= MOST_NAMED:
            return older + each
        return [
            *older,
            *each[:MOST_NAMED],
            f"{len(each) - MOST_NAMED} more were damaged in the cache and computed again",
        ]

    def restart(self) -> None:
        """Count anew: the stages are gone through once more."""
        self.run.clear()
        self.reused.clear()
        self.lookups.clear()
        self.refused = ""

    def carry_out(self, stage: str, nodes: Sequence[Node]) -> dict[str, Ref]:
        """Carry out nodes and return their results by name; of the last stage, those of the kind to stop after."""
        targets = [node.name for node in nodes if node.step == self.only]
        if stage in self.memory:  # of what runs a network; the rest is small beside it
            nodes = [replace(node, memory=self.memory[stage]) if "trust" in node.locators else node for node in nodes]
        started = time.perf_counter()
        if self.dry:
            refs = self._look_up(nodes, targets or None)
        else:
            refs = execute(
                nodes,
                STEPS,
                self.store,
                targets=targets or None,
                on=self.workers,
                on_event=self.note,
                run=self.live,
            )
        seconds = time.perf_counter() - started
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds
        if seconds > LONG:
            give_back()
        return refs

    def _look_up(self, nodes: Sequence[Node], targets: list[str] | None) -> dict[str, Ref]:
        resolution = resolve(nodes, STEPS, self.store, self.unreadable)
        self.lookups.append(Lookup(resolution, targets))
        needed = resolution.needed(targets)
        if self.guard and not all(resolved.cached for resolved in needed):
            guard, self.guard = self.guard, None
            try:
                guard()
            except CapacityError as error:
                self.refused = self.refused or str(error)
        for resolved in needed:
            (self.reused if resolved.cached else self.run)[resolved.node.step] += 1
        return {resolved.node.name: resolved.ref for resolved in needed}

    def note(self, event: Event) -> None:
        """Count what happens to nodes, and pass it on."""
        if self.guard and event.kind == "progress" and not event.node:
            guard, self.guard = self.guard, None
            guard()
        if event.kind == "finished":
            self.run[event.step] += 1
            self.costs.add(event.step, event.seconds)
        elif event.kind in ("reused", "waited"):
            self.reused[event.step] += 1
        elif event.kind == "discarded":
            self.damaged.setdefault(event.node, event.message)
        elif event.kind == "warning":
            self.told.append(event.message)
        if self.on_event and event.kind == "progress" and not event.node:
            event = replace(event, seconds=self.pace(event.step) or 0.0)
        if self.on_event:
            self.on_event(event)

    def pace(self, kind: str) -> float | None:
        """Return the seconds that pass for each node of a kind, ``None`` where there was none yet."""
        seconds = self.costs.of(kind)
        beside = self.recipe.run.workers or self.recipe.run.threads
        return seconds if seconds is None or kind not in SIDE_BY_SIDE else seconds / beside

    def tell(self, event: Event) -> None:
        """Say what the run itself is about, see `Event`; a plan has nothing to say."""
        if self.on_event and not self.dry:
            self.on_event(event)

    def reading(self) -> Reading:
        """Return how images are read: what is known of their files is in the cache, and whoever watches is told."""
        root = self.store.root

        def tell(done: int, total: int, message: str) -> None:
            self.tell(Event("progress", "images/data", "data", done=done, total=total, message=message))

        scratch = (lambda: root) if root.is_dir() else None
        return Reading(root, keep=not self.dry, scratch=scratch, progress=tell)

    def discard(self, error: CorruptEntry) -> None:
        """Remove a damaged entry and say so."""
        self.store.discard(error.key)
        self.note(Event("discarded", error.key, error.key.partition("/")[0], message=error.why))

    def data(self, ref: Ref) -> dict[str, Any]:
        """Return what a result says; raises Unplanned on a dry run that comes to one not made yet."""
        self._require(ref)
        return self.store.open(ref).data

    def outputs(self, ref: Ref) -> NDArray[Any] | None:
        """Return the outputs of a measured model, ``None`` where they were too many to be kept; see `data`."""
        self._require(ref)
        entry = self.store.open(ref)
        return entry.array("outputs") if "outputs" in entry.names() else None

    def _require(self, ref: Ref) -> None:
        if self.dry and (ref.key in self.unreadable or not self.store.has(ref.key)):
            raise Unplanned(ref.key)
