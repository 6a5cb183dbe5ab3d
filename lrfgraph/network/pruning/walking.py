"""A walk over a network that numbers the channels of every value: which positions go together, and in which weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lrfgraph.network.counting import Shape, operation_macs, static_shapes
from lrfgraph.network.graph import Call, Graph, flatten
from lrfgraph.pruning.channels import Channels, Dependencies, Group, Kernel, Numbers, Weight

__all__ = ["Axes", "Rule", "Setting", "Walk", "walk"]

Axes = dict[int, Numbers]
"""Channel numbers of the axes of a value that have any, batch axis 0."""


@dataclass(frozen=True)
class Setting:
    """An entry of a layer's configuration that says how many channels an axis has.

    index : place within the entry, where it is a tuple.
    """

    key: str
    index: int | None
    numbers: Numbers


class Walk:
    """The channel numbers of a network's values, as far as the walk has come; rules read and write them."""

    def __init__(self, graph: Graph, shapes: Mapping[int, Shape]) -> None:
        self.graph, self.shapes = graph, shapes
        self.channels = Channels()
        self.axes: dict[int, Axes] = {}
        self.settings: dict[int, list[Setting]] = {}
        self.kernels: dict[int, Kernel] = {}
        self._weights: dict[tuple[int, int], Weight] = {}
        self._origins = dict.fromkeys(graph.inputs, "the network's input")

    def numbers(self, slot: int, axis: int) -> Numbers:
        """Return the channel numbers of an axis; one that nothing is known of gets numbers that stay."""
        axes = self.axes.setdefault(slot, {})
        if axis not in axes:
            axes[axis] = self.channels.new(self.shapes[slot][axis])
            self.channels.keep(axes[axis], f"goes with {self._origins.get(slot, 'values')} that stays as it is")
        return axes[axis]

    def known(self, slot: int) -> Axes:
        """Return the axes of a value that have channel numbers."""
        return dict(self.axes.get(slot, {}))

    def write(self, call: Call, axes: Axes) -> None:
        """Give a call's only output its channel numbers."""
        slot = call.outputs[0]
        if any(len(numbers) != self.shapes[slot][axis] for axis, numbers in axes.items()):
            raise AssertionError(f"{call.path}: {self.shapes[slot]} does not have the channels it should")
        self.axes[slot] = axes

    def keep(self, call: Call, reason: str, only: Callable[[int], bool] = lambda axis: True) -> None:
        """Let the channels on some axes of a call's inputs stay."""
        for slot in call.inputs:
            for axis, numbers in self.known(slot).items():
                if only(axis):
                    self.channels.keep(numbers, f"{call.path}: {reason}")

    def follow_not(self, call: Call, why: str) -> None:
        """Come to an operation that no rule follows: what goes in stays, and so does what comes out."""
        self.keep(call, why)
        self._origins |= dict.fromkeys(call.outputs, f"the output of {call.path}")

    def carry(self, call: Call, variable: Any, axes: Axes, multiplies: int = 0) -> None:
        """Say which channels the axes of a layer's variable have.

        multiplies : MACs of this call that its entries account for.
        """
        operation = call.operation
        number = next(i for i, other in enumerate(operation.weights) if other is variable)
        shape, key = tuple(variable.shape), (id(operation), number)
        axes = {axis % len(shape): numbers for axis, numbers in axes.items()}
        earlier = self._weights.get(key)
        if earlier is not None:
            for axis, numbers in axes.items():
                self.channels.join(earlier.axes[axis], numbers)
        macs = multiplies + (earlier.macs if earlier else 0)
        self._weights[key] = Weight(call.path, number, shape, earlier.axes if earlier else axes, macs)

    def set(self, call: Call, key: str, numbers: Numbers, index: int | None = None) -> None:
        """Say which entry of an operation's configuration is the number of these channels."""
        self.settings.setdefault(id(call.operation), []).append(Setting(key, index, numbers))

    def weights(self, operation: Any) -> dict[int, Weight]:
        """Return the variables of an operation that carry channels, by their number."""
        return {number: weight for (key, number), weight in self._weights.items() if key == id(operation)}

    def macs(self, call: Call) -> int:
        """Return the MACs of one call, 0 where they are not known."""
        return operation_macs(call, self.shapes) or 0

    # What the walk comes to ------------------------------------------------------------------------------------------

    def dependencies(self, parameters: int) -> Dependencies:
        """Return all that was found, with one number for each channel."""
        roots = self.channels.roots
        kernels = tuple(
            Kernel(kernel.layer, None if kernel.inputs is None else roots(kernel.inputs), roots(kernel.outputs))
            for kernel in self.kernels.values()
        )
        weights = tuple(
            Weight(w.layer, w.number, w.shape, {axis: roots(numbers) for axis, numbers in w.axes.items()}, w.macs)
            for w in self._weights.values()
        )
        macs = sum(self.macs(call) for call in self.graph.calls)
        return Dependencies(self._groups(kernels), self._kept(kernels), kernels, weights, parameters, macs)

    def _groups(self, kernels: tuple[Kernel, ...]) -> tuple[Group, ...]:
        """Channels that the same layers write are a group; those that stay are in none."""
        writers: dict[int, list[str]] = {}
        readers: dict[int, list[str]] = {}
        for kernel in kernels:
            for number in np.unique(kernel.outputs).tolist():
                writers.setdefault(number, []).append(kernel.layer)
            for number in () if kernel.inputs is None else np.unique(kernel.inputs).tolist():
                readers.setdefault(number, []).append(kernel.layer)
        members: dict[tuple[str, ...], list[int]] = {}
        for number, written in writers.items():
            if not self.channels.reason_of(number):
                members.setdefault(tuple(written), []).append(number)
        groups: list[Group] = []
        names: set[str] = set()
        for layers, numbers in members.items():
            name = next(name for name in (layers[0], *(f"{layers[0]}#{i}" for i in range(2, 999))) if name not in names)
            names.add(name)
            reading = dict.fromkeys(reader for number in numbers for reader in readers.get(number, ()))
            notes = (self.channels.note_of(number) for number in numbers)
            groups.append(Group(name, layers, tuple(reading), tuple(numbers), next(filter(None, notes), "")))
        return tuple(groups)

    def _kept(self, kernels: tuple[Kernel, ...]) -> dict[str, str]:
        kept = {}
        for kernel in kernels:
            reasons = (self.channels.reason_of(number) for number in np.unique(kernel.outputs).tolist())
            reason = next(filter(None, reasons), "")
            if reason:
                kept[kernel.layer] = reason
        return kept


Rule = Callable[[Walk, Call], None]


def walk(model: Any, image_shape: Shape | None = None) -> Walk:
    """Number the channels of a Functional or Sequential model.

    image_shape : without the batch axis, for a model that takes any size.
    """
    from lrfgraph.network.pruning.rules import rule_of

    graph = flatten(model)
    done = Walk(graph, static_shapes(graph, model, image_shape))
    for call in graph.calls:
        rule, why = rule_of(call)
        if rule is None:
            done.follow_not(call, why)
        else:
            rule(done, call)
    for slot in graph.outputs:
        for numbers in done.known(slot).values():
            done.channels.keep(numbers, "leaves the network", above_all=True)
    return done
