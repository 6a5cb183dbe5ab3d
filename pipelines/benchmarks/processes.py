"""The command line in processes of its own, with a log of what each computed; what two caches have in common."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "lrfgraph" / "demo"
DEMO = (
    str(SHIPPED / "digits_cnn.keras"),
    *("--data", str(SHIPPED / "digits.npz"), "--scale", "1/255", "--policy", "threshold", "--min-similarity", "0.9"),
)
"""A small real network: arguments of ``run``."""

TUNED = {"finetune", "export"}
"""Kinds that come after fine-tuning, besides evaluations of what it made."""

LOGGED = """
import os, runpy, sys
from lrfgraph.engine.store import Store
from lrfgraph.engine import tasks

log = os.open(sys.argv.pop(1), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
commit, emit = Store.commit, tasks.Local.emit

def committing(self, key, result, **said):
    os.write(log, f"commit {key}\\n".encode())
    return commit(self, key, result, **said)

def emitting(self, event):
    if event.kind in ("started", "progress") and event.step in ("finetune", "repair"):
        os.write(log, f"{event.kind} {event.step} {event.done} {event.total}\\n".encode())
    emit(self, event)

Store.commit, tasks.Local.emit = committing, emitting
sys.argv[0] = "lrfgraph"
runpy.run_module("lrfgraph", run_name="__main__", alter_sys=True)
"""
"""`python -m lrfgraph` that notes what it computes, before it is published; its first argument is the log."""


def settings(**values: object) -> list[str]:
    """Return ``section__key=value`` as arguments."""
    return [word for key, value in values.items() for word in ("--set", f"{key.replace('__', '.')}={value}")]


def start(arguments: Sequence[str], log: Path | None = None, **more: Any) -> subprocess.Popen[str]:
    """Start ``lrfgraph`` with these arguments; with a `log`, what it computes is noted there."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    program = ["-c", LOGGED, str(log)] if log else ["-m", "lrfgraph"]
    return subprocess.Popen(
        [sys.executable, *program, *arguments],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **more,
    )


def finish(process: subprocess.Popen[str]) -> tuple[str, str]:
    """Wait for a run that has to succeed; returns what it printed."""
    out, error = process.communicate()
    if process.returncode:
        raise SystemExit(f"{process.args!r} ended with {process.returncode}:\n{error}")
    return out, error


def entries(cache: Path) -> set[str]:
    """Return the keys of all entries."""
    return {f"{path.parts[-4]}/{path.parts[-2]}" for path in (cache / "v2").glob("*/??/*/entry.json")}


def computed(log: Path) -> list[str]:
    """Return the keys that were computed, each as often as it was."""
    lines = log.read_text().splitlines() if log.exists() else []
    return [line.partition(" ")[2] for line in lines if line.startswith("commit ")]


def numbers(cache: Path, tuned: bool = False) -> dict[str, Any]:
    """Return what each entry says, by key: results and checksums of arrays; a model file by its content.

    tuned : take those after fine-tuning too.
    """
    from lrfgraph.network.opening.archive import model_digest

    found = {}
    for key in sorted(entries(cache)):
        kind, _, name = key.partition("/")
        folder = cache / "v2" / kind / name[:2] / name
        manifest = json.loads((folder / "entry.json").read_text(encoding="utf-8"))
        late = kind in TUNED or manifest["name"].startswith("finetuned/")
        if late and not tuned:
            continue
        files: dict[str, Any] = {
            file: model_digest(folder / file) if file.endswith((".keras", ".h5")) else said[1]
            for file, said in manifest["files"].items()
        }
        for epoch in manifest["data"].get("history", ()):
            del epoch["seconds"]
        found[key] = [manifest["name"], manifest["identity"], manifest["data"], files]
    return found


def differing(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Name the entries that two caches do not have in common, or that say different things."""
    keys = [key for key in sorted(one.keys() | other.keys()) if one.get(key) != other.get(key)]
    return [f"{key.partition('/')[0]}: {(one.get(key) or other[key])[0]}" for key in keys]


def summary(out: Path) -> dict[str, Any]:
    """Return what a run says, less what differs from run to run: seconds, node counts, places."""
    said: dict[str, Any] = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    for name in ("seconds", "nodes", "peak_memory_bytes", "recipe", "warnings"):
        del said[name]
    return said
