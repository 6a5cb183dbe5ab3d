"""How long the stages that are still to come will take, from what is known of their nodes; a guess, and called one."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping

from lrfgraph.options.finetuning import TRIAL, FinetuneOptions
from lrfgraph.run.driver import Driver
from lrfgraph.run.state import Compression, Network, methods_of
from lrfgraph.selection.recovery import MOST_TRIALS

__all__ = ["TRIALS", "later", "trials_of"]

TRIALS = 8
"""Configurations that a search measures, about."""

WORTH = 0.8
"""Share of the ranks asked for that are candidates: others come to the same rank, or save nothing."""

OTHER_SHARES = 3
"""Shares that pruning may leave and that are tried beside the best one, about."""

LIGHT = frozenset({"evaluate", "export", "ranks", "rebuild", "select"})
"""Kinds of nodes that take little beside the others, so that not to know them is no harm."""

TRAINING = 3.0
"""A training step, forward and backward, in passes forward."""


def later(driver: Driver, compression: Compression, stages: Collection[str]) -> tuple[float, bool]:
    """Return the seconds that stages which have not begun will take, and whether all of them could be told."""
    network, seconds, known = compression.network, 0.0, True
    for stage in stages:
        for kind, count in COUNTS.get(stage, _nothing)(network).items():
            each = _training(driver, compression) if kind == "finetune" else driver.pace(kind)
            known &= each is not None or not count or kind in LIGHT
            seconds += count * (each or 0.0)
    return seconds, known


def trials_of(network: Network) -> int:
    """Return how many configurations the search measures, about."""
    return network.recipe.select.points if network.policy.name == "pareto" else TRIALS


def _training(driver: Driver, compression: Compression) -> float | None:
    """Like the last training of this network, else by what the original took for the validation images."""
    network, options = compression.network, compression.network.recipe.finetune
    if network.data is None:
        return None
    parts = driver.data(network.data)["parts"]
    images = math.prod(options.length(parts["train"]["images"]))
    most = math.inf if options.minutes is None else 60 * options.minutes
    for manifest in driver.costs.latest("finetune"):
        components = manifest["components"]
        if components["inputs"]["teacher"] == compression.original.digest:
            last = FinetuneOptions(**components["params"]["options"]).length(parts["train"]["images"])
            return min(float(manifest["seconds"]) * images / max(math.prod(last), 1), most)
    if compression.baseline is None:
        return None
    forward = driver.store.manifest(compression.baseline.key)["seconds"] / max(parts["validation"]["images"], 1)
    return min(float(TRAINING * forward * images), most)


def _nothing(network: Network) -> dict[str, float]:
    return {}


def _pairs(network: Network) -> int:
    return sum(len(methods_of(layer, network.recipe)) for layer in network.factorizable())


def _explore(network: Network) -> dict[str, float]:
    layers, pairs = len(list(network.factorizable())), _pairs(network)
    images = layers if network.recipe.data.source is not None else 0
    return {"record": images, "curvature": images, "decompose": pairs, "ranks": pairs}


def _candidates(network: Network) -> dict[str, float]:
    count = WORTH * network.recipe.explore.ranks * _pairs(network)
    return {"factorize": count, "score": count}


def _configuration(network: Network) -> dict[str, float]:
    """Rebuild one, repaired where that is asked for."""
    return {"repair": len(list(network.factorizable())) if network.repairs else 0, "rebuild": 1}


def _select(network: Network) -> dict[str, float]:
    if network.policy.search is None:
        return {"select": 1}
    tries = trials_of(network) + network.recipe.select.refine
    each = {**_configuration(network), "evaluate": 1, "select": 1}
    trials = MOST_TRIALS * TRIAL if network.policy.trials and network.finetunes else 0
    return {"finetune": trials} | {kind: tries * count for kind, count in each.items()}


def _rebuild(network: Network) -> dict[str, float]:
    return {"rebuild": 1} if network.policy.search is not None else _configuration(network)


def _finish(network: Network) -> dict[str, float]:
    return {"finetune": int(network.finetunes), "export": 1}


def _probe(network: Network) -> dict[str, float]:
    return {"probe": network.probes(network.recipe.data.calibration) * len(list(network.factorizable()))}


def _train(network: Network) -> dict[str, float]:
    options, layers = network.recipe.dprp, len(list(network.factorizable()))
    return {"record": layers * options.weighs, "curvature": layers * options.weighs, "epoch": options.epochs}


def _prune(network: Network) -> Mapping[str, float]:
    """Where several shares are tried, what follows is carried out for each; for the best one it is counted there."""
    counts: dict[str, float] = {}
    if network.recipe.prune.searches:
        for count in (_explore, _candidates, _probe, _select, _rebuild):
            for kind, number in count(network).items():
                counts[kind] = counts.get(kind, 0.0) + OTHER_SHARES * number
    return counts


COUNTS: Mapping[str, Callable[[Network], Mapping[str, float]]] = {
    "prune": _prune,
    "train": _train,
    "explore": _explore,
    "candidates": _candidates,
    "probe": _probe,
    "select": _select,
    "rebuild": _rebuild,
    "finish": _finish,
    "evaluate": lambda network: {"evaluate": 4 if network.data is not None else 0},
}
"""By stage, how many nodes of which kind it computes, about."""
