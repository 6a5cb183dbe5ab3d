"""Repair of a pruned network: nearer to the original, every coupling, and nothing wider than it was pruned to."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lrfgraph.network.counting import count
from lrfgraph.network.pruning import repairing
from lrfgraph.network.pruning.narrowing import narrow
from lrfgraph.network.pruning.repairing import repair
from lrfgraph.network.pruning.walking import walk
from lrfgraph.network.repair.fit import FitOptions
from tests.network.couplings import COUPLINGS
from tests.network.models import outputs_of
from tests.network.test_narrowing import some

OPTIONS = FitOptions(rows=4096, rounds=1, ridge=1e-3, seed=0)
IMAGES = 96
UNCHANGED = {"shared_layer", "nested_models", "transposed"}
"""Networks whose layers are called several times (one refit would mend a call at the cost of the others) or scatter."""


def distance(model: Any, other: Any, x: np.ndarray) -> float:
    first, second = outputs_of(model, x)[0], outputs_of(other, x)[0]
    return float(np.square(first - second).sum() / np.square(first - first.mean(0)).sum())


def images(seed: int, number: int = IMAGES) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(number, 8, 8, 3)).astype("float32")


@pytest.mark.parametrize("name", COUPLINGS)
def test_repair_brings_every_network_nearer(name: str) -> None:
    model = COUPLINGS[name]()
    walked = walk(model)
    removed = some(walked.dependencies(0), 0.25)
    small = narrow(model, walked, removed)
    done = repair(model, walked, removed, {}, images(2, 256), OPTIONS)
    assert done.images == 256
    assert count(done.model) == count(small)
    unseen = images(3)
    before, after = (distance(model, each, unseen) for each in (small, done.model))
    assert after <= 1.02 * before if name in UNCHANGED else after < 0.95 * before
    assert all(last <= first for first, last in done.errors.values())


def test_nothing_removed_leaves_everything() -> None:
    model = COUPLINGS["residual_addition"]()
    done = repair(model, walk(model), [], {}, images(2), OPTIONS)
    assert not done.errors
    assert np.array_equal(outputs_of(model, images(3))[0], outputs_of(done.model, images(3))[0])


def test_the_original_stays_as_it_was() -> None:
    model = COUPLINGS["depthwise"]()
    before = [np.asarray(weight).copy() for weight in model.weights]
    walked = walk(model)
    repair(model, walked, some(walked.dependencies(0)), {}, images(2), OPTIONS)
    assert all(np.array_equal(a, b) for a, b in zip(before, model.weights, strict=True))


def test_what_is_live_decides_how_many_images(monkeypatch: pytest.MonkeyPatch) -> None:
    model = COUPLINGS["batch_normalization"]()
    walked = walk(model)
    monkeypatch.setattr(repairing, "LIVE_BYTES", 200_000)
    done = repair(model, walked, some(walked.dependencies(0)), {}, images(2), OPTIONS)
    assert 1 <= done.images < IMAGES


def test_curvature_weighs_the_errors() -> None:
    """With all weight on one output, that one is nearer to the original than without."""
    model = COUPLINGS["residual_addition"]()
    walked = walk(model)
    removed = some(walked.dependencies(0))
    last = [call.path for call in walked.graph.calls if type(call.operation).__name__ == "Conv2D"][-1]
    filters = model.get_layer(last).filters
    errors = []
    for weight in (1.0, 1e6):
        curvature = np.diag([weight] + [1.0] * (filters - 1))[None]
        errors.append(repair(model, walked, removed, {}, images(2, 256), OPTIONS, {last: curvature}).errors[last])
    assert errors[0] != errors[1]
