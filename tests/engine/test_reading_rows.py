"""Arrays that are read by their rows are what they would be in memory, and no more of them is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lrfgraph.engine import arrays as module
from lrfgraph.engine import entry as entries
from lrfgraph.engine.nodes import Result, digest
from lrfgraph.engine.rows import Chosen, Joined, Rows, Told, blocks
from lrfgraph.engine.store import CorruptEntry, Store

WHOLE = np.random.default_rng(0).normal(size=(40, 3, 5)).astype(">f4")
KEY = "data/" + "a" * 40


class Counting(Rows):
    """An array that counts its rows that are in memory."""

    def __init__(self, whole: np.ndarray) -> None:
        self.whole, self.shape, self.dtype = whole, whole.shape, whole.dtype
        self.taken, self.most = 0, 0

    def take(self, places: Any) -> Any:
        self.taken, self.most = self.taken + len(places), max(self.most, len(places))
        return self.whole[places]


MADE: dict[str, tuple[Rows, np.ndarray]] = {
    "counting": (Counting(WHOLE), WHOLE),
    "chosen": (Chosen(Counting(WHOLE), np.array([7, 3, 3, 39, 0, 1])), WHOLE[[7, 3, 3, 39, 0, 1]]),
    "joined": (Joined(Counting(WHOLE), WHOLE[:4]), np.concatenate([WHOLE, WHOLE[:4]]).astype(">f4")),
    "told": (Told(WHOLE, lambda count: None), WHOLE),
}


@pytest.mark.parametrize("name", MADE)
def test_rows_are_those_of_the_array(name: str) -> None:
    rows, array = MADE[name]
    assert (len(rows), rows.shape, rows.dtype, rows.ndim, rows.nbytes) == (
        len(array), array.shape, array.dtype, array.ndim, array.nbytes,
    )  # fmt: skip
    last = len(array) - 1
    for chosen in (slice(None), slice(2, 5), slice(5, 2), slice(None, None, 2), [last, 0, 2], [1, 2, 3], [], -0, last):
        np.testing.assert_array_equal(rows[chosen], array[chosen if chosen != [] else slice(0)])
    np.testing.assert_array_equal(np.asarray(rows), array)
    assert digest(rows) == digest(array)
    np.testing.assert_array_equal(np.concatenate(list(blocks(rows, 200))), array)


def test_told_says_how_many_rows_were_read() -> None:
    told: list[int] = []
    rows = Told(WHOLE, told.append)
    rows[:3], rows[[5, 1]]
    assert told == [3, 2]


def test_an_entry_of_rows_is_one_of_the_array_and_is_written_shard_by_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK_BYTES", 300)
    monkeypatch.setattr(module, "LARGE", 1000)
    monkeypatch.setattr(module, "CHUNKS_OF_A_SHARD", 2)
    monkeypatch.setattr(entries, "WHOLE", 500)
    rows, wide = Counting(WHOLE), Counting(WHOLE.reshape(2, 300))
    store = Store(tmp_path)
    store.commit(KEY, Result(arrays={"rows": rows, "wide": wide, "few": Counting(WHOLE[:2])}))
    assert (rows.taken, wide.taken) == (40, 2)
    assert rows.most < 12
    read = store.open(KEY)
    lazy = read.rows("rows")
    assert isinstance(lazy, Rows)
    for chosen in (slice(None), slice(7, 19), np.array([30, 2, 17])):
        np.testing.assert_array_equal(lazy[chosen], WHOLE[chosen])
    np.testing.assert_array_equal(read.array("wide"), WHOLE.reshape(2, 300))
    assert isinstance(read.rows("few"), np.ndarray)
    np.testing.assert_array_equal(read.rows("few"), WHOLE[:2])
    with pytest.raises(KeyError, match="has no array 'none'"):
        read.rows("none")
    shard = max((store.folder(KEY) / "arrays.zarr" / "rows").glob("c.*"))
    shard.write_bytes(bytes(shard.stat().st_size))
    with pytest.raises(CorruptEntry, match="damaged"):
        store.open(KEY).rows("rows")[-8:]


def test_what_cannot_be_read_while_it_is_written_leaves_nothing(tmp_path: Path) -> None:
    class Broken(Counting):
        def take(self, places: Any) -> Any:
            raise ValueError("no row")

    store = Store(tmp_path)
    with pytest.raises(ValueError, match="no row"):
        store.commit(KEY, Result(arrays={"rows": Broken(WHOLE)}))
    assert not store.has(KEY)
    assert not list((store.base / "tmp").iterdir())
