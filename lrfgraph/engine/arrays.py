"""An entry's arrays on disk: large ones in a Zarr 3 group ``arrays.zarr``, small ones together in ``arrays.npz``.

zarr-python needs milliseconds and three files for an array, and a run has thousands of small ones (factors of a rank):
these lie in one file of NumPy's own format. An array of `LARGE` bytes or more is a Zarr array, compressed with
zstd, cut along its first axis into chunks of equal size that lie in shards where there are many. What Zarr reads is
verified file by file before it is decoded, and no chunk may be absent.
"""

from __future__ import annotations

import io
import itertools
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrfgraph.engine.files import file_checksum, write
from lrfgraph.engine.nodes import Arrays
from lrfgraph.engine.rows import ArrayLike, Rows

__all__ = [
    "CHUNK_BYTES",
    "GROUP",
    "LARGE",
    "PACKED",
    "ZarrRows",
    "array_like",
    "check_arrays",
    "describe",
    "is_zarr",
    "read_packed",
    "read_zarr",
    "write_arrays",
]

LARGE = 256 << 10
PACKED, GROUP = "arrays.npz", "arrays.zarr"
CHUNK_BYTES = 4 << 20
CHUNKS_OF_A_SHARD = 16
LEVEL = 1  # of zstd: rows behind a ReLU shrink to a half at any level, and the first is quickest
KINDS = "biufc"
LONG = "gG"  # long doubles: another number of bits on every machine, and no type of Zarr
RESERVED = frozenset({"", ".", "..", "zarr.json"})

Check = Callable[[str, bytes | None], None]


def array_like(value: Any) -> ArrayLike:
    """Return a value as an array, but what is read by its rows as it is."""
    return value if isinstance(value, Rows) else np.asarray(value)


def describe(array: ArrayLike) -> dict[str, Any]:
    """Return dtype and shape as the manifest says them.

    Raises TypeError for anything but booleans and numbers (object arrays would need pickle).
    """
    if array.dtype.kind not in KINDS or array.dtype.char in LONG:
        raise TypeError(f"arrays of booleans and numbers can be stored, received dtype {array.dtype}")
    return {"dtype": array.dtype.name, "shape": list(array.shape)}


def is_zarr(name: str, files: Mapping[str, Any]) -> bool:
    """Say whether an array of an entry with these files is a Zarr array; else it is a packed one."""
    return f"{GROUP}/{name}/zarr.json" in files


def write_arrays(folder: Path, arrays: Mapping[str, ArrayLike]) -> dict[str, tuple[int, str]]:
    """Write arrays, C-ordered and little-endian, into an empty folder; return bytes and checksum of each file.

    What is read by its rows is read shard by shard.  Raises ValueError for a name that is no path of plain parts or
    that is both an array and a group.
    """
    plain = {name: array_like(array) for name, array in sorted(arrays.items())}
    for name, array in plain.items():
        describe(array)
        _check_name(name, plain)
    large = {name: array for name, array in plain.items() if array.ndim and array.nbytes >= LARGE}
    small = {name: _little(np.asarray(array)) for name, array in plain.items() if name not in large}
    files = {PACKED: write(folder / PACKED, [_pack(small)])} if small else {}
    if large:
        _write_zarr(folder / GROUP, large)
        for path in sorted(path for path in (folder / GROUP).rglob("*") if path.is_file()):
            files[path.relative_to(folder).as_posix()] = path.stat().st_size, file_checksum(str(path))
    return files


def read_packed(content: bytes) -> Arrays:
    """Return the arrays of an ``arrays.npz``; raises ValueError if it is none."""
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as packed:
            return {name: packed[name] for name in packed.files}
    except (OSError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(str(error)) from error


def read_zarr(folder: Path, name: str, check: Check) -> NDArray[Any]:
    """Return a Zarr array as a whole, shard by shard, so that little more than it is in memory; see `ZarrRows`."""
    array = _open(folder, name, check)
    whole = np.empty(array.shape, array.dtype)
    for part in _parts(array.shape, array.shards or array.chunks):
        whole[part] = array[part]
    return whole


class ZarrRows(Rows):
    """A Zarr array that is read by its rows.

    check : called with every file's path in the entry and its content (``None`` where only a part of it is read);
    raises where the file is not what was written.  damage : makes an error of what else Zarr says.
    """

    def __init__(self, folder: Path, name: str, check: Check, damage: Callable[[str], Exception]) -> None:
        try:
            self.array, self.damage = _open(folder, name, check), damage
        except (OSError, ValueError) as error:
            raise damage(str(error)) from error
        self.shape, self.dtype = self.array.shape, self.array.dtype

    def take(self, places: NDArray[np.int64]) -> NDArray[Any]:
        return self._read(lambda: self.array.oindex[places])

    def between(self, start: int, stop: int) -> NDArray[Any]:
        return self._read(lambda: self.array[start:stop])

    def _read(self, read: Callable[[], Any]) -> NDArray[Any]:
        try:
            return np.asarray(read())
        except (OSError, ValueError) as error:
            raise self.damage(str(error)) from error


def _open(folder: Path, name: str, check: Check) -> Any:
    import zarr

    return zarr.open_array(_checked(folder / GROUP, check), path=name, mode="r", zarr_format=3)


def check_arrays(folder: Path, arrays: Mapping[str, Mapping[str, Any]], files: Mapping[str, Any]) -> None:
    """Raise ValueError unless the arrays of an entry open, and are what the manifest describes; nothing is decoded
    of large ones."""
    packed = read_packed((folder / PACKED).read_bytes()) if PACKED in files else {}
    large = {name for name in arrays if is_zarr(name, files)}
    if packed.keys() | large != arrays.keys():
        raise ValueError(f"{PACKED} holds {sorted(packed)}, the manifest names {sorted(arrays)}")
    for name, said in arrays.items():
        actual = _opened(folder, name) if name in large else packed[name]
        if {"dtype": actual.dtype.name, "shape": list(actual.shape)} != dict(said):
            raise ValueError(f"array {name} is {actual.dtype}{actual.shape} instead of {said}")


def _opened(folder: Path, name: str) -> Any:
    import zarr

    try:
        return zarr.open_array(folder / GROUP, path=name, mode="r", zarr_format=3)
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"zarr cannot open {name} ({error})") from error


