"""The table of layer kinds: complete, consistent, and the only place that knows which family a layer is of."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest

import lrfgraph
from lrfgraph.layers import kinds
from lrfgraph.layers.kinds import KINDS_BY_CLASS, LAYER_KINDS, LayerKind
from lrfgraph.layers.spec import LayerSpec

FAMILIES = {kind.family.name: kind for kind in LAYER_KINDS.values()}


@pytest.mark.parametrize("kind", LAYER_KINDS.values(), ids=LAYER_KINDS)
def test_every_kind_is_a_keras_layer_with_the_attributes_it_names(kind: LayerKind) -> None:
    import keras

    layer_class = getattr(keras.layers, kind.keras_class)
    assert KINDS_BY_CLASS[kind.keras_class] is kind
    arguments = {"kernel_size": 3} if kind.spatial else {}
    if not kind.family.depthwise and kind.family.mixes_channels:
        layer = layer_class(4, **arguments)
    else:
        layer = layer_class(**({"filters": 4} if kind.family.depthwise else {}), **arguments)
    layer.build((None, *(8,) * kind.spatial, 2))
    for name in (kind.family.kernel, kind.family.depthwise):
        assert not name or hasattr(layer, name)


@pytest.mark.parametrize("kind", FAMILIES.values(), ids=FAMILIES)
def test_native_undoes_canonical(kind: LayerKind) -> None:
    spatial = (3, 2)[: kind.spatial]
    kernel = np.random.default_rng(0).normal(size=(*spatial, 4, 6))
    canonical = kind.family.order.canonical(kernel, 1)
    assert canonical.ndim == len(spatial) + 3
    assert np.array_equal(kind.family.order.native(canonical), kernel)


def test_groups_are_the_leading_axis() -> None:
    kernel = np.arange(24.0).reshape(3, 2, 4)
    canonical = kinds.PLAIN.canonical(kernel, 2)
    assert canonical.shape == (2, 3, 2, 2)
    assert np.array_equal(canonical[1], kernel[..., 2:])
    assert np.array_equal(kinds.PLAIN.native(canonical), kernel)


@pytest.mark.parametrize("kind", FAMILIES.values(), ids=FAMILIES)
def test_forms_are_built_or_refused_with_a_reason(kind: LayerKind) -> None:
    from lrfgraph.network.keras_layers import _BUILDERS, _CHAIN_BUILDERS

    for form in ("mix", "channelwise", "core"):
        assert bool(kind.family.refusal(form)) == (form not in kind.family.forms)
    assert set(kind.family.forms.values()) <= _BUILDERS.keys() | _CHAIN_BUILDERS.keys()
    assert not kind.family.refused.keys() & kind.family.forms.keys()


def test_what_repair_cannot_refit_says_why() -> None:
    def spec(kind: str, **fields: str) -> LayerSpec:
        return LayerSpec("a", LAYER_KINDS[kind].keras_class, kind, **fields)

    assert spec("conv2d").unrefittable == ""
    assert "overlap" in spec("conv2d_transpose").unrefittable
    assert "channels" in spec("conv2d", data_format="channels_first").unrefittable


def test_nobody_else_asks_which_family_a_layer_is_of() -> None:
    package = Path(lrfgraph.__file__).parent
    for path in package.rglob("*.py"):
        if path == Path(kinds.__file__):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Compare):
                sides = [ast.unparse(side) for side in (node.left, *node.comparators)]
                where = f"{path.name}:{node.lineno}: {ast.unparse(node)}"
                assert not any(side.endswith((".family", ".family.name")) for side in sides), where
