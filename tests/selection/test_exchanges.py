"""Exchanges keep the budget, better one layer at the cost of another, and come least loss first."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrfgraph.errors import ConfigurationError
from lrfgraph.selection.exchanges import SMALLEST, Exchange, exchanges, next_exchange
from lrfgraph.selection.knapsack import solve
from lrfgraph.selection.problem import (
    Candidate,
    CandidateId,
    Choice,
    LayerChoices,
    Problem,
    predicted_loss,
    take,
    totals,
)
from tests.selection.problems import problem, taken


def loss(made: Problem, choices: tuple[Choice, ...]) -> float:
    return sum(predicted_loss(c) for c in (taken(made, choice) for choice in choices) if c)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), params=st.floats(0.3, 0.95), macs=st.sampled_from([None, 0.6, 0.9]))
def test_exchanges_keep_the_budget(seed: int, params: float, macs: float | None) -> None:
    made = problem(seed, layers=4, candidates=6)
    try:
        choices = solve(made, params, macs).choices
    except ConfigurationError:
        return
    found = exchanges(made, choices, params, macs)
    assert [e.increase for e in found] == sorted(e.increase for e in found)
    assert len({(e.up, e.down) for e in found}) == len(found)
    for one in found:
        spent = totals(made, one.choices)
        assert spent[0] <= params * made.parameters + 1e-6
        assert macs is None or spent[1] <= macs * made.macs + 1e-6
        before, after = ({c.layer: c for c in each} for each in (choices, one.choices))
        assert {name for name in before if before[name] != after[name]} == {one.up, one.down}
        better, worse = (loss(made, (before[n],)) - loss(made, (after[n],)) for n in (one.up, one.down))
        assert better > SMALLEST * loss(made, choices) >= 0 > worse
        assert one.objective == pytest.approx(loss(made, one.choices))
        assert one.increase == pytest.approx(loss(made, one.choices) - loss(made, choices), abs=1e-12)


def candidate(layer: str, rank: int, parameters: int, loss: float) -> Candidate:
    return Candidate(CandidateId(layer, "cp", str(rank)), parameters, parameters, {}, loss)


def two_layers() -> tuple[Problem, tuple[Choice, ...]]:
    layers = []
    for name in ("a", "b"):
        ladder = tuple(candidate(name, r, 10 * r, (10 - r) ** 2 / 100) for r in range(1, 10))
        layers.append(LayerChoices(name, 100, 100, ladder))
    made = Problem(tuple(layers), 200, 200)
    return made, tuple(take(layer.candidates[4]) for layer in layers)


def test_the_smallest_step_of_a_ladder_comes_first() -> None:
    found = exchanges(*two_layers(), params=0.5)
    assert [[c.rank for c in e.configuration] for e in found] == [["6", "4"], ["4", "6"]]
    assert [e.increase for e in found] == pytest.approx([0.02, 0.02])


def test_room_that_is_left_pays_in_part() -> None:
    made, choices = two_layers()
    assert all(e.increase > 0 for e in exchanges(made, choices, params=0.5))
    assert all(loss(made, e.choices) < loss(made, choices) for e in exchanges(made, choices, params=0.6))


def exchange(up: str, down: str, increase: float) -> Exchange:
    return Exchange(up, down, (take(candidate(up, 1, 1, 0)), Choice(down, reason="kept")), 1.0, increase)


def test_other_layers_have_their_turn_after_a_failure() -> None:
    made = [exchange("a", "b", 0.1), exchange("a", "c", 0.2), exchange("c", "d", 0.3)]
    made[1] = Exchange("a", "c", (take(candidate("c", 1, 1, 0)),), 1.0, 0.2)
    made[2] = Exchange("c", "d", made[2].choices * 2, 1.0, 0.3)
    assert next_exchange(made, (), {}) == made[0]
    failed = {("a", "up"): 1, ("b", "down"): 1}
    assert next_exchange(made, {made[0].configuration}, failed) == made[2]
    assert next_exchange(made, {one.configuration for one in made}, failed) is None
    assert next_exchange([], (), {}) is None
