"""Nothing is computed twice: what runs, what is reused, and what the watcher is told."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from toys import STEPS, expected, grid

from lrfgraph.engine.events import Event
from lrfgraph.engine.execute import execute, graph_of
from lrfgraph.engine.maintenance import fingerprints
from lrfgraph.engine.nodes import Node, Ref, Result, Step, Task
from lrfgraph.engine.resolve import resolve
from lrfgraph.engine.store import Store
from lrfgraph.engine.tasks import JobOutcome
from lrfgraph.engine.workers import Graph, Threads, one_blas_thread
from lrfgraph.errors import DataError, StoreError


class Watch:
    """Collects events."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.events.append(event)

    def names(self, kind: str) -> list[str]:
        return sorted(event.node for event in self.events if event.kind == kind)

    @property
    def counts(self) -> Counter[str]:
        return Counter(event.kind for event in self.events if event.kind not in ("started", "progress"))


class Refusing:
    """Workers that must not be needed."""

    def run(self, graph: Graph, store: Store, listener: Any) -> list[JobOutcome]:
        raise AssertionError(f"{list(graph)} would run")

    def close(self) -> None:
        """Nothing to close."""


def run(nodes: list[Node], store: Store, **options: Any) -> tuple[dict[str, Ref], Watch]:
    watch = Watch()
    return execute(nodes, STEPS, store, on_event=watch, **options), watch


def test_second_run_computes_nothing_and_the_first_is_right(tmp_path: Path) -> None:
    store, nodes = Store(tmp_path), grid()
    refs, watch = run(nodes, store)
    assert watch.counts == {"finished": len(nodes)}
    assert watch.names("started") == watch.names("finished") == sorted(node.name for node in nodes)
    assert all(event.bytes > 0 for event in watch.events if event.kind == "finished")
    assert {(event.done, event.total) for event in watch.events if event.kind != "progress"} == {(0, 0)}
    assert {(event.seconds, event.bytes) for event in watch.events if event.kind == "started"} == {(0.0, 0)}
    for name, vector in expected(nodes).items():
        np.testing.assert_array_equal(store.open(refs[name]).array("vector"), vector)
    again, watch = run(nodes, store, on=Refusing())
    assert again == refs
    assert watch.counts == {"reused": len(nodes)}
    assert list((store.base / "leases").iterdir()) == list((store.base / "tmp").iterdir()) == []


def test_an_event_says_no_more_than_is_known() -> None:
    assert Event("reused", "n", "s") == Event("reused", "n", "s", seconds=0.0, bytes=0, done=0, total=0, message="")


def test_one_entry_less_is_one_node_more(tmp_path: Path) -> None:
    store, nodes = Store(tmp_path), grid()
    refs, _ = run(nodes, store)
    store.discard(refs["c2/3"].key)
    _, watch = run(nodes, store)
    assert watch.names("finished") == ["c2/3"]
    assert watch.counts["reused"] == len(nodes) - 1


def test_only_what_targets_need(tmp_path: Path) -> None:
    store = Store(tmp_path)
    refs, watch = run(grid(), store, targets=["c1/0/score"])
    assert watch.names("finished") == ["c1/0", "c1/0/score", "p1", "s1"] == sorted(refs)
    store.discard(refs["s1"].key)
    refs, watch = run(grid(), store, targets=["c1/0/score"], on=Refusing())
    assert sorted(refs) == ["c1/0", "c1/0/score", "p1"]
    with pytest.raises(StoreError, match="no node 'nowhere'"):
        run(grid(), store, targets=["nowhere"])


def test_one_pass_for_all_that_miss_and_each_its_own_entry(tmp_path: Path) -> None:
    store, log = Store(tmp_path / "cache"), tmp_path / "log"
    nodes = grid(5, 1, log=str(log))
    refs, _ = run(nodes, store)
    assert log.read_text() == "5\n"
    for name in ("p1", "p3"):
        store.discard(refs[name].key)
    _, watch = run(nodes, store)
    assert log.read_text() == "5\n2\n"
    assert watch.names("finished") == ["p1", "p3"]


