"""Which ranks are worth computing: every one fits its budget, is the best that does, and is a rank that there is."""

from __future__ import annotations

from math import prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrfgraph.layers.pieces import cost, layer_cost
from lrfgraph.layers.spec import Array, LayerSpec
from lrfgraph.methods import METHODS
from lrfgraph.methods.grid import budgets, by_truncation, tails, worthwhile
from tests.methods.examples import LAYERS, layer

MODES = st.lists(st.integers(1, 5), min_size=2, max_size=4)


def unfoldings(modes: list[int], seed: int) -> list[Array]:
    """The tails of all unfoldings of a random tensor whose entries decay."""
    rng = np.random.default_rng(seed)
    tensor = rng.normal(size=modes)
    for axis, size in enumerate(modes):
        tensor = np.moveaxis(np.moveaxis(tensor, axis, -1) * 0.4 ** np.arange(size), -1, axis)
    cuts = [tensor.reshape(prod(modes[:cut]), -1) for cut in range(1, len(modes))]
    return [tails(np.linalg.svd(cut, compute_uv=False) ** 2) for cut in cuts]


def size(modes: list[int], rank: tuple[int, ...]) -> int:
    bonds = (1, *rank, 1)
    return sum(a * n * b for a, n, b in zip(bonds[:-1], modes, bonds[1:], strict=True))


@settings(max_examples=100, deadline=None)
@given(modes=MODES, seed=st.integers(0, 999), groups=st.integers(1, 3), share=st.floats(0.05, 1.5))
def test_trains_fit_their_budget_and_no_bond_is_wider_than_its_neighbours_allow(
    modes: list[int], seed: int, groups: int, share: float
) -> None:
    lost = unfoldings(modes, seed)
    limit = int(share * groups * prod(modes))
    ranks = by_truncation(modes, lost, [limit], groups)
    smallest = groups * sum(modes)
    assert len(ranks) == (smallest <= limit)
    for rank in ranks:
        assert groups * size(modes, rank) <= limit
        bonds = (1, *rank, 1)
        for left, mode, right in zip(bonds[:-1], modes, bonds[1:], strict=True):
            assert 1 <= right <= left * mode
            assert left <= mode * right
    whole = tuple(min(prod(modes[:cut]), prod(modes[cut:])) for cut in range(1, len(modes)))
    assert by_truncation(modes, lost, [groups * size(modes, whole)], groups) == [whole]


def test_bonds_are_cut_from_both_ends() -> None:
    """A tail that never falls asks for every rank; the modes before and after a bond limit it."""
    flat = np.array([9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0, 0.5])
    assert by_truncation([2, 2, 9], [flat, flat], [10_000]) == [(2, 4)]
    assert by_truncation([9, 2, 2], [flat, flat], [10_000]) == [(4, 2)]
    assert by_truncation([9, 2, 2, 9], [flat, flat, flat], [10_000]) == [(9, 9, 9)]
    assert by_truncation([9, 1, 1, 2], [flat, flat, flat], [10_000]) == [(2, 2, 2)]


def test_one_tolerance_for_all_unfoldings() -> None:
    """What is lost at a rank is compared across unfoldings, so the flatter one keeps more."""
    steep, flat = np.array([1.0, 0.01, 0.001, 0.0]), np.array([1.0, 0.9, 0.8, 0.0])
    (rank,) = by_truncation([3, 9, 3], [steep, flat], [3 + 27 + 9])
    assert rank == (1, 3)


def test_ranks_grow_with_the_budget() -> None:
    modes = [4, 6, 5]
    lost = unfoldings(modes, 0)
    ranks = by_truncation(modes, lost, list(range(15, 200, 5)))
    sizes = [size(modes, rank) for rank in ranks]
    assert sizes == sorted(sizes)
    assert len(set(ranks)) == 8


def test_what_is_lost_at_a_rank_is_the_sum_of_the_rest_over_groups() -> None:
    energy = np.array([[4.0, 2.0, 1.0], [8.0, 0.5, 0.25]])
    assert tails(energy).tolist() == [15.75, 3.75, 1.25, 0.0]
    assert tails(energy[0]).tolist() == [7.0, 3.0, 1.0, 0.0]


@pytest.mark.parametrize("spec", LAYERS, ids=lambda spec: spec.name)
def test_a_share_buys_whole_parameters(spec: LayerSpec) -> None:
    weights = spec.weights
    assert budgets(spec, [1.0, 0.5, 1 / weights, 0.9999 / weights]) == [weights, weights // 2, 1, 0]
    assert budgets(spec, [k / weights for k in range(1, weights)]) == list(range(1, weights))


def test_a_rank_that_saves_nothing_is_dropped_and_none_comes_twice() -> None:
    spec, tucker = layer("conv2d", (1, 3, 3, 12, 16)), METHODS["tucker"]
    assert worthwhile(tucker, spec, [(4, 4), (12, 16), (8, 8), (4, 4)]) == [(4, 4), (8, 8)]


def test_a_rank_that_saves_either_is_worthwhile() -> None:
    """The first factor of a strided layer works on the whole input: fewer parameters, more MACs."""
    spec, tucker = layer("conv2d", (1, 3, 3, 64, 64), size=90, stride=9), METHODS["tucker"]
    whole, chain = layer_cost(spec), cost(spec, tucker.pieces(spec, (8, 8)))
    assert chain.parameters < whole.parameters
    assert chain.macs > whole.macs
    assert worthwhile(tucker, spec, [(8, 8)]) == [(8, 8)]


def test_a_tenth_of_the_parameters_for_nine_times_the_macs_is_no_compression() -> None:
    """Products of the shares: 0.90 of the parameters for 8.4 times the MACs, and 0.96 for 8.7 times."""
    spec = layer("conv2d", (1, 3, 3, 64, 64), size=90, stride=9)
    assert worthwhile(METHODS["tucker"], spec, [(54, 54), (56, 56)]) == [(54, 54)]
