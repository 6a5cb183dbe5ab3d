"""Where images and labels come from: a ``.npz`` file, a folder of class folders, or a function of the user's."""

from __future__ import annotations

import hashlib
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrfgraph.engine.memory import BoundedCache, array_bytes
from lrfgraph.engine.nodes import digest as digest_of
from lrfgraph.errors import DataError
from lrfgraph.images.functions import call_function, join_elements
from lrfgraph.images.naming import PART_NAMES, Inputs, Shape, input_names, recognise
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
    "release",
    "source_digest",
    "source_state",
]

Array = NDArray[Any]

IMAGE_FILES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
IMAGE_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
BLOCK = 1 << 22
SETTLED = 2_000_000_000
LOADED = BoundedCache(0, keep_last=True)
"""One data set at a time: a second one would double the memory."""

LOADING = Lock()


@dataclass(frozen=True)
class Dataset:
    """Arrays as the source gave them, images first, not preprocessed.

    arrays : any of ``x_train, y_train, x_val, y_val, x_test, y_test``, images of several inputs as ``x_train/NAME``; a
    lone ``x`` counts as training images.  digest : of the source's content.  notes : what was ignored.
    names : of several inputs, in the network's order.
    """

    arrays: dict[str, Array]
    digest: str
    notes: tuple[str, ...] = ()
    names: tuple[str, ...] = ()

    def inputs(self, part: str) -> tuple[Array, ...]:
        """Return a part's images, an array for each input."""
        return tuple(self.arrays[f"x_{part}/{name}" if name else f"x_{part}"] for name in self.names or ("",))

    def x(self, part: str) -> Array:
        """Return a part's images, of several inputs those of the first."""
        return self.inputs(part)[0]

    def y(self, part: str) -> Array | None:
        return self.arrays.get(f"y_{part}")

    def has(self, part: str) -> bool:
        return any(name.partition("/")[0] == f"x_{part}" for name in self.arrays)


def source_digest(options: DataOptions, base: Path = Path()) -> str:
    """Return the digest of what the source and the statistics file contain.

    Paths (but for those inside a folder of images), names of files and times do not enter it. A function of the
    user's is called once for it, and must give the same arrays in the same order each time.
    """
    digests = {}
    for name, source in (("source", options.source), ("val", options.val), ("stats", options.stats)):
        if source is not None:
            state = hashlib.blake2b(digest_size=20)
            for piece in _content(source, base):
                state.update(piece)
            digests[name] = state.hexdigest()
    return digests["source"] if digests.keys() == {"source"} else digest_of(digests)


def source_state(options: DataOptions, base: Path = Path()) -> str | None:
    """Say which files `source_digest` reads, and their sizes and times: while that is the same, so is the digest.

    ``None`` where only reading tells: a function of the user's, files that changed a moment ago, none at all.
    """
    files = []
    try:
        for name in (options.source, options.val, options.stats):
            path = (base / name).absolute() if name else None
            for file in _image_files(path) if path and path.is_dir() else [path] if path else []:
                stat = file.stat()
                files.append((str(file), stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns))
    except OSError:
        return None
    newest = max((entry[-1] for entry in files), default=0)
    settled = 0 < newest < time.time_ns() - SETTLED  # a clock too coarse to tell two writes apart has moved on
    return repr(files) if settled else None


def load(options: DataOptions, base: Path = Path(), inputs: Inputs = MappingProxyType({})) -> Dataset:
    """Read the source; the second call for the same content answers from memory.

    inputs : of the network; they say the size and channels of images from folders, what the arrays of several inputs
    are called, and whether a stream is batched.  Raises DataError where the source is missing, empty, misshapen, not
    numeric, or changes while it is read.
    """
    if options.source is None:
        raise DataError("no data given; say where the images are with --data or [data] source")
    with LOADING:  # several nodes of a run ask at once
        digest = source_digest(options, base)
        key = (digest, f"{options.source} {options.val} {options.image_size}{dict(inputs)}")
        dataset: Dataset | None = LOADED.get(key)
        if dataset is None:
            named = _read(options, base, inputs)
            if source_digest(options, base) != digest:
                raise DataError(f"data {options.source} changed while it was read; run again when nobody writes it")
            arrays, notes = recognise(named, options.source, inputs)
            if options.val is not None:
                arrays, more = _with_validation(arrays, options, base, inputs)
                notes += more
            _check(arrays)
            dataset = Dataset(arrays, digest, notes, input_names(inputs))
            LOADED.put(key, dataset, array_bytes(arrays))
        return dataset


