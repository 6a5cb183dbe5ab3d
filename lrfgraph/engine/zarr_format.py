"""The Zarr 3 format, written and read by hand: what an entry's arrays look like on disk.

zarr-python needs 13 ms for a group of three small arrays and a run has thousands of them; the format itself is
a JSON file and the raw bytes. Written here are groups and arrays with the ``bytes`` codec (little-endian), cut
into chunks along the first axis; a test opens all of it through zarr-python. Nothing here touches the disk.
Source: https://zarr-specs.readthedocs.io/en/latest/v3/core/index.html
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrfgraph.engine.nodes import Arrays

__all__ = ["CHUNK_BYTES", "decode", "describe", "encode"]

CHUNK_BYTES = 64 << 20
KINDS = "biufc"
LONG = "gG"  # long doubles: another number of bits on every machine, and no type of Zarr
GROUP: dict[str, Any] = {"zarr_format": 3, "node_type": "group", "attributes": {}}


def describe(array: NDArray[Any], chunk_bytes: int = CHUNK_BYTES) -> dict[str, Any]:
    """Return what has to be known to read `array` back: dtype, shape and the rows of a chunk.

    Raises TypeError for anything but booleans and numbers (object arrays would need pickle).
    """
    if array.dtype.kind not in KINDS or array.dtype.char in LONG:
        raise TypeError(f"arrays of booleans and numbers can be stored, received dtype {array.dtype}")
    row = prod(array.shape[1:]) * array.dtype.itemsize
    rows = min(max(1, chunk_bytes // max(row, 1)), max(1, array.shape[0])) if array.ndim else 1
    return {"dtype": array.dtype.name, "shape": list(array.shape), "rows": rows}


def encode(arrays: Arrays, chunk_bytes: int = CHUNK_BYTES) -> Iterator[tuple[str, list[Any]]]:
    """Yield the files of a group: relative path and the buffers that make up its content, in order.

    Without arrays there is no group and nothing is yielded: a result that fits in the manifest is one file. The root
    carries consolidated metadata, so that zarr-python finds the members without listing the folder.

    Raises ValueError for a name that is no path of plain parts or that is both an array and a group.
    """
    described = {name: describe(np.asarray(array), chunk_bytes) for name, array in sorted(arrays.items())}
    members: dict[str, dict[str, Any]] = {name: _array_metadata(info) for name, info in described.items()}
    for name in described:
        parts = name.split("/")
        if any(part in ("", ".", "..", "zarr.json") or "\0" in part for part in parts) or parts[0] == "files":
            raise ValueError(f"array names are paths like 'layers/3/kernel', received {name!r}")
        for end in range(1, len(parts)):
            above = "/".join(parts[:end])
            if above in described:
                raise ValueError(f"{above!r} is an array and cannot hold {name!r}")
            members[above] = GROUP
    if not members:
        return
    inline = {"kind": "inline", "must_understand": False, "metadata": {k: members[k] for k in sorted(members)}}
    yield "zarr.json", [_json({**GROUP, "consolidated_metadata": inline})]
    for name, metadata in members.items():
        yield f"{name}/zarr.json", [_json(metadata)]
    for name, info in described.items():
        for chunk, buffers in _chunks(np.asarray(arrays[name]), info["rows"]):
            yield f"{name}/{chunk}", buffers


def decode(info: dict[str, Any], fetch: Callable[[str], NDArray[np.uint8]]) -> NDArray[Any]:
    """Put an array together from its chunks; `fetch` returns a chunk's bytes by its name.

    Raises ValueError if a chunk has another size than `info` demands.
    """
    dtype, shape, rows = np.dtype(info["dtype"]).newbyteorder("<"), tuple(info["shape"]), info["rows"]
    if prod(shape) == 0:
        return np.zeros(shape, dtype)
    if not shape:
        single: NDArray[Any] = fetch("c").view(dtype).reshape(())
        return single
    starts = range(0, shape[0], rows)
    whole: NDArray[Any]
    if len(starts) == 1:
        whole = fetch(_chunk_name(0, len(shape))).view(dtype).reshape(shape)
        return whole
    whole = np.empty(shape, dtype)
    for index, start in enumerate(starts):
        chunk = fetch(_chunk_name(index, len(shape))).view(dtype).reshape(rows, *shape[1:])
        whole[start : start + rows] = chunk[: shape[0] - start]
    return whole


def _chunk_name(index: int, axes: int) -> str:
    return ".".join(["c", str(index), *["0"] * (axes - 1)])


def _chunks(array: NDArray[Any], rows: int) -> Iterator[tuple[str, list[Any]]]:
    # asarray, not ascontiguousarray: the latter makes a 0-d array 1-d
    little = np.asarray(array, dtype=array.dtype.newbyteorder("<"), order="C")
    if little.size == 0:
        return
    if little.ndim == 0:
        yield "c", [little.tobytes()]
        return
    for index, start in enumerate(range(0, len(little), rows)):
        part = little[start : start + rows]
        buffers: list[Any] = [part.reshape(-1).view(np.uint8).data]
        if len(part) < rows:
            buffers.append(bytes((rows - len(part)) * (part.nbytes // len(part))))
        yield _chunk_name(index, little.ndim), buffers


def _array_metadata(info: dict[str, Any]) -> dict[str, Any]:
    dtype, shape = np.dtype(info["dtype"]), info["shape"]
    chunks = [info["rows"], *(max(1, size) for size in shape[1:])] if shape else []
    zero: Any = {"b": False, "f": 0.0, "c": [0.0, 0.0]}.get(dtype.kind, 0)
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": shape,
        "data_type": info["dtype"],
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunks}},
        # "." keeps a chunk one file deep, whatever the number of axes
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        "fill_value": zero,
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
        "attributes": {},
        "storage_transformers": [],
    }


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
