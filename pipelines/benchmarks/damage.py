"""Damage to a finished cache, closed and full disks, and Ctrl-C: found and mended, or said in one line.

    python pipelines/benchmarks/damage.py --work FOLDER --out damage.json [--corruptions 1000]

The tiny network of the tests. Exit status 1 if anything is not as promised.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from networks import write
from processes import ROOT, settings, start

TINY = ROOT / "tests" / "data"
MODEL = TINY / "tiny_cnn.keras"
SMALL = {
    "data.source": str(TINY / "tiny_digits.npz"),
    "data.scale": "1/255",
    "data.calibration": "100",
    "data.validation": "60",
    "explore.ranks": "4",
    "select.policy": "threshold",
    "select.min_similarity": "0.9",
    "repair.images": "60",
    "repair.rounds": "1",
    "repair.steps": "20",
    "finetune.epochs": "1",
}
OTHER = {"select.min_similarity": "0.8", "finetune.epochs": "0", "repair.enabled": "false"}
"""A second question to the same cache: it reads the factors of other candidates."""

PROMISED_SECONDS = 2.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for caches and results")
    parser.add_argument("--out", type=Path, required=True, help="result file, JSON")
    parser.add_argument("--corruptions", type=int, default=1000)
    parser.add_argument("--each", type=int, default=2, help="files that are damaged at once")
    parser.add_argument("--only", nargs="+", default=["disks", "interruptions", "corruptions"])
    given = parser.parse_args()
    shutil.rmtree(given.work, ignore_errors=True)
    given.work.mkdir(parents=True)
    found: dict[str, Any] = {}
    for measure in (disks, interruptions, corruptions):
        if measure.__name__ in given.only:
            found[measure.__name__] = measure(given)
            print(json.dumps({measure.__name__: found[measure.__name__]}, indent=1), flush=True)
            write(given.out, found)
    sys.exit(0 if all(one["met"] for one in found.values()) else 1)


# Random damage, within this process ---------------------------------------------------------------------------------


def corruptions(given: argparse.Namespace) -> dict[str, Any]:
    """Damage copies of a finished cache and ask both questions again."""
    from lrfgraph.engine.maintenance import verify
    from lrfgraph.engine.store import Store

    sys.path.insert(0, str(ROOT))
    from tests.engine.faults import corrupt_at_random

    whole = given.work / "whole"
    asked = (SMALL, SMALL | OTHER)
    right = [ask(whole, options)[0] for options in asked]
    counts: Counter[str] = Counter()
    silent: list[str] = []
    for seed in range(given.corruptions // given.each):
        cache = given.work / f"copy-{seed}"  # a new place each time: nothing is remembered of it
        shutil.copytree(whole, cache)
        done = corrupt_at_random(cache, given.each, seed)
        damaged = set(verify(Store(cache)).damaged)
        heard: list[str] = []
        for options, said in zip(asked, right, strict=True):
            try:
                answer, discarded = ask(cache, options)
            except Exception as error:
                silent.append(f"seed {seed}: {done}: {type(error).__name__}: {error}")
                continue
            heard += discarded
            if answer != said:
                silent.append(f"seed {seed}: {done}: another answer")
        left = set(verify(Store(cache)).damaged)
        counts["corruptions"] += len(done)
        counts["entries damaged"] += len(damaged)
        counts["found and computed again"] += len(damaged - left)
        counts["never asked for, found by verify"] += len(damaged & left)
        counts["said"] += len(heard)
        shutil.rmtree(cache)
    counts["silent"] = len(silent)
    return {**counts, "silent ones": silent, "met": not silent}


def ask(cache: Path, options: dict[str, str]) -> tuple[dict[str, Any], list[str]]:
    """Run within this process; returns all numbers of the result, and what was found damaged."""
    from lrfgraph.api import compress
    from lrfgraph.network.opening.archive import model_digest
    from lrfgraph.options.recipe import Recipe
    from lrfgraph.report.summary import summary

    recipe = Recipe().with_option("run.cache", str(cache))
    for key, value in options.items():
        recipe = recipe.with_option(key, value)
    discarded: list[str] = []
    outcome = compress(
        MODEL, recipe, on_event=lambda event: discarded.append(event.node) if event.kind == "discarded" else None
    )
    said = summary(outcome, MODEL)
    assert outcome.exported is not None
    written = model_digest(outcome.driver.store.open(outcome.exported).file("compressed.keras"))
    names = ("baseline", "factorized", "repaired", "finetuned", "final", "layers")
    scores = {str(candidate): outcome.driver.data(ref) for candidate, ref in outcome.exploration.scores.items()}
    return {name: said[name] for name in names} | {"model": written, "scores": scores}, discarded


# Damage and closed disks, through the command line ------------------------------------------------------------------


def command(cache: Path, out: Path, *more: str) -> list[str]:
    options = settings(**{key.replace(".", "__"): value for key, value in SMALL.items()})
    return ["run", str(MODEL), *options, "--cache", str(cache), "--out", str(out), *more]


def disks(given: argparse.Namespace) -> dict[str, Any]:
    """What the command line says to each kind of damage, and with which exit code it ends."""
    whole, found = given.work / "finished", {}
    before = said_by(command(whole, given.work / "out"))
    if before["code"]:
        raise SystemExit(before["error"])
    again = settings(select__min_similarity="0.8", finetune__epochs=0)
    for name, damage in DAMAGE.items():
        cache = given.work / name.replace(" ", "-")
        shutil.copytree(whole, cache)
        damage(cache)
        said = said_by(command(cache, given.work / "out", *again))
        said["ok"] = said["code"] == 0 and (name == "manifests missing" or "computed again" in said["output"])
        found[name] = said
    with disk(given.work / "disk", "16m") as place:
        if place is not None:
            shutil.copytree(whole, place / "cache")
            subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
            said = said_by(command(place / "cache", given.work / "out"))
            found["read-only, nothing to do"] = {**said, "ok": said["code"] == 0}
            said = said_by(command(place / "cache", given.work / "out", *again))
            found["read-only, work to do"] = {**said, "ok": is_one_line(said, "cannot be written")}
    with disk(given.work / "small", "1m") as place:
        limited = None if place is not None else limit_files
        cache = (place or given.work) / "full"
        said = said_by(command(cache, given.work / "out-full"), preexec_fn=limited)
        found["cache on a full disk"] = {**said, "ok": is_one_line(said, "is full")}
    with disk(given.work / "smaller", "128k") as place:
        if place is not None:
            said = said_by(command(whole, place / "out"))
            found["results on a full disk"] = {**said, "ok": is_one_line(said, "cannot be written")}
    return {"cases": found, "met": all(one["ok"] for one in found.values())}


def said_by(arguments: list[str], **more: Any) -> dict[str, Any]:
    process = start(arguments, **more)
    out, error = process.communicate()
    notes = [line for line in out.splitlines() if "damaged" in line]
    return {"code": process.returncode, "error": error.strip(), "output": "\n".join(notes)}


def is_one_line(said: dict[str, Any], about: str) -> bool:
    return said["code"] == 2 and about in said["error"] and len(said["error"].splitlines()) == 1


def flip(cache: Path) -> None:
    """Flip a bit of every chunk of the factors and of every model."""
    for path in chunks(cache):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)


def truncate(cache: Path) -> None:
    for path in chunks(cache):
        path.write_bytes(path.read_bytes()[:-3])


def forget(cache: Path) -> None:
    for path in (cache / "v2").glob("decompose/??/*/entry.json"):
        path.unlink()


def garble(cache: Path) -> None:
    for path in (cache / "v2").glob("score/??/*/entry.json"):
        path.write_bytes(path.read_bytes().replace(b'"parameters":', b'"parameters":1', 1))


DAMAGE = {"bits flipped": flip, "chunks truncated": truncate, "manifests missing": forget, "manifests changed": garble}


def chunks(cache: Path) -> Iterator[Path]:
    for kind in ("decompose", "factorize", "rebuild", "describe"):
        for folder in (cache / "v2" / kind).glob("??/*"):
            yield from (path for path in folder.rglob("*") if path.is_file() and path.name != "entry.json")


@contextlib.contextmanager
def disk(place: Path, size: str) -> Iterator[Path | None]:
    """Mount a small disk; ``None`` where that is not allowed."""
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], check=False)
    try:
        yield None if mounted.returncode else place
    finally:
        if not mounted.returncode:
            subprocess.run(["umount", "-l", str(place)], check=True)


def limit_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))


# Ctrl-C -----------------------------------------------------------------------------------------------------------


def interruptions(given: argparse.Namespace) -> dict[str, Any]:
    """Ctrl-C at several stages: seconds until the process has ended, exit code, and what it says."""
    rng, found = random.Random(0), {}
    cache, log = given.work / "interrupted", given.work / "interrupted.log"
    long = settings(finetune__epochs=150, repair__rounds=5, repair__steps=300)
    arguments = command(cache, given.work / "interrupted-out", *long)
    for name, sign in {
        "starting": "",
        "describing": "commit describe",
        "recording": "commit data",
        "exploring": "commit decompose",
        "scoring": "commit score",
        "repairing": "started repair",
        "fine-tuning": "progress finetune",
    }.items():
        process, delay = None, 0.5
        while process is None or process.poll() is not None:  # from nothing, where the run ended too early
            shutil.rmtree(cache, ignore_errors=True)
            log.unlink(missing_ok=True)
            process = start(arguments, log, preexec_fn=heed)
            while process.poll() is None and sign not in (log.read_text() if log.exists() else ""):
                time.sleep(0.01)
            time.sleep(rng.uniform(0.0, delay) if sign else 1.5)
            delay /= 2
        asked = time.monotonic()
        process.send_signal(signal.SIGINT)
        try:
            error = process.communicate(timeout=60)[1].strip()
        except subprocess.TimeoutExpired:
            process.kill()
            error = process.communicate()[1].strip() + " (did not end within 60 s)"
        seconds = time.monotonic() - asked
        said = {"seconds": round(seconds, 2), "code": process.returncode, "error": error}
        one = len(error.splitlines()) == 1 and "same command goes on" in error
        print(name, said, flush=True)
        found[name] = {**said, "ok": seconds <= PROMISED_SECONDS and process.returncode == 130 and one}
    process = start(arguments, log)
    error = process.communicate()[1]
    found["going on"] = {"code": process.returncode, "error": error, "ok": process.returncode == 0}
    return {"cases": found, "met": all(one["ok"] for one in found.values())}


def heed() -> None:
    """Take notice of Ctrl-C also where this script was started in the background."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


if __name__ == "__main__":
    main()