def _with_validation(
    arrays: Mapping[str, Array], options: DataOptions, base: Path, inputs: Inputs
) -> tuple[dict[str, Array], tuple[str, ...]]:
    """Return arrays with the validation part that is given apart, in place of the source's own."""
    named = _read(replace(options, source=options.val), base, inputs, _classes(base / str(options.source)))
    given, notes = recognise(named, str(options.val), inputs)
    parts = {name.partition("/")[0][2:] for name in given if name.startswith("x")}
    part = next(part for part in ("val", "test", "train") if part in parts)
    if len(parts) > 1:
        notes += (f"of {options.val} only the {part} part is used",)
    if f"y_{part}" not in given and any(name.startswith("y") for name in arrays):
        notes += (f"{options.val} has no labels: changed answers are counted in place of wrong ones",)
    others = {name: array for name, array in arrays.items() if name.partition("/")[0][2:] != "val"}
    if len(others) < len(arrays):
        notes += (f"the validation part of {options.source} is not used: --val gives another",)
    own = {name: array for name, array in given.items() if name.partition("/")[0][2:] == part}
    return others | {name.replace(f"_{part}", "_val", 1): array for name, array in own.items()}, notes


def release(options: DataOptions, base: Path = Path()) -> None:
    """Forget a source that is read again in a moment, a ``.npz`` file, after it was divided.

    Most of its images are not needed for long, and some never: a folder takes long to decode, a function may take
    long to answer.
    """
    if options.source is not None and (base / options.source).is_file():
        LOADED.clear()


def _content(source: str, base: Path) -> Iterator[bytes]:
    path = base / source
    if names_function(source) and not path.exists():
        for name, value in sorted(call_function(source, base).items()):
            for array in value if isinstance(value, list) else [value]:
                yield f"{name}{array.dtype.str}{array.shape}".encode()
                yield np.ascontiguousarray(array).tobytes()
    elif path.is_dir():
        for file in _image_files(path):
            yield f"{file.relative_to(path).as_posix()}\0{file.stat().st_size}\0".encode()
            yield file.read_bytes()
    else:
        with _existing(path).open("rb", buffering=0) as opened:
            while piece := opened.read(BLOCK):
                yield piece


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise DataError(f"data file {path} does not exist; give a .npz file, a folder or package.module:function")
    return path


def _read(options: DataOptions, base: Path, inputs: Inputs, classes: Sequence[str] | None = None) -> dict[str, Array]:
    """Read a source's arrays; `classes` are those of another source, whose numbers these images share: the names of
    its class folders, empty where it numbers them itself."""
    source = str(options.source)
    path = base / source
    if names_function(source) and not path.exists():
        return join_elements(call_function(source, base), inputs)
    if not path.is_dir():
        return read_npz(path)
    if input_names(inputs):
        raise DataError(
            f"folder {path} has images for one input, the model takes {', '.join(inputs)}; give a .npz file or a "
            "function that has an array of each"
        )
    return _folder(path, options, next(iter(inputs.values()), ()), classes)


def npz_bytes(path: Path) -> int:
    """Return the bytes of a ``.npz`` file's arrays as they will lie in memory, 0 where that cannot be told."""
    total = 0
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                with archive.open(name) as member:
                    first = np.lib.format.read_magic(member) == (1, 0)
                    read = np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
                    shape, _, dtype = read(member)
                    total += dtype.itemsize * int(np.prod(shape, dtype=np.int64))
    except (OSError, ValueError, zipfile.BadZipFile):
        return 0
    return total


def read_npz(path: Path) -> dict[str, Array]:
    """Read plain arrays; raises DataError where the file is missing, no ``.npz``, or holds Python objects."""
    try:
        # Opened here: NumPy leaves a damaged file open.
        with _existing(path).open("rb") as opened, np.load(opened, allow_pickle=False) as loaded:
            return {name: loaded[name] for name in loaded.files}
    except (OSError, ValueError, TypeError, AttributeError, EOFError, KeyError, zipfile.BadZipFile) as error:
        objects = zipfile.is_zipfile(path) and str(error).startswith("Object arrays")
        what = "it holds Python objects" if objects else "it is no whole .npz file"
        raise DataError(f"{path} cannot be read, {what}; save plain arrays with numpy.savez") from None


