"""A damaged cache and Ctrl-C through the command line: the same numbers, and one line that says what to do."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import DATA, Call, Finished


def test_damaged_entries_are_computed_again_and_named_once(finished: Finished, call: Call, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    shutil.copytree(finished.cache, cache)
    manifests = sorted((cache / "v2" / "score").glob("??/*/entry.json"))
    assert len(manifests) > 8
    for path in manifests[:8]:
        path.write_bytes(path.read_bytes().replace(b'"parameters":', b'"parameters":1', 1))
    said = call("run", *finished.arguments, "--cache", cache, "--out", tmp_path / "out")
    assert said.code == 0, said.err
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    damage = [line for line in summary["warnings"] if "damaged" in line]
    assert len(set(damage)) == len(damage) == 6
    assert damage[-1] == "3 more were damaged in the cache and computed again"
    assert said.out.count("computed again") == 6
    before = json.loads((finished.out / "summary.json").read_text())
    assert all(summary[name] == before[name] for name in ("layers", "final", "factorized"))


@pytest.mark.parametrize("kind", ["describe", "data", "ranks", "select", "finetune", "export", "evaluate"])
def test_a_plan_counts_what_is_damaged_as_work_until_a_run_has_mended_it(
    kind: str, finished: Finished, call: Call, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    shutil.copytree(finished.cache, cache)
    for path in (cache / "v2" / kind).glob("??/*/entry.json"):
        path.write_bytes(path.read_bytes().replace(b'"created":', b'"created":1', 1))
    planned = call("plan", *finished.arguments, "--cache", cache, "--json")
    assert planned.code == 3, planned.err
    plan = json.loads(planned.out)
    assert plan["nodes"]["run"][kind] == len([node for node in plan["missing"] if node["step"] == kind]) > 0
    assert {node["why"] for node in plan["missing"]} == {"damaged in the cache: the manifest is damaged"}
    assert call("run", *finished.arguments, "--cache", cache, "--out", tmp_path / "out").code == 0
    assert call("plan", *finished.arguments, "--cache", cache).code == 0


HEEDING = """
import runpy, signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # it is ignored where tests run in the background
runpy.run_module("lrfgraph", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize("step", ["describe", "finetune"])
def test_ctrl_c_ends_the_program_in_one_line(step: str, tmp_path: Path) -> None:
    """TensorFlow holds back standard error while it starts, and its threads cannot be stopped while it trains."""
    arguments = [str(DATA / "tiny_cnn.keras"), "--data", str(DATA / "tiny_digits.npz"), "--scale", "1/255"]
    arguments += ["--policy", "threshold", "--epochs", "5000", "--methods", "svd", "--cache", str(tmp_path / "cache")]
    arguments += ["--set", "repair.enabled=false", "--set", "explore.ranks=1", "--set", "explore.weighting=plain"]
    arguments += ["--set", "data.calibration=60", "--set", "data.validation=60"]
    process = subprocess.Popen(
        [sys.executable, "-c", HEEDING, "run", *arguments, "--out", str(tmp_path / "out")],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not list((tmp_path / "cache" / "v2" / "leases").glob(f"{step}-*")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.3)
    asked = time.monotonic()
    process.send_signal(signal.SIGINT)
    error = process.communicate(timeout=30)[1]
    assert time.monotonic() - asked < 5.0  # two seconds on a machine that does nothing else
    assert process.returncode == 130
    assert error.count("\n") == 1
    assert "the same command goes on from there" in error


def test_a_disk_that_fills_up_below_keras_is_one_line(call: Call, small_disk: Callable[[str], Path]) -> None:
    """The model file that `describe` writes into its scratch folder is the first that does not fit."""
    ended = call("inspect", DATA / "tiny_cnn.keras", "--cache", small_disk("24k") / "cache")
    assert ended.code == 2, ended.err
    assert ended.err.count("\n") == 1
    line = "is full (No space left on device) while computing model/describe; free some space, or use --cache DIR"
    assert line in ended.err
