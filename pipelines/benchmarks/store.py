"""What a cache costs: files and bytes of an exploration, its seconds, those of a rerun, and planning of many nodes.

    python pipelines/benchmarks/store.py --models MODELS --data DATA --cache SCRATCH --out store.json --against CHECKOUT

``--against`` names another checkout of this repository, which is measured in turns with this one: seconds of a busy
machine can only be compared within a run. Every measure is a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from networks import NETWORKS, arguments, model_path, print_table, write

HERE = Path(__file__).resolve().parents[2]

PLANNING = """
import json, sys, time
from lrfgraph.engine.nodes import Node, Result, Step
from lrfgraph.engine.plan import plan
from lrfgraph.engine.resolve import resolve
from lrfgraph.engine.store import Store
count, steps = int(sys.argv[2]), {name: Step(name, 1, lambda task: Result()) for name in ("factors", "score")}
nodes = [Node(f"f{i}", "factors", {"rank": i, "layer": "conv"}) for i in range(count // 2)]
nodes += [Node(f"s{i}", "score", {"metric": "cosine"}, {"factors": f"f{i}"}) for i in range(count // 2)]
store = Store(sys.argv[1])
if sys.argv[3] == "fill":
    for each in resolve(nodes, steps, store).nodes.values():
        store.commit(each.key, Result({"cosine": 0.5}), name=each.node.name, components=each.components)
else:
    started, busy = time.perf_counter(), time.process_time()
    planned = plan(resolve(nodes, steps, store), store)
    seconds = {"seconds": time.perf_counter() - started, "of processors": time.process_time() - busy}
    print(json.dumps({**seconds, "missing": len(planned.missing)}))
"""

LOADED = """
import atexit, sys
heavy = ("tensorflow", "keras", "zarr", "dask", "scipy")
atexit.register(lambda: print("loaded:", *[name for name in heavy if name in sys.modules], file=sys.stderr))
from lrfgraph.cli import main
main(sys.argv[1:])
"""


def main() -> None:
    parser = arguments(__doc__ or "", ["resnet20_cifar10"])
    parser.add_argument("--against", type=Path, help="another checkout, measured in turns with this one")
    parser.add_argument("--data-set", default="", help="name of a data set to take in place of the network's own")
    parser.add_argument("--repeat", type=int, default=3, help="explorations, and reruns of the last; medians count")
    parser.add_argument("--nodes", type=int, default=100_000, help="nodes of the graph that is only planned")
    given = parser.parse_args()
    given.cache.mkdir(parents=True, exist_ok=True)
    roots = {"this": HERE} | ({"against": given.against.resolve()} if given.against else {})
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=given.cache) as folder:
        for name in given.networks:
            found[name] = explore(name, given, roots, Path(folder))
            for which, measured in found[name].items():
                print_table([f"{name}: {which}", ""], [row for row in measured.items() if row[0] != "kinds"])
            write(given.out, {"networks": found, "load": os.getloadavg()})
        planning = {which: plan_many(given.nodes, root, Path(folder) / which) for which, root in roots.items()}
    print_table([f"planning {given.nodes} nodes", "seconds"], list(planning.items()))
    write(
        given.out, {"networks": found, "planning": {"nodes": given.nodes, "seconds": planning}, "load": os.getloadavg()}
    )


def explore(name: str, given: argparse.Namespace, roots: dict[str, Path], folder: Path) -> dict[str, dict[str, Any]]:
    """Explore on empty caches, again and again in turns; then run and plan the same on the last of them."""
    kinds = "explore", "rerun", "plan", "rerun, of processors", "plan, of processors"
    times: dict[str, dict[str, list[float]]] = {which: {kind: [] for kind in kinds} for which in roots}
    loaded, measured = {}, {}
    for turn in range(given.repeat):
        for which, root in roots.items():
            command = command_of(name, given, folder / f"{name}-{which}-{turn}")
            times[which]["explore"].append(_run(root, "run", *command)[0])
    for _ in range(given.repeat):
        for which, root in roots.items():
            command = command_of(name, given, folder / f"{name}-{which}-{given.repeat - 1}")
            for kind in ("rerun", "plan"):
                seconds, busy, loaded[which] = _run(root, kind.removeprefix("re"), *command)
                times[which][kind].append(seconds)
                times[which][f"{kind}, of processors"].append(busy)
    for which in roots:
        cache = folder / f"{name}-{which}-{given.repeat - 1}" / "cache"
        seconds = {f"seconds, {what}": round(statistics.median(each), 2) for what, each in times[which].items()}
        measured[which] = {**sizes(cache), **seconds, "all seconds": times[which], "loaded by plan": loaded[which]}
    return measured


def command_of(name: str, given: argparse.Namespace, folder: Path) -> list[str]:
    network = NETWORKS[name]
    command = [str(model_path(name, given).resolve()), "--until", "select", "--policy", "threshold"]
    command += ["--data", str((given.data / f"{given.data_set or network.data}.npz").resolve())]
    command += ["--cache", str(folder / "cache"), "--out", str(folder / "out")]
    for key, value in network.options.items():
        command += ["--set", f"{key}={value}"]
    for setting in given.set:
        command += ["--set", setting]
    return command


def sizes(cache: Path) -> dict[str, Any]:
    """Files and bytes below a cache, all in all and by kind."""
    files: Counter[str] = Counter()
    held: Counter[str] = Counter()
    for path in cache.rglob("*"):
        if path.is_file():
            kind = path.relative_to(cache).parts[1]
            files[kind] += 1
            held[kind] += path.stat().st_size
    kinds = {kind: {"files": files[kind], "bytes": held[kind]} for kind in sorted(files)}
    return {"files": sum(files.values()), "bytes": sum(held.values()), "kinds": kinds}


def plan_many(count: int, root: Path, cache: Path) -> dict[str, float]:
    """Seconds (and those of processors) in which a graph of so many nodes, all cached, is resolved and planned."""
    command = [sys.executable, "-c", PLANNING, str(cache), str(count)]
    subprocess.run([*command, "fill"], check=True, env=_environment(root))
    runs = []
    for _ in range(3):
        done = subprocess.run([*command, "plan"], check=True, env=_environment(root), stdout=subprocess.PIPE)
        planned = json.loads(done.stdout)
        assert planned["missing"] == 0
        runs.append(planned)
    return {kind: round(statistics.median(run[kind] for run in runs), 2) for kind in ("seconds", "of processors")}


def _run(root: Path, *command: str) -> tuple[float, float, str]:
    """Run a command of lrfgraph; return its seconds from process start to end, those of processors (which a busy
    machine changes less), and which large libraries it loaded."""
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", LOADED, *command],
        check=False,
        env=_environment(root),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    seconds = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(done.stderr)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    busy = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return seconds, busy, done.stderr.rpartition("loaded:")[2].strip()


def _environment(root: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(root)}


if __name__ == "__main__":
    main()
