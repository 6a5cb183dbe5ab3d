"""Channels that can only be removed together, and what removing them costs and saves (NumPy only).

Every channel axis of a network carries one number a position. Positions with one number are one channel: the same
values, or values that are added to it. Numbers are joined while the network is walked (`Channels`); what is known at
its end is plain data (`Dependencies`), the dependency groups of Fang et al., DepGraph, CVPR 2023.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Channels", "Dependencies", "Group", "Kernel", "Numbers", "Weight"]

Numbers = NDArray[np.int64]
"""Channel numbers, one for each position of an axis."""


class Channels:
    """Channel numbers under construction: made, joined, and kept with a reason (a disjoint-set forest)."""

    def __init__(self) -> None:
        self._parents: list[int] = []
        self._reasons: dict[int, str] = {}
        self._notes: dict[int, str] = {}

    def new(self, count: int) -> Numbers:
        """Return numbers that no position has yet."""
        start = len(self._parents)
        self._parents.extend(range(start, start + count))
        return np.arange(start, start + count, dtype=np.int64)

    def join(self, one: Numbers, other: Numbers) -> None:
        """Let positions of two axes of one length be removed together only."""
        for a, b in zip(one.ravel().tolist(), other.ravel().tolist(), strict=True):
            first, second = sorted((self._root(a), self._root(b)))
            if first != second:
                self._parents[second] = first
                for texts in (self._reasons, self._notes):
                    if second in texts:
                        texts.setdefault(first, texts.pop(second))

    def keep(self, numbers: Numbers, reason: str, above_all: bool = False) -> None:
        """Let channels stay whatever their score; the first reason is told, or one that stands above all."""
        for number in dict.fromkeys(numbers.ravel().tolist()):
            if above_all:
                self._reasons[self._root(number)] = reason
            else:
                self._reasons.setdefault(self._root(number), reason)

    def note(self, numbers: Numbers, note: str) -> None:
        """Say what the removal of channels changes beside their own values."""
        for number in dict.fromkeys(numbers.ravel().tolist()):
            self._notes.setdefault(self._root(number), note)

    def roots(self, numbers: Numbers) -> Numbers:
        """Return the number that stands for each channel."""
        flat = [self._root(number) for number in numbers.ravel().tolist()]
        return np.array(flat, dtype=np.int64).reshape(numbers.shape)

    def reason_of(self, number: int) -> str:
        """Return why a channel stays, or ``""``."""
        return self._reasons.get(self._root(number), "")

    def note_of(self, number: int) -> str:
        """Return what its removal changes beside its own values, or ``""``."""
        return self._notes.get(self._root(number), "")

    def _root(self, number: int) -> int:
        while self._parents[number] != number:
            self._parents[number] = self._parents[self._parents[number]]
            number = self._parents[number]
        return number


@dataclass(frozen=True)
class Weight:
    """A variable of a layer: which of its axes carry channels, and the MACs that its entries account for."""

    layer: str
    number: int
    shape: tuple[int, ...]
    axes: Mapping[int, Numbers]
    macs: int = 0

    def share(self, removed: Collection[int]) -> float:
        """Return the share of its entries that is left."""
        kept = [np.count_nonzero(~np.isin(numbers, list(removed))) / len(numbers) for numbers in self.axes.values()]
        return prod(kept)


@dataclass(frozen=True)
class Kernel:
    """The channels that a layer's kernel reads and writes, in canonical order.

    inputs : (groups, inputs), ``None`` where every channel is filtered for itself and nothing is summed.
    outputs : (groups, outputs).
    """

    layer: str
    inputs: Numbers | None
    outputs: Numbers


@dataclass(frozen=True)
class Group:
    """Channels that the same layers write.

    layers : those that write them.  readers : those whose sums read them.  channels : one number each; all its
    positions in all layers go together.  note : what removing them changes beside their own values, or ``""``.
    """

    name: str
    layers: tuple[str, ...]
    readers: tuple[str, ...]
    channels: tuple[int, ...]
    note: str = ""


@dataclass(frozen=True)
class Dependencies:
    """All that choosing channels needs of a network.

    kept : layers that write channels which stay whatever their score, and why.  parameters, macs : of the network.
    """

    groups: tuple[Group, ...]
    kept: Mapping[str, str]
    kernels: tuple[Kernel, ...]
    weights: tuple[Weight, ...]
    parameters: int
    macs: int

    def size(self, removed: Iterable[int]) -> tuple[int, int]:
        """Return parameters and MACs without some channels."""
        gone = set(removed)
        parameters, macs = self.parameters, self.macs
        for weight in self.weights:
            lost = 1 - weight.share(gone)
            parameters -= round(prod(weight.shape) * lost)
            macs -= round(weight.macs * lost)
        return parameters, macs

    def to_data(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """Return it as JSON and arrays, which `from_data` reads back."""
        arrays: dict[str, NDArray[Any]] = {}
        for index, kernel in enumerate(self.kernels):
            arrays[f"kernels/{index}/outputs"] = kernel.outputs
            if kernel.inputs is not None:
                arrays[f"kernels/{index}/inputs"] = kernel.inputs
        for index, weight in enumerate(self.weights):
            arrays |= {f"weights/{index}/{axis}": numbers for axis, numbers in weight.axes.items()}
        data = {
            "groups": [
                [g.name, list(g.layers), list(g.readers), [int(c) for c in g.channels], g.note] for g in self.groups
            ],
            "kept": dict(self.kept),
            "kernels": [[kernel.layer, kernel.inputs is not None] for kernel in self.kernels],
            "weights": [[w.layer, w.number, list(w.shape), sorted(w.axes), w.macs] for w in self.weights],
            "size": [self.parameters, self.macs],
        }
        return data, arrays

    @classmethod
    def from_data(cls, data: Mapping[str, Any], array: Any) -> Dependencies:
        """Read what `to_data` wrote; `array` gives an array by its name."""
        groups = (Group(n, tuple(w), tuple(r), tuple(c), note) for n, w, r, c, note in data["groups"])
        kernels = (
            Kernel(layer, array(f"kernels/{i}/inputs") if reads else None, array(f"kernels/{i}/outputs"))
            for i, (layer, reads) in enumerate(data["kernels"])
        )
        weights = (
            Weight(layer, number, tuple(shape), {axis: array(f"weights/{i}/{axis}") for axis in axes}, macs)
            for i, (layer, number, shape, axes, macs) in enumerate(data["weights"])
        )
        return cls(tuple(groups), data["kept"], tuple(kernels), tuple(weights), *data["size"])
