"""What is written by hand is Zarr 3: zarr-python reads it, and it is read back as it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lrfgraph.engine.zarr_format import decode, describe, encode

DTYPES = ["bool", "float16", "float32", "float64", "complex64", "complex128"]
DTYPES += [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
SHAPES = [(), (0,), (1,), (7,), (3, 4), (0, 5), (4, 0, 2), (5, 3, 3, 2), (1, 1, 1, 1, 1)]


def write(folder: Path, arrays: dict[str, np.ndarray], chunk_bytes: int = 64 << 20) -> None:
    for relative, buffers in encode(arrays, chunk_bytes):
        (folder / relative).parent.mkdir(parents=True, exist_ok=True)
        (folder / relative).write_bytes(b"".join(bytes(buffer) for buffer in buffers))


def read(folder: Path, name: str, array: np.ndarray, chunk_bytes: int = 64 << 20) -> np.ndarray:
    return decode(describe(array, chunk_bytes), lambda chunk: np.fromfile(folder / name / chunk, np.uint8))


@pytest.mark.parametrize("chunk_bytes", [64 << 20, 20])
def test_zarr_python_reads_every_dtype_and_shape(tmp_path: Path, chunk_bytes: int) -> None:
    import zarr

    rng = np.random.default_rng(0)
    arrays = {
        f"of/{dtype}/{index}": np.asarray(rng.uniform(0, 100, size=shape)).astype(dtype)
        for dtype in DTYPES
        for index, shape in enumerate(SHAPES)
    }
    write(tmp_path, arrays, chunk_bytes)
    group = zarr.open_group(tmp_path, mode="r")
    for name, array in arrays.items():
        found = group[name]
        assert found.dtype == array.dtype
        assert found.shape == array.shape
        assert found.fill_value == 0
        np.testing.assert_array_equal(np.asarray(found[...]), array)
        np.testing.assert_array_equal(read(tmp_path, name, array, chunk_bytes), array)
    assert {name for name, _ in group.members(max_depth=None) if name in arrays} == set(arrays)


def test_groups_between_are_groups_without_consolidated_metadata_too(tmp_path: Path) -> None:
    import zarr

    write(tmp_path, {"layers/3/kernel": np.arange(6.0), "bias": np.zeros(2)})
    plain = zarr.open_group(tmp_path, mode="r", use_consolidated=False)
    assert isinstance(plain["layers"]["3"], zarr.Group)
    np.testing.assert_array_equal(plain["layers/3/kernel"][...], np.arange(6.0))


def test_last_chunk_is_padded_with_zeros(tmp_path: Path) -> None:
    array = np.arange(1, 8, dtype="int16").reshape(7, 1)
    write(tmp_path, {"a": array}, 6)
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["c.0.0", "c.1.0", "c.2.0", "zarr.json"]
    assert (tmp_path / "a/c.2.0").read_bytes() == b"\x07\0\0\0\0\0"


@settings(max_examples=25, deadline=None)
@given(
    array=hnp.arrays(
        st.sampled_from([">f4", "<i8", "?", ">u2"]),
        hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5),
        elements={"allow_nan": False},
    ),
    chunk_bytes=st.integers(1, 60),
    transpose=st.booleans(),
)
def test_any_array_comes_back(array: np.ndarray, chunk_bytes: int, transpose: bool) -> None:
    given_array = array.T if transpose else array
    files = {name: b"".join(bytes(part) for part in parts) for name, parts in encode({"x": given_array}, chunk_bytes)}
    found = decode(describe(given_array, chunk_bytes), lambda chunk: np.frombuffer(files[f"x/{chunk}"], np.uint8))
    np.testing.assert_array_equal(found, given_array)
    assert found.shape == given_array.shape


@pytest.mark.parametrize("name", ["", "/a", "a/", "a//b", "..", "a/../b", "a/zarr.json", "files/x"])
def test_names_that_are_no_paths_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="array names"):
        list(encode({name: np.zeros(1)}))


def test_an_array_cannot_hold_another() -> None:
    with pytest.raises(ValueError, match="is an array"):
        list(encode({"a": np.zeros(1), "a/b": np.zeros(1)}))


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
def test_what_would_need_pickle_or_has_no_type_in_zarr_is_refused(array: np.ndarray) -> None:
    with pytest.raises(TypeError, match="booleans and numbers"):
        list(encode({"a": array}))


def test_no_arrays_no_group() -> None:
    assert list(encode({})) == []


def test_what_is_read_back_has_the_size_that_was_promised() -> None:
    info = describe(np.arange(6.0).reshape(3, 2), 16)
    assert info == {"dtype": "float64", "shape": [3, 2], "rows": 1}
    for size in (8, 24):
        with pytest.raises(ValueError, match="reshape"):
            decode(info, lambda chunk, size=size: np.zeros(size, np.uint8))


@pytest.mark.parametrize(
    ("shape", "chunk_bytes", "rows"),
    [((10, 2), 32, 2), ((10, 2), 47, 2), ((10, 2), 48, 3), ((10, 2), 1, 1), ((10, 2), 10_000, 10), ((0, 2), 32, 1)],
)
def test_chunks_hold_as_many_rows_as_fit(shape: tuple[int, ...], chunk_bytes: int, rows: int) -> None:
    assert describe(np.zeros(shape), chunk_bytes)["rows"] == rows
