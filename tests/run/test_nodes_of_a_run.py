from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrfgraph.api import check
from lrfgraph.engine.nodes import Ref
from lrfgraph.errors import RecipeError
from lrfgraph.layers.spec import LayerSpec
from lrfgraph.methods import METHODS
from lrfgraph.options.recipe import Recipe
from lrfgraph.run import nodes
from lrfgraph.run.stages import STAGES
from lrfgraph.run.state import Exploration, Network, kept_reason, methods_of
from lrfgraph.run.steps import STEPS
from lrfgraph.selection.problem import CandidateId

CONV = LayerSpec(
    "block/conv", "Conv2D", "conv2d", (1, 3, 3, 8, 16), (1, 1), (1, 1), "same",
    input_shapes=((8, 8, 8),), output_shapes=((8, 8, 16),), identity="a", upstream="b",
)  # fmt: skip
DENSE = LayerSpec(
    "head", "Dense", "dense", (1, 64, 10), input_shapes=((64,),), output_shapes=((10,),), identity="c", upstream="d"
)
POOL = LayerSpec("pool", "MaxPooling2D")


def network(recipe: Recipe, data: bool = True) -> Network:
    whole = Network(Ref("m", "describe/m"), (CONV, POOL, DENSE), "m", 2000, 90000, "names", "logits", "linear", recipe)
    images = {part: part for part in ("calibration", "repair", "validation", "train", "test")}
    return replace(whole, data=Ref("i", "data/i"), images=images) if data else whole


@given(st.integers(1, 200), st.floats(0.001, 0.5), st.floats(0.51, 1.0))
@settings(max_examples=50, deadline=None)
def test_one_more_share_moves_none_of_the_others(count: int, smallest: float, largest: float) -> None:
    shares = nodes.share_grid(count, smallest, largest)
    assert len(shares) == count
    assert shares == sorted(shares)
    assert all(smallest - 1e-6 <= share <= largest + 1e-6 for share in shares)
    assert set(shares) <= set(nodes.share_grid(count + 1, smallest, largest))


def test_layers_are_kept_for_a_reason() -> None:
    recipe = Recipe()
    assert kept_reason(CONV, recipe) == ""
    assert kept_reason(POOL, recipe) == "has no kernel"
    assert "skipped" in kept_reason(CONV, recipe.with_option("explore.skip", "block/*"))
    assert kept_reason(replace(CONV, kept="it is quantized"), recipe) == "it is quantized"
    only_dense = recipe.with_option("explore.methods", "ttm")
    assert "dense layers alone" in kept_reason(CONV, only_dense)
    assert [layer.name for layer in network(only_dense).factorizable()] == ["head"]


def test_methods_are_those_asked_for_that_apply() -> None:
    recipe = Recipe()
    for layer in (CONV, DENSE):
        assert methods_of(layer, recipe) == [n for n, method in METHODS.items() if not method.reason(layer)]
    assert methods_of(DENSE, recipe.with_option("explore.methods", "svd,cp")) == ["svd"]


def test_without_images_nothing_is_recorded_trained_or_repaired() -> None:
    bare = network(Recipe(), data=False)
    assert not nodes.record_nodes(bare)
    assert not nodes.curvature_nodes(bare)
    assert nodes.decompose_nodes(bare, {}, {}, None)
    assert not bare.finetunes
    assert not bare.repairs
    assert bare.policy.name == "threshold"


CP, SVD = CandidateId("block/conv", "cp", "4"), CandidateId("head", "svd", "3")
EXPLORATION = Exploration(
    factors={CP: Ref("f", "f"), SVD: Ref("f", "f")},
    decompositions={("block/conv", "cp"): Ref("d", "d"), ("head", "svd"): Ref("d", "d")},
)


