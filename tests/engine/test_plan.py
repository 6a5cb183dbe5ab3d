"""The plan says what will run and why, and agrees with what then runs."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from toys import STEPS, grid

from lrfgraph.engine.execute import execute
from lrfgraph.engine.nodes import Node, Ref, Result
from lrfgraph.engine.plan import Plan, plan
from lrfgraph.engine.resolve import resolve
from lrfgraph.engine.store import Store

FIRST = [
    Node("s", "source", {"seed": 1}),
    Node("c", "combine", {"factor": 2}, {"a": "s"}),
    Node("n", "score", {}, {"of": "c"}),
]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def planned(nodes: list[Node], store: Store, targets: list[str] | None = None) -> Plan:
    return plan(resolve(nodes, STEPS, store), store, targets)


def whys(nodes: list[Node], store: Store) -> dict[str, str]:
    return {node.name: node.why for node in planned(nodes, store).missing}


def test_an_empty_cache(store: Store) -> None:
    found = planned(FIRST, store)
    assert {node.why for node in found.nodes} == {"never computed"}
    assert (found.total.nodes, found.total.unknown, found.total.seconds) == (3, 3, 0.0)
    assert list(store.root.iterdir()) == []


def test_nothing_to_do(store: Store) -> None:
    execute(FIRST, STEPS, store)
    found = planned(FIRST, store)
    assert found.missing == []
    assert found.total.nodes == 0
    assert found.steps == {}


def test_what_differs_is_named_and_followed_through_the_inputs(store: Store) -> None:
    execute(FIRST, STEPS, store)
    assert whys([replace(FIRST[0], params={"seed": 2}), *FIRST[1:]], store) == {
        "s": "params.seed 1 → 2",
        "c": "input a differs because params.seed 1 → 2",
        "n": "input of differs because input a differs because params.seed 1 → 2",
    }
    assert whys([FIRST[0], replace(FIRST[1], params={"factor": 2, "new": "x"})], store) == {
        "c": 'params.new absent → "x"'
    }
    assert whys([FIRST[0], replace(FIRST[1], params={})], store) == {"c": "params.factor 2 → absent"}
    assert whys([replace(FIRST[2], inputs={"of": Ref("else", "combine/1")})], store) == {"n": "input of differs"}


def test_a_raised_version_is_named(store: Store) -> None:
    execute(FIRST, STEPS, store)
    steps = {**STEPS, "score": replace(STEPS["score"], version=2)}
    found = plan(resolve(FIRST, steps, store), store)
    assert [(node.name, node.why) for node in found.missing] == [("n", "version 1 → 2")]


def test_after_a_removal_the_nearest_of_what_is_left_is_named(store: Store) -> None:
    refs = execute(FIRST, STEPS, store)
    other = [FIRST[0], Node("other", "combine", {"factor": 3}, {"a": "s"})]
    execute(other, STEPS, store)
    folder = store.folder(refs["c"].key)
    (folder / "entry.json").rename(folder / "entry.away")
    assert whys(FIRST, store) == {"c": "params.factor 3 → 2"}


def test_the_same_name_is_nearer_than_the_same_parameters(store: Store) -> None:
    nodes = [Node(f"layer{i}", "source", {"seed": i, "size": 10}) for i in range(40)]
    execute(nodes, STEPS, store)
    assert whys([Node("layer7", "source", {"seed": 7, "size": 20})], store) == {"layer7": "params.size 10 → 20"}
    assert whys([Node("fresh", "source", {"seed": 30, "size": 20})], store) == {"fresh": "params.size 10 → 20"}


def test_long_differences_are_cut(store: Store) -> None:
    execute([Node("s", "source", {"seed": 1, "a": 1, "b": 1, "c": 1, "long": "x" * 100})], STEPS, store)
    (why,) = whys([Node("s", "source", {"seed": 1, "a": 2, "b": 2, "c": 2, "long": "y" * 100})], store).values()
    assert why == "params.a 1 → 2, params.b 1 → 2, params.c 1 → 2, 1 more"


def test_what_differs_in_one_parameter_is_found_however_long_ago_it_was_used(store: Store) -> None:
    nodes = [Node(f"layer{i}", "source", {"seed": i, "size": 10}) for i in range(60)]
    refs = execute(nodes, STEPS, store)
    for i, ref in enumerate(refs.values()):
        os.utime(store.folder(ref.key) / "entry.json", (1000 + i, 1000 + i))
    assert whys([Node("fresh", "source", {"seed": 2, "size": 20})], store) == {"fresh": "params.size 10 → 20"}
    more = {"seed": 77, "size": 20, "new": 1}
    assert whys([Node("fresh", "source", more)], store) == {
        "fresh": "params.new absent → 1, params.seed 59 → 77, params.size 10 → 20"
    }, "of several that are equally near the one used last"


@pytest.mark.parametrize(("letters", "shown"), [(38, '"' + "x" * 38 + '"'), (39, '"' + "x" * 36 + "…")])
def test_a_value_is_shown_up_to_forty_characters(store: Store, letters: int, shown: str) -> None:
    execute([Node("s", "source", {"seed": 1, "text": "x" * letters})], STEPS, store)
    assert whys([Node("s", "source", {"seed": 1, "text": "y"})], store) == {"s": f'params.text {shown} → "y"'}


def test_three_differences_are_told_whole(store: Store) -> None:
    execute([Node("s", "source", {"seed": 1, "a": 1, "b": 1})], STEPS, store)
    (why,) = whys([Node("s", "source", {"seed": 2, "a": 2, "b": 2})], store).values()
    assert why == "params.a 1 → 2, params.b 1 → 2, params.seed 1 → 2"


def test_a_damaged_entry_is_the_reason_it_is_named_as(store: Store) -> None:
    refs = execute(FIRST, STEPS, store)
    unreadable = {refs["c"].key: "it is torn"}
    found = plan(resolve(FIRST, STEPS, store, unreadable), store)
    assert [(node.name, node.why) for node in found.missing] == [("c", "damaged in the cache: it is torn")]
    assert resolve(FIRST, STEPS, store, {"score/" + "0" * 40: "gone"}).damaged == {}


def test_the_median_of_what_is_recorded_is_expected(store: Store) -> None:
    for seed, seconds in enumerate((1.0, 2.0, 9.0)):
        key = resolve([Node("s", "source", {"seed": seed})], STEPS, store).nodes["s"].key
        store.commit(key, Result({"x": "y" * 10 * seed}), name="s", components={"step": "source"}, seconds=seconds)
    found = planned([Node("t", "source", {"seed": 7}), Node("u", "combine")], store)
    assert [(node.seconds, node.bytes) for node in found.nodes] == [(2.0, 0), (None, None)]
    assert (found.total.nodes, found.total.seconds, found.total.unknown) == (2, 2.0, 1)


def test_estimates_come_from_what_is_recorded(store: Store) -> None:
    execute(FIRST, STEPS, store)
    manifest = store.open(resolve(FIRST, STEPS, store).nodes["s"].ref).manifest
    nodes = [*FIRST, *(Node(f"s{seed}", "source", {"seed": seed}) for seed in (2, 3, 3))][:-1]
    nodes.append(Node("twin", "source", {"seed": 3}))
    found = planned(nodes, store)
    assert found.total == found.steps["source"]
    assert found.total.nodes == 2, "equal nodes are computed once"
    assert found.total.seconds == pytest.approx(2 * manifest["seconds"])
    assert found.total.bytes == 2 * manifest["bytes"]
    assert found.total.unknown == 0


def test_the_plan_agrees_with_the_run(store: Store) -> None:
    execute(grid(2, 2), STEPS, store)
    nodes = grid(3, 3)
    found = planned(nodes, store, ["c2/2/score", "c0/0/score"])
    finished: list[str] = []
    execute(
        nodes,
        STEPS,
        store,
        targets=["c2/2/score", "c0/0/score"],
        on_event=lambda event: finished.append(event.node) if event.kind == "finished" else None,
    )
    assert sorted(finished) == sorted(node.name for node in found.missing) == ["c2/2", "c2/2/score", "p2", "s2"]
    assert planned(nodes, store, ["c2/2/score"]).missing == []
