"""What trials of fine-tuning make of a search: smaller, within what is expected, with few trials."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrfgraph.options.recipe import SelectOptions
from lrfgraph.selection.front import FINEST, Budgets, Front, Point, grid_share
from lrfgraph.selection.policies import POLICIES
from lrfgraph.selection.problem import Decision
from lrfgraph.selection.recovery import MOST_TRIALS, REST


def point(step: int, drop: float, trained: int = 0) -> Point:
    return Point(
        step, grid_share(step), 10_000 - 100 * step, 5, drop, 0.1, 90 - drop, 0.1, drop, Decision("", (), 0, 0), trained
    )


def searched(drops: Sequence[float], part: float, limit: float = 1.0) -> tuple[Front, list[int]]:
    """What policy `accuracy` comes to where a trial leaves a part of every drop, and the steps it tried."""
    tried: list[int] = []

    def measure(step: int) -> Point | None:
        return point(step, drops[step]) if step < len(drops) else None

    def trial(step: int) -> Point | None:
        tried.append(step)
        return point(step, part * drops[step], 200)

    search = POLICIES["accuracy"].search
    assert search is not None
    budgets = Budgets(measure, lambda step: step < len(drops), trial)
    return search(budgets, SelectOptions(max_drop=limit)), tried


@settings(max_examples=100, deadline=None)
@given(
    drops=st.lists(st.floats(0.01, 60.0), min_size=2, max_size=FINEST + 1).map(sorted),
    part=st.floats(0.05, 1.5),
    limit=st.floats(0.1, 20.0),
)
def test_what_is_chosen_is_expected_to_keep_to_the_limit_and_is_no_larger_than_without(
    drops: list[float], part: float, limit: float
) -> None:
    within = [step for step, drop in enumerate(drops) if drop <= limit]
    if not within:
        return
    front, tried = searched(drops, part, limit)
    assert len(tried) == len(set(tried)) <= MOST_TRIALS
    assert front.chosen.step >= within[-1]
    assert front.limit == limit
    if front.chosen.trained:
        assert REST * front.chosen.drop <= limit
    else:
        assert front.chosen.step == within[-1]
    assert [(p.step, p.trained) for p in front.points] == sorted((p.step, p.trained) for p in front.points)
    assert {p.step for p in front.points if p.trained} == set(tried)


@pytest.mark.parametrize("part", [0.3, 0.5, 0.8])
@pytest.mark.parametrize("limit", [0.5, 1.0, 2.0])
def test_the_last_step_that_recovers_is_found_within_one(part: float, limit: float) -> None:
    """As networks do: the drop doubles in four and a half steps, a trial leaves the same part of each."""
    drops = [0.06 * 2 ** (step / 4.5) for step in range(FINEST + 1)]
    last = max(step for step, drop in enumerate(drops) if REST * part * drop <= limit)
    front, _ = searched(drops, part, limit)
    assert last - 1 <= front.chosen.step <= last
    assert front.chosen.trained


def test_trials_that_bring_nothing_change_nothing() -> None:
    drops = [0.06 * 2 ** (step / 4.5) for step in range(FINEST + 1)]
    front, tried = searched(drops, 2.0)
    assert tried
    assert not front.chosen.trained
    assert front.chosen.step == max(step for step, drop in enumerate(drops) if drop <= 1)


def test_trials_find_what_repair_alone_does_not_reach() -> None:
    front, _ = searched([2.0, 4.0, 8.0], 0.3)
    assert front.chosen.step == 1
    assert front.chosen.trained == 200
