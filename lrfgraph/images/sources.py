"""Where images and labels come from: a ``.npz`` file, a folder of class folders, or a function of the user's."""

from __future__ import annotations

import hashlib
import importlib
import re
import sys
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrfgraph.errors import DataError
from lrfgraph.options.recipe import DataOptions

__all__ = [
    "Array",
    "Dataset",
    "Shape",
    "channel_axis",
    "load",
    "read_npz",
    "source_digest",
    "source_state",
]

Array = NDArray[Any]
Shape = tuple[int | None, ...]

# Spellings met in the wild; case does not matter. The first word is the name used here.
ALIASES: dict[str, tuple[str, ...]] = {
    "x_train": ("x_train", "train_x", "xtrain", "train_images", "images_train", "x", "images", "image", "inputs"),
    "y_train": ("y_train", "train_y", "ytrain", "train_labels", "labels_train", "y", "labels", "label", "targets"),
    "x_val": ("x_val", "x_valid", "x_validation", "val_x", "xval", "val_images", "images_val"),
    "y_val": ("y_val", "y_valid", "y_validation", "val_y", "yval", "val_labels", "labels_val"),
    "x_test": ("x_test", "test_x", "xtest", "test_images", "images_test"),
    "y_test": ("y_test", "test_y", "ytest", "test_labels", "labels_test"),
}
KNOWN_AS = {alias: name for name, aliases in ALIASES.items() for alias in aliases}
PART_FOLDERS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
IMAGE_FILES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
IMAGE_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
LARGEST_STREAM = 100_000
BLOCK = 1 << 22
SETTLED = 2_000_000_000
# How many arrays a function returned, and what they are.
TUPLES: dict[int, tuple[str, ...]] = {
    1: ("x_train",),
    2: ("x_train", "y_train"),
    4: ("x_train", "y_train", "x_test", "y_test"),
    6: ("x_train", "y_train", "x_val", "y_val", "x_test", "y_test"),
}

_loaded: dict[tuple[str, str], Dataset] = {}
_function_results: dict[tuple[str, Path], dict[str, Any]] = {}
_loading = Lock()


@dataclass(frozen=True)
class Dataset:
    """Arrays as the source gave them, images first, not preprocessed.

    arrays : any of ``x_train, y_train, x_val, y_val, x_test, y_test``; a lone ``x`` counts as training images.
    digest : of the source's content.  notes : what was ignored.
    """

    arrays: dict[str, Array]
    digest: str
    notes: tuple[str, ...] = ()

    def x(self, part: str) -> Array:
        return self.arrays[f"x_{part}"]

    def y(self, part: str) -> Array | None:
        return self.arrays.get(f"y_{part}")

    def has(self, part: str) -> bool:
        return f"x_{part}" in self.arrays


def source_digest(options: DataOptions, base: Path = Path()) -> str:
    """Return the digest of what the source and the statistics file contain.

    Paths (but for those inside a folder of images), names of files and times do not enter it. A function of the
    user's is called once for it, and must give the same arrays in the same order each time.
    """
    state = hashlib.blake2b(digest_size=20)
    if options.source is not None:
        for piece in _content(options.source, base):
            state.update(piece)
    if options.stats is not None:
        state.update(b"stats")
        state.update(_existing(base / options.stats).read_bytes())
    return state.hexdigest()


def source_state(options: DataOptions, base: Path = Path()) -> str | None:
    """Say which files `source_digest` reads, and their sizes and times: while that is the same, so is the digest.

    ``None`` where only reading tells: a function of the user's, files that changed a moment ago, none at all.
    """
    files = []
    try:
        for name in (options.source, options.stats):
            path = (base / name).absolute() if name else None
            for file in _image_files(path) if path and path.is_dir() else [path] if path else []:
                stat = file.stat()
                files.append((str(file), stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns))
    except OSError:
        return None
    newest = max((entry[-1] for entry in files), default=0)
    settled = 0 < newest < time.time_ns() - SETTLED  # a clock too coarse to tell two writes apart has moved on
    return repr(files) if settled else None


def load(options: DataOptions, base: Path = Path(), input_shape: Shape = ()) -> Dataset:
    """Read the source; the second call for the same content answers from memory.

    Raises DataError where the source is missing, empty, misshapen, or not numeric. `input_shape` (without the
    batch axis) says the size and channels of images from folders, and whether a stream is batched.
    """
    if options.source is None:
        raise DataError("no data given; say where the images are with --data or [data] source")
    with _loading:  # several nodes of a run ask at once
        digest = source_digest(options, base)
        key = (digest, f"{options.source}{options.image_size}{input_shape}")
        if key not in _loaded:
            arrays, notes = _recognised(_read(options, base, input_shape), options.source)
            _check(arrays)
            _loaded.clear()  # one data set at a time: a second one would double the memory
            _loaded[key] = Dataset(arrays, digest, notes)
        return _loaded[key]


def _content(source: str, base: Path) -> Iterator[bytes]:
    path = base / source
    if FUNCTION.fullmatch(source) and not path.exists():
        for name, value in sorted(_called(source, base).items()):
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


def _read(options: DataOptions, base: Path, input_shape: Shape) -> dict[str, Array]:
    source = str(options.source)
    path = base / source
    if FUNCTION.fullmatch(source) and not path.exists():
        return _joined(_called(source, base), input_shape)
    return _folder(path, options, input_shape) if path.is_dir() else read_npz(path)


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


