"""Where images and labels come from: a ``.npz`` file, a folder of class folders, or a function of the user's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrfgraph.engine.memory import BoundedCache
from lrfgraph.engine.nodes import digest as digest_of
from lrfgraph.engine.rows import ArrayLike, blocks
from lrfgraph.errors import DataError
from lrfgraph.images.archives import check_stored, existing, npz_bytes, read_npz
from lrfgraph.images.functions import call_function, function_digest, join_elements
from lrfgraph.images.naming import Inputs, Shape, input_names, recognise
from lrfgraph.images.pictures import Listing, channel_axis, class_names, read_folder
from lrfgraph.images.reading import Reading, changed_while_read
from lrfgraph.options.recipe import DataOptions
from lrfgraph.options.values import names_function

__all__ = [
    "Array",
    "Dataset",
    "Inputs",
    "Shape",
    "channel_axis",
    "load",
    "npz_bytes",
    "read_npz",
    "source_digest",
]

Array = NDArray[Any]
LOADED = BoundedCache(0, keep_last=True)
"""One data set at a time."""

LOADING = Lock()


@dataclass(frozen=True)
class Dataset:
    """Arrays as the source gave them, images first, not preprocessed; large ones are read by their rows.

    arrays : any of ``x_train, y_train, x_val, y_val, x_test, y_test``, images of several inputs as ``x_train/NAME``; a
    lone ``x`` counts as training images.  digest : of the source's content.  notes : what was ignored.
    names : of several inputs, in the network's order.
    """

    arrays: Mapping[str, ArrayLike]
    digest: str
    notes: tuple[str, ...] = ()
    names: tuple[str, ...] = ()

    def inputs(self, part: str) -> tuple[ArrayLike, ...]:
        """Return a part's images, an array for each input."""
        return tuple(self.arrays[f"x_{part}/{name}" if name else f"x_{part}"] for name in self.names or ("",))

    def x(self, part: str) -> ArrayLike:
        """Return a part's images, of several inputs those of the first."""
        return self.inputs(part)[0]

    def y(self, part: str) -> Array | None:
        labels = self.arrays.get(f"y_{part}")
        return None if labels is None else np.asarray(labels)

    def has(self, part: str) -> bool:
        return any(name.partition("/")[0] == f"x_{part}" for name in self.arrays)


@dataclass(frozen=True)
class _Content:
    """What a source contains: its digest, and of a folder the images; of a file when it was written."""

    digest: str
    listing: Listing | None = None
    state: tuple[int, ...] = ()

    @property
    def written(self) -> str:
        """When what is read by its rows was written: the same content written anew is another file."""
        return digest_of(self.listing.states) if self.listing else str(self.state)


def source_digest(options: DataOptions, base: Path = Path(), reading: Reading | None = None) -> str:
    """Return the digest of what the source and the statistics file contain.

    Paths (but for those inside a folder of images), names of files and times do not enter it. A function of the
    user's is called once for it, and must give the same arrays in the same order each time.  reading : remembers what
    was read before.  Raises DataError where a source is missing, or an image that is read is none.
    """
    return _digest_of(_contents(options, base, reading or Reading()))


def _contents(options: DataOptions, base: Path, reading: Reading) -> dict[str, _Content]:
    sources = {"source": options.source, "val": options.val, "stats": options.stats}
    return {name: _content(source, base, reading) for name, source in sources.items() if source is not None}


def _digest_of(contents: Mapping[str, _Content]) -> str:
    digests = {name: content.digest for name, content in contents.items()}
    return digests["source"] if digests.keys() == {"source"} else digest_of(digests)


def _content(source: str, base: Path, reading: Reading) -> _Content:
    path = base / source
    if names_function(source) and not path.exists():
        return _Content(function_digest(source, base, reading))
    if path.is_dir():
        listing = Listing.of(path, reading)
        return _Content(listing.digest, listing)
    digests, states = reading.digests(existing(path), [""], check=check_stored)
    return _Content(digests[0].tobytes().hex(), None, tuple(states[0]))


