"""Run records: what a run stands on is written down before it is needed, and no more than that when it is over."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from lrfgraph.engine import memory, runs
from lrfgraph.engine.nodes import Ref, Result, digest
from lrfgraph.engine.runs import RunRecord, list_runs, pin, remove_run, start_run
from lrfgraph.engine.store import Store
from lrfgraph.errors import StoreError

A, B, C = (f"a/{digest(number)}" for number in range(3))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def written(store: Store, name: str = "run") -> dict[str, Any]:
    content: dict[str, Any] = json.loads((store.base / "runs" / f"{name}.json").read_text())
    return content


def test_a_rerun_keeps_what_the_run_before_it_named_until_it_is_over(store: Store) -> None:
    start_run(store, "run", [A, B]).close()
    with start_run(store, "run") as run:
        assert run.record.keys == ()
        assert written(store)["keys"] == [A, B]
        assert not run.add([B]), "it was named on disk before"
        assert run.add([B, C, B]), "this one was not"
        assert not run.add([C])
        assert run.record.keys == (B, C)
        assert set(written(store)["keys"]) == {A, B, C}
    assert written(store)["keys"] == [B, C]
    assert set(written(store)) == {"name", "keys", "pinned", "created"}
    run.close()


def test_a_run_that_names_what_the_one_before_it_did_writes_nothing_at_its_end(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_run(store, "run", [A]).close()
    run = start_run(store, "run")
    run.add([A])
    monkeypatch.setattr(runs, "_write", lambda store, record: pytest.fail("written"))
    run.close()
    assert list((store.base / "leases").iterdir()) == []


def test_records_come_oldest_first_whatever_their_names(store: Store) -> None:
    for name, created in (("b", 30.0), ("c", 10.0), ("a", 20.0)):
        start_run(store, name, [A]).close()
        path = store.base / "runs" / f"{name}.json"
        path.write_text(json.dumps(written(store, name) | {"created": created}))
    assert [(run.name, run.created, run.keys) for run in list_runs(store)] == [
        ("c", 10, (A,)),
        ("a", 20, (A,)),
        ("b", 30, (A,)),
    ]


@pytest.mark.parametrize("change", [{"keys": 3}, {"created": "x"}, {"created": None}, None])
def test_a_record_that_cannot_be_read_is_left_out(store: Store, change: dict[str, Any] | None) -> None:
    start_run(store, "run", [A]).close()
    path = store.base / "runs" / "run.json"
    path.write_text("[" if change is None else json.dumps(written(store) | change))
    assert list_runs(store) == []
    with pytest.raises(StoreError, match="has no run 'run'; it has none"):
        pin(store, "run")


def test_only_true_is_pinned(store: Store) -> None:
    start_run(store, "run", [A]).close()
    path = store.base / "runs" / "run.json"
    path.write_text(json.dumps(written(store) | {"pinned": "no"}))
    assert list_runs(store) == [RunRecord("run", (A,), False, written(store)["created"], False)]
    pin(store, "run")
    assert written(store)["pinned"] is True
    assert remove_run(store, "run").pinned
    assert list_runs(store) == []


def test_a_cache_that_cannot_be_written_keeps_no_record(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> Any:
        raise PermissionError(13, os.strerror(13))

    monkeypatch.setattr(runs.Waiting, "acquire", refuse)
    with start_run(store, "run", [A, A]) as run:
        assert run.record == RunRecord("run", (A,))
        assert not run.add([B])
        assert run.record.keys == (A, B)
    assert not store.root.exists() or list(store.root.iterdir()) == []


def test_a_record_that_cannot_be_written_holds_no_lease(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(store: Store, record: RunRecord) -> None:
        raise StoreError("cannot be written")

    monkeypatch.setattr(runs, "_write", refuse)
    with start_run(store, "run", [A]) as run:
        assert list((store.base / "leases").iterdir()) == []
        assert not run.add([B])


@pytest.mark.parametrize("name", ["", "-x", ".x", "a/b", "a b", "x" * 122, "ä"])
def test_names_that_could_lead_anywhere_are_refused(store: Store, name: str) -> None:
    for use in (start_run, pin, remove_run):
        with pytest.raises(StoreError, match="names of runs are letters, digits"):
            use(store, name)
    start_run(store, "x" * 121).close()


def test_a_part_may_end_in_a_slash(store: Store) -> None:
    import numpy as np

    store.commit(A, Result(arrays={"layers/3/kernel": np.ones(2), "layers/31": np.zeros(1)}), name="weights")
    for part in ("layers/3", "layers/3/"):
        assert store.open(Ref("i", A, part)).names() == ["kernel"]
    entry = store.open(A)
    with pytest.raises(
        KeyError, match=r"weights \(a/.*\) has no array 'kernel'; it has \['layers/3/kernel', 'layers/31'\]"
    ):
        entry.array("kernel")
    with pytest.raises(KeyError, match=r"weights \(a/.*\) has no file 'model.h5'"):
        entry.file("model.h5")


def test_an_entry_says_which_versions_made_it() -> None:
    import numpy as np
    import scipy

    made = memory.versions()
    assert made["numpy"] == np.__version__
    assert made["scipy"] == scipy.__version__
    assert {"lrfgraph", "python", "platform", "processor", "blas"} <= made.keys()
    assert all(made.values())
    assert "not-there" not in made
    assert memory._version("no-such-distribution") == "unknown"
