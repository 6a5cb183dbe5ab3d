"""Arrays of an entry come back as they were, whichever way they are stored, and other programs read them too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lrfgraph.engine import arrays as module
from lrfgraph.engine.arrays import GROUP, PACKED, check_arrays, describe, is_zarr, read_packed, read_zarr, write_arrays

DTYPES = ["bool", "float16", "float32", "float64", "complex64", "complex128"]
DTYPES += [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
SHAPES = [(), (0,), (1,), (7,), (3, 4), (0, 5), (4, 0, 2), (5, 3, 3, 2), (1, 1, 1, 1, 1)]
SMALL_CHUNKS = {"LARGE": 16, "CHUNK_BYTES": 40, "CHUNKS_OF_A_SHARD": 2}


@pytest.fixture
def cut_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nearly everything is large, and large arrays are cut into many shards."""
    for name, value in SMALL_CHUNKS.items():
        monkeypatch.setattr(module, name, value)


def read(folder: Path, name: str, files: dict[str, Any]) -> np.ndarray:
    seen: list[str] = []
    if not is_zarr(name, files):
        return read_packed((folder / PACKED).read_bytes())[name]
    array = read_zarr(folder, name, lambda relative, content: seen.append(relative))
    assert set(seen) == {file for file in files if file.startswith(f"{GROUP}/{name}/")}, "every file is checked"
    return array


def some_of_everything() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        f"of/{dtype}/{index}": np.asarray(rng.uniform(0, 100, size=shape)).astype(dtype)
        for dtype in DTYPES
        for index, shape in enumerate(SHAPES)
    }


def test_every_dtype_and_shape_lies_in_one_file(tmp_path: Path) -> None:
    arrays = some_of_everything()
    files = write_arrays(tmp_path, arrays)
    assert list(files) == [PACKED]
    assert files[PACKED][0] == (tmp_path / PACKED).stat().st_size
    with np.load(tmp_path / PACKED) as plain:
        assert set(plain.files) == set(arrays)
        for name, array in arrays.items():
            assert plain[name].dtype == array.dtype
            assert plain[name].shape == array.shape
            np.testing.assert_array_equal(plain[name], array)
    check_arrays(tmp_path, {name: describe(array) for name, array in arrays.items()}, files)


@pytest.mark.usefixtures("cut_small")
def test_zarr_python_reads_every_dtype_and_shape(tmp_path: Path) -> None:
    import zarr

    arrays = some_of_everything()
    files = write_arrays(tmp_path, arrays)
    group = zarr.open_group(tmp_path / GROUP, mode="r")
    large = [name for name in arrays if is_zarr(name, files)]
    assert {arrays[name].dtype.name for name in large} == set(DTYPES)
    for name, array in arrays.items():
        same = read(tmp_path, name, files)
        np.testing.assert_array_equal(same, array)
        assert (same.dtype, same.shape) == (array.dtype, array.shape)
        if name in large:
            np.testing.assert_array_equal(np.asarray(group[name][...]), array)
    assert {name for name, _ in group.members(max_depth=None) if name in arrays} == set(large)
    check_arrays(tmp_path, {name: describe(array) for name, array in arrays.items()}, files)


@settings(max_examples=25, deadline=None)
@given(
    array=hnp.arrays(
        st.sampled_from([">f4", "<i8", "?", ">u2"]),
        hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5),
        elements={"allow_nan": False},
    ),
    chunk_bytes=st.integers(8, 60),
    shard=st.integers(1, 4),
    transpose=st.booleans(),
)
def test_any_array_comes_back_in_one_order(
    tmp_path_factory: pytest.TempPathFactory, array: np.ndarray, chunk_bytes: int, shard: int, transpose: bool
) -> None:
    turned = array.T if transpose else array
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"LARGE": 16, "CHUNK_BYTES": chunk_bytes, "CHUNKS_OF_A_SHARD": shard}.items():
            patch.setattr(module, name, value)
        folder = tmp_path_factory.mktemp("any")
        files = write_arrays(folder, {"x": turned})
        same = read(folder, "x", files)
    np.testing.assert_array_equal(same, turned)
    assert same.shape == turned.shape
    assert same.dtype.isnative
    assert same.flags.c_contiguous