def test_passes_that_read_each_other_are_passes_of_their_own(tmp_path: Path) -> None:
    nodes = [
        Node("s", "source", {"seed": 0}),
        Node("p1", "passes", {}, {"a": "s"}),
        Node("p2", "passes", {}, {"a": "p1"}),
    ]
    jobs = graph_of(resolve(nodes, STEPS, Store(tmp_path)).needed(), STEPS)
    assert [len(works) for _, works, _ in jobs.values()] == [1, 1, 1]
    run(nodes, Store(tmp_path))


def test_equal_nodes_are_computed_once(tmp_path: Path) -> None:
    nodes = [Node(f"s{i}", "source", {"seed": 7}) for i in range(3)]
    nodes += [Node(f"n{i}", "score", {}, {"of": f"s{i}"}) for i in range(3)]
    refs, watch = run(nodes, Store(tmp_path))
    assert watch.counts == {"finished": 2, "reused": 4}
    assert len({ref.key for ref in refs.values()}) == 2
    assert sorted(refs) == sorted(node.name for node in nodes)


@pytest.mark.parametrize("count", [0, 3])
def test_a_pass_with_too_few_or_too_many_results_is_a_bug(tmp_path: Path, count: int) -> None:
    step = Step("p", 1, lambda task: Result(), together=lambda tasks: [Result()] * count)
    with pytest.raises(ValueError, match="another number of results than the 2 nodes"):
        execute([Node("a", "p", {"i": 1}), Node("b", "p", {"i": 2})], {"p": step}, Store(tmp_path))


def test_the_seconds_of_a_pass_are_shared_by_its_nodes(tmp_path: Path) -> None:
    """What came before the first result served all; what came after it the next one alone."""

    def together(tasks: list[Task]) -> Iterator[Result]:
        time.sleep(0.3)
        for _ in tasks:
            yield Result({"x": 1})
            time.sleep(0.1)

    started, watch = time.monotonic(), Watch()
    steps = {"p": Step("p", 1, lambda task: Result(), together=together)}
    execute([Node(f"n{i}", "p", {"i": i}) for i in range(3)], steps, Store(tmp_path), on_event=watch)
    first, *others = sorted(event.seconds for event in watch.events if event.kind == "finished")
    assert 0.1 <= first < 0.2
    assert all(seconds >= 0.2 for seconds in others)
    assert first + sum(others) <= time.monotonic() - started


def test_the_seconds_of_a_node_are_its_own(tmp_path: Path) -> None:
    def step(task: Task) -> Result:
        time.sleep(task.params["seconds"])
        return Result({"x": 1})

    watch = Watch()
    nodes = [Node(f"n{seconds}", "wait", {"seconds": seconds}) for seconds in (0.01, 0.3)]
    execute(nodes, {"wait": Step("wait", 1, step)}, Store(tmp_path), on_event=watch, on=Threads(1))
    took = {event.node: event.seconds for event in watch.events if event.kind == "finished"}
    assert took["n0.01"] < 0.25 <= took["n0.3"]


def test_an_undeclared_decision_is_a_bug(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="decides=True"):
        execute([Node("a", "p")], {"p": Step("p", 1, lambda task: Result(identity="x"))}, Store(tmp_path))


@pytest.mark.parametrize(("kind", "error"), [("user", DataError), ("bug", ZeroDivisionError)])
def test_a_failing_step_raises_and_its_neighbours_finish(tmp_path: Path, kind: str, error: type[Exception]) -> None:
    store = Store(tmp_path)
    slow = Node("slow", "slow", {"ticks": 6})
    nodes = [slow, Node("f", "fail", {"kind": kind}), Node("after", "score", {}, {"of": "f"})]
    watch = Watch()
    with pytest.raises(error):
        execute(nodes, STEPS, store, on_event=watch)
    assert watch.names("finished") == ["slow"]
    assert list((store.base / "leases").iterdir()) == []
    _, watch = run([slow], store)
    assert watch.counts == {"reused": 1}


