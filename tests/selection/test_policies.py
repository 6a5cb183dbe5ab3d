"""Policies: what they promise holds for any candidates, and what nobody can meet is one clear line."""

from __future__ import annotations

import re
from dataclasses import fields, replace
from itertools import product

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lrfgraph.errors import ConfigurationError
from lrfgraph.options.recipe import SelectOptions
from lrfgraph.selection.knapsack import solve
from lrfgraph.selection.noise import noise_rank
from lrfgraph.selection.policies import POLICIES
from lrfgraph.selection.problem import (
    Candidate,
    CandidateId,
    Choice,
    Decision,
    LayerChoices,
    Problem,
    keep,
    predicted_loss,
    take,
    totals,
)
from tests.selection.problems import decide, options, problem, smallest_share, taken

SEEDS = st.integers(0, 10_000)
BUDGETED = ("threshold", "budget", "energy", "uniform")


def shares(made: Problem, choices: tuple[Choice, ...]) -> tuple[float, float]:
    parameters, macs = totals(made, choices)
    return parameters / made.parameters, macs / made.macs


def losses(made: Problem, choices: tuple[Choice, ...]) -> float:
    return sum(predicted_loss(c) for c in (taken(made, choice) for choice in choices) if c)


def answer(made: Problem, asked: SelectOptions) -> Decision | ConfigurationError:
    try:
        return decide(asked.policy, made, asked)
    except ConfigurationError as error:
        return error


DECIDING = [name for name, policy in POLICIES.items() if policy.decide]


@pytest.mark.parametrize("name", DECIDING)
@settings(max_examples=20, deadline=None)
@given(seed=SEEDS)
def test_every_policy_says_one_thing_about_every_layer(name: str, seed: int) -> None:
    made = problem(seed)
    decision = answer(made, options(policy=name, params=0.9 if name in ("budget", "uniform") else None))
    if isinstance(decision, ConfigurationError):
        assert smallest_share(made) > 0.9
        return
    assert [c.layer for c in decision.choices] == [layer.name for layer in made.layers]
    for choice, layer in zip(decision.choices, made.layers, strict=True):
        assert (taken(made, choice) in layer.candidates) if choice.id else choice.reason


def test_every_policy_says_what_it_does() -> None:
    for name, policy in POLICIES.items():
        assert bool(policy.decide) != bool(policy.search), name
        assert policy.help.endswith((".", ":", ";")) or len(policy.help) > 20, name
        assert set(policy.options) | set(policy.implied_by) <= {f.name for f in fields(SelectOptions)}, name
        assert not policy.without_images or POLICIES[policy.without_images].decide


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, level=st.floats(0.3, 1.0))
def test_threshold_takes_the_cheapest_candidate_that_is_similar_enough(seed: int, level: float) -> None:
    made = problem(seed)
    for choice, layer in zip(
        decide("threshold", made, options(min_similarity=level)).choices, made.layers, strict=True
    ):
        good = [c for c in layer.candidates if c.similarity["cosine"] >= level and c.parameters < layer.parameters]
        if choice.id is None:
            assert not good
        else:
            assert choice.parameters == min(c.parameters for c in good)
            assert choice.similarity["cosine"] >= level


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, level=st.floats(0.3, 1.0))
def test_the_hybrid_needs_no_more_parameters_than_any_single_method(seed: int, level: float) -> None:
    made = problem(seed, candidates=8)
    asked = options(min_similarity=level)
    hybrid, _ = totals(made, decide("threshold", made, asked).choices)
    for method in ("tucker", "cp", "svd"):
        alone = [replace(y, candidates=tuple(c for c in y.candidates if c.method == method)) for y in made.layers]
        single, _ = totals(made, decide("threshold", replace(made, layers=tuple(alone)), asked).choices)
        assert hybrid <= single


