"""The driver says how much memory a stage's nodes take, where somebody divides it among tasks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lrfgraph.engine.nodes import Node, Ref
from lrfgraph.engine.store import Store
from lrfgraph.options.recipe import Recipe
from lrfgraph.run import driver as driver_module
from lrfgraph.run.driver import Driver


def test_nodes_that_run_a_network_ask_for_what_their_stage_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, int] = {}

    def execute(nodes: Sequence[Node], *rest: Any, **options: Any) -> dict[str, Ref]:
        asked.update({node.name: node.memory for node in nodes})
        return {}

    monkeypatch.setattr(driver_module, "execute", execute)
    nodes = [Node("a/record", "record", locators={"trust": {}}), Node("a/ranks", "ranks")]
    driver = Driver(Recipe(), Store(tmp_path), tmp_path / "m.keras", "0", memory={"explore": 5})
    driver.carry_out("explore", nodes)
    assert asked == {"a/record": 5, "a/ranks": 0}
    driver.carry_out("rebuild", nodes)
    assert asked == {"a/record": 0, "a/ranks": 0}
