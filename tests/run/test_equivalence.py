"""A run on a cache that has seen other edits is the run on an empty cache, and computes no more than it must."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipelines.benchmarks import equivalence
from pipelines.benchmarks.equivalence import EDITS, Design, State, images, walk


@pytest.mark.parametrize("seed", [1])
def test_a_walk_of_edits(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(equivalence, "ARCHITECTURES", ("separable", "nested"))
    steps = list(walk(seed, 4, tmp_path, restart=3))
    # what two options make alike (a solver that has converged) is not known to be alike before it is made
    assert sum(len(step["repeated"]) for step in steps) <= 0.05 * sum(step["run"] for step in steps)
    for step in steps:
        assert step["equal"], step
        assert not step["not needed"], step
        assert step["refused"] is None, step


def test_a_cache_that_gives_an_old_answer_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With keys that leave out the images' content, the walk must not come out even."""
    from lrfgraph.run.steps import sources

    monkeypatch.setattr(sources, "_identity", lambda name, *_: f"{len(name):040x}")
    monkeypatch.setattr(equivalence, "ARCHITECTURES", ("plain",))
    monkeypatch.setattr(equivalence, "EDITS", {"pixel": EDITS["pixel"]})
    assert not all(step["equal"] for step in walk(0, 2, tmp_path, restart=2))


@pytest.mark.parametrize("name", EDITS)
def test_every_edit_changes_what_it_says(name: str) -> None:
    random = np.random.default_rng(0)
    state = State(Design("branches"))
    edited = {repr(EDITS[name][0](random, state)) for _ in range(12)}
    assert (edited == {repr(state)}) == (name == "again")
    assert images(state).keys() == {"x_train", "y_train", "x_test", "y_test"}
