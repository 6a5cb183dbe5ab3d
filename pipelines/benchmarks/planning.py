"""Seconds to plan a graph whose nodes are all cached: keys, a look at each entry, the plan's lines.

    python pipelines/benchmarks/planning.py --nodes 100000 --cache SCRATCH --out planning.json

The graph has the shape of a real one: a described network, records, and chains of factors and scores. Filling the
cache takes far longer than what is measured, and is done once for a folder.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

from networks import write

from lrfgraph.engine.nodes import Node, Ref, Result, Step, Task
from lrfgraph.engine.plan import plan
from lrfgraph.engine.resolve import resolve
from lrfgraph.engine.store import Store

LAYERS = 100
GEOMETRY = {"kind": "conv2d", "kernel": [1, 3, 3, 64, 64], "strides": [1, 1], "dilation": [1, 1], "padding": "same"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=100_000)
    parser.add_argument("--cache", type=Path, required=True, help="folder of the cache")
    parser.add_argument("--out", type=Path, required=True, help="result file, JSON")
    parser.add_argument("--repeat", type=int, default=3)
    given = parser.parse_args()
    steps = {name: Step(name, 1, _nothing) for name in ("record", "decompose", "factorize", "score")}
    nodes, store = list(graph(given.nodes)), Store(given.cache)
    fill(nodes, steps, store)
    wall, cpu = [], []
    for _ in range(given.repeat):
        started, used = time.perf_counter(), time.process_time()
        planned = plan(resolve(nodes, steps, store), store)
        wall.append(round(time.perf_counter() - started, 3))
        cpu.append(round(time.process_time() - used, 3))
        assert not planned.missing
    found = {"nodes": len(nodes), "seconds": sorted(wall)[len(wall) // 2], "all_seconds": wall, "cpu_seconds": cpu}
    print(found)
    write(given.out, found)


def graph(count: int) -> Iterator[Node]:
    """Yield about `count` nodes."""
    model = Ref("0" * 40, f"describe/{'0' * 40}")
    each = max((count - 2 * LAYERS) // (2 * LAYERS), 1)
    for layer in range(LAYERS):
        record, prepared = f"layer{layer}/record", f"layer{layer}/cp/decompose"
        yield Node(record, "record", {"layer": GEOMETRY, "number": layer}, {"model": model})
        yield Node(prepared, "decompose", {"layer": GEOMETRY, "method": "cp"}, {"weights": model, "record": record})
        for rank in range(each):
            name, params = f"layer{layer}/cp/{rank}", {"layer": GEOMETRY, "method": "cp", "rank": str(rank)}
            yield Node(f"{name}/factorize", "factorize", params, {"prepared": prepared})
            inputs = {"weights": model, "prepared": prepared, "factors": f"{name}/factorize", "record": record}
            yield Node(f"{name}/score", "score", {**params, "tap": "activation", "tail": "relu"}, inputs)


def fill(nodes: list[Node], steps: dict[str, Step], store: Store) -> None:
    """Commit what is not there yet."""
    for each in resolve(nodes, steps, store).nodes.values():
        if not each.cached:
            store.commit(each.key, Result({"x": 1}), name=each.node.name, components=each.components)


def _nothing(task: Task) -> Result:
    return Result()


if __name__ == "__main__":
    main()