def test_threshold_counts_what_is_asked_for_and_breaks_ties_by_similarity() -> None:
    def candidate(method: str, parameters: int, macs: int, cosine: float) -> Candidate:
        return Candidate(CandidateId("a", method, "1"), parameters, macs, {"cosine": cosine}, 1 - cosine)

    few, fast, alike = candidate("few", 10, 90, 0.95), candidate("fast", 50, 20, 0.95), candidate("alike", 10, 90, 0.97)
    made = Problem((LayerChoices("a", 100, 100, (few, fast, alike)),), 100, 100)

    def chosen(**how: object) -> Candidate | None:
        return taken(made, decide("threshold", made, options(**how)).choices[0])

    assert chosen() == alike
    assert chosen(cost="macs") == fast
    assert chosen(cost="mix", mix=0.1) == fast
    assert chosen(cost="mix", mix=1.0) == alike
    assert chosen(min_similarity=0.96) == alike
    assert chosen(min_similarity=0.99) is None


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, level=st.floats(0.3, 1.0))
def test_energy_takes_the_cheapest_candidate_that_keeps_enough_of_the_kernel(seed: int, level: float) -> None:
    made = problem(seed)
    for choice, layer in zip(decide("energy", made, options(min_similarity=level)).choices, made.layers, strict=True):
        good = [c for c in layer.candidates if 1 - c.weight_error >= level]
        cheaper = [c for c in good if c.parameters < layer.parameters]
        chosen = taken(made, choice)
        if chosen is None:
            assert not cheaper
            assert choice.reason.startswith("no candidate that keeps" if good else "no candidate keeps")
        else:
            assert chosen in cheaper
            assert chosen.parameters == min(c.parameters for c in cheaper)


@pytest.mark.parametrize("name", ["energy", "threshold"])
@pytest.mark.parametrize(
    ("cost", "parameters", "macs", "takes"),
    [
        ("parameters", 100, 50, False),
        ("parameters", 1200, 50, False),
        ("macs", 50, 1200, False),
        ("parameters", 99, 200, True),
        ("macs", 50, 100, False),
        ("macs", 200, 99, True),
        ("mix", 100, 100, True),
    ],
)
def test_a_candidate_that_saves_nothing_of_what_counts_is_not_taken(
    name: str, cost: str, parameters: int, macs: int, takes: bool
) -> None:
    candidate = Candidate(CandidateId("a", "cp", "1"), parameters, macs, {"cosine": 0.99}, 0.01, 0.01)
    made = Problem((LayerChoices("a", 100, 100, (candidate,)),), 100, 100)
    (choice,) = decide(name, made, options(policy=name, cost=cost)).choices
    assert (taken(made, choice) == candidate) == takes
    assert takes or choice.reason.endswith(f"has fewer {cost}")