def _check_name(name: str, arrays: Mapping[str, ArrayLike]) -> None:
    parts = name.split("/")
    if any(part in RESERVED or "\0" in part for part in parts):
        raise ValueError(f"array names are paths like 'layers/3/kernel', received {name!r}")
    for end in range(1, len(parts)):
        above = "/".join(parts[:end])
        if above in arrays:
            raise ValueError(f"{above!r} is an array and cannot hold {name!r}")


def _little(array: NDArray[Any]) -> NDArray[Any]:
    # asarray, not ascontiguousarray: the latter makes a 0-d array 1-d
    return np.asarray(array, dtype=array.dtype.newbyteorder("<"), order="C")


def _pack(arrays: Arrays) -> memoryview:
    """Return what `numpy.savez` writes; it would refuse the name ``file``."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, array in arrays.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
    return buffer.getbuffer()


def _write_zarr(folder: Path, arrays: Mapping[str, ArrayLike]) -> None:
    import zarr
    from zarr.codecs import ZstdCodec

    group = zarr.create_group(zarr.storage.LocalStore(folder), zarr_format=3)
    for name, array in arrays.items():
        chunks, shards = _cut(array)
        stored = group.create_array(
            name,
            shape=array.shape,
            dtype=array.dtype.newbyteorder("<"),
            chunks=chunks,
            shards=None if shards == chunks else shards,
            compressors=ZstdCodec(level=LEVEL),
            chunk_key_encoding={"name": "default", "separator": "."},  # a chunk is one file deep
            fill_value=0,
            config={"write_empty_chunks": True},  # else -0.0 comes back as 0.0, and an absent file is no damage
        )
        for start in range(0, len(array), shards[0]):
            rows = _little(np.asarray(array[start : start + shards[0]]))
            for rest in _parts(array.shape[1:], shards[1:]):
                stored[slice(start, start + len(rows)), *rest] = rows[:, *rest]


def _cut(array: ArrayLike) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the shapes of a chunk and of a shard, cut along the first axis whose rows are smaller than a chunk.

    Chunks share the rows evenly, so that the last one is hardly padded.
    """
    shape, row, axis = array.shape, array.nbytes, -1
    while row > CHUNK_BYTES or axis < 0:
        axis += 1
        row //= shape[axis]
    count = -(-row * shape[axis] // CHUNK_BYTES)
    chunk = -(-shape[axis] // min(count, shape[axis]))
    shard = chunk * min(CHUNKS_OF_A_SHARD, -(-shape[axis] // chunk))
    ones, rest = (1,) * axis, shape[axis + 1 :]
    return (*ones, chunk, *rest), (*ones, shard, *rest)


def _parts(shape: tuple[int, ...], step: tuple[int, ...]) -> Iterator[tuple[slice, ...]]:
    """Yield what lies in one shard (or chunk) after the other."""
    for starts in itertools.product(*map(range, (0,) * len(shape), shape, step)):
        yield tuple(slice(start, min(start + size, end)) for start, size, end in zip(starts, step, shape, strict=True))


def _checked(folder: Path, check: Check) -> Any:
    """Return a folder as a store for zarr-python that checks each file as it is read."""
    import asyncio

    from zarr.storage import LocalStore, WrapperStore

    class Checked(WrapperStore[LocalStore]):  # type: ignore[misc]
        async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
            content = await super().get(key, prototype, byte_range)
            part = content is None or byte_range is not None
            await asyncio.to_thread(check, f"{GROUP}/{key}", None if part else content.as_numpy_array().data)
            return content

    return Checked(LocalStore(folder, read_only=True))