def test_kept_layers_behind_replaced_ones_are_repaired_too() -> None:
    def repaired(one: Network) -> list[list[str]]:
        made = nodes.rebuild_nodes(one, [CP], EXPLORATION)
        return [[one.layers[n].name, *rest] for n, *rest in (x.params["choice"] for x in made if x.step == "repair")]

    whole = network(Recipe())
    assert repaired(whole) == [["block/conv", "cp", "4"], ["head", "", ""]]
    skipping = network(Recipe().with_option("explore.skip", "head"))
    assert repaired(skipping) == [["block/conv", "cp", "4"]]
    twice = [replace(y, input_shapes=y.input_shapes * 2) if y.name == "head" else y for y in whole.layers]
    assert repaired(replace(whole, layers=tuple(twice))) == [["block/conv", "cp", "4"]]


@pytest.mark.parametrize("configuration", [[], [SVD, CP]])
def test_rebuilding_goes_through_the_layers_in_order(configuration: list[CandidateId]) -> None:
    names = [node.name for node in nodes.rebuild_nodes(network(Recipe()), configuration, EXPLORATION)]
    repaired = ["block/conv/repair", "head/repair", "repaired/rebuild"] if configuration else []
    assert names == ["rebuild", *repaired]


def test_names_count_where_a_result_carries_them_and_nowhere_else() -> None:
    """A renamed input of an otherwise equal model: the rebuilt model is another one, what was measured is not."""
    one, other = (replace(network(Recipe()), signature=signature) for signature in ("one", "other"))
    for make in (nodes.record_nodes, nodes.curvature_nodes):
        assert make(one) == make(other)
    before, after = (nodes.rebuild_nodes(each, [SVD, CP], EXPLORATION) for each in (one, other))
    changed = {a.name for a, b in zip(before, after, strict=True) if a != b}
    assert changed == {"rebuild", "repaired/rebuild"}


def test_the_code_of_custom_layers_counts_before_it_is_read() -> None:
    one, other = (nodes.describe_node("m.h5", "digest", Recipe(), None, code=code) for code in ("one", "other"))
    assert one.params != other.params


def test_only_given_candidates_are_decomposed() -> None:
    assert list(nodes.decompose_nodes(network(Recipe()), {}, {}, [SVD])) == [("head", "svd")]


def test_paths_are_no_part_of_any_key() -> None:
    somewhere = replace(network(Recipe()), locators={"base": "/somewhere"})
    records, curvatures = nodes.record_nodes(somewhere), nodes.curvature_nodes(somewhere)
    made = [
        nodes.describe_node("/somewhere/model.h5", "digest", Recipe(), None),
        nodes.data_node("digest", {}, Recipe().with_option("data.source", "/somewhere/x.npz"), 10, "/somewhere"),
        *records.values(),
        *curvatures.values(),
        *nodes.decompose_nodes(somewhere, records, curvatures, None).values(),
    ]
    assert {node.step for node in made} >= {"describe", "data", "record", "curvature", "decompose"}
    for node in made:
        assert "/somewhere" not in str(node.params)
    assert "/somewhere" in str(made[0].locators)


def test_unknown_names_are_refused_with_the_nearest() -> None:
    check(Recipe().with_option("select.policy", "threshold"))
    with pytest.raises(RecipeError, match="did you mean 'threshold'"):
        check(Recipe().with_option("select.policy", "treshold"))
    with pytest.raises(RecipeError, match="'given' is unknown"):
        check(Recipe().with_option("select.policy", "given"))


def test_a_run_can_stop_after_every_kind_of_node() -> None:
    """A kind that no stage names would never be stopped after."""
    assert {"describe", *(kind for stage in STAGES for kind in stage.kinds)} == STEPS.keys()


def test_what_a_layer_is_called_changes_no_repair() -> None:
    def repairs(one: Network) -> list[object]:
        made = nodes.rebuild_nodes(one, [CP], EXPLORATION)
        return [node.params for node in made if node.step == "repair"]

    whole = network(Recipe())
    other = tuple(replace(y, name="other") if y.name == "head" else y for y in whole.layers)
    assert repairs(whole) == repairs(replace(whole, layers=other))
