"""Every policy through the real graph, without images: the budget is met, and only what a policy asks for is made."""

from __future__ import annotations

from pathlib import Path

import pytest

from lrfgraph.api import compress
from lrfgraph.options.recipe import Recipe

MODEL = Path(__file__).parents[1] / "data" / "tiny_cnn.keras"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize("policy", ["threshold", "budget", "energy", "uniform", "evbmf"])
def test_a_budget_is_met_end_to_end(policy: str, cache: Path) -> None:
    options = {"run.cache": str(cache), "run.until": "select", "explore.ranks": 6, "explore.methods": "tucker,cp,svd"}
    recipe = Recipe()
    for key, value in (options | {"select.policy": policy, "select.params": 0.6}).items():
        recipe = recipe.with_option(key, value)
    outcome = compress(MODEL, recipe)
    assert outcome.decision is not None
    assert outcome.decision.configuration
    assert outcome.decision.parameters <= 0.6 * outcome.network.parameters
    assert outcome.decision.policy == policy
    assert (outcome.driver.run["noise"] > 0) == (policy == "evbmf")
    methods = {candidate.method for candidate in outcome.decision.configuration}
    assert policy != "evbmf" or methods <= {"tucker", "svd"}
