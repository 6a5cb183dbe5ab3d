"""Keys are found before anything runs; graphs that are none are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from toys import STEPS, grid

from lrfgraph.engine.execute import execute
from lrfgraph.engine.nodes import Node, Ref, components_of, key_of
from lrfgraph.engine.resolve import resolve
from lrfgraph.engine.store import Store
from lrfgraph.errors import StoreError


def test_keys_follow_from_the_identities_of_inputs_which_come_first(tmp_path: Path) -> None:
    nodes = grid(2, 2)[::-1]
    found = resolve(nodes, STEPS, Store(tmp_path)).nodes
    order = list(found)
    for node in nodes:
        identities = {name: found[str(source)].identity for name, source in node.inputs.items()}
        assert found[node.name].key == key_of(components_of(node, 1, identities))
        assert all(order.index(str(source)) < order.index(node.name) for source in node.inputs.values())
    assert list(tmp_path.iterdir()) == []


def test_refs_of_earlier_stages_are_inputs(tmp_path: Path) -> None:
    ref = Ref("what it says", "choose/123")
    node = Node("c", "combine", {}, {"a": ref})
    assert resolve([node], STEPS, Store(tmp_path)).nodes["c"].key == key_of(
        components_of(node, 1, {"a": "what it says"})
    )


def test_a_cached_node_needs_nothing(tmp_path: Path) -> None:
    store, nodes = Store(tmp_path), grid(2, 1)
    refs = execute(nodes, STEPS, store)
    store.discard(refs["s0"].key)
    store.discard(refs["c0/0"].key)
    resolution = resolve(nodes, STEPS, store)
    assert {found.node.name for found in resolution.needed() if not found.cached} == {"s0", "c0/0"}
    assert all(found.cached for found in resolution.needed(["c0/0/score", "c1/0/score"]))
    store.discard(refs["c0/0/score"].key)
    needed = resolve(nodes, STEPS, store).needed(["c0/0/score", "c1/0/score"])
    assert [found.node.name for found in needed if not found.cached] == ["s0", "c0/0", "c0/0/score"]
    assert [found.node.name for found in needed if found.cached] == ["p0", "c1/0/score"]


@pytest.mark.parametrize(
    ("nodes", "says"),
    [
        ([Node("a", "source"), Node("a", "score")], "two nodes have the name 'a'"),
        ([Node("a", "nothing")], "step 'nothing' is unknown"),
        ([Node("a", "combine", {}, {"x": "b"})], "reads 'b', which is not in the graph"),
        ([Node("a", "combine", {}, {"x": "b"}), Node("b", "combine", {}, {"x": "a"})], "cycle"),
        ([Node("a", "combine", {}, {"x": "a"})], "cycle"),
    ],
)
def test_graphs_that_are_none(tmp_path: Path, nodes: list[Node], says: str) -> None:
    with pytest.raises(StoreError, match=says):
        resolve(nodes, STEPS, Store(tmp_path))


def test_a_decision_ends_a_stage_until_it_is_made(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first = [
        Node("s", "source", {"seed": 1}),
        Node("n", "score", {}, {"of": "s"}),
        Node("d", "choose", {"threshold": 1.0}, {"of": "n"}),
    ]
    after = Node("c", "score", {"wanted": 1}, {"of": "s", "when": "d"})
    with pytest.raises(StoreError, match="a decision that is not made yet"):
        resolve([*first, after], STEPS, store)
    refs = execute(first, STEPS, store)
    assert refs["d"].identity == "over=True"
    key = resolve([*first, after], STEPS, store).nodes["c"].key
    other = [*first[:2], Node("d", "choose", {"threshold": 2.0}, {"of": "n"})]
    execute(other, STEPS, store)
    assert resolve([*other, after], STEPS, store).nodes["c"].key == key, "it says the same"


def test_shared_inputs_many_times_are_no_cycle(tmp_path: Path) -> None:
    nodes = [Node("z", "combine", {}, {"a": "x", "b": "y"}), Node("y", "combine", {}, {"a": "x"})]
    nodes.append(Node("x", "source", {"seed": 0}))
    assert list(resolve(nodes, STEPS, Store(tmp_path)).nodes) == ["x", "y", "z"]


def test_a_long_chain_is_no_deep_recursion(tmp_path: Path) -> None:
    nodes = [Node("n0", "source", {"seed": 0})]
    nodes += [Node(f"n{i}", "combine", {}, {"a": f"n{i - 1}"}) for i in range(1, 3000)]
    assert len(resolve(nodes[::-1], STEPS, Store(tmp_path)).nodes) == 3000
