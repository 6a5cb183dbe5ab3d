"""What stands out from noise: singular values above the threshold of the paper, of any shape, number and scale."""

from __future__ import annotations

import numpy as np
import pytest

from lrfgraph.selection.noise import noise_rank

SHAPES = [(60, 200), (100, 100), (40, 400), (150, 160)]


def threshold(rows: int, columns: int) -> float:
    """The least singular value that is told from noise of variance 1 (Nakajima et al. 2013, theorem 2)."""
    low, high = sorted((rows, columns))
    ratio = low / high
    tau = 2.5129 * np.sqrt(ratio)
    return float(np.sqrt(high * (1 + tau) * (1 + ratio / tau)))


def planted(shape: tuple[int, int], count: int, factor: float) -> np.ndarray:
    """Singular values of noise of variance 1 and, in other directions, of some values at a share of the threshold."""
    rng = np.random.default_rng(1)
    left, right = (np.linalg.qr(rng.normal(size=(size, count)))[0] for size in shape)
    noise = rng.normal(size=shape)
    noise -= left @ (left.T @ noise)
    noise -= (noise @ right) @ right.T
    return np.linalg.svd(noise + factor * threshold(*shape) * left @ right.T, compute_uv=False)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("count", "factor", "rank"),
    [(1, 0.9, 0), (1, 1.05, 1), (5, 0.9, 0), (5, 1.05, 5), (5, 2.0, 5), (15, 0.9, 0), (15, 2.0, 15)],
)
def test_what_is_above_the_threshold_stands_out(shape: tuple[int, int], count: int, factor: float, rank: int) -> None:
    singular = planted(shape, count, factor)
    for scale in (1e-6, 1.0, 1e6):
        assert noise_rank(scale * singular, *shape) == rank
    assert noise_rank(singular[::-1], *shape[::-1]) == rank


def test_a_matrix_without_noise_has_its_rank() -> None:
    assert noise_rank(np.r_[[3.0, 2.0, 1.0], np.zeros(37)], 40, 60) == 3
    assert noise_rank(np.zeros(0), 0, 9) == 0
