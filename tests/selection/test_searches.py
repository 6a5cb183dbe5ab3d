"""Policies that measure: the searches find what a scan of the grid would, ask for nothing twice, and for little."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrfgraph.errors import ConfigurationError
from lrfgraph.options.recipe import SelectOptions
from lrfgraph.selection.front import FINEST, Budgets, Front, Point, Search, grid_share, limit_note
from lrfgraph.selection.policies import POLICIES, policy_in_force
from lrfgraph.selection.problem import Decision

STEPS = FINEST + 1


def point(step: int, drop: float, error: float = 0.1, macs: int | None = None) -> Point:
    parameters, macs = 10_000 - 100 * step, 100 * step + 5 if macs is None else macs
    return Point(step, grid_share(step), parameters, macs, drop, error, 90 - drop, error, drop, Decision("", (), 0, 0))


@dataclass
class Network:
    """What each budget of the grid loses; beyond the last no configuration is small enough."""

    drops: Sequence[float]
    asked: list[int] = field(default_factory=list)

    def measure(self, step: int) -> Point | None:
        self.asked.append(step)
        return point(step, self.drops[step]) if step < len(self.drops) else None

    def search(self, policy: str, **options: object) -> Front:
        search = POLICIES[policy].search
        assert search is not None
        asked = SelectOptions(**{"policy": policy, "max_drop": 1.0, **options})  # type: ignore[arg-type]
        front = search(Budgets(self.measure, lambda step: step < len(self.drops)), asked)
        assert all(0 <= step <= FINEST for step in self.asked)
        assert len(set(self.asked)) == len(self.asked)
        measured = [step for step in sorted(self.asked) if step < len(self.drops)]
        assert [p.step for p in front.points] == measured
        assert front.chosen in front.points
        return front


RISING = st.lists(st.floats(-1.0, 60.0), min_size=1, max_size=STEPS).map(sorted)


@settings(max_examples=100, deadline=None)
@given(drops=RISING, limit=st.floats(0.0, 20.0))
def test_accuracy_finds_the_last_step_within_the_limit(drops: list[float], limit: float) -> None:
    within = [step for step, drop in enumerate(drops) if drop <= limit]
    network = Network(drops)
    if not within:
        with pytest.raises(ConfigurationError, match=f"at most {limit:g} points: even the largest one measured loses"):
            network.search("accuracy", max_drop=limit)
        return
    assert network.search("accuracy", max_drop=limit).chosen.step == within[-1]


@pytest.mark.parametrize("doubling", [3.0, 4.5, 7.0])
@pytest.mark.parametrize("limit", [0.3, 1.0, 2.0, 8.0])
@pytest.mark.parametrize("first", [0.06, 0.2])
def test_accuracy_measures_few_budgets_of_an_exponential_curve(first: float, limit: float, doubling: float) -> None:
    """Plain bisection of 81 steps takes seven."""
    network = Network([first * 2 ** (step / doubling) for step in range(STEPS)])
    network.search("accuracy", max_drop=limit)
    assert len(network.asked) <= 6
    assert network.asked[0] == 16


@pytest.mark.parametrize("limit", [0.3, 1.0, 2.0, 8.0])
@pytest.mark.parametrize("first", [0.004, 0.06, 0.2])
def test_accuracy_goes_straight_to_where_a_usual_curve_crosses_the_limit(first: float, limit: float) -> None:
    """Networks double their drop in about four and a half steps: one look tells where, the others that it is there."""
    network = Network([first * 2 ** (step / 4.5) for step in range(STEPS)])
    last = network.search("accuracy", max_drop=limit).chosen.step
    assert abs(network.asked[1] - last) <= 3
    assert len(network.asked) <= 4


def test_accuracy_ends_at_the_last_step_of_the_grid() -> None:
    assert Network([0.01] * STEPS).search("accuracy").chosen.step == FINEST


def test_accuracy_says_what_the_largest_configuration_loses() -> None:
    with pytest.raises(ConfigurationError, match=r"loses 3\.00 ± 0\.10 points on validation; raise --max-drop"):
        Network([3.0, 4.0, 5.0]).search("accuracy")
    with pytest.raises(ConfigurationError, match="no configuration is smaller than the network"):
        Network([]).search("accuracy")


def test_accuracy_counts_what_is_to_become_small() -> None:
    """MACs rise with the step here: the fewest within the limit are the first point's."""
    drops = [0.5] * 30 + [2.0] * (STEPS - 30)
    assert Network(drops).search("accuracy", cost="parameters").chosen.step == 29
    by_macs = Network(drops).search("accuracy", cost="macs")
    assert by_macs.chosen == min((p for p in by_macs.points if p.drop <= 1), key=lambda p: p.macs)