@pytest.mark.parametrize("name", [*BUDGETED])
@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, share=st.floats(0.05, 1.0))
def test_a_budget_is_met_or_refused_in_one_line(name: str, seed: int, share: float) -> None:
    made = problem(seed)
    asked = options(policy=name, params=share)
    decision = answer(made, asked)
    if isinstance(decision, ConfigurationError):
        assert "\n" not in str(decision)
        assert f"{share:g}" in str(decision)
        least = re.search(r"(?:at least|reachable is) ([0-9.e-]+)", str(decision))
        assert least is not None
        assert share * 0.99 < float(least[1]) <= 1.0
        assert float(least[1]) == pytest.approx(smallest_share(made), rel=0.01) or name != "budget"
        if name == "budget":
            assert smallest_share(made) > share
        return
    assert shares(made, decision.choices)[0] <= share + 1e-9


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, params=st.floats(0.1, 1.0), macs=st.floats(0.1, 1.0))
def test_both_budgets_are_met_at_once(seed: int, params: float, macs: float) -> None:
    made = problem(seed)
    decision = answer(made, options(policy="budget", params=params, macs=macs))
    if isinstance(decision, ConfigurationError):
        assert "\n" not in str(decision)
        return
    kept = shares(made, decision.choices)
    assert kept[0] <= params + 1e-9
    assert kept[1] <= macs + 1e-9


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS, share=st.floats(0.3, 1.0))
def test_the_optimum_does_not_depend_on_what_the_worst_candidate_loses(seed: int, share: float) -> None:
    """Nor on a candidate whose loss is no number."""
    made = problem(seed)
    name = made.layers[0].name
    bad = [
        Candidate(CandidateId(name, "cp", f"{i}"), 1, 1, {}, 1.0, predicted=x)
        for i, x in enumerate((1e9, np.inf, np.nan))
    ]
    first = replace(made.layers[0], candidates=(*made.layers[0].candidates, *bad))
    spoiled = replace(made, layers=(first, *made.layers[1:]))
    try:
        best = solve(made, share, None).notes["objective"]
    except ConfigurationError:
        return
    assert solve(spoiled, share, None).notes["objective"] <= 1.001 * best + 1e-12


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, share=st.floats(0.1, 1.0))
@example(seed=0, share=1.0 - 2.0**-53)
def test_the_optimum_lies_within_the_reported_gap(seed: int, share: float) -> None:
    made = problem(seed)
    every = product(*[(None, *layer.candidates) for layer in made.layers])
    reachable = [
        [take(c) if c else keep(layer, "kept") for layer, c in zip(made.layers, picks, strict=True)] for picks in every
    ]
    feasible = [losses(made, tuple(c)) for c in reachable if totals(made, c)[0] <= share * made.parameters + 1e-6]
    if not feasible:
        with pytest.raises(ConfigurationError, match="smallest reachable"):
            solve(made, share, None)
        return
    decision, best = solve(made, share, None), min(feasible)
    assert losses(made, decision.choices) == pytest.approx(decision.notes["objective"])
    assert decision.notes["bound"] <= best + 1e-9 <= decision.notes["objective"] + 2e-9
    assert decision.notes["objective"] - best <= decision.notes["gap"] + 1e-9
    assert decision.notes["objective"] <= 1.001 * best + 1e-9


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, share=st.floats(0.2, 1.0))
def test_a_candidate_that_another_beats_in_everything_is_never_chosen(seed: int, share: float) -> None:
    made = problem(seed, candidates=8)
    try:
        decision = solve(made, share, None)
    except ConfigurationError:
        return
    for choice, layer in zip(decision.choices, made.layers, strict=True):
        ours = taken(made, choice)
        if ours is not None:
            assert not any(
                c.parameters < ours.parameters and c.macs < ours.macs and predicted_loss(c) < predicted_loss(ours)
                for c in layer.candidates
            )
            assert not (ours.parameters >= layer.parameters and ours.macs >= layer.macs)


@pytest.mark.parametrize("name", ["threshold", "energy", "uniform"])
@settings(max_examples=30, deadline=None)
@given(seed=SEEDS, share=st.floats(0.3, 0.99))
def test_the_level_is_as_high_as_the_budget_allows(name: str, seed: int, share: float) -> None:
    """A budget one parameter short of what was spent gives another, smaller configuration, never a larger one."""
    made = problem(seed, candidates=8)
    try:
        decision = decide(name, made, options(policy=name, params=share))
        spent, _ = totals(made, decision.choices)
        less, _ = totals(made, decide(name, made, options(policy=name, params=(spent - 1) / made.parameters)).choices)
    except ConfigurationError:
        return
    assert less < spent <= share * made.parameters
    again, _ = totals(made, decide(name, made, options(policy=name, params=spent / made.parameters + 1e-9)).choices)
    assert again == spent


@pytest.mark.parametrize("name", ["energy", "threshold"])
def test_a_budget_that_allows_everything_keeps_all_layers(name: str) -> None:
    """The highest level is above every candidate's, a perfect one's included."""
    perfect = Candidate(CandidateId("a", "cp", "1"), 50, 50, {"cosine": 1.0}, 0.0, 0.0)
    made = Problem((LayerChoices("a", 100, 100, (perfect,)),), 100, 100)
    assert decide(name, made, options(policy=name, params=1.0)).configuration == ()
    assert decide(name, made, options(policy=name, params=0.99)).configuration == (perfect.id,)


