"""Seconds from a process' start to `select` on one thread, on two threads, and on two processes of one thread.

    python pipelines/benchmarks/parallel.py --models MODELS --data DATA --cache SCRATCH --out parallel.json

Each run starts with an empty cache in a folder of its own under ``--cache``. Repeats go round the ways in turn, so
that what else the machine does falls on all alike; the medians count. Ratios mean something on idle cores alone.

One thread has one core, or TensorFlow would run on all of them beside it; two threads and two processes have two.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
from typing import Any

from exploration import explore
from networks import arguments, print_table, write

WAYS = {
    "one thread": ["run.threads=1"],
    "two threads": ["run.threads=2"],
    "two processes": ["run.workers=2"],
}


def main() -> None:
    parser = arguments(__doc__ or "", ["resnet56_cifar10"])
    parser.add_argument("--ranks", type=int, default=16, help="ranks per layer and method")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    given = parser.parse_args()
    found: dict[str, Any] = {}
    for name in given.networks:
        runs: dict[str, list[dict[str, Any]]] = {way: [] for way in given.ways}
        for _ in range(given.repeat):
            for way in given.ways:
                runs[way].append(_measured(name, way, given))
        found[name] = {way: _median(each) for way, each in runs.items()}
        base = next(iter(found[name].values()))["seconds"]
        for each in found[name].values():
            each["against_first"] = round(base / each["seconds"], 2)
        columns = ["seconds", "processor_seconds", "against_first"]
        print_table([name, *columns], [[way, *map(each.get, columns)] for way, each in found[name].items()])
        write(given.out, {"networks": found, "load": os.getloadavg()})


def _measured(name: str, way: str, given: argparse.Namespace) -> dict[str, Any]:
    options = argparse.Namespace(**{**vars(given), "set": [*given.set, *WAYS[way]]})
    cores = os.sched_getaffinity(0)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    os.sched_setaffinity(0, sorted(cores)[: 1 if way == "one thread" else 2])
    try:
        run = explore(name, options)
    finally:
        os.sched_setaffinity(0, cores)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return run | {"processor_seconds": round(used, 1)}


def _median(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the run in the middle, with the seconds of all."""
    middle = sorted(runs, key=lambda run: run["seconds"])[len(runs) // 2]
    return middle | {
        "all_seconds": [run["seconds"] for run in runs],
        "processor_seconds": statistics.median(run["processor_seconds"] for run in runs),
    }


if __name__ == "__main__":
    main()
