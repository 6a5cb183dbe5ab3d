"""Memory asked beforehand: what a program has alive is what is counted, and what the machine has left is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lrfgraph.network import memory
from lrfgraph.network.describing import describe
from lrfgraph.network.graph import Call, feed, flatten, run
from lrfgraph.network.memory import Traffic, available, images_in_flight, stream_limit
from tests.network.models import GRAPHS

SINGLE = ["residual", "shared", "nested", "sequential", "channels_first", "open_size"]


def alive_while_it_runs(model: Any, image: np.ndarray) -> list[int]:
    """Bytes of all values before each call, of a run that keeps the outputs alone."""
    graph, seen = flatten(model), []
    values: dict[int, Any] = feed(graph, image)

    def handler(call: Call, args: Any, kwargs: Any) -> Any:
        seen.append(sum(np.asarray(value).nbytes for value in values.values()))
        return call.operation(*args, **kwargs)

    run(graph, values, handler, keep=graph.outputs)
    assert values.keys() == set(graph.outputs)
    return seen


@pytest.mark.parametrize("name", SINGLE)
def test_what_is_alive_is_what_is_counted(name: str) -> None:
    model = GRAPHS[name]()
    shape = tuple(n or 16 for n in model.input_shape[1:])
    traffic = Traffic.of(flatten(model), model, shape)
    seen = alive_while_it_runs(model, np.ones((1, *shape), np.float32))
    assert seen == [traffic.standing(index) for index in range(len(seen))]
    assert max(seen) <= traffic.forward <= traffic.backward


def test_what_a_plan_reads_counts_the_same() -> None:
    """A plan knows a network by its description, without TensorFlow."""
    model = GRAPHS["residual"]()
    structure = describe(model).structure
    shapes = {int(slot): shape for slot, shape in structure["shapes"].items()}
    calls = [(read, written) for _, read, written in structure["calls"]]
    assert Traffic.of_shapes(calls, structure["inputs"], structure["outputs"], shapes) == Traffic.of(
        flatten(model), model
    )


def test_nothing_is_dropped_that_is_asked_for() -> None:
    graph = flatten(GRAPHS["residual"]())
    image = np.ones((1, 8, 8, 3), np.float32)
    whole = run(graph, feed(graph, image))
    kept = (graph.inputs[0], graph.calls[1].outputs[0], graph.outputs[0])
    some = run(graph, feed(graph, image), keep=kept)
    assert some.keys() == set(kept)
    for slot in kept:
        np.testing.assert_array_equal(some[slot], whole[slot])
    assert len(whole) == len(graph.shapes)


def test_images_in_flight_follow_from_bytes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda: 1)
    monkeypatch.setattr(memory, "held", lambda: 400)
    assert images_in_flight(0, 64) == 64
    assert images_in_flight(memory.CHUNK_BYTES // 10, 64) == 10
    assert images_in_flight(10 * memory.CHUNK_BYTES, 64) == 1
    assert stream_limit(None) == 100
    assert stream_limit(1 << 40) == memory.MOST_STREAM_BYTES


@pytest.mark.parametrize("version", [1, 2])
def test_a_cgroups_limit_counts_where_it_is_tighter(version: int, tmp_path: Path) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:    8000 kB\n")
    assert available(tmp_path) == 8000 * 1024
    home = tmp_path / ("sys/fs/cgroup" if version == 2 else "sys/fs/cgroup/memory")
    (home / "a/b").mkdir(parents=True)
    line = "0::/a/b\n" if version == 2 else "4:cpu,memory:/a/b\n3:pids:/\n"
    (tmp_path / "proc/self/cgroup").write_text(line)
    limit, usage = (
        ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    )
    (home / "a" / limit).write_text("3000000\n")
    (home / "a" / usage).write_text("1000000\n")
    (home / "a/b" / limit).write_text("max\n")
    (home / "a/b" / usage).write_text("500\n")
    assert available(tmp_path) == 2_000_000
    (home / "a/b" / limit).write_text("700\n")
    assert available(tmp_path) == 200