def test_minus_zero_stays_minus_zero(tmp_path: Path, cut_small: None) -> None:
    files = write_arrays(tmp_path, {"x": np.full(10, -0.0)})
    assert np.signbit(read(tmp_path, "x", files)).all()


def test_many_chunks_lie_in_few_files_and_the_last_is_hardly_padded(tmp_path: Path) -> None:
    """450 images, as many as fit a chunk one time and a bit: nothing is stored twice."""
    images = np.random.default_rng(0).integers(0, 256, (450, 32, 1200), dtype=np.uint8)
    files = write_arrays(tmp_path, {"x": images})
    assert sum(size for size, _ in files.values()) < 1.01 * images.nbytes
    assert sorted(files) == [f"{GROUP}/{name}" for name in ("x/c.0.0.0", "x/zarr.json", "zarr.json")]
    np.testing.assert_array_equal(read(tmp_path, "x", files), images)


@pytest.mark.parametrize(
    ("shape", "chunks", "shards"),
    [
        ((10,), (5,), (10,)),
        ((11,), (4,), (8,)),
        ((30,), (5,), (10,)),
        ((1, 10), (1, 5), (1, 10)),
        ((2, 10), (1, 5), (1, 10)),
        ((10, 2), (3, 2), (6, 2)),
        ((1, 2, 3), (1, 1, 3), (1, 2, 3)),
    ],
)
def test_arrays_are_cut_where_rows_fit(
    cut_small: None, shape: tuple[int, ...], chunks: tuple[int, ...], shards: tuple[int, ...]
) -> None:
    assert module._cut(np.zeros(shape)) == (chunks, shards)


def test_two_writers_write_the_same_bytes(tmp_path: Path) -> None:
    arrays = {"small": np.arange(5.0), "large/one": np.arange(100_000.0)}
    both = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        both.append(write_arrays(tmp_path / name, arrays))
    assert both[0] == both[1]
    names = "large/one/c.0", "large/one/zarr.json", "large/zarr.json", "zarr.json"
    assert sorted(both[0]) == [PACKED, *(f"{GROUP}/{name}" for name in names)]


@pytest.mark.parametrize("name", ["", "/a", "a/", "a//b", "..", "a/../b", "a/zarr.json"])
def test_names_that_are_no_paths_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="array names"):
        write_arrays(tmp_path, {name: np.zeros(1)})


def test_an_array_cannot_hold_another(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is an array"):
        write_arrays(tmp_path, {"a": np.zeros(1), "a/b": np.zeros(1)})


@pytest.mark.parametrize(
    "array",
    [
        np.array([None]),
        np.array(["a"]),
        np.array(["2020"], "M8[D]"),
        np.zeros(1, np.longdouble),
        np.zeros(1, np.clongdouble),
    ],
)
def test_what_would_need_pickle_or_has_no_type_in_zarr_is_refused(tmp_path: Path, array: np.ndarray) -> None:
    with pytest.raises(TypeError, match="booleans and numbers"):
        write_arrays(tmp_path, {"a": array})
    assert list(tmp_path.iterdir()) == []


def test_no_arrays_no_file(tmp_path: Path) -> None:
    assert write_arrays(tmp_path, {}) == {}
    assert list(tmp_path.iterdir()) == []


def test_the_name_that_numpy_keeps_for_itself_is_a_name_like_others(tmp_path: Path) -> None:
    write_arrays(tmp_path, {"file": np.ones(2)})
    np.testing.assert_array_equal(read_packed((tmp_path / PACKED).read_bytes())["file"], np.ones(2))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"nonsense"])
def test_what_is_no_archive_is_an_error_of_one_kind(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        read_packed(content)


@pytest.mark.parametrize("large", [False, True])
def test_arrays_that_are_not_as_described_are_found(tmp_path: Path, large: bool) -> None:
    array = np.zeros(module.LARGE if large else 3)
    files = write_arrays(tmp_path, {"x": array})
    check_arrays(tmp_path, {"x": describe(array)}, files)
    for said in ({"dtype": "float32", "shape": [len(array)]}, {"dtype": "float64", "shape": [1]}):
        with pytest.raises(ValueError, match="array x is float64"):
            check_arrays(tmp_path, {"x": said}, files)
    with pytest.raises(ValueError, match="the manifest names"):
        check_arrays(tmp_path, {"x": describe(array), "y": describe(array)}, files)
