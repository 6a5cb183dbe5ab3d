"""What runs again after a change: nodes and seconds of one network, change by change, through the command line.

    python pipelines/benchmarks/incremental.py --models MODELS --data DATA --cache CACHE --out incremental.json

Policy threshold, no repair, no fine-tuning unless ``--set`` says otherwise. Every expectation is checked; exit
status 1 if one is not met. Entries are counted twice, by the run's summary and by what is new in the cache.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from networks import NETWORKS, arguments, model_path, print_table, write

ROOT = Path(__file__).resolve().parents[2]
AT_EXIT = "import atexit, runpy, sys; atexit.register(lambda: print('tensorflow' in sys.modules, file=sys.stderr)); "
PROGRAM = AT_EXIT + "sys.argv[0] = 'lrfgraph'; runpy.run_module('lrfgraph', run_name='__main__', alter_sys=True)"
"""`python -m lrfgraph`, which says at its end whether TensorFlow was loaded."""

QUICK = 1.0
DECIDED = {"select", "rebuild", "repair", "finetune", "export", "evaluate"}
PLAIN = {"explore.weighting": "plain", "explore.ranks": "6"}


class Bench:
    """Runs the command line on one network and remembers what each run did."""

    def __init__(self, name: str, given: argparse.Namespace) -> None:
        self.model, self.cache, self.repeats = model_path(name, given).resolve(), given.cache.resolve(), given.repeats
        self.work = self.cache.with_name(self.cache.name + "-benchmark")
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir(parents=True)
        network = NETWORKS[name]
        self.options: dict[str, str] = {
            "data.source": str((given.data / f"{network.data}.npz").resolve()),
            **network.options,
            "select.policy": "threshold",
            "repair.enabled": "false",
            "finetune.epochs": "0",
            **dict(setting.partition("=")[::2] for setting in given.set),
        }
        # compiled once, as an installed package is
        compiled = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(self.work / "compiled")}
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        self.environment = {**os.environ, **compiled, "PYTHONPATH": path}
        self.rows: dict[str, dict[str, Any]] = {}
        self.failures: list[str] = []

    def run(self, case: str, model: Path | None = None, *, repeats: int = 1, **options: str) -> dict[str, Any]:
        """Run once and, where it is the seconds that matter, a few times more: the quickest counts."""
        said = self.options | {key.replace("__", "."): value for key, value in options.items()}
        command = [sys.executable, "-c", PROGRAM, "run", str(model or self.model), "--cache", str(self.cache)]
        command += ["--out", str(self.work / "out"), *(w for k, v in said.items() for w in ("--set", f"{k}={v}"))]
        before = entries(self.cache)
        row = self._once(command)
        new = entries(self.cache) - before
        row["new"] = dict(sorted(Counter(key.partition("/")[0] for key in new).items()))
        row["names"] = sorted(name_of(self.cache, key) for key in new)
        again = [self._once(command) for _ in range(repeats - 1)]
        row["seconds_all"] = [row["seconds"], *(other["seconds"] for other in again)]
        if again:
            row["seconds"] = min(row["seconds_all"])
            row["cpu_seconds"] = min(row["cpu_seconds"], *(other["cpu_seconds"] for other in again))
        self.rows[case] = row
        made = {kind: count for kind, count in row["run"].items() if count}
        self.expect(case, "the summary counts what is new in the cache", made == row["new"])
        print_table(["case", "s", "cpu s", "run", "reused"], [self._cells(case, row)])
        return row

    def _once(self, command: Sequence[str]) -> dict[str, Any]:
        used, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        done = subprocess.run(command, check=False, env=self.environment, capture_output=True, text=True)
        seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
        if done.returncode:
            raise SystemExit(f"{' '.join(command[2:])}\nended with {done.returncode}: {done.stderr}")
        summary = json.loads((self.work / "out" / "summary.json").read_text(encoding="utf-8"))
        return {
            "seconds": round(seconds, 3),
            "cpu_seconds": round(after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime, 3),
            "tensorflow": done.stderr.strip().splitlines()[-1] == "True",
            "run": summary["nodes"]["run"],
            "reused": summary["nodes"]["reused"],
        }

    def _cells(self, case: str, row: Mapping[str, Any]) -> list[Any]:
        return [case, row["seconds"], row["cpu_seconds"], said(row["run"]), said(row["reused"])]

    def expect(self, case: str, what: str, met: bool) -> None:
        self.rows[case].setdefault("expected", {})[what] = met
        if not met:
            self.failures.append(f"{case}: {what}")
            print(f"NOT MET: {self.failures[-1]}", flush=True)

    def expect_quick(self, case: str, run: Mapping[str, int], allowed: Sequence[str] = ()) -> None:
        row = self.rows[case]
        self.expect(case, f"at most {QUICK} s", row["seconds"] <= QUICK)
        self.expect(case, "TensorFlow is not loaded", not row["tensorflow"])
        self.expect(case, "nothing runs but " + (", ".join(allowed) or "nothing"), set(run) <= set(allowed))


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--network", default="resnet20_cifar10", choices=list(NETWORKS))
    parser.add_argument("--repeats", type=int, default=5, help="runs of the cases whose seconds are limited")
    parser.add_argument("--method", default="tt", help="the method that is left out at first and added later")
    parser.add_argument("--layer", default="", help="the layer that is retrained (default: in the middle)")
    given = parser.parse_args()
    shutil.rmtree(given.cache, ignore_errors=True)
    bench = Bench(given.network, given)
    for case in CASES:
        case(bench, given)
    for row in bench.rows.values():
        del row["names"]
    machine = {"cpus": os.cpu_count(), "load": os.getloadavg()}
    found = {
        "network": given.network,
        "machine": machine,
        "options": bench.options,
        "cases": bench.rows,
        "failures": bench.failures,
    }
    write(given.out, found)
    print("\n".join(bench.failures) or "all expectations met")
    sys.exit(1 if bench.failures else 0)


def cold(bench: Bench, given: argparse.Namespace) -> None:
    from lrfgraph.methods import METHODS

    bench.options["explore.methods"] = ",".join(name for name in METHODS if name != given.method)
    row = bench.run("cold")
    bench.expect("cold", "nothing is reused but the first evaluation", set(row["reused"]) <= {"evaluate"})
    row = bench.run("identical", repeats=bench.repeats)
    bench.expect_quick("identical", row["run"])


def threshold(bench: Bench, given: argparse.Namespace) -> None:
    name = "threshold, until select"
    row = bench.run(name, select__min_similarity="0.95", run__until="select")
    bench.expect_quick(name, row["run"], ["select"])
    for index in range(1, bench.repeats):  # each with a threshold that was never asked for
        other = bench.run(f"{name} {index}", select__min_similarity=f"0.9{index}", run__until="select")
        row["seconds_all"].append(other["seconds"])
        row["seconds"], row["cpu_seconds"] = (min(row[k], other[k]) for k in ("seconds", "cpu_seconds"))
        del bench.rows[f"{name} {index}"]
    bench.expect_quick(name, row["run"], ["select"])
    row = bench.run("threshold", select__min_similarity="0.95")
    bench.expect("threshold", "only what follows the decision runs", set(row["run"]) <= DECIDED)
    row = bench.run("same decision", select__min_similarity="0.9500001")
    bench.expect("same decision", "a threshold that decides the same rebuilds nothing", set(row["run"]) <= {"select"})


def rank(bench: Bench, given: argparse.Namespace) -> None:
    before = bench.rows["cold"]["run"]
    row = bench.run("one more rank", explore__ranks="25")
    kept = not {"describe", "data", "record", "curvature", "decompose"} & set(row["run"])
    bench.expect("one more rank", "nothing is recorded or decomposed", kept)
    every = all(row["reused"].get(kind, 0) == before[kind] for kind in ("factorize", "score"))
    bench.expect("one more rank", "every candidate is reused", every)


def method(bench: Bench, given: argparse.Namespace) -> None:
    from lrfgraph.methods import METHODS

    before = bench.rows["cold"]["run"]
    row = bench.run("one more method", explore__methods=",".join(METHODS))
    kept = not {"describe", "data", "record", "curvature"} & set(row["run"])
    bench.expect("one more method", "nothing is recorded", kept)
    every = all(row["reused"].get(kind, 0) == before[kind] for kind in ("decompose", "factorize", "score"))
    bench.expect("one more method", "all factors and scores are reused", every)
    own = [name for name in row["names"] if name.rpartition("/")[2] in ("decompose", "factorize", "score")]
    bench.expect("one more method", "only the new method's run", all(f"/{given.method}/" in name for name in own))


def plain(bench: Bench, given: argparse.Namespace) -> None:
    bench.options |= PLAIN
    row = bench.run("plain factors")
    bench.expect("plain factors", "records are reused", "record" not in row["run"])


def images(bench: Bench, given: argparse.Namespace) -> None:
    row, before = bench.run("other images", data__calibration="512"), bench.rows["plain factors"]
    bench.expect("other images", "every layer is recorded", row["run"].get("record", 0) == before["reused"]["record"])
    bench.expect("other images", "no factors run", not {"decompose", "factorize"} & set(row["run"]))


def retrained(bench: Bench, given: argparse.Namespace) -> None:
    layers = sorted({name.rpartition("/")[0] for name in names(bench.cache, "record")})
    layer = given.layer or layers[len(layers) // 2]
    path = bench.work / "retrained.h5"
    change_layer(bench.model, path, layer)
    row = bench.run("one layer retrained", path)
    made = row["names"]
    own = {name for name in made if name.rpartition("/")[2] in ("decompose", "factorize")}
    case = "one layer retrained"
    bench.expect(case, f"factors of {layer} alone run", bool(own) and all(n.startswith(f"{layer}/") for n in own))
    recorded = {name.rpartition("/")[0] for name in made if name.endswith("/record")}
    bench.expect(case, "records downstream of it alone run", recorded == downstream(bench.model, layer))
    bench.rows[case]["layer"] = layer


def moved(bench: Bench, given: argparse.Namespace) -> None:
    place = bench.cache.with_name(bench.cache.name + "-moved")
    shutil.rmtree(place, ignore_errors=True)
    bench.cache.rename(place)
    bench.cache = place
    row = bench.run("cache moved", repeats=bench.repeats)
    bench.expect_quick("cache moved", row["run"])


def renamed(bench: Bench, given: argparse.Namespace) -> None:
    copy = bench.work / "another name.h5"
    shutil.copyfile(bench.model, copy)
    row = bench.run("model renamed", copy, repeats=bench.repeats)
    bench.expect_quick("model renamed", row["run"])
    saved = bench.work / "saved again.keras"
    save_again(bench.model, saved)
    row = bench.run("model saved again", saved)
    bench.expect("model saved again", "only the file is read again", set(row["run"]) == {"describe"})


CASES: tuple[Callable[[Bench, argparse.Namespace], None], ...] = (
    cold,
    threshold,
    rank,
    method,
    plain,
    images,
    retrained,
    moved,
    renamed,
)


# Caches and models ------------------------------------------------------------------------------------------------


def entries(cache: Path) -> set[str]:
    """Return the keys of all entries."""
    found = (cache / "v2").glob("*/??/*/entry.json")
    return {f"{path.parts[-4]}/{path.parts[-2]}" for path in found}


def name_of(cache: Path, key: str) -> str:
    kind, _, name = key.partition("/")
    manifest = (cache / "v2" / kind / name[:2] / name / "entry.json").read_text(encoding="utf-8")
    return str(json.loads(manifest)["name"])


def names(cache: Path, kind: str) -> list[str]:
    return [name_of(cache, key) for key in entries(cache) if key.startswith(f"{kind}/")]


def change_layer(source: Path, target: Path, layer: str) -> None:
    """Copy an ``.h5`` model with one layer's kernel changed a little."""
    import h5py
    import numpy as np

    shutil.copyfile(source, target)
    target.chmod(0o600)
    with h5py.File(target, "r+") as file:
        found: list[Any] = []
        file["model_weights"][layer].visititems(lambda _, item: found.append(item) if hasattr(item, "shape") else None)
        kernel = next(item for item in found if "kernel" in item.name.rpartition("/")[2])
        noise = np.random.default_rng(0).normal(size=kernel.shape).astype(kernel.dtype)
        kernel[...] = kernel[...] * (1 + 0.01 * noise)


def downstream(model: Path, layer: str) -> set[str]:
    """Return the layers with a record that `layer` feeds, by the model's own graph."""
    import keras

    opened = keras.models.load_model(model, compile=False)
    after = {layer}
    for one in opened.layers:  # in topological order
        above = {tensor._keras_history.operation.name for node in one._inbound_nodes for tensor in node.input_tensors}
        if above & after:
            after.add(one.name)
    kernels = {one.name for one in opened.layers if hasattr(one, "kernel")}
    return (after - {layer}) & kernels


def save_again(source: Path, target: Path) -> None:
    import keras

    keras.models.load_model(source, compile=False).save(target)


def said(counts: Mapping[str, int]) -> str:
    return " ".join(f"{kind} {count}" for kind, count in counts.items()) or "-"


if __name__ == "__main__":
    main()