def test_energy_sees_weights_alone_and_uniform_cuts_all_layers_alike() -> None:
    made = problem(11, layers=4, candidates=16)
    decision = decide("energy", made, options(policy="energy", params=0.6))
    level = decision.notes["level"]
    for candidate in (taken(made, choice) for choice in decision.choices):
        assert candidate is None or 1 - candidate.weight_error >= level
    decision = decide("uniform", made, options(policy="uniform", params=0.6))
    for choice, layer in zip(decision.choices, made.layers, strict=True):
        candidate = taken(made, choice)
        if candidate and len(layer.candidates) > 3:
            fitting = [c for c in layer.candidates if c.parameters <= decision.notes["level"] * layer.parameters]
            assert candidate.distortion == min(c.distortion for c in fitting)


def test_uniform_says_why_a_layer_without_candidates_is_kept() -> None:
    made = problem(3)
    bare = replace(made, layers=(*made.layers, LayerChoices("bare", 10, 10)))
    for share in (0.8, 1):
        choice = decide("uniform", bare, options(policy="uniform", params=share)).choices[-1]
        assert choice.reason == "no candidate is cheaper than the layer"


@pytest.mark.parametrize("name", ["budget", "uniform"])
def test_a_policy_that_needs_a_budget_says_so(name: str) -> None:
    with pytest.raises(ConfigurationError, match=r"--params or --macs .*received none"):
        decide(name, problem(1), options(policy=name))


def test_noise_rank_finds_what_stands_out() -> None:
    """A matrix of rank 7 under noise has seven values that stand out; noise alone has none."""
    rng = np.random.default_rng(0)
    signal = 3.0 * rng.normal(size=(60, 7)) @ rng.normal(size=(7, 200)) / np.sqrt(7)
    noise = rng.normal(size=(60, 200))
    for matrix, rank in ((signal + noise, 7), (noise, 0), (100 * (signal + noise), 7), ((signal + noise).T, 7)):
        assert noise_rank(np.linalg.svd(matrix, compute_uv=False), *matrix.shape) == rank
    assert noise_rank(np.zeros(4), 4, 9) == 0
    assert noise_rank(np.array([2.0]), 1, 9) == 1


def test_evbmf_takes_the_nearest_ranks_and_scales_them_to_a_budget() -> None:
    def candidate(method: str, rank: str, parameters: int) -> Candidate:
        return Candidate(CandidateId("a", method, rank), parameters, parameters, {"cosine": 0.9}, 0.1)

    tucker = [candidate("tucker", f"{p}x{p + 1}", 10 * p) for p in range(1, 16)]
    layers = (
        LayerChoices("a", 200, 200, (*tucker, candidate("cp", "4", 30)), "", ((4, 16), (6, 16))),
        LayerChoices(
            "b", 100, 100, tuple(replace(c, id=c.id._replace(layer="b")) for c in tucker), "", ((16, 16), (17, 17))
        ),
        LayerChoices("c", 100, 100, (candidate("cp", "4", 30),), "", ((4, 16), (6, 16))),
    )
    made = Problem(layers, 400, 400)
    first, whole, other = decide("evbmf", made, options(policy="evbmf")).choices
    assert first.id is not None
    assert first.id.rank in ("4x5", "5x6")
    assert whole.id is None
    assert other.id is None
    assert "tucker, svd" in other.reason
    tight = decide("evbmf", made, options(policy="evbmf", params=0.4))
    assert shares(made, tight.choices)[0] <= 0.4
    assert tight.notes["level"] < 1
    with pytest.raises(ConfigurationError, match=r"'evbmf' keeps at least .*received --params 0.1"):
        decide("evbmf", made, options(policy="evbmf", params=0.1))
