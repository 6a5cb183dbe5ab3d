"""A remote between two machines: what the second one, with an empty cache, computes, asks for and fetches.

    python pipelines/benchmarks/remote.py --models MODELS --data DATA --cache SCRATCH --out remote.json

The remote is a server on loopback that speaks S3 (that of the tests; `lrfgraph[test]`). Every run is a process of its
own; both machines have a folder of their own below ``--cache``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

from networks import NETWORKS, arguments, model_path, print_table, write

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tests" / "engine"))

THRESHOLDS = "0.97", "0.9"


def main() -> None:
    from s3 import ENVIRONMENT, S3Server

    parser = arguments(__doc__ or "", ["resnet20_cifar10"])
    parser.add_argument("--data-set", default="", help="name of a data set to take in place of the network's own")
    parser.add_argument("--delay", type=float, default=0.0, help="seconds that the server takes before each answer")
    given = parser.parse_args()
    given.cache.mkdir(parents=True, exist_ok=True)
    server = S3Server()
    environment = {**os.environ, **ENVIRONMENT, "AWS_ENDPOINT_URL": server.endpoint, "PYTHONPATH": str(ROOT)}
    urllib.request.urlopen(urllib.request.Request(f"{server.endpoint}/bucket", method="PUT")).close()
    server.delay = given.delay
    found = {}
    for name in given.networks:
        with tempfile.TemporaryDirectory(dir=given.cache) as folder:
            runs = [("first", THRESHOLDS[0]), ("second", THRESHOLDS[1]), ("third", THRESHOLDS[0])]
            found[name] = {
                f"{machine}, threshold {threshold}": run(
                    name, given, Path(folder) / machine, threshold, server, environment
                )
                for machine, threshold in runs
            }
        for what, measured in found[name].items():
            print_table([what, ""], list(measured.items()))
        write(given.out, {"networks": found, "delay": given.delay, "load": os.getloadavg()})
    server.stop()


def run(
    name: str, given: argparse.Namespace, machine: Path, threshold: str, server: Any, environment: dict[str, str]
) -> dict[str, Any]:
    """Run to the choice on a machine whose cache is empty, with the remote behind it."""
    network = NETWORKS[name]
    command = [sys.executable, "-m", "lrfgraph", "run", str(model_path(name, given).resolve()), "--json"]
    command += ["--data", str((given.data / f"{given.data_set or network.data}.npz").resolve()), "--until", "select"]
    command += ["--cache", str(machine / "cache"), "--out", str(machine / "out"), "--remote", f"s3://bucket/{name}"]
    command += ["--policy", "threshold", "--min-similarity", threshold]
    for setting in [*(f"{key}={value}" for key, value in network.options.items()), *given.set]:
        command += ["--set", setting]
    server.asked.clear()
    started = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, env=environment)
    seconds = time.perf_counter() - started
    summary = json.loads(done.stdout)
    methods = [method for method, _ in server.asked]
    return {
        "seconds": round(seconds, 1),
        "nodes run": summary["nodes"]["run"],
        "nodes reused": sum(summary["nodes"]["reused"].values()),
        "asked": methods.count("GET") + methods.count("HEAD"),
        "put": methods.count("PUT"),
        "bytes in the cache": sum(path.stat().st_size for path in machine.rglob("cache/**/*") if path.is_file()),
        "warnings": [line for line in summary["warnings"] if line.startswith("remote")],
    }


if __name__ == "__main__":
    main()