def test_progress_is_told(tmp_path: Path) -> None:
    _, watch = run([Node("slow", "slow", {"ticks": 3})], Store(tmp_path))
    ticks = [(event.node, event.done, event.total, event.message) for event in watch.events if event.kind == "progress"]
    assert ticks == [("", 0, 1, ""), *(("slow", done, 3, "ticking") for done in range(3))]


def test_who_finds_another_at_work_waits_for_it(tmp_path: Path) -> None:
    store, node = Store(tmp_path), Node("slow", "slow", {"ticks": 10})
    first, second = Watch(), Watch()
    thread = threading.Thread(target=execute, args=([node], STEPS, store), kwargs={"on_event": first})
    thread.start()
    while not first.names("started"):
        time.sleep(0.005)
    execute([node], STEPS, Store(tmp_path), on_event=second)
    thread.join()
    assert first.counts == {"finished": 1}
    assert second.counts == {"waited": 1}


def test_a_lease_of_the_dead_is_taken_over(tmp_path: Path) -> None:
    from lrfgraph.engine.leases import owner

    store, node = Store(tmp_path), Node("s", "source", {"seed": 1})
    lease = store.lease_path(resolve([node], STEPS, store).nodes["s"].key)
    lease.parent.mkdir(parents=True)
    lease.write_text(f'{{"host": "{owner()[0]}", "pid": 999999999, "started": 1, "token": "x"}}')
    _, watch = run([node], store)
    assert watch.counts == {"finished": 1}
    assert not lease.exists()


def test_what_is_cached_starts_nothing(tmp_path: Path) -> None:
    """Neither dask nor zarr nor threadpoolctl is imported by a run that finds everything."""
    run(grid(2, 2), Store(tmp_path))
    script = "import sys; from toys import *; from lrfgraph.engine.execute import execute\n"
    script += "from lrfgraph.engine.store import Store; r = execute(grid(2, 2), STEPS, Store(sys.argv[1]))\n"
    script += "assert Store(sys.argv[1]).open(r['c0/0']).array('vector').size\n"
    script += "print([m for m in ('dask', 'zarr', 'distributed', 'threadpoolctl', 'scipy') if m in sys.modules])"
    here = Path(__file__).parent
    env = {**os.environ, "PYTHONPATH": f"{here}{os.pathsep}{here.parents[1]}"}
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], env=env, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_blas_has_one_thread_inside_and_as_many_as_before_outside(tmp_path: Path) -> None:
    from threadpoolctl import threadpool_info

    def threads() -> list[int]:
        np.ones((2, 2)) @ np.ones((2, 2))
        return [info["num_threads"] for info in threadpool_info() if info["user_api"] == "blas"]

    before, environment, seen = threads(), dict(os.environ), []

    def look(task: Task) -> Result:
        seen.append((threads(), os.environ["OPENBLAS_NUM_THREADS"]))
        return Result()

    with one_blas_thread():
        execute([Node("a", "look")], {"look": Step("look", 1, look)}, Store(tmp_path))
        assert set(threads()) == {1}
    assert seen == [([1] * len(before), "1")]
    assert threads() == before
    assert dict(os.environ) == environment


@st.composite
def graphs(draw: st.DrawFn) -> list[Node]:
    nodes = [Node("n0", "source", {"seed": draw(st.integers(0, 3))})]
    for index in range(1, draw(st.integers(2, 12))):
        step = draw(st.sampled_from(["source", "combine", "combine", "passes"]))
        if step == "source":
            nodes.append(Node(f"n{index}", step, {"seed": draw(st.integers(0, 3))}))
            continue
        above = draw(st.lists(st.integers(0, index - 1), min_size=1, max_size=3))
        factor = draw(st.sampled_from([0.5, 1.0, 2.0]))
        nodes.append(Node(f"n{index}", step, {"factor": factor}, {f"i{j}": f"n{a}" for j, a in enumerate(above)}))
    return draw(st.permutations(nodes))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(nodes=graphs(), threads=st.integers(1, 4))