@settings(max_examples=100, deadline=None)
@given(drops=RISING, points=st.integers(2, 12), limit=st.floats(0.0, 20.0))
def test_pareto_spreads_its_points_over_the_grid(drops: list[float], points: int, limit: float) -> None:
    front = Network(drops).search("pareto", points=points, max_drop=limit)
    steps, last = [p.step for p in front.points], len(drops) - 1
    assert (steps[0], steps[-1]) == (0, last)
    assert len(steps) == min(points, len(drops))
    gaps = [b - a for a, b in pairwise(steps)]
    assert not gaps or max(gaps) - min(gaps) <= 1
    within = [p for p in front.points if p.drop <= limit]
    assert front.chosen == (within[-1] if within else front.points[0])


def test_pareto_takes_the_point_that_is_asked_for() -> None:
    network = Network([1.0 + step for step in range(STEPS)])
    for number in (0, 2, 4):
        front = Network(network.drops).search("pareto", points=5, point=number)
        assert front.chosen == front.points[number]
    with pytest.raises(ConfigurationError, match="the front has points 0 to 4, received --point 5"):
        network.search("pareto", points=5, point=5)
    with pytest.raises(ConfigurationError, match="allow more methods and ranks"):
        Network([]).search("pareto", points=5)


@pytest.mark.parametrize("last", [0, 1, 2, 39, 40, 79, 80])
def test_the_smallest_budget_is_found_without_measuring(last: int) -> None:
    def measure(step: int) -> Point | None:
        raise AssertionError("measured")

    asked: list[int] = []

    def feasible(step: int) -> bool:
        asked.append(step)
        return step <= last

    assert Search(Budgets(measure, feasible), "parameters").smallest() == last
    assert len(asked) <= 7


def test_the_grid_falls_by_a_twentieth_each_step() -> None:
    assert [grid_share(step) for step in (0, 1, 2)] == [0.95, 0.9025, 0.8574]
    assert grid_share(FINEST) == 0.0157


@pytest.mark.parametrize(
    ("drop", "error", "tail"),
    [
        (1.01, 0.1, "; that is more than the limit"),
        (0.9, 0.1, "; the true loss may exceed 1, more validation images would tell"),
        (0.75, 0.125, ""),
        (1.0, 0.0, ""),
    ],
)
def test_the_note_says_how_sure_the_limit_is(drop: float, error: float, tail: str) -> None:
    expected = f"the configuration loses {drop:.2f} ± {error:.2f} points on validation (limit 1){tail}"
    assert limit_note(point(3, drop, error), 1.0) == expected


def test_a_point_is_written_without_its_decision() -> None:
    written = point(3, 0.5).to_json()
    assert "decision" not in written
    assert (written["step"], written["drop"]) == (3, 0.5)


IN_FORCE: list[tuple[dict[str, object], bool, str]] = [
    ({"policy": "accuracy"}, True, "accuracy"),
    ({"policy": "accuracy"}, False, "threshold"),
    ({"policy": "pareto"}, False, "threshold"),
    ({"policy": "uniform", "params": 0.5}, False, "uniform"),
    ({"policy": "accuracy", "configuration": "hybrid.toml"}, True, "given"),
    ({"policy": "accuracy", "configuration": "hybrid.toml"}, False, "given"),
]


@pytest.mark.parametrize(("options", "images", "name"), IN_FORCE)
def test_the_policy_in_force(options: dict[str, object], images: bool, name: str) -> None:
    make: Callable[..., SelectOptions] = SelectOptions
    assert policy_in_force(make(**options), images).name == name


def test_what_refines_reads_the_options_of_probes_and_exchanges() -> None:
    assert {"probes", "refine"} <= POLICIES["budget"].relevant
    assert POLICIES["threshold"].relevant == {"min_similarity", "cost", "mix", "params", "macs"}
    assert {name for name, policy in POLICIES.items() if policy.refines} == {"accuracy", "budget", "pareto"}


def test_only_the_threshold_compares_similarities_and_only_what_is_given_has_no_name() -> None:
    assert {name for name, policy in POLICIES.items() if policy.compares} == {"threshold"}
    assert {name for name, policy in POLICIES.items() if not policy.public} == {"given"}
