from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrfgraph.engine.nodes import Ref
from lrfgraph.errors import RecipeError
from lrfgraph.layers.spec import LayerSpec
from lrfgraph.methods import METHODS
from lrfgraph.options.recipe import Recipe
from lrfgraph.run import nodes as pipeline
from lrfgraph.run.nodes import Network
from lrfgraph.selection import POLICIES

CONV = LayerSpec(
    "block/conv", "Conv2D", "conv2d", (1, 3, 3, 8, 16), (1, 1), (1, 1), "same",
    input_shapes=((8, 8, 8),), output_shapes=((8, 8, 16),), identity="a", upstream="b",
)  # fmt: skip
DENSE = LayerSpec(
    "head", "Dense", "dense", (1, 64, 10), input_shapes=((64,),), output_shapes=((10,),), identity="c", upstream="d"
)
POOL = LayerSpec("pool", "MaxPooling2D")


def network(recipe: Recipe, data: bool = True) -> Network:
    found = Network(Ref("m", "describe/m"), (CONV, POOL, DENSE), "m", 2000, 90000, "logits", "linear", recipe)
    images = {part: part for part in ("calibration", "repair", "validation", "train", "test")}
    return replace(found, data=Ref("i", "data/i"), images=images) if data else found


@given(st.integers(1, 200), st.floats(0.001, 0.5), st.floats(0.51, 1.0))
@settings(max_examples=50, deadline=None)
def test_one_more_share_moves_none_of_the_others(count: int, smallest: float, largest: float) -> None:
    shares = pipeline.grid(count, smallest, largest)
    assert len(shares) == count
    assert shares == sorted(shares)
    assert all(smallest - 1e-6 <= share <= largest + 1e-6 for share in shares)
    assert set(shares) <= set(pipeline.grid(count + 1, smallest, largest))


def test_layers_are_kept_for_a_reason() -> None:
    recipe = Recipe()
    assert pipeline.kept_reason(CONV, recipe) == ""
    assert pipeline.kept_reason(POOL, recipe) == "has no kernel"
    assert "skipped" in pipeline.kept_reason(CONV, recipe.with_option("explore.skip", "block/*"))
    assert pipeline.kept_reason(replace(CONV, kept="it is quantized"), recipe) == "it is quantized"
    only_dense = recipe.with_option("explore.methods", "ttm")
    assert "dense layers alone" in pipeline.kept_reason(CONV, only_dense)
    assert [layer.name for _, layer in network(only_dense).factorizable()] == ["head"]


def test_methods_are_those_asked_for_that_apply() -> None:
    recipe = Recipe()
    for layer in (CONV, DENSE):
        assert pipeline.methods_of(layer, recipe) == [n for n, method in METHODS.items() if not method.reason(layer)]
    assert pipeline.methods_of(DENSE, recipe.with_option("explore.methods", "svd,cp")) == ["svd"]


def test_without_images_nothing_is_recorded_trained_or_repaired() -> None:
    bare = network(Recipe(), data=False)
    steps = {node.step for node in pipeline.explore_nodes(bare)}
    assert steps == {"decompose", "ranks"}
    refs = {"conv": Ref("r", "r")}
    assert [node.step for node in pipeline.finish_nodes(bare, refs["conv"])] == ["export"]
    assert not pipeline.repairs(bare)


def test_kept_layers_behind_replaced_ones_are_repaired_too() -> None:
    found, choice = network(Recipe()), [("block/conv", "cp", "4")]
    refs = {"block/conv/cp/4/factorize": Ref("f", "f"), "block/conv/cp/decompose": Ref("d", "d")}

    def repaired(found: pipeline.Network, choice: list[tuple[str, str, str]]) -> list[list[str]]:
        nodes = pipeline.rebuild_nodes(found, choice, refs | {"head/svd/3/factorize": Ref("f", "f")})
        return [node.params["choice"] for node in nodes if node.step == "repair"]

    assert repaired(found, choice) == [["block/conv", "cp", "4"], ["head", "", ""]]
    skipping = network(Recipe().with_option("explore.skip", "head"))
    assert repaired(skipping, choice) == [["block/conv", "cp", "4"]]
    twice = [replace(y, input_shapes=y.input_shapes * 2) if y.name == "head" else y for y in found.layers]
    assert repaired(replace(found, layers=tuple(twice)), choice) == [["block/conv", "cp", "4"]]


@pytest.mark.parametrize("given_choice", [[], [("head", "svd", "3"), ("block/conv", "cp", "4")]])
def test_rebuilding_goes_through_the_layers_in_order(given_choice: list[tuple[str, str, str]]) -> None:
    found = network(Recipe().with_option("repair.enabled", True))
    refs = {f"{n}/{m}/{r}/factorize": Ref("f", "f") for n, m, r in given_choice}
    refs |= {f"{n}/{m}/decompose": Ref("d", "d") for n, m, _ in given_choice}
    names = [node.name for node in pipeline.rebuild_nodes(found, given_choice, refs)]
    repaired = ["block/conv/repair", "head/repair", "repaired/rebuild"] if given_choice else []
    assert names == ["rebuild", *repaired]


def test_paths_are_no_part_of_any_key() -> None:
    nodes = [
        pipeline.describe_node("/somewhere/model.h5", "digest", Recipe(), None),
        pipeline.data_node("digest", {}, Recipe().with_option("data.source", "/somewhere/x.npz"), 10, "/somewhere"),
        *pipeline.explore_nodes(replace(network(Recipe()), where={"base": "/somewhere"})),
    ]
    assert {node.step for node in nodes} >= {"describe", "data", "record", "decompose", "ranks"}
    for node in nodes:
        assert "/somewhere" not in str(node.params)
    assert "/somewhere" in str(nodes[0].where)


def test_unknown_names_are_refused_with_the_nearest() -> None:
    tables = {"select.policy": tuple(POLICIES), "explore.methods": tuple(METHODS)}
    pipeline.check_names(Recipe().with_option("select.policy", "threshold"), tables)
    with pytest.raises(RecipeError, match="did you mean 'threshold'"):
        pipeline.check_names(Recipe().with_option("select.policy", "treshold"), tables)
