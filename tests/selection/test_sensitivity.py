"""Sensitivity: predictions become what probes say, whatever the scale, and probes lie where they should."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrfgraph.selection.problem import Candidate, CandidateId
from lrfgraph.selection.sensitivity import FLOOR, calibrated, to_probe


def candidate(rank: int, distortion: float, predicted: float | None = None, parameters: int | None = None) -> Candidate:
    return Candidate(_id(rank), parameters or 10 * rank, 10 * rank, {}, distortion, 0.0, predicted)


def _id(rank: int, method: str = "cp") -> CandidateId:
    return CandidateId("layer", method, str(rank))


LADDER = [candidate(r, d) for r, d in enumerate((0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.001), start=1)]


@settings(max_examples=30, deadline=None)
@given(slope=st.floats(1e-4, 1e2), count=st.integers(1, 5))
def test_a_proportional_loss_gives_its_slope(slope: float, count: int) -> None:
    measured = {c.id: slope * c.distortion for c in to_probe(LADDER, count)}
    expected = [max(slope, FLOOR) * c.distortion for c in LADDER]
    assert [c.predicted for c in calibrated(LADDER, measured)] == pytest.approx(expected, rel=1e-6)


def test_a_probe_has_the_last_word_on_its_own_candidate() -> None:
    """What answers turn over at costs more than its square: 16 times at 0.2, where it is once at 0.01."""
    measured = {_id(2): 3.2, _id(4): 0.2, _id(6): 0.01}
    loss = {c.id: c.predicted for c in calibrated(LADDER, measured)}
    assert {one: loss[one] for one in measured} == pytest.approx(measured)
    assert loss[_id(1)] == pytest.approx(0.5 * 16)
    assert 0.2 < loss[_id(3)] < 3.2
    assert loss[_id(7)] == pytest.approx(0.001)


def test_more_error_never_costs_less() -> None:
    """A probe that measured less than a milder one was lucky with its images."""
    losses = [c.predicted for c in calibrated(LADDER, {_id(2): 0.1, _id(4): 0.4, _id(6): 0.01})]
    assert losses == sorted(losses, reverse=True)


@pytest.mark.parametrize(
    ("count", "expected"), [(0, []), (1, [0.05]), (2, [0.02, 0.1]), (3, [0.01, 0.05, 0.2]), (5, 5), (9, 7)]
)
def test_probes_lie_next_to_their_places(count: int, expected: list[float] | int) -> None:
    found = [c.distortion for c in to_probe(LADDER, count)]
    assert len(set(found)) == len(found)
    assert found == expected if isinstance(expected, list) else len(found) == expected


def test_what_is_beaten_is_not_probed() -> None:
    beaten = replace(LADDER[3], id=_id(4, "svd"), distortion=0.0501, parameters=1000, macs=1000)
    assert to_probe([beaten, *LADDER], 1) == [LADDER[3]]
    assert to_probe([], 3) == []


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_predictions_are_multiplied_by_the_slope_at_any_scale(scale: float) -> None:
    predictions = [replace(c, predicted=scale * c.distortion) for c in LADDER]
    measured = {c.id: 3 * scale * c.distortion for c in to_probe(LADDER, 2)}
    made = calibrated(predictions, measured)
    assert [c.predicted for c in made] == pytest.approx([3 * scale * c.distortion for c in LADDER], rel=1e-6)


def test_without_predictions_the_distortion_is_scaled() -> None:
    made = calibrated(LADDER, {_id(3): 0.7})
    assert [c.predicted for c in made] == pytest.approx([7 * c.distortion for c in LADDER], rel=1e-3)


def test_without_a_probe_nothing_changes() -> None:
    assert calibrated(LADDER, {}) == tuple(LADDER)
    lossless = [replace(c, distortion=0.0) for c in LADDER]
    assert calibrated(lossless, {_id(1): 0.0}) == tuple(lossless)
