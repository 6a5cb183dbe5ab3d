"""What is computed before its turn: the passes that exploring starts with, where there is somebody idle."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from conftest import DATA

from lrfgraph import api
from lrfgraph.engine.execute import graph_of
from lrfgraph.engine.resolve import resolve
from lrfgraph.methods import METHODS
from lrfgraph.options.recipe import Recipe
from lrfgraph.run import nodes
from lrfgraph.run.beside import passes_beside
from lrfgraph.run.steps import STEPS
from lrfgraph.run.steps.candidates import SMALL_KERNEL
from lrfgraph.selection.problem import CandidateId

MODEL, IMAGES = DATA / "tiny_cnn.keras", DATA / "tiny_digits.npz"
FOLLOWING = {"baseline", "explore", "candidates"}


@pytest.fixture(scope="module")
def explored(tmp_path_factory: pytest.TempPathFactory) -> api.Compression:
    recipe = Recipe.from_dict(
        {
            "data": {"source": str(IMAGES), "scale": 1 / 255},
            "explore": {"ranks": 2},
            "run": {"cache": str(tmp_path_factory.mktemp("cache")), "until": "ranks"},
            "select": {"policy": "threshold"},
        }
    )
    return api.compress(MODEL, recipe)


@pytest.mark.parametrize(
    ("options", "following", "dry", "beside"),
    [
        ({"threads": 2}, FOLLOWING, False, True),
        ({"threads": 1}, FOLLOWING, False, False),
        ({"threads": 1, "workers": 2}, FOLLOWING, False, True),
        ({"threads": 2, "workers": 1}, FOLLOWING, False, False),
        ({"threads": 2}, FOLLOWING, True, False),
        ({"threads": 2}, {"baseline"}, False, False),
        ({"threads": 2}, FOLLOWING | {"prune"}, False, False),
    ],
)
def test_passes_run_beside_the_measuring_where_somebody_is_idle(
    explored: api.Compression, options: dict[str, int], following: set[str], dry: bool, beside: bool
) -> None:
    driver, network = explored.driver, explored.network
    recipe = replace(driver.recipe, run=replace(driver.recipe.run, **options))
    passes = passes_beside(replace(driver, recipe=recipe, dry=dry), network, following)
    wanted = [*nodes.record_nodes(network).values(), *nodes.curvature_nodes(network).values()]
    assert passes == (wanted if beside else [])


def test_passes_are_those_that_exploring_asks_for(explored: api.Compression, tmp_path: Path) -> None:
    """Nothing is computed twice, and one thread computes the same."""
    recipe, counts = explored.driver.recipe, []
    for threads in (1, 2):
        run = replace(recipe.run, threads=threads, cache=str(tmp_path / str(threads)))
        counts.append(dict(api.compress(MODEL, replace(recipe, run=run)).driver.run))
    assert counts[0] == counts[1]


def test_small_kernels_of_one_geometry_are_factorized_side_by_side(explored: api.Compression) -> None:
    layer = next(layer for layer in explored.network.factorizable() if layer.spatial)
    twin = replace(layer, name="twin")
    network = replace(explored.network, layers=[*explored.network.layers, twin])
    iterating = next(name for name, method in METHODS.items() if method.iterates)
    prepared = explored.exploration.decompositions[layer.name, iterating]
    exploration = replace(
        explored.exploration, decompositions={(name, iterating): prepared for name in (layer.name, "twin")}
    )
    candidates = [CandidateId(name, iterating, rank) for name in (layer.name, "twin") for rank in ("1", "2")]
    factors, _ = nodes.candidate_nodes(network, exploration, candidates)
    distinct = [  # twins have one key: as other kernels of that geometry they have two
        replace(node, inputs={"prepared": replace(prepared, identity=str(index))})
        for index, node in enumerate(factors.values())
    ]
    jobs = graph_of(resolve(distinct, STEPS, explored.driver.store).needed(), STEPS)
    assert sorted(len(works) for _, works, _ in jobs.values()) == [2, 2]
    large = {**distinct[0].params["layer"], "kernel": [1, 3, 3, SMALL_KERNEL, 1]}
    several = [replace(node, params={**node.params, "layer": large}) for node in distinct]
    assert len(graph_of(resolve(several, STEPS, explored.driver.store).needed(), STEPS)) == 4
