"""Sensitivity: the fit finds a slope that is there, whatever the scale, and probes lie where they should."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrfgraph.selection.problem import Candidate, CandidateId
from lrfgraph.selection.sensitivity import FLOOR, calibrated, sensitivity, to_probe


def candidate(rank: int, distortion: float, predicted: float | None = None, parameters: int | None = None) -> Candidate:
    return Candidate(_id(rank), parameters or 10 * rank, 10 * rank, {}, distortion, 0.0, predicted)


def _id(rank: int, method: str = "cp") -> CandidateId:
    return CandidateId("layer", method, str(rank))


LADDER = [candidate(r, d) for r, d in enumerate((0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.001), start=1)]


@settings(max_examples=30, deadline=None)
@given(slope=st.floats(1e-4, 1e4), losses=st.lists(st.floats(1e-3, 1.0), min_size=1, max_size=5))
def test_a_proportional_loss_gives_its_slope(slope: float, losses: list[float]) -> None:
    assert sensitivity(losses, [slope * x for x in losses], FLOOR) == pytest.approx(slope)


def test_every_probe_weighs_about_the_same() -> None:
    assert sensitivity([0.01, 0.1], [0.02, 0.4], FLOOR) == pytest.approx(3.0, rel=0.01)


def test_a_tiny_loss_says_little() -> None:
    assert sensitivity([1e-5, 0.1], [1e-3, 0.1], FLOOR) == pytest.approx(1.0, rel=0.02)


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
