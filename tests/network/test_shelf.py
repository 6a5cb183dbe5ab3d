"""The shelf: arrays come back as they were put, in memory or in a file whose places are used again."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lrfgraph.network.repair.shelf import Shelf


def test_what_does_not_fit_waits_in_a_file_without_a_name(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=(5, 4, 3)).astype(np.float32) for _ in range(6)]
    shelf = Shelf(2 * arrays[0].nbytes, lambda: tmp_path)
    waiting = [shelf.put(array) for array in arrays]
    assert shelf.in_memory == 2 * arrays[0].nbytes
    assert shelf.in_file == 4 * arrays[0].nbytes
    assert not list(tmp_path.iterdir())
    for one, array in zip(waiting, arrays, strict=True):
        np.testing.assert_array_equal(shelf.get(one), array)
    shelf.drop(waiting[3])
    again = shelf.put(arrays[0][::-1])
    assert again.at == waiting[3].at
    assert shelf.end == 4 * arrays[0].nbytes
    np.testing.assert_array_equal(shelf.get(again), arrays[0][::-1])
    for one in (*waiting[:3], *waiting[4:], again):
        shelf.drop(one)
    assert shelf.in_memory == shelf.in_file == 0


def test_without_a_limit_nothing_is_written() -> None:
    shelf = Shelf()
    array = np.ones((1000, 1000), np.float32)
    assert shelf.get(shelf.put(array)) is array
    assert shelf.file is None