def _folders(root: Path) -> dict[str, Path]:
    """The folder of each part; images that are in no part's are a training part."""
    parts = {
        PART_NAMES[f.name.lower()]: f for f in sorted(root.iterdir()) if f.is_dir() and f.name.lower() in PART_NAMES
    }
    return parts or {"train": root}


def _classes(root: Path) -> list[str]:
    """The names of a folder's class folders, in the order of their numbers; none where there is no such folder."""
    if not root.is_dir():
        return []
    folders = (f for folder in _folders(root).values() for f in folder.iterdir() if f.is_dir())
    return sorted({folder.name for folder in folders if _image_files(folder)})


def _numbers(root: Path, others: Sequence[str] | None) -> dict[str, int]:
    """The number of each class folder: its place among all, or that of its name in another source."""
    classes = _classes(root)
    if others is None:
        return {name: number for number, name in enumerate(classes)}
    if not others:
        words = [name for name in classes if not name.isdecimal()]
        if words:
            raise DataError(
                f"folder {root} names the class {words[0]}, the training images have numbers; call folders by those"
            )
        return {name: int(name) for name in classes}
    strangers = [name for name in classes if name not in others]
    if strangers:
        raise DataError(f"folder {root} has the class {strangers[0]}, which the training images do not have")
    return {name: others.index(name) for name in classes}


def _folder(root: Path, options: DataOptions, input_shape: Shape, others: Sequence[str] | None) -> dict[str, Array]:
    parts, classes = _folders(root), _numbers(root, others)
    axis = channel_axis(input_shape)
    sides = input_shape[1:] if axis == 0 else input_shape[:-1]
    size = options.image_size or sides
    if len(size) != 2 or None in size:
        raise DataError(f"the model takes inputs of shape {input_shape}; give the size of images with --image-size")
    channels = input_shape[axis] if input_shape else 3
    arrays: dict[str, Array] = {}
    for part, folder in parts.items():
        files = _image_files(folder)
        if not files:
            raise DataError(f"folder {folder} holds no images ({', '.join(IMAGE_FILES)})")
        images = np.stack([_image(file, size, IMAGE_MODES.get(channels or 3, "RGB")) for file in files])
        arrays[f"x_{part}"] = np.moveaxis(images, -1, 1) if axis == 0 else images
        if classes:
            loose = next((file for file in files if file.parent == folder), None)
            if loose is not None:
                raise DataError(f"image {loose} lies beside the class folders; put it into one of them")
            arrays[f"y_{part}"] = np.array([classes[file.relative_to(folder).parts[0]] for file in files])
    return arrays


def _image_files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.suffix.lower() in IMAGE_FILES and file.is_file())


def _image(file: Path, size: Sequence[int | None], mode: str) -> Array:
    from PIL import Image

    height, width = (int(side or 0) for side in size)
    try:
        with Image.open(file) as opened:
            image = opened.convert(mode)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"image {file} cannot be read: {error}") from None
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    pixels = np.asarray(image)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _check(arrays: Mapping[str, Array]) -> None:
    for name, array in arrays.items():
        if array.dtype.kind not in "biuf":
            raise DataError(f"{name} must hold numbers; received {array.dtype}")
        if array.ndim == 0 or len(array) == 0:
            raise DataError(f"{name} is empty; received shape {array.shape}")
        pieces = (array[i : i + 1024] for i in range(0, len(array), 1024))
        if array.dtype.kind == "f" and not all(np.isfinite(piece).all() for piece in pieces):
            raise DataError(f"{name} holds values that are not finite (NaN or infinite)")
        part = name.partition("/")[0][2:]
        images = next((other for other in arrays if other.partition("/")[0] == f"x_{part}"), None)
        if images is None:
            raise DataError(f"{name} is given without x_{part}")
        if len(arrays[images]) != len(array):
            what = "labels" if name.startswith("y") else "images"
            raise DataError(f"{images} has {len(arrays[images])} images, {name} {len(array)} {what}")


def channel_axis(input_shape: Shape) -> int:
    """Channels come last unless the first axis alone looks like colours."""
    first = len(input_shape) == 3 and input_shape[0] in IMAGE_MODES and input_shape[-1] not in IMAGE_MODES
    return 0 if first else -1
