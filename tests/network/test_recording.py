"""Recording: one pass gives every layer what a pass of its own would, shared layers see all their calls."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lrfgraph.layers.rows import cut, grouped
from lrfgraph.network import recording
from lrfgraph.network.describing import describe
from lrfgraph.network.graph import flatten, run
from lrfgraph.network.operations import layer_input
from lrfgraph.network.recording import record
from lrfgraph.options.recipe import RecordOptions
from tests.network.models import GRAPHS, nested, randomize, residual, shared


def images_for(model: Any, count: int = 20) -> np.ndarray:
    return np.random.default_rng(5).normal(size=(count, *model.input_shape[1:])).astype("float32")


def all_rows(model: Any, layer: Any, images: np.ndarray) -> np.ndarray:
    """Every row of a layer that the images give, calls in order."""
    program = flatten(model)
    values = run(program, {program.inputs[0]: images})
    found = []
    for call in program.calls:
        if call.path == layer.name:
            x = np.asarray(layer_input(call.operation, layer, values[call.inputs[0]]))
            grid = int(np.prod(call.operation.compute_output_shape(x.shape)[1:-1]))
            found.append(cut(layer, x, np.repeat(np.arange(len(images)), grid), np.tile(np.arange(grid), len(images))))
    return np.concatenate(found)


@pytest.mark.parametrize("name", ["residual", "shared", "nested", "sequential", "channels_first"])
def test_moments_over_all_rows_are_those_of_all_rows(name: str) -> None:
    model = GRAPHS[name]()
    images = images_for(model)
    layers = [layer for layer in describe(model).layers if layer.kind and layer.data_format == "channels_last"]
    for layer, found in zip(
        layers, record(model, layers, images, RecordOptions(rows=50, moment_rows=10**6)), strict=True
    ):
        rows = all_rows(model, layer, images)
        x = grouped(layer, rows).astype(np.float64)
        x = np.concatenate([x, np.ones((layer.groups, len(rows), 1))], axis=2)
        assert found.count == (0 if found.moments is None else len(rows))
        assert found.rows.dtype == np.float32
        assert len(found.rows) <= max(50, len(layer.input_shapes))
        known = {row.tobytes() for row in np.round(rows, 4) + 0.0}
        assert all(row.tobytes() in known for row in np.round(found.rows, 4) + 0.0)
        if found.moments is None:
            assert len(rows) <= layer.width
        else:
            np.testing.assert_allclose(found.moments, x.swapaxes(1, 2) @ x / len(rows), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("make", [residual, shared, nested])
def test_one_pass_for_all_layers_equals_one_for_each(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the batch size, too."""
    model = make()
    images = images_for(model)
    layers = [layer for layer in describe(model).layers if layer.kind]
    options = {"rows": 64, "moment_rows": 300, "seed": 2}
    together = list(record(model, layers, images, RecordOptions(**options)))
    monkeypatch.setattr(recording, "_batch_size", lambda program, images: 7)
    for layer, found in zip(layers, together, strict=True):
        (alone,) = record(model, [layer], images, RecordOptions(**options))
        ordered = [
            rows[np.lexsort(np.round(rows, 3).T)] for rows in (r.rows.reshape(len(r.rows), -1) for r in (alone, found))
        ]
        np.testing.assert_allclose(ordered[0], ordered[1], atol=1e-4)
        assert alone.count == found.count
        if found.moments is not None:
            assert alone.moments is not None
            np.testing.assert_allclose(alone.moments, found.moments, rtol=1e-4, atol=1e-5)


def test_a_shared_layer_is_sampled_in_every_call() -> None:
    """The second call's inputs are a hundred times larger: both kinds are among the rows."""
    import keras

    k = keras.layers
    x = keras.Input((6,))
    twice = k.Dense(6, name="twice", use_bias=False)
    model = randomize(keras.Model(x, twice(twice(x) * 100.0)))
    (layer,) = [layer for layer in describe(model).layers if layer.kind]
    assert len(layer.input_shapes) == 2
    (found,) = record(model, [layer], images_for(model, 40), RecordOptions(rows=20, moment_rows=80))
    large = np.abs(found.rows).max((1, 2)) > 8
    assert large.any()
    assert not large.all()
    assert found.count == 80


def test_a_dense_layer_wider_than_its_rows_has_no_moments() -> None:
    import keras

    x = keras.Input((30,))
    model = randomize(keras.Model(x, keras.layers.Dense(3)(x)))
    (layer,) = [layer for layer in describe(model).layers if layer.kind]
    (few,) = record(model, [layer], images_for(model, 20))
    (enough,) = record(model, [layer], images_for(model, 40))
    assert few.moments is None
    assert few.rows.shape == (20, 1, 30)
    assert enough.moments is not None
    np.testing.assert_allclose(np.sort(enough.rows[:, 0], axis=0), np.sort(images_for(model, 40), axis=0))


def test_progress_counts_images() -> None:
    model, seen = residual(), []
    layers = [layer for layer in describe(model).layers if layer.kind]
    list(record(model, layers[:1], images_for(model), progress=lambda done, total, what: seen.append((done, total))))
    assert seen[-1] == (20, 20)