def test_any_graph_gives_the_same_on_threads_as_one_after_the_other(
    tmp_path_factory: pytest.TempPathFactory, nodes: list[Node], threads: int
) -> None:
    store = Store(tmp_path_factory.mktemp("cache"))
    refs, watch = run(nodes, store, on=Threads(threads))
    for name, vector in expected(sorted(nodes, key=lambda node: int(node.name[1:]))).items():
        np.testing.assert_array_equal(store.open(refs[name]).array("vector"), vector)
    assert watch.counts["finished"] == len({ref.key for ref in refs.values()})


def test_processes_give_the_digests_of_threads(tmp_path: Path) -> None:
    """One cluster of two workers: same results, events, failures passed on, nothing run twice."""
    from lrfgraph.engine.workers import workers_for

    plain, store = Store(tmp_path / "threads"), Store(tmp_path / "processes")
    nodes = [Node("slow", "slow", {"ticks": 2}), *grid(3, 3)]
    run(nodes, plain)
    cluster = workers_for(workers=2)
    try:
        run(nodes[1:3], store)
        _, watch = run(nodes, store, on=cluster)
        assert watch.counts == {"reused": 2, "finished": len(nodes) - 2}
        assert {"slow", "s0"} <= set(watch.names("started") + watch.names("reused"))
        assert ("ticking", 2) in {(event.message, event.total) for event in watch.events}
        assert fingerprints(store) == fingerprints(plain)
        manifest = store.folder(resolve(nodes, STEPS, store).nodes["p1"].key) / "entry.json"
        manifest.write_bytes(manifest.read_bytes()[:-1])
        more = [*nodes, Node("late", "score", {"wanted": 9}, {"of": "p1"})]
        _, watch = run(more, store, on=cluster)
        assert watch.names("discarded") == ["p1"]
        assert watch.names("finished") == ["late", "p1"]
        with pytest.raises(DataError, match="images are wrong; received none; give some"):
            run([Node("f", "fail", {"kind": "user"})], store, on=cluster)
    finally:
        cluster.close()


def _by_source(node: Node) -> Any:
    return node.inputs["of"]


def test_small_nodes_share_a_task_and_need_no_lease(tmp_path: Path) -> None:
    """Scores of one source are one job; each is published by itself, and one that fails keeps those before it."""
    store = Store(tmp_path)
    calls: list[tuple[str, list[Path]]] = []
    broken = True

    def scored(task: Task) -> Result:
        leases = list((tmp_path / "v2" / "leases").glob("*.lease"))
        calls.append((task.name, leases))
        if broken and task.name == "s0/3":
            raise ZeroDivisionError("a bug")
        return Result(data={"norm": float(np.linalg.norm(task.inputs["of"].array("vector")))})

    steps = {**STEPS, "score": Step("score", 1, scored, small=_by_source)}
    nodes = [Node(f"s{i}", "source", {"seed": i}) for i in range(2)]
    nodes += [Node(f"s{i}/{j}", "score", {"limit": j}, {"of": f"s{i}"}) for i in range(2) for j in range(4)]
    jobs = graph_of(resolve(nodes, steps, store).needed(), steps)
    assert sorted(len(works) for _, works, _ in jobs.values()) == [1, 1, 4, 4]
    with pytest.raises(ZeroDivisionError):
        execute(nodes[:1] + nodes[2:6], steps, store, on=Threads(1))
    assert [name for name, _ in calls] == ["s0/0", "s0/1", "s0/2", "s0/3"]
    calls.clear()
    broken = False
    refs = execute(nodes, steps, store, on=Threads(1))
    assert sorted(name for name, _ in calls) == ["s0/3", "s1/0", "s1/1", "s1/2", "s1/3"]
    assert not any(leases for _, leases in calls)
    assert all(store.open(refs[node.name]).data for node in nodes)
