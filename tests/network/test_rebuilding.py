"""Chains that multiply out to the kernel leave every network as it was, and cost what they say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.network.models import GRAPHS, MODELS, inputs_for, one_layer, outputs_of, randomize

from lrfgraph.errors import LayerError, OutputError
from lrfgraph.methods import METHODS
from lrfgraph.network.describing import Description, describe
from lrfgraph.network.layers import LayerSpec
from lrfgraph.network.pieces import Piece, compose, cost
from lrfgraph.network.rebuilding import Chain, count, rebuild, save, verify_files


def exact_chain(layer: LayerSpec, kernel: np.ndarray) -> Chain:
    """The kernel itself behind (or, where each group has one input, in place of) a 1×1 identity."""
    axes = tuple(range(len(layer.spatial)))
    whole = Piece("mix", layer.kernel, axes)
    if layer.family in ("depthwise", "separable"):
        return Chain("exact", (whole,), (kernel,))
    ones = (1,) * len(axes)
    identity = np.broadcast_to(np.eye(layer.inputs), (layer.groups, *ones, layer.inputs, layer.inputs))
    pieces = (Piece("mix", identity.shape), whole)
    return Chain("exact", pieces, (identity.astype("float32"), kernel))


def core_chain(layer: LayerSpec, kernel: np.ndarray) -> Chain:
    """A dense kernel as one TT core, padded to even sizes."""
    inputs, outputs = layer.inputs + layer.inputs % 2, layer.outputs + layer.outputs % 2
    matrix = np.zeros((inputs, outputs), "float32")
    matrix[: layer.inputs, : layer.outputs] = kernel[0]
    first = matrix.reshape(2, inputs // 2, 2, outputs // 2).transpose(0, 2, 1, 3).reshape(4, -1)
    u, s, v = np.linalg.svd(first, full_matrices=False)
    cores = (u * s).reshape(1, 2, 2, len(s)), v.reshape(len(s), inputs // 2, outputs // 2, 1)
    return Chain("core", tuple(Piece("core", c.shape) for c in cores), cores)


def kernels(found: Description) -> dict[str, tuple[LayerSpec, np.ndarray]]:
    return {
        layer.name: (layer, found.arrays[f"layers/{number}/kernel"])
        for number, layer in enumerate(found.layers)
        if layer.kind
    }


def assert_same(model: Any, rebuilt: Any, tolerance: float = 1e-4) -> None:
    x = inputs_for(model)
    for expected, received in zip(outputs_of(model, x), outputs_of(rebuilt, x), strict=True):
        assert expected.shape == received.shape
        assert np.abs(expected - received).max() <= tolerance * np.abs(expected).max()


@pytest.mark.parametrize("name", MODELS)
def test_exact_chains_change_nothing(name: str) -> None:
    model = MODELS[name]()
    chains = {path: exact_chain(*found) for path, found in kernels(describe(model)).items()}
    assert chains
    assert_same(model, rebuild(model, chains), 2e-2 if name == "frozen_mixed" else 1e-4)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", MODELS)
def test_full_rank_of_every_method_is_exact_and_costs_what_it_says(name: str, method: str) -> None:
    model = MODELS[name]()
    found = describe(model)
    chains, expected = {}, sum(layer.macs for layer in found.layers)
    parameters = model.count_params()
    for path, (layer, kernel) in kernels(found).items():
        rank = None if METHODS[method].reason(layer) else METHODS[method].full_rank(layer)
        if rank is None:
            continue
        pieces = METHODS[method].pieces(layer, rank)
        weights = METHODS[method].factorize(layer, METHODS[method].prepare(layer, kernel), rank)
        np.testing.assert_allclose(compose(pieces, weights), kernel, atol=1e-4)
        chains[path] = Chain(method, pieces, weights)
        expected += cost(layer, pieces).macs - layer.macs
        parameters += cost(layer, pieces).parameters - layer.weights - int(np.prod(layer.depthwise or 0))
    rebuilt = rebuild(model, chains)
    assert_same(model, rebuilt, 2e-2 if name == "frozen_mixed" else 1e-4)
    counted = count(rebuilt)
    assert (counted.parameters, counted.macs) == (parameters, expected)
