"""Arrays of ``.npz`` files read by their rows are those that NumPy reads, and nobody may write them meanwhile."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lrfgraph.engine.rows import Rows
from lrfgraph.errors import DataError
from lrfgraph.images import archives
from lrfgraph.images.archives import FileRows, npz_bytes, read_npz, write_npz
from lrfgraph.images.reading import Reading
from lrfgraph.images.sources import source_digest
from lrfgraph.options.recipe import DataOptions

X = np.random.default_rng(0).integers(0, 256, (30, 4, 5), dtype=np.uint8)
ARRAYS = {
    "x": X,
    "wide": X.astype(">f8"),
    "turned": np.asfortranarray(X.astype(np.float32)),
    "labels": np.arange(30),
    "alone": np.array(3.0),
    "none": X[:0],
}


@pytest.fixture(autouse=True)
def nothing_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "IN_MEMORY", 1)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_rows_of_a_file_are_those_of_its_arrays(tmp_path: Path, save: object) -> None:
    save(tmp_path / "a.npz", **ARRAYS)  # type: ignore[operator]
    asked: list[str] = []

    def scratch() -> Path:
        asked.append("a folder")
        return tmp_path

    read = read_npz(tmp_path / "a.npz", Reading(scratch=scratch))
    assert {name for name, array in read.items() if isinstance(array, Rows)} == {"x", "wide"}
    assert len(asked) == (0 if save is np.savez else 2)  # what is packed is unpacked there
    assert npz_bytes(tmp_path / "a.npz") == sum(ARRAYS[name].nbytes for name in ("turned", "labels", "alone", "none"))
    for name, array in ARRAYS.items():
        assert (read[name].shape, read[name].dtype) == (array.shape, array.dtype)
        np.testing.assert_array_equal(read[name], array)
        if array.ndim and len(array):
            for chosen in (slice(3, 9), np.array([29, 3, 4, 5, 0])):
                np.testing.assert_array_equal(read[name][chosen], array[chosen])
    assert [file.name for file in tmp_path.iterdir()] == ["a.npz"]


def test_a_file_that_is_written_in_its_place_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=X)
    rows = read_npz(tmp_path / "a.npz")["x"]
    rows[:3]
    np.savez(tmp_path / "a.npz", x=np.repeat(X, 2, 0))
    with pytest.raises(DataError, match=r"a\.npz changed while it was read; run again when nobody writes it"):
        rows[:3]


def test_a_file_that_is_replaced_is_read_on(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=X)
    rows = read_npz(tmp_path / "a.npz")["x"]
    np.savez(tmp_path / "b.npz", x=X[::-1])
    (tmp_path / "a.npz").unlink()
    np.testing.assert_array_equal(rows, X)


@pytest.mark.parametrize("cut", [200, 600, 900])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_torn_file_is_one_line(tmp_path: Path, cut: int, save: object) -> None:
    save(tmp_path / "a.npz", x=X)  # type: ignore[operator]
    content = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "a.npz").write_bytes(content[:-cut])
    with pytest.raises(DataError, match=r"a\.npz cannot be read, it is no whole \.npz file"):
        read_npz(tmp_path / "a.npz")


def test_rows_are_written_as_arrays_are(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **ARRAYS)
    write_npz(tmp_path / "b.npz", read_npz(tmp_path / "a.npz"))
    write_npz(tmp_path / "c.npz", ARRAYS)
    assert (tmp_path / "b.npz").read_bytes() == (tmp_path / "a.npz").read_bytes() == (tmp_path / "c.npz").read_bytes()
    assert isinstance(read_npz(tmp_path / "b.npz")["x"], FileRows)


def test_a_large_array_that_is_damaged_where_it_lies_is_one_line(tmp_path: Path) -> None:
    from lrfgraph.images.archives import check_stored

    path = tmp_path / "images.npz"
    np.savez(path, x_train=np.zeros((300, 256, 256), np.uint8), y_train=np.arange(300))
    check_stored(path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="it is no whole"):
        check_stored(path)
    with pytest.raises(DataError, match="it is no whole"):
        source_digest(DataOptions(source=str(path)))
