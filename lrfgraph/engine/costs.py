"""What nodes of a kind take, from those of this run and from what earlier entries say."""

from __future__ import annotations

import heapq
from collections import defaultdict
from statistics import mean, median
from typing import Any

from lrfgraph.engine.maintenance import keys_of
from lrfgraph.engine.store import CorruptEntry, Store

__all__ = ["Costs"]

LATEST = 16
"""Earlier entries of a kind that are read."""


class Costs:
    """Seconds by kind: the mean of the nodes that this run computed, before that the median of the latest entries."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._own: dict[str, list[float]] = defaultdict(list)
        self._earlier: dict[str, float | None] = {}

    def add(self, kind: str, seconds: float) -> None:
        """Note what a node took."""
        self._own[kind].append(seconds)

    def of(self, kind: str) -> float | None:
        """Return the seconds that a node takes, ``None`` where there was none yet."""
        if self._own.get(kind):
            return mean(self._own[kind])
        if kind not in self._earlier:
            seconds = [manifest["seconds"] for manifest in self.latest(kind)]
            self._earlier[kind] = median(seconds) if seconds else None
        return self._earlier[kind]

    def latest(self, kind: str) -> list[dict[str, Any]]:
        """Return the manifests of the entries of a kind that were used last."""
        keys = heapq.nlargest(LATEST, ((self.store.last_use(key) or 0.0, key) for key in keys_of(self.store, kind)))
        manifests = []
        for _, key in keys:
            try:
                manifests.append(self.store.manifest(key))
            except CorruptEntry:
                continue
        return manifests
