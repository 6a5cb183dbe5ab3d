"""Runs that are killed, run side by side, or run in other ways: the same numbers, and no work done twice.

    python pipelines/benchmarks/faults.py --work FOLDER --out faults.json [--kills 50] [--runs 8]

A small real network through the command line, until the model is written. Exit status 1 if anything differs.
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from networks import write
from processes import DEMO, computed, differing, entries, finish, numbers, settings, start, summary

EPOCHS = 3
OPTIONS = [
    *settings(explore__ranks=5, data__validation=500, finetune__epochs=EPOCHS),
    *settings(repair__images=1024, repair__rounds=1, repair__steps=40),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for caches and results")
    parser.add_argument("--out", type=Path, required=True, help="result file, JSON")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--minutes", type=float, default=60, help="end the kills after so long")
    parser.add_argument("--runs", type=int, default=8, help="runs side by side")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    shutil.rmtree(given.work, ignore_errors=True)
    given.work.mkdir(parents=True)
    found: dict[str, Any] = {}
    started = time.perf_counter()
    finish(start(arguments(given.work / "whole"), given.work / "whole.log"))
    found["undisturbed"] = {"seconds": round(time.perf_counter() - started, 1)}
    found["undisturbed"]["entries"] = len(entries(given.work / "whole"))
    print(found["undisturbed"], flush=True)
    for name, measure in (("ways", ways), ("side by side", side_by_side), ("kills", kills)):
        found[name] = measure(given)
        print(name, found[name], flush=True)
        write(given.out, found)
    sys.exit(0 if all(found[name]["met"] for name in ("ways", "side by side", "kills")) else 1)


def arguments(cache: Path, out: Path | None = None) -> list[str]:
    place = out or cache.with_name(cache.name + "-out")
    return ["run", *DEMO, *OPTIONS, "--cache", str(cache), "--out", str(place)]


def ways(given: argparse.Namespace) -> dict[str, Any]:
    """One thread, two processes: which entries differ from those of two threads."""
    whole, found = numbers(given.work / "whole", tuned=True), {}
    for name, options in {
        "again": [],
        "one thread": settings(run__threads=1),
        "two processes": ["--workers", "2"],
    }.items():
        cache = given.work / name.replace(" ", "-")
        finish(start([*arguments(cache), *options]))
        made = numbers(cache, tuned=True)
        found[name] = {
            "before fine-tuning": differing(numbers(given.work / "whole"), numbers(cache)),
            "in all": differing(whole, made),
        }
    return {"differing": found, "met": not any(one["before fine-tuning"] for one in found.values())}


def side_by_side(given: argparse.Namespace) -> dict[str, Any]:
    """Several runs at once on one cache, each with a result folder of its own."""
    cache, log = given.work / "shared", given.work / "shared.log"
    outs = [given.work / f"shared-out-{index}" for index in range(given.runs)]
    started = time.perf_counter()
    processes = [start(arguments(cache, out), log) for out in outs]
    for process in processes:
        finish(process)
    said, one = [summary(out) for out in outs], entries(given.work / "whole")
    work = len(computed(log)) / len(one)
    differ = differing(numbers(given.work / "whole"), numbers(cache))
    agree = all(other == said[0] for other in said)
    return {
        "runs": given.runs,
        "seconds": round(time.perf_counter() - started, 1),
        "summaries agree": agree,
        "computed": len(computed(log)),
        "of one run's": round(work, 3),
        "twice": dict(Counter(k.partition("/")[0] for k, n in Counter(computed(log)).items() if n > 1)),
        "differing": differ,
        "met": agree and work <= 1.2 and not differ,
    }


def kills(given: argparse.Namespace) -> dict[str, Any]:
    """SIGKILL at random moments; whenever a run comes to its end, compare it and start from nothing."""
    rng, cache, log = random.Random(given.seed), given.work / "killed", given.work / "killed.log"
    whole, deadline = numbers(given.work / "whole"), time.monotonic() + 60 * given.minutes
    said = summary(given.work / "whole-out")
    longest = 3.0
    done: Counter[str] = Counter()
    during: Counter[str] = Counter()
    differ: list[str] = []
    while done["kills"] < given.kills and time.monotonic() < deadline:
        before, saved = entries(cache), checkpoint(cache)
        log.unlink(missing_ok=True)
        process = start(arguments(cache), log)
        killed = kill(process, log, rng.uniform(0.0, longest))
        made = computed(log)
        longest = 3.0 if entries(cache) - before else 1.5 * longest  # so that in the end something is finished
        done["again"] += len([key for key in made if key in before])
        first = trained_from(log)
        if saved and first is not None:
            done["resumed" if first >= saved else "not resumed"] += 1
        if killed:
            done["kills"] += 1
            during[at_work(log)] += 1
            continue
        done["completions"] += 1
        differ += differing(whole, numbers(cache)) + (["summary"] if not same(said, cache) else [])
        shutil.rmtree(cache)
    if cache.exists():  # completion of the last one
        finish(start(arguments(cache), log))
        done["completions"] += 1
        differ += differing(whole, numbers(cache))
    met = not differ and not done["again"] and not done["not resumed"]
    counts = {name: done[name] for name in ("kills", "completions", "again", "resumed", "not resumed")}
    return {**counts, "killed during": dict(during), "differing": differ, "met": met}


def kill(process: subprocess.Popen[str], log: Path, delay: float) -> bool:
    """Kill a run so long after its first work; says whether it was still running."""
    while process.poll() is None and not (log.exists() and log.stat().st_size):
        time.sleep(0.01)
    until = time.monotonic() + delay
    while process.poll() is None and time.monotonic() < until:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    error = process.communicate()[1]
    if process.returncode not in (0, -signal.SIGKILL):
        raise SystemExit(f"a run after a kill ended with {process.returncode}: {error}")
    return process.returncode != 0


def checkpoint(cache: Path) -> int:
    """Return the number of epochs that an interrupted fine-tuning has saved."""
    import json

    import numpy as np

    for path in (cache / "v2" / "scratch").glob("finetune-*/finetune.npz"):
        with np.load(path, allow_pickle=False) as saved:
            return len(json.loads(saved["said"].tobytes())["history"])
    return 0


def trained_from(log: Path) -> int | None:
    """Return the epoch at which fine-tuning began, ``None`` if it did not."""
    lines = [line.split() for line in log.read_text().splitlines()] if log.exists() else []
    steps = [(int(words[2]), int(words[3])) for words in lines if words[:2] == ["progress", "finetune"]]
    return steps[0][0] * EPOCHS // steps[0][1] if steps else None


def at_work(log: Path) -> str:
    """Return the kind that a killed run noted last."""
    lines = log.read_text().splitlines() if log.exists() else []
    words = lines[-1].split() if lines else ["", "the start"]
    return words[1].partition("/")[0] if words[0] != "commit" else f"after {words[1].partition('/')[0]}"


def same(said: dict[str, Any], cache: Path) -> bool:
    """Say whether a run that went on came to the undisturbed one's baseline, layers and factorized network."""
    other = summary(cache.with_name(cache.name + "-out"))
    return all(said[name] == other[name] for name in ("model", "baseline", "factorized", "repaired", "layers"))


if __name__ == "__main__":
    main()