def load(
    options: DataOptions,
    base: Path = Path(),
    inputs: Inputs = MappingProxyType({}),
    reading: Reading | None = None,
) -> Dataset:
    """Read the source; the second call for the same content answers from memory.

    inputs : of the network; they say the size and channels of images from folders, what the arrays of several inputs
    are called, and whether a stream is batched.  reading : see `Reading`.  Raises DataError where the source is
    missing, empty, misshapen, not numeric, or changes while it is read.
    """
    if options.source is None:
        raise DataError("no data given; say where the images are with --data or [data] source")
    reading = reading or Reading()
    with LOADING:  # several nodes of a run ask at once
        contents = _contents(options, base, reading)
        digest = _digest_of(contents)
        files = [content.written for content in contents.values()]
        key = (digest, f"{options.source} {options.val} {options.image_size}{dict(inputs)}{files}")
        dataset: Dataset | None = LOADED.get(key)
        if dataset is None:
            source = _Source(options, base, inputs, reading)
            named = source.arrays(options.source, contents["source"])
            arrays, notes = recognise(named, options.source, inputs)
            if options.val is not None:
                arrays, more = _with_validation(arrays, source, contents["val"])
                notes += more
            _check(arrays)
            dataset = Dataset(arrays, digest, notes, input_names(inputs))
            LOADED.put(key, dataset, 0)
        return dataset


@dataclass(frozen=True)
class _Source:
    """How the arrays of sources are read: the options, the network's inputs, and where copies of them may lie."""

    options: DataOptions
    base: Path
    inputs: Inputs
    reading: Reading

    def arrays(self, source: str, content: _Content, classes: Sequence[str] | None = None) -> dict[str, ArrayLike]:
        """Return a source's arrays; `classes` are those of another source, whose numbers these images share: the names
        of its class folders, empty where it numbers them itself."""
        path = self.base / source
        if content.listing is not None:
            if names := input_names(self.inputs):
                raise DataError(
                    f"folder {path} has images for one input, the model takes {', '.join(names)}; give a .npz file or "
                    "a function that has an array of each"
                )
            shape = next(iter(self.inputs.values()), ())
            return read_folder(content.listing, self.options.image_size, shape, classes)
        if not content.state:
            return join_elements(call_function(source, self.base, self.reading), self.inputs)
        arrays = read_npz(path, self.reading)
        if self.reading.state_of(path) != content.state:
            raise changed_while_read(source)
        return arrays


def _with_validation(
    arrays: Mapping[str, ArrayLike], source: _Source, content: _Content
) -> tuple[dict[str, ArrayLike], tuple[str, ...]]:
    """Return arrays with the validation part that is given apart, in place of the source's own."""
    options, val = source.options, str(source.options.val)
    named = source.arrays(val, content, class_names(source.base / str(options.source)))
    given, notes = recognise(named, val, source.inputs)
    parts = {name.partition("/")[0][2:] for name in given if name.startswith("x")}
    part = next(part for part in ("val", "test", "train") if part in parts)
    if len(parts) > 1:
        notes += (f"of {val} only the {part} part is used",)
    if f"y_{part}" not in given and any(name.startswith("y") for name in arrays):
        notes += (f"{val} has no labels: changed answers are counted in place of wrong ones",)
    others = {name: array for name, array in arrays.items() if name.partition("/")[0][2:] != "val"}
    if len(others) < len(arrays):
        notes += (f"the validation part of {options.source} is not used: --val gives another",)
    own = {name: array for name, array in given.items() if name.partition("/")[0][2:] == part}
    return others | {name.replace(f"_{part}", "_val", 1): array for name, array in own.items()}, notes


def _check(arrays: Mapping[str, ArrayLike]) -> None:
    for name, array in arrays.items():
        if array.dtype.kind not in "biuf":
            raise DataError(f"{name} must hold numbers; received {array.dtype}")
        if array.ndim == 0 or len(array) == 0:
            raise DataError(f"{name} is empty; received shape {array.shape}")
        if array.dtype.kind == "f" and not all(np.isfinite(block).all() for block in blocks(array)):
            raise DataError(f"{name} holds values that are not finite (NaN or infinite)")
        part = name.partition("/")[0][2:]
        images = next((other for other in arrays if other.partition("/")[0] == f"x_{part}"), None)
        if images is None:
            raise DataError(f"{name} is given without x_{part}")
        if len(arrays[images]) != len(array):
            what = "labels" if name.startswith("y") else "images"
            raise DataError(f"{images} has {len(arrays[images])} images, {name} {len(array)} {what}")
