"""Small numeric steps of every shape the engine knows, for its tests; in a module so that they travel by name."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from lrfgraph.engine.execute import execute
from lrfgraph.engine.nodes import Node, Ref, Result, Step, Task
from lrfgraph.engine.store import Store
from lrfgraph.errors import DataError


def source(task: Task) -> Result:
    """A seeded vector and a matrix product (so that BLAS is in the game, and Zarr: it is large), plus a whole file."""
    rng = np.random.default_rng(int(task.params["seed"]))
    matrix = rng.normal(size=(192, 192))
    path = task.scratch() / "note.txt"
    path.write_text(f"seed {task.params['seed']}\n" * 20)
    return Result(
        data={"seed": task.params["seed"]},
        arrays={"vector": rng.normal(size=int(task.params.get("size", 500))), "deep/er/product": matrix @ matrix.T},
        files={"note.txt": path},
    )


def combine(task: Task) -> Result:
    """The sum of all inputs' vectors, times a factor."""
    time.sleep(float(task.locators.get("sleep", 0.0)))
    total = np.zeros(1)
    for name in sorted(task.inputs):
        total = np.resize(total, 500) + task.inputs[name].array("vector")
    return Result(data={"inputs": len(task.inputs)}, arrays={"vector": total * float(task.params.get("factor", 1.0))})


def score(task: Task) -> Result:
    """Small results only, from arrays and files of the input."""
    given = task.inputs["of"]
    found = {"norm": float(np.linalg.norm(given.array("vector"))), "wanted": task.params.get("wanted", 0)}
    return Result(data=found)


def passes(tasks: list[Task]) -> Iterator[Result]:
    """One pass for all nodes; `locators["log"]` counts the passes."""
    log = tasks[0].locators.get("log")
    if log:
        with Path(log).open("a") as file:
            file.write(f"{len(tasks)}\n")
    for task in tasks:
        yield combine(task)


def choose(task: Task) -> Result:
    """A decision: whether the norm is over a threshold."""
    over = task.inputs["of"].data["norm"] > float(task.params["threshold"])
    return Result(data={"over": over}, identity=f"over={over}")


def fail(task: Task) -> Result:
    """Fails as `kind` says, a moment after what runs beside it has begun."""
    time.sleep(0.1)
    if task.params["kind"] == "user":
        raise DataError("images are wrong; received none; give some")
    raise ZeroDivisionError("a bug")


def slow(task: Task) -> Result:
    """Sleeps and reports progress."""
    for index in range(int(task.params["ticks"])):
        task.progress(index, int(task.params["ticks"]), "ticking")
        time.sleep(0.05)
    return Result(data={"ticks": task.params["ticks"]})


def big(task: Task) -> Result:
    """An array larger than a small disk, compressed too."""
    return Result(arrays={"noise": np.random.default_rng(0).random(int(task.params["bytes"]) // 8)})


STEPS = {
    step.name: step
    for step in (
        Step("source", 1, source),
        Step("combine", 1, combine),
        Step("score", 1, score),
        Step("passes", 1, combine, together=passes),
        Step("choose", 1, choose, decides=True),
        Step("fail", 1, fail),
        Step("slow", 1, slow),
        Step("big", 1, big),
    )
}


def grid(sources: int = 4, factors: int = 5, sleep: float = 0.0, log: str = "") -> list[Node]:
    """A graph like the real one in small: sources, one pass over them, factors of each, a score of each factor."""
    nodes = [Node(f"s{i}", "source", {"seed": i}) for i in range(sources)]
    nodes += [Node(f"p{i}", "passes", {"factor": 0.5}, {"a": f"s{i}"}, {"log": log}) for i in range(sources)]
    for i in range(sources):
        for j in range(factors):
            locators = {"sleep": sleep}
            nodes.append(Node(f"c{i}/{j}", "combine", {"factor": j + 1}, {"a": f"s{i}", "b": f"p{i}"}, locators))
            nodes.append(Node(f"c{i}/{j}/score", "score", {}, {"of": f"c{i}/{j}"}))
    return nodes


def expected(nodes: list[Node]) -> dict[str, np.ndarray]:
    """Compute all vectors of a graph of sources, passes and combines plainly, one after the other."""
    vectors: dict[str, np.ndarray] = {}
    for node in nodes:
        if node.step == "source":
            rng = np.random.default_rng(int(node.params["seed"]))
            rng.normal(size=(192, 192))
            vectors[node.name] = rng.normal(size=500)
        elif node.step in ("combine", "passes"):
            total = np.zeros(500)
            for name in sorted(node.inputs):
                above = node.inputs[name]
                assert not isinstance(above, Ref)
                total = total + vectors[above]
            vectors[node.name] = total * float(node.params.get("factor", 1.0))
    return vectors


def fill(store: Store, sources: int = 2) -> dict[str, Ref]:
    """The toy graph, its entries used one hour apart, the first node longest ago."""
    refs = execute(grid(sources, 2), STEPS, store)
    now = time.time()
    for hours, ref in enumerate(reversed(refs.values())):
        os.utime(store.folder(ref.key) / "entry.json", (now - 3600 * hours, now - 3600 * hours))
    return refs
