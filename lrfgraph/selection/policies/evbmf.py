"""Policy `evbmf`: a baseline that takes the ranks at which a kernel's unfoldings stand out from noise."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrfgraph.selection.bisection import has_budget, highest_within
from lrfgraph.selection.problem import Candidate, Choice, Decision, LayerChoices, Problem, keep

__all__ = ["evbmf", "noise_rank"]

Array = NDArray[np.floating[Any]]

METHODS_OF_RANK = ("tucker", "svd")
"""The methods whose ranks are those of the unfoldings (Kim et al., ICLR 2016)."""
FACTORS = tuple(float(f) for f in np.geomspace(1 / 256, 256, 193))


def evbmf(problem: Problem, options: Any) -> Decision:
    """Baseline: `tucker` and `svd` at the ranks that variational Bayes tells from noise, weights alone, at least 1.

    With `--params` or `--macs` all ranks are scaled by one factor, as large as the budget allows.
    """
    if not has_budget(options):
        return _at(problem, 1.0)
    return highest_within(problem, options, lambda factor: _at(problem, factor), FACTORS)


def _at(problem: Problem, factor: float) -> Decision:
    def choose(layer: LayerChoices) -> Choice:
        fitting = [c for c in layer.candidates if c.method in METHODS_OF_RANK]
        if not fitting or not layer.noise_ranks:
            return keep(layer, "has no candidate of the methods whose ranks evbmf finds: tucker, svd")
        wanted = [min(max(rank * factor, 1.0), full) for rank, full in layer.noise_ranks]
        if all(rank >= full for rank, (_, full) in zip(wanted, layer.noise_ranks, strict=True)):
            return keep(layer, "evbmf asks for the full rank")
        return Choice(layer.name, min(fitting, key=lambda c: (_distance(c, wanted), c.parameters, c.method)))

    return Decision(tuple(choose(layer) for layer in problem.layers))


def _distance(candidate: Candidate, wanted: list[float]) -> float:
    """How far a candidate's ranks lie from those of the inputs' and the outputs' unfolding, as a ratio."""
    ranks = [int(part) for part in candidate.rank.split("x")]
    return sum(abs(float(np.log(r / w))) for r, w in zip(ranks, wanted[-len(ranks) :], strict=True))


def noise_rank(singular: Array, rows: int, columns: int) -> int:
    """Return how many singular values of a (rows, columns) matrix stand out from noise of unknown variance.

    The analytic empirical variational Bayesian solution of Nakajima, Sugiyama, Babacan and Tomioka, Global analytic
    solution of fully-observed variational Bayesian matrix factorization, JMLR 14 (2013).

    singular : all min(rows, columns) of them, in any order.
    """
    from scipy.optimize import minimize_scalar

    low, high = sorted((rows, columns))
    squares = np.sort(np.asarray(singular, dtype=np.float64))[::-1] ** 2
    if len(squares) < 2 or squares[0] <= 0:
        return int(len(squares) > 0 and squares[0] > 0)
    alpha = low / high
    tau = 2.5129 * np.sqrt(alpha)
    edge = (1 + tau) * (1 + alpha / tau)
    squares = np.maximum(squares, 1e-14 * squares[0])

    def free_energy(log_variance: float) -> float:
        x = squares / (high * np.exp(log_variance))
        noise, signal = x[x <= edge], x[x > edge]
        shift = signal - (1 + alpha)
        kept = 0.5 * (shift + np.sqrt(np.maximum(shift**2 - 4 * alpha, 0)))
        return float(
            np.sum(noise - np.log(noise))
            + np.sum(signal - kept + np.log((kept + 1) / signal) + alpha * np.log(kept / alpha + 1))
        )

    most = max(min(int(np.ceil(low / (1 + alpha))) - 1, low) - 1, 0)
    rest = squares[min(most + 1, low - 1) :]
    bounds = np.log([max(rest[0] / (high * edge), rest.mean() / high), squares.sum() / (low * high)])
    if bounds[0] >= bounds[1]:
        bounds[0] = bounds[1] - 1.0
    # The free energy has several dips: a scan finds the right one, Brent's method its bottom.
    grid = np.linspace(bounds[0], bounds[1], 200)
    best = int(np.argmin([free_energy(g) for g in grid]))
    around = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
    variance = np.exp(minimize_scalar(free_energy, bounds=around, method="bounded").x)
    return int(np.sum(squares > high * variance * edge))
