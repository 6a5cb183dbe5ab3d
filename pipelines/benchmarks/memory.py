"""Memory and disk as `lrfgraph plan` states them beforehand, against what a run really takes, stage by stage.

    python pipelines/benchmarks/memory.py --models MODELS --data DATA --cache SCRATCH --out memory.json

Each network runs in a process of its own on an empty cache in a folder of its own under ``--cache``. What is stated is
asked of the cache once model and images are read; what is measured is the resident memory of the process (code of
libraries included), looked at every 20 ms, and the bytes of the files of the cache.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from networks import arguments, model_path, print_table, recipe_of, write

from lrfgraph.options.recipe import Recipe

GLANCE = 0.02
PAGE = os.sysconf("SC_PAGE_SIZE")
OPTIONS = {
    "mobilenetv2_imagenet": {"select__params": 0.7, "select__policy": "budget", "finetune__epochs": 0},
    "resnet20_cifar10": {"finetune__epochs": 0},
}
"""What is asked of a network beside its preprocessing: no training, which takes long and is stated alike."""


def main() -> None:
    parser = arguments(__doc__ or "", list(OPTIONS))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(given.one, given)))
        return
    result: dict[str, Any] = {"networks": {}}
    for name in given.networks:
        given.cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=given.cache) as folder:
            alone = [sys.executable, __file__, *sys.argv[1:], "--one", name, "--cache", folder]
            done = subprocess.run(alone, stdout=subprocess.PIPE, check=True)
        result["networks"][name] = json.loads(done.stdout.splitlines()[-1])
        result["load"] = os.getloadavg()
        show(name, result["networks"][name])
        write(given.out, result)


def measure(name: str, given: argparse.Namespace) -> dict[str, Any]:
    recipe = recipe_of(name, given, **{key: str(value) for key, value in OPTIONS[name].items()})
    return account(model_path(name, given), recipe, given.cache)


def account(model: Path, recipe: Recipe, cache: Path) -> dict[str, Any]:
    """Run a recipe and return what each stage and the whole was said to need, and needed."""
    from lrfgraph import api
    from lrfgraph.engine.memory import versions

    started = time.perf_counter()
    api.compress(model, recipe.with_option("run.until", "data" if recipe.data.source else "describe"))
    stated = {need.stage: need for need in api.needs(model, recipe)}
    watch = Watch()
    compression = api.compress(model, recipe, on_event=watch)
    watch.stop()
    driver = compression.driver
    disk = sum(file.stat().st_size for file in cache.rglob("*") if file.is_file())
    stages = {kind: {"measured_bytes": peak} for kind, peak in watch.peaks.items()}
    whole = max(need.memory for need in stated.values()), sum(need.disk for need in stated.values())
    return {
        "stated": {stage: {"memory": need.memory, "disk": need.disk} for stage, need in stated.items()},
        "measured": stages,
        "memory": {"stated": whole[0], "measured": watch.most, "ratio": round(whole[0] / watch.most, 3)},
        "disk": {"stated": whole[1], "measured": disk, "ratio": round(whole[1] / disk, 3)},
        "seconds": round(time.perf_counter() - started, 1),
        "stages": {stage: round(seconds, 1) for stage, seconds in driver.seconds.items()},
        "nodes": sum(driver.run.values()),
        "quality": compression.measured,
        "machine": {**versions(), "cores": os.cpu_count(), "pages": os.sysconf("SC_PHYS_PAGES") * PAGE},
    }


class Watch:
    """Looks at the resident memory of this process while kinds of nodes are being computed.

    peaks : bytes by kind of node.  most : of all.
    """

    def __init__(self) -> None:
        self.peaks: Counter[str] = Counter()
        self.most = 0
        self.running: Counter[str] = Counter()
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self._look, daemon=True)
        self.thread.start()

    def __call__(self, event: Any) -> None:
        if event.kind == "started":
            self.running[event.step] += 1
        elif event.kind == "finished":
            self.running[event.step] -= 1

    def stop(self) -> None:
        self.stopped.set()
        self.thread.join()

    def _look(self) -> None:
        while not self.stopped.wait(GLANCE):
            resident = int(Path("/proc/self/statm").read_text().split()[1]) * PAGE
            self.most = max(self.most, resident)
            for kind in [kind for kind, count in list(self.running.items()) if count > 0]:
                self.peaks[kind] = max(self.peaks[kind], resident)


def show(name: str, account: dict[str, Any]) -> None:
    rows = [[stage, one["memory"] / 1e9, one["disk"] / 1e9] for stage, one in account["stated"].items()]
    print_table([name, "stated GB", "disk GB"], rows)
    print_table(
        ["kind", "measured GB"], [[kind, one["measured_bytes"] / 1e9] for kind, one in account["measured"].items()]
    )
    rows = [[what, *(account[what][key] / 1e9 for key in ("stated", "measured"))] for what in ("memory", "disk")]
    print_table(["all", "stated GB", "measured GB", "ratio"], [[*row, account[row[0]]["ratio"]] for row in rows])


if __name__ == "__main__":
    main()
