"""Ranks that stand out from noise: the analytic solution of empirical variational Bayesian matrix factorization."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["noise_rank"]

Array = NDArray[np.floating[Any]]


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
        strength = 0.5 * (shift + np.sqrt(np.maximum(shift**2 - 4 * alpha, 0)))
        return float(
            np.sum(noise - np.log(noise))
            + np.sum(signal - strength + np.log((strength + 1) / signal) + alpha * np.log(strength / alpha + 1))
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
