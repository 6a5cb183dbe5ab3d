"""How many channels of each group go: an equal share of every group, or what costs least for what it saves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from lrfgraph.errors import ConfigurationError
from lrfgraph.pruning.base import Ranking
from lrfgraph.pruning.channels import Dependencies

__all__ = ["SPREADS", "Widths", "by_loss", "by_share", "uniform"]

Spread = Callable[[Dependencies, Mapping[str, Ranking], float | None, float | None], "Widths"]

STEPS = 64
"""Steps in which a group narrows, at most."""


@dataclass(frozen=True)
class Widths:
    """How many channels of each group go, by its name; they go in the order of its ranking."""

    removed: Mapping[str, int]
    parameters: int
    macs: int


class _Sizes:
    """Parameters and MACs of a network whose groups lost their first so many channels, counted once and for all."""

    def __init__(self, dependencies: Dependencies, rankings: Mapping[str, Ranking]) -> None:
        self.dependencies = dependencies
        place = {channel: (name, k) for name, r in rankings.items() for k, channel in enumerate(r.order)}
        self.weights: list[tuple[int, int, list[tuple[int, dict[str, list[int]]]]]] = []
        self.of_group: dict[str, list[int]] = {name: [] for name in rankings}
        for weight in dependencies.weights:
            axes = []
            for numbers in weight.axes.values():
                lost = {}
                for name in {place[n][0] for n in np.unique(numbers).tolist() if n in place}:
                    counts = np.zeros(len(rankings[name].order) + 1, int)
                    for number in numbers.tolist():
                        if number in place and place[number][0] == name:
                            counts[place[number][1] + 1] += 1
                    lost[name] = np.cumsum(counts).tolist()
                axes.append((len(numbers), lost))
            for name in {name for _, lost in axes for name in lost}:
                self.of_group[name].append(len(self.weights))
            self.weights.append((prod(weight.shape), weight.macs, axes))

    def _saved(self, index: int, removed: Mapping[str, int]) -> tuple[float, float]:
        size, macs, axes = self.weights[index]
        share = prod(1 - sum(each[removed[name]] for name, each in lost.items()) / length for length, lost in axes)
        return size * (1 - share), macs * (1 - share)

    def size(self, removed: Mapping[str, int]) -> tuple[int, int]:
        saved = [self._saved(index, removed) for index in range(len(self.weights))]
        parameters, macs = (sum(round(each[i]) for each in saved) for i in (0, 1))
        return self.dependencies.parameters - parameters, self.dependencies.macs - macs

    def gain(self, name: str, removed: Mapping[str, int], count: int) -> tuple[float, float]:
        """What it saves to remove `count` more of a group: parameters and MACs."""
        more = {**removed, name: removed[name] + count}
        before, after = ([self._saved(i, each) for i in self.of_group[name]] for each in (removed, more))
        return tuple(sum(a[i] - b[i] for a, b in zip(after, before, strict=True)) for i in (0, 1))  # type: ignore[return-value]


def by_share(dependencies: Dependencies, rankings: Mapping[str, Ranking], keep: float) -> Widths:
    """Keep a share of the channels of every group, at least one."""
    removed = _at_share(rankings, keep)
    return Widths(removed, *_Sizes(dependencies, rankings).size(removed))


def _at_share(rankings: Mapping[str, Ranking], keep: float) -> dict[str, int]:
    return {name: len(r.order) - max(round(keep * len(r.order)), 1) for name, r in rankings.items()}


def uniform(
    dependencies: Dependencies, rankings: Mapping[str, Ranking], params: float | None, macs: float | None
) -> Widths:
    """Keep the largest equal share of every group with which the network is within its targets; see `by_loss`."""
    sizes, limits = _Sizes(dependencies, rankings), _limits(dependencies, params, macs)
    finest = max((len(ranking.order) for ranking in rankings.values()), default=1)
    for share in np.arange(finest, -1, -1) / finest:
        removed = _at_share(rankings, float(share))
        size = sizes.size(removed)
        if all(have <= limit for have, limit in zip(size, limits, strict=True)):
            return Widths(removed, *size)
    raise _too_small(dependencies, limits, sizes.size(_at_share(rankings, 0)))


def by_loss(
    dependencies: Dependencies, rankings: Mapping[str, Ranking], params: float | None, macs: float | None
) -> Widths:
    """Narrow, step by step, the group that loses least for what it saves, until the network is within its targets.

    params, macs : shares of the network's parameters and MACs that may be kept.  Raises ConfigurationError where even
    one channel a group is too many.
    """
    sizes, limits = _Sizes(dependencies, rankings), _limits(dependencies, params, macs)
    removed = dict.fromkeys(rankings, 0)
    steps = {name: -(-len(r.order) // STEPS) for name, r in rankings.items()}
    least = sizes.size(_at_share(rankings, 0))
    if any(have > limit for have, limit in zip(least, limits, strict=True)):
        raise _too_small(dependencies, limits, least)
    size: Sequence[float] = dependencies.parameters, dependencies.macs
    while any(have > limit for have, limit in zip(size, limits, strict=True)):
        over = [max(have - limit, 0.0) for have, limit in zip(size, limits, strict=True)]
        name = min(rankings, key=lambda name: _price(rankings[name], removed, name, steps[name], sizes, over))
        removed[name] += min(steps[name], len(rankings[name].order) - 1 - removed[name])
        size = sizes.size(removed)
    return Widths(removed, *sizes.size(removed))


def _price(
    ranking: Ranking, removed: Mapping[str, int], name: str, step: int, sizes: _Sizes, over: Sequence[float]
) -> float:
    """The loss of a step for each part of what is still too much that it saves."""
    count = min(step, len(ranking.order) - 1 - removed[name])
    if count < 1:
        return float("inf")
    losses = (0.0, *ranking.losses)
    lost = losses[removed[name] + count] - losses[removed[name]]
    gains = sizes.gain(name, removed, count)
    saved = sum(min(gain / most, 1.0) for gain, most in zip(gains, over, strict=True) if most > 0)
    return max(lost, 0.0) / saved if saved > 0 else float("1e300")


def _limits(dependencies: Dependencies, params: float | None, macs: float | None) -> tuple[float, float]:
    total = dependencies.parameters, dependencies.macs
    first, second = (
        share * all_ if share is not None else float("inf") for share, all_ in zip((params, macs), total, strict=True)
    )
    return first, second


def _too_small(dependencies: Dependencies, limits: Sequence[float], least: Sequence[int]) -> ConfigurationError:
    total = dependencies.parameters, dependencies.macs
    shares = [
        f"{most / whole:.1%} of the {name}, received {limit / whole:.1%}"
        for name, most, limit, whole in zip(("parameters", "MACs"), least, limits, total, strict=True)
        if most > limit
    ]
    return ConfigurationError(
        f"one channel a group is the least that can be kept, which is {' and '.join(shares)}; ask for more"
    )


SPREADS: dict[str, Spread] = {"loss": by_loss, "uniform": uniform}
"""Ways to spread what is to go over the groups: where it loses least, or an equal share of each."""
