"""What a decision is made of: it is read back as written, its totals add up, and what is beaten is told apart."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lrfgraph.errors import ConfigurationError
from lrfgraph.selection.knapsack import choice_of, solve, undominated
from lrfgraph.selection.problem import (
    Candidate,
    CandidateId,
    Choice,
    Decision,
    LayerChoices,
    Problem,
    candidate_cost,
    keep,
    predicted_loss,
    require,
    take,
    totals,
    undominated_rows,
)
from tests.selection.problems import problem, taken


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), share=st.floats(0.4, 1.0))
def test_a_decision_is_read_back_as_written(seed: int, share: float) -> None:
    try:
        decision = solve(problem(seed), share, None).noted(more="to say")
    except ConfigurationError:
        return
    again = Decision.from_json(json.loads(json.dumps(decision.to_json())))
    assert again == decision
    assert again.notes["more"] == "to say"
    assert {"objective", "bound", "gap"} <= again.notes.keys()
    assert again.configuration == tuple(choice.id for choice in decision.choices if choice.id is not None)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), picks=st.lists(st.integers(0, 4), min_size=3, max_size=3))
def test_totals_are_the_network_less_what_was_replaced(seed: int, picks: list[int]) -> None:
    made = problem(seed)
    choices = [
        take(layer.candidates[pick - 1]) if 0 < pick <= len(layer.candidates) else keep(layer, "kept")
        for layer, pick in zip(made.layers, picks, strict=True)
    ]
    parameters, macs = made.parameters, made.macs
    for choice, layer in zip(choices, made.layers, strict=True):
        candidate = taken(made, choice)
        if candidate:
            parameters += candidate.parameters - layer.parameters
            macs += candidate.macs - layer.macs
    assert totals(made, choices) == (parameters, macs)
    assert (Decision.of("p", made, choices).parameters, Decision.of("p", made, choices).macs) == (parameters, macs)


@settings(max_examples=100, deadline=None)
@given(
    points=hnp.arrays(np.float64, st.tuples(st.integers(0, 12), st.just(3)), elements=st.sampled_from([0.0, 1, 2, 3]))
)
def test_undominated_rows_are_those_that_no_other_matches_or_beats(points: np.ndarray) -> None:
    alive = undominated_rows(points)
    assert alive == sorted(set(alive))
    for one in alive:
        assert not any(np.all(points[other] <= points[one]) for other in alive if other != one)
    for lost in set(range(len(points))) - set(alive):
        assert any(np.all(points[one] <= points[lost]) for one in alive)


def candidate(parameters: int, macs: int, predicted: float | None = None) -> Candidate:
    return Candidate(CandidateId("a", "cp", "1"), parameters, macs, {}, 0.25, 0.5, predicted)


def test_the_mix_weighs_shares_of_the_network() -> None:
    made = Problem((), 1000, 200)
    assert candidate_cost("parameters", 0.5, made)(candidate(100, 50)) == 100
    assert candidate_cost("macs", 0.5, made)(candidate(100, 50)) == 50
    assert candidate_cost("mix", 0.25, made)(candidate(100, 50)) == pytest.approx(0.25 * 0.1 + 0.75 * 0.25)
    assert candidate_cost("mix", 0.5, Problem((), 10, 0))(candidate(10, 0)) == 0.5


def test_the_loss_is_what_is_predicted_or_the_distortion() -> None:
    assert predicted_loss(candidate(1, 1)) == 0.25
    assert predicted_loss(candidate(1, 1, 0.75)) == 0.75
    assert predicted_loss(candidate(1, 1, 0.0)) == 0.0


def test_a_candidate_is_written_as_people_read_it() -> None:
    assert str(CandidateId("block/conv", "tucker", "4x8")) == "block/conv/tucker/4x8"
    assert str(CandidateId("dense")) == "dense"


def test_a_layer_that_cannot_be_replaced_says_its_own_reason() -> None:
    layer = LayerChoices("a", 10, 10, kept="it is shared")
    assert keep(layer, "too dear") == Choice("a", None, "it is shared")
    assert choice_of(undominated(layer), 0).reason == "it is shared"
    assert choice_of(undominated(LayerChoices("a", 10, 10)), 0).reason == "no candidate is cheaper than the layer"
    ladder = LayerChoices("a", 10, 10, (candidate(5, 5),))
    assert choice_of(undominated(ladder), 0).reason == "needed within the budget"
    assert choice_of(undominated(ladder), 1).id == CandidateId("a", "cp", "1")


def test_what_cannot_be_done_without_is_named() -> None:
    assert require(0.0, "--params", "budget") == 0.0
    with pytest.raises(ConfigurationError, match="policy 'budget' needs --params, received none; give it on the"):
        require(None, "--params", "budget")
