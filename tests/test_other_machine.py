"""A second machine, with an empty cache and the same remote, goes on where the first one was."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from conftest import Call, Finished

from lrfgraph.engine.store import Store


@pytest.fixture
def remote(finished: Finished, call: Call, tmp_path: Path) -> str:
    """A remote that has what the finished run stands on, and nothing else."""
    url = f"file://{tmp_path}/remote"
    runs = json.loads(call("cache", "ls", "--cache", finished.cache, "--json").out)
    run = next(run for run in runs if run["run"] == json.loads((finished.out / "summary.json").read_text())["run"])
    said = call("cache", "push", run["run"], "--remote", url, "--cache", finished.cache)
    assert (said.code, said.err) == (0, "")
    assert said.out.startswith(f"put {run['entries']} entries, ")
    return url


def test_the_same_run_computes_nothing_there(finished: Finished, remote: str, call: Call, tmp_path: Path) -> None:
    arguments = (*finished.arguments, "--cache", tmp_path / "cache", "--remote", remote)
    said = call("run", *arguments, "--out", tmp_path / "out", "--json")
    assert said.code == 0, said.err
    assert json.loads(said.out)["nodes"]["run"] == {}
    assert (tmp_path / "out" / "compressed.keras").read_bytes() == (finished.out / "compressed.keras").read_bytes()


def test_a_changed_threshold_runs_the_choice_alone(finished: Finished, remote: str, call: Call, tmp_path: Path) -> None:
    changed = ["0.8" if word == "0.9" else word for word in finished.arguments]
    arguments = (*changed, "--until", "select", "--cache", tmp_path / "cache", "--remote", remote)
    said = call("run", *arguments, "--out", tmp_path / "out", "--json")
    assert said.code == 0, said.err
    assert json.loads(said.out)["nodes"]["run"] == {"select": 1}
    assert not list((tmp_path / "cache" / "v2").glob("record/*")), "what nobody reads stays where it is"
    # and now the first machine knows the choice as well
    shutil.copytree(finished.cache, tmp_path / "first")
    again = call("plan", *changed, "--until", "select", "--cache", tmp_path / "first", "--remote", remote)
    assert (again.code, again.err) == (0, "")
    assert call("plan", *changed, "--until", "select", "--cache", finished.cache).code == 3


def test_a_run_is_pulled_by_its_name(finished: Finished, remote: str, call: Call, tmp_path: Path) -> None:
    runs = json.loads(call("cache", "ls", "--cache", finished.cache, "--json").out)
    run = next(run for run in runs if run["run"] == json.loads((finished.out / "summary.json").read_text())["run"])
    said = call("cache", "pull", run["run"], "--remote", remote, "--cache", tmp_path / "cache", "--json")
    assert json.loads(said.out)["entries"] == run["entries"]
    assert call("plan", *finished.arguments, "--cache", tmp_path / "cache").code == 0
    assert call("cache", "verify", "--cache", tmp_path / "cache").code == 0


def test_a_run_that_had_no_remote_before_is_pulled_whole(finished: Finished, call: Call, tmp_path: Path) -> None:
    remote, cache = f"file://{tmp_path}/remote", ("--cache", tmp_path / "cache")
    shutil.copytree(finished.cache, tmp_path / "first")
    said = call("run", *finished.arguments, "--cache", tmp_path / "first", "--remote", remote, "--out", tmp_path / "o",
                "--json")  # fmt: skip
    assert said.code == 0, said.err
    run = json.loads(said.out)["run"]
    assert call("cache", "pull", run, "--remote", remote, *cache).code == 0
    assert call("plan", *finished.arguments, *cache).code == 0
    # what is gone there is said, and is no success
    shutil.rmtree(tmp_path / "cache")
    for manifest in (tmp_path / "remote" / "v2" / "select").rglob("entry.json"):
        manifest.unlink()
    said = call("cache", "pull", run, "--remote", remote, *cache)
    assert (said.code, said.err) == (1, "")
    assert "1 that the run names are not in the remote" in said.out


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("pull", "nothing", "--remote", "file:///{}/remote"), "has no run 'nothing'; it has "),
        (("pull", "nothing", "--remote", "ftp://x"), "run.remote is s3://BUCKET/PREFIX"),
        (("pull", "nothing", "--remote", "file:///{}/mistyped"), "mistyped cannot be reached (no such folder)"),
        (("pull", "nothing"), "Missing option '--remote'"),
        (("push", "nothing", "--remote", "file:///{}/remote"), "has no run 'nothing'"),
    ],
)
def test_bad_words_are_one_line(
    finished: Finished, remote: str, call: Call, tmp_path: Path, words: tuple[str, ...], line: str
) -> None:
    said = call("cache", *(word.replace("/{}", str(tmp_path)) for word in words), "--cache", finished.cache)
    assert (said.code, said.out) == (2, "")
    assert line in said.err
    assert len(said.err.splitlines()) == 1
    assert not (tmp_path / "mistyped").exists()


def test_a_push_that_cannot_reach_says_nothing_of_options(finished: Finished, call: Call, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    run = json.loads((finished.out / "summary.json").read_text())["run"]
    said = call("cache", "push", run, "--remote", f"file://{tmp_path}/file/x", "--cache", finished.cache)
    assert (said.code, said.out) == (2, "")
    assert said.err.endswith("file/x cannot be reached (Not a directory)\n")


def test_a_remote_that_is_not_there_is_said_and_the_run_goes_on(finished: Finished, call: Call, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    shutil.copytree(finished.cache, tmp_path / "cache")
    changed = ["0.8" if word == "0.9" else word for word in finished.arguments]
    arguments = (*changed, "--until", "select", "--cache", tmp_path / "cache", "--out", tmp_path / "out")
    away = ("--remote", f"file://{tmp_path}/file/below")
    required = call("run", *arguments, *away, "--set", "run.remote_required=true")
    assert required.code == 2
    assert "cannot be reached" in required.err
    said = call("run", *arguments, *away, "--json")
    assert said.code == 0
    summary = json.loads(said.out)
    assert summary["nodes"]["run"] == {"select": 1}
    assert len([line for line in summary["warnings"] if "cannot be reached" in line]) == 1
    assert Store(tmp_path / "cache").base.is_dir()
