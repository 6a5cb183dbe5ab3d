"""How ranks shrink while a network is trained: the course of the epochs, and which ranks go at the end of each; pure.

Our reading of DPRP (arXiv 2401.08014; METHODS §6). What an epoch does depends on the epochs before it and on its own
rate and share: a longer training, or one with a smaller target, goes on from where a shorter one differs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lrfgraph.layers.pieces import Cost, cost, layer_cost
from lrfgraph.layers.spec import Array, LayerSpec
from lrfgraph.methods import METHODS
from lrfgraph.methods.base import write_rank
from lrfgraph.options.dprp import DprpOptions
from lrfgraph.selection.knapsack import solve
from lrfgraph.selection.problem import Candidate, CandidateId, LayerChoices, Problem

__all__ = ["RULES", "Form", "course", "least_cost", "next_forms", "next_weight", "pace_of", "size_of", "tail_of"]

FIRST_RATE = 0.1
"""Part of the learning rate that the first step has; it grows during the first epoch."""

RULES = ("energy", "fisher")


@dataclass(frozen=True)
class Form:
    """What a layer is at some epoch: its matricization by a method, and the rank of its matrix.

    dense : whether it still runs as the layer it was; its rank then counts as full.
    """

    layer: LayerSpec
    method: str
    rank: int
    dense: bool = True

    @property
    def cost(self) -> Cost:
        return layer_cost(self.layer) if self.dense else self.cost_at(self.rank)

    def cost_at(self, rank: int) -> Cost:
        """What the layer costs as two factors of this rank."""
        return cost(self.layer, METHODS[self.method].pieces(self.layer, (rank,)))

    def saves_at(self, rank: int) -> bool:
        """Whether two factors of this rank cost less than the layer in one respect, and in none more."""
        factors, whole = self.cost_at(rank), layer_cost(self.layer)
        return factors.parameters < whole.parameters and factors.macs <= whole.macs


# The course ---------------------------------------------------------------------------------------------------------


def course(options: DprpOptions) -> list[dict[str, Any]]:
    """Return what each epoch reads of the course: learning rates at its ends, and what is left at its end.

    The network loses `pace` an epoch until the target is reached; without a target, ranks shrink by `tolerance` until
    the learning rate falls. It is constant until the last `cooldown` epochs, in which it falls to 0 on a line.
    """
    targets = {name: getattr(options, name) for name in ("params", "macs") if getattr(options, name) is not None}
    cooldown = min(options.cooldown, options.epochs // 2)
    pace = pace_of(options)
    epochs = []
    for number in range(options.epochs):
        epoch: dict[str, Any] = {"number": number + 1}
        epoch["rates"] = [_rate(options, place, cooldown) for place in (number, number + 1)]
        if targets:
            left = {name: max(share, round(1 - pace * (number + 1), 9)) for name, share in targets.items()}
            before = 1 - pace * number
            epoch["left"] = left if any(before > share + 1e-9 for share in targets.values()) else None
            epoch["shrinks"] = epoch["left"] is not None
        else:
            epoch["left"], epoch["shrinks"] = None, number < max(options.epochs - cooldown, 1)
        epochs.append(epoch)
    return epochs


def pace_of(options: DprpOptions) -> float:
    """Return the share of the network that an epoch removes: `pace`, or more where half of the epochs are too few."""
    targets = [share for share in (options.params, options.macs) if share is not None]
    most = max(options.epochs // 2, 1)
    away = 1 - min(targets, default=0.0)
    enough = not targets or math.ceil(away / options.pace - 1e-9) <= most
    return options.pace if enough else away / most


def _rate(options: DprpOptions, place: int, cooldown: int) -> float:
    highest = options.learning_rate or (1e-3 if options.from_scratch else 2e-4)
    if place == 0:
        return FIRST_RATE * highest
    return highest * min(1.0, (options.epochs - place) / cooldown) if cooldown else highest


# Which ranks go -----------------------------------------------------------------------------------------------------


def tail_of(importance: Array) -> Array:
    """Return for r = 0 … n the importance (g, n), largest first, of what is behind the first r."""
    total = importance.sum(axis=0)
    return np.append(np.cumsum(total[::-1])[::-1], 0.0)


def next_forms(
    forms: Sequence[Form],
    energies: Sequence[Array],
    importances: Sequence[Array],
    sizes: Mapping[str, tuple[int, int]],
    left: Mapping[str, float] | None,
    tolerance: float,
) -> tuple[list[Form], list[float]]:
    """Return every layer's next form, and the share of its energy that is cut off; ranks never grow.

    energies, importances : (groups, rank) of each layer, ordered alike: squared singular values, and what tells how
    much they matter. sizes : parameters and MACs of the network as it was and as it is. left : shares of it that may
    be left; the least important go, by one knapsack over all layers. Without it, every layer keeps the smallest rank
    that cuts off no more than `tolerance` of its importance.
    """
    if left is None:
        pairs = zip(forms, importances, strict=True)
        chosen = [_within_tolerance(form, tail_of(each), tolerance) for form, each in pairs]
    else:
        chosen = _within_budget(forms, [tail_of(each) for each in importances], sizes, left)
    lost = []
    for form, after, energy in zip(forms, chosen, energies, strict=True):
        tail = tail_of(energy)
        lost.append(float(tail[after.rank] / max(tail[0], 1e-30)) if after.rank < form.rank else 0.0)
    return chosen, lost


def _within_tolerance(form: Form, tail: Array, tolerance: float) -> Form:
    rank = max(int(np.argmax(tail <= tolerance * tail[0])), 1)
    return replace(form, rank=rank, dense=form.dense and not form.saves_at(rank))


def _within_budget(
    forms: Sequence[Form], tails: Sequence[Array], sizes: Mapping[str, tuple[int, int]], left: Mapping[str, float]
) -> list[Form]:
    layers = [_choices(str(index), form, tail) for index, (form, tail) in enumerate(zip(forms, tails, strict=True))]
    shares = {name: left[name] * was / max(now, 1) for name, (was, now) in sizes.items() if name in left}
    if all(share >= 1 for share in shares.values()):
        return list(forms)
    problem = Problem(tuple(layers), sizes["params"][1], sizes["macs"][1])
    decision = solve(problem, shares.get("params"), shares.get("macs"))
    chosen = {choice.layer: choice.id for choice in decision.choices if choice.id is not None}
    return [
        replace(form, rank=int(chosen[str(index)].rank), dense=False) if str(index) in chosen else form
        for index, form in enumerate(forms)
    ]


def _choices(name: str, form: Form, tail: Array) -> LayerChoices:
    """A layer as it is, and every smaller rank that saves something."""
    scale = max(float(tail[0]), 1e-30) * 1e-9  # of two ranks that lose nothing, the larger one
    candidates = []
    for rank in range(1, form.rank + form.dense):
        if form.saves_at(rank):
            its = form.cost_at(rank)
            loss = float(tail[rank]) + scale * (form.rank - rank + 1)
            candidates.append(
                Candidate(CandidateId(name, form.method, write_rank((rank,))), its.parameters, its.macs, {}, loss)
            )
    now = form.cost
    return LayerChoices(name, now.parameters, now.macs, tuple(candidates))


def least_cost(form: Form) -> Cost:
    """Return what a layer costs at rank 1, or as it is where that saves nothing."""
    return form.cost_at(1) if form.saves_at(1) else form.cost


def size_of(forms: Sequence[Form], parameters: int, macs: int) -> tuple[int, int]:
    """Return parameters and MACs of a network that had so many, with its layers in these forms."""
    for form in forms:
        whole, now = layer_cost(form.layer), form.cost
        parameters, macs = parameters + now.parameters - whole.parameters, macs + now.macs - whole.macs
    return parameters, macs


def next_weight(weight: float, lost: Sequence[float], shares: Sequence[float], tolerance: float) -> float:
    """Return the next epoch's weight of the rank-reduction loss.

    It grows while what has to go for the target holds more energy than the tolerance, and falls where it holds less;
    by at most a factor of 2. lost : share of its energy that each layer lost.  shares : of the layers' cost.
    """
    change = float(np.dot(lost, shares)) / max(sum(shares), 1e-30) / tolerance
    return weight * float(np.clip(change, 0.5, 2.0))
