"""Whole runs that go from one cache to another."""

from __future__ import annotations

from pathlib import Path

import pytest
from toys import STEPS, grid

from lrfgraph.engine import remote as module
from lrfgraph.engine.exchange import finish, pull
from lrfgraph.engine.execute import execute
from lrfgraph.engine.remote import RemoteStore
from lrfgraph.engine.runs import start_run
from lrfgraph.engine.store import Store
from lrfgraph.errors import StoreError


def test_many_entries_that_are_gone_there_do_not_stop_the_others(tmp_path: Path) -> None:
    """More of them than requests are on their way at once."""
    url, nodes = f"file://{tmp_path}/remote", grid(2, 12)
    here = Store(tmp_path / "a", remote=RemoteStore(url))
    with start_run(here, "toy") as live:
        execute(nodes, STEPS, here, run=live)
        finish(here, live.record)
    for manifest in (tmp_path / "remote" / "v2" / "combine").rglob("entry.json"):
        manifest.unlink()
    there = Store(tmp_path / "b", remote=RemoteStore(url))
    pulled = pull(there, "toy")
    assert len(pulled.absent) == 24 > module.AT_ONCE
    assert pulled.entries + 24 == len(nodes)


def test_a_folder_is_made_by_the_first_that_is_put_into_it(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/some%20where/remote"
    for words in ({"readonly": True}, {"required": True}):
        with pytest.raises(StoreError, match=r"cannot be reached \(no such folder\)"):
            pull(Store(tmp_path / "b", remote=RemoteStore(url, **{"required": True} | words)), "toy")
    seeing = RemoteStore(url)
    assert seeing.read("v2/none") is None
    assert (seeing.runs(), seeing.notes()) == ([], [])
    assert list(tmp_path.iterdir()) == []
    assert seeing.write("v2/one", b"1")
    assert (tmp_path / "some where" / "remote" / "v2" / "one").read_bytes() == b"1"
