"""Models and images that a program holds: each becomes a file in the cache, called by its content.

A run reads files alone, so that it goes on in another process; what was given before has its file already.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lrfgraph.engine.arrays import array_like
from lrfgraph.engine.nodes import digest
from lrfgraph.engine.rows import ArrayLike
from lrfgraph.engine.store import Store
from lrfgraph.errors import DataError, ModelError, StoreError
from lrfgraph.images.archives import write_npz
from lrfgraph.images.functions import Elements, join_elements, named_arrays
from lrfgraph.images.naming import Inputs
from lrfgraph.images.reading import Reading
from lrfgraph.network.opening.archive import model_digest, one_line
from lrfgraph.network.opening.writing import custom_names, is_keras_model, write_model

__all__ = ["images_file", "is_path", "model_file"]


def is_path(value: Any) -> bool:
    """Whether a value names what lies on disk, or a function."""
    return isinstance(value, str | os.PathLike)


def model_file(model: Any, cache: Path) -> tuple[Path, tuple[str, ...]]:
    """Return the file of a model, and the classes of it that are not Keras' own.

    model : a path, which stays what it is, or a Keras model.  Raises ModelError for anything else.
    """
    if is_path(model):
        return Path(model), ()
    if not is_keras_model(model):
        raise ModelError(f"model must be a Keras model, or the path of a .keras or .h5 file; received {_kind(model)}")
    custom = custom_names(model)
    with _writing(cache, ".keras") as (folder, partial):
        write_model(model, partial)
        name = re.sub(r"[^A-Za-z0-9_.+-]", "_", str(model.name))[:40]
        path = folder / f"{name}-{model_digest(partial)[:12]}.keras"
        if not _there(path):
            partial.replace(path)
    return path, custom


def images_file(
    images: Any, inputs: Callable[[], Inputs], cache: Path, progress: Callable[[int, int, str], None] | None = None
) -> str:
    """Return the source of images: a path or the name of a function stay what they are, arrays become a file.

    images : what a data function may return as well: (x, y), (x, y, x_test, y_test), a dictionary of arrays, images
    alone, or up to three streams of tf.data, which are never in memory as a whole.  inputs : of the network, asked for
    where streams may be batched.  progress : told of elements of streams: done, of how many, what.  Raises DataError.
    """
    if is_path(images):
        return str(images)
    with _writing(cache, ".npz") as (folder, partial):
        reading = Reading(cache, scratch=lambda: folder, progress=progress)
        arrays = _arrays(images, inputs, reading)
        digest_of_all = _digest_of(arrays)
        path = folder / f"images-{digest_of_all[:12]}.npz"
        if not _there(path):
            write_npz(partial, arrays)
            partial.replace(path)
            reading.note(path, digest_of_all)  # what it is called after is not read again for its digest
    return str(path)


def _arrays(images: Any, inputs: Callable[[], Inputs], reading: Reading) -> dict[str, ArrayLike]:
    try:
        named = dict(named_arrays(images, "images", reading))
    except (TypeError, ValueError) as error:
        raise DataError(f"images are no arrays ({one_line(error, 120)}); give a tuple (x, y) or a dictionary") from None
    if any(isinstance(value, Elements) for value in named.values()):
        named = join_elements(named, inputs())
    arrays = {name: array_like(array) for name, array in named.items()}
    for name, array in arrays.items():
        if array.dtype.kind not in "biuf":
            raise DataError(f"images: {name} must hold numbers; received {_kind(images)}")
    return arrays


@contextmanager
def _writing(cache: Path, suffix: str) -> Iterator[tuple[Path, Path]]:
    """Give the folder, and a file of one's own in it that may be left there; raises StoreError."""
    folder = Store(cache).given
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".") as own:
            yield folder, Path(own) / f"partial{suffix}"
    except OSError as error:
        raise StoreError(f"cache {cache} cannot be written ({error.strerror}); use --cache DIR") from None


def _there(path: Path) -> bool:
    """Whether a file was given before; it then is as new as this call."""
    with suppress(FileNotFoundError):
        os.utime(path)
        return True
    return False


def _digest_of(arrays: Mapping[str, ArrayLike]) -> str:
    return digest([[name, digest(array)] for name, array in sorted(arrays.items())])


def _kind(value: Any) -> str:
    return "None" if value is None else type(value).__name__