def _folder(root: Path, options: DataOptions, input_shape: Shape) -> dict[str, Array]:
    parts = {
        PART_FOLDERS[f.name.lower()]: f for f in sorted(root.iterdir()) if f.is_dir() and f.name.lower() in PART_FOLDERS
    }
    parts = parts or {"train": root}
    classes = sorted({f.name for folder in parts.values() for f in folder.iterdir() if f.is_dir()})
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
            arrays[f"y_{part}"] = np.array([classes.index(file.relative_to(folder).parts[0]) for file in files])
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


def _called(source: str, base: Path) -> dict[str, Any]:
    """Call the user's function once per process; give its arrays (or lists of a stream's elements) by name."""
    folder = base.resolve()
    if (source, folder) not in _function_results:
        module, _, name = source.partition(":")
        sys.path.insert(0, str(folder))  # a function beside the recipe is found without installing it
        try:
            function: Callable[[], Any] = getattr(importlib.import_module(module), name)
            _function_results[source, folder] = _named(function(), source)
        except DataError:
            raise
        except Exception as error:
            first = str(error).strip().splitlines()[:1]
            raise DataError(f"data function {source} raised {type(error).__name__}: {''.join(first)}") from None
        finally:
            sys.path.remove(str(folder))
    return _function_results[source, folder]


def _named(value: Any, source: str) -> dict[str, Any]:
    if isinstance(value, Mapping):
        named: dict[str, Any] = {}
        for name, item in value.items():
            part = PART_FOLDERS.get(str(name).lower())
            named |= _stream(item, part or "train") if _is_stream(item) else {str(name): np.asarray(item)}
        return named
    if _is_stream(value):
        return _stream(value, "train")
    several = value if isinstance(value, tuple) else (value,)
    if all(_is_stream(item) for item in several) and len(several) <= 3:
        names = ("train", "test") if len(several) == 2 else ("train", "val", "test")
        return {k: v for item, part in zip(several, names, strict=False) for k, v in _stream(item, part).items()}
    if several and all(isinstance(item, tuple) for item in several):  # ((x, y), (x, y)) as keras.datasets gives
        several = tuple(array for pair in several for array in pair)
    if len(several) not in TUPLES:
        raise DataError(f"data function {source} returned {len(several)} values; return a dict of arrays or (x, y)")
    return {name: np.asarray(item) for name, item in zip(TUPLES[len(several)], several, strict=True)}


def _is_stream(value: Any) -> bool:
    return hasattr(value, "as_numpy_iterator")


def _stream(dataset: Any, part: str) -> dict[str, Any]:
    """Collect a tf.data.Dataset's elements, at most `LARGEST_STREAM` of them."""
    collected: dict[str, list[Array]] = {}
    for element in islice(dataset.as_numpy_iterator(), LARGEST_STREAM):
        pair = element if isinstance(element, tuple) else (element,)
        named = element if isinstance(element, Mapping) else dict(zip("xy", pair, strict=False))
        for name, item in named.items():
            letter = KNOWN_AS.get(str(name).lower(), str(name))[0]
            collected.setdefault(f"{letter}_{part}", []).append(np.asarray(item))
    return dict(collected)


def _joined(named: Mapping[str, Any], input_shape: Shape) -> dict[str, Array]:
    """Make one array of a stream's elements, batched or not as the images tell."""
    arrays = {}
    for name, value in named.items():
        elements = value if isinstance(value, list) else [value]
        beside = named.get(f"x_{name[2:]}", elements)
        batched = not isinstance(value, list) or beside[0].ndim > len(input_shape)
        try:
            arrays[name] = np.concatenate(elements) if batched else np.stack(elements)
        except ValueError:
            raise DataError(
                f"{name}: the stream's elements differ in shape; received {elements[0].shape} first"
            ) from None
    return arrays


def _recognised(named: Mapping[str, Array], source: str) -> tuple[dict[str, Array], tuple[str, ...]]:
    arrays: dict[str, Array] = {}
    for name, array in named.items():
        known = KNOWN_AS.get(name.lower())
        if known in arrays:
            raise DataError(f"{source} names {known} twice; received {', '.join(named)}")
        if known is not None:
            arrays[known] = array
    if not any(name.startswith("x") for name in arrays):
        raise DataError(
            f"{source} has no images; received {', '.join(named) or 'nothing'}, name them x_train and x_test, or x"
        )
    ignored = [name for name in named if name.lower() not in KNOWN_AS]
    return arrays, (f"ignored arrays: {', '.join(ignored)}",) if ignored else ()


def _check(arrays: Mapping[str, Array]) -> None:
    for name, array in arrays.items():
        if array.dtype.kind not in "biuf":
            raise DataError(f"{name} must hold numbers; received {array.dtype}")
        if array.ndim == 0 or len(array) == 0:
            raise DataError(f"{name} is empty; received shape {array.shape}")
        pieces = (array[i : i + 1024] for i in range(0, len(array), 1024))
        if array.dtype.kind == "f" and not all(np.isfinite(piece).all() for piece in pieces):
            raise DataError(f"{name} holds values that are not finite (NaN or infinite)")
        images = f"x_{name[2:]}"
        if images not in arrays:
            raise DataError(f"{name} is given without {images}")
        if len(arrays[images]) != len(array):
            raise DataError(f"{images} has {len(arrays[images])} images, {name} {len(array)} labels")


def channel_axis(input_shape: Shape) -> int:
    """Channels come last unless the first axis alone looks like colours."""
    first = len(input_shape) == 3 and input_shape[0] in IMAGE_MODES and input_shape[-1] not in IMAGE_MODES
    return 0 if first else -1
