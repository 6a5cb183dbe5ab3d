"""What a score of channels is handed, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lrfgraph.layers.spec import Array
from lrfgraph.pruning.channels import Numbers

__all__ = ["Filters", "Ranking", "Reader", "Score", "Writer", "by_norm"]


@dataclass(frozen=True)
class Writer:
    """A layer that writes channels of a group.  kernel : (groups, *spatial, inputs, outputs).  numbers : of its
    outputs, (groups, outputs)."""

    kernel: Array
    numbers: Numbers

    def filters(self) -> Array:
        """Return its filters, one row for each output, in the order of `numbers` laid flat."""
        return np.moveaxis(self.kernel, -1, 1).reshape(self.numbers.size, -1)


@dataclass(frozen=True)
class Reader:
    """A layer whose sums read channels of a group.

    matrix : (groups, width, outputs), the left factor's rows first.  numbers : (groups, width), the channel that each
    row belongs to.  moments : (groups, width, width), mean of x xᵀ of its inputs.  scale : what an error of its output
    counts, as (groups, outputs, k): the loss is the squared norm of the error times it.  constant : whether the last
    row is that of the constant 1, which stays.
    """

    matrix: Array
    numbers: Numbers
    moments: Array
    scale: Array
    constant: bool


@dataclass(frozen=True)
class Filters:
    """All that a score may read of a group of channels."""

    channels: tuple[int, ...]
    writers: tuple[Writer, ...]
    readers: tuple[Reader, ...] = ()


@dataclass(frozen=True)
class Ranking:
    """Channels in the order in which they should go, and the loss once the first 1, 2, … of them are gone."""

    order: tuple[int, ...]
    losses: tuple[float, ...]


@dataclass(frozen=True)
class Score:
    """One way to tell which channels matter least.

    reads : whether it looks at the layers that read the channels, on recorded activations.  predicts : whether its
    losses are those of the network's output, and can be compared between groups.
    """

    name: str
    version: int
    help: str
    rank: Callable[[Filters], Ranking]
    reads: bool = False
    predicts: bool = False


def by_norm(filters: Filters, importance: Callable[[Array], Array]) -> Ranking:
    """Rank channels by the mean over all layers that write them of a filter's importance, as a share of its layer's."""
    total = dict.fromkeys(filters.channels, 0.0)
    for writer in filters.writers:
        values = importance(writer.filters())
        values = values / max(float(values.sum()), 1e-30)
        for number, value in zip(writer.numbers.ravel().tolist(), values.tolist(), strict=True):
            if number in total:
                total[number] += value / len(filters.writers)
    order = sorted(filters.channels, key=lambda channel: (total[channel], channel))
    return Ranking(tuple(order), tuple(np.cumsum([total[channel] for channel in order]).tolist()))
