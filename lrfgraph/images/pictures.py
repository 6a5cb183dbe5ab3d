"""Images in a folder, in class folders or not: listed at once, decoded when they are asked for."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrfgraph.engine.memory import BoundedCache
from lrfgraph.engine.nodes import digest
from lrfgraph.engine.rows import ArrayLike, Rows
from lrfgraph.errors import DataError
from lrfgraph.images.naming import PART_NAMES, Shape
from lrfgraph.images.reading import Digests, Fingerprints, Reading, changed_while_read, fingerprint

__all__ = ["Folder", "Listing", "Look", "Pictures", "channel_axis", "class_names", "read_folder"]

Array = NDArray[Any]

IMAGE_FILES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
IMAGE_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
END_OF_JPEG = b"\xff\xd9"
TAIL = 1 << 16
"""Bytes at the end of a file in which a JPEG ends, whatever a camera wrote behind it."""

DECODED = BoundedCache(128 << 20)
"""Images as they were decoded: what is trained on is read in every epoch."""

THREADS = 4
"""Images that are decoded at once, at most: Pillow lets go of the interpreter meanwhile."""


@dataclass(frozen=True)
class Folder:
    """The images in a folder.

    files : paths below `root`, sorted.  parts : by name, how the paths of its images begin; those in no part's folder
    are a training part.
    """

    root: Path
    files: Sequence[str]
    parts: Mapping[str, str]

    @classmethod
    def listed(cls, root: Path) -> Folder:
        """List a folder."""
        names = []
        for above, _, files in os.walk(root):
            start = "" if (inner := Path(above).relative_to(root).as_posix()) == "." else f"{inner}/"
            pictures = (file for file in files if file.lower().endswith(IMAGE_FILES))
            names += [start + file for file in pictures if os.path.isfile(os.path.join(above, file))]
        try:
            with os.scandir(root) as inside:
                folders = sorted(item.name for item in inside if item.is_dir())
        except OSError as error:
            raise DataError(f"folder {root} cannot be read ({error.strerror}); give one that can") from None
        parts = {PART_NAMES[name.lower()]: f"{name}/" for name in folders if name.lower() in PART_NAMES}
        starts = tuple(parts.values()) or ("",)
        own = sorted((name for name in names if name.startswith(starts)), key=lambda name: name.split("/"))
        return cls(root, own, parts or {"train": ""})

    def places(self, part: str) -> NDArray[np.int64]:
        """Return which of the files are a part's."""
        start = self.parts[part]
        return np.array([place for place, file in enumerate(self.files) if file.startswith(start)], np.int64)

    def class_of(self, file: str, part: str) -> str:
        """Return the name of the class folder that an image is in, ``""`` for one that is in none."""
        name, slash, _ = file.removeprefix(self.parts[part]).partition("/")
        return name if slash else ""

    def classes(self) -> list[str]:
        """Return the names of the class folders, in the order of their numbers."""
        names = {self.class_of(self.files[place], part) for part in self.parts for place in self.places(part)}
        return sorted(names - {""})


@dataclass(frozen=True)
class Listing:
    """The images in a folder, and what is known of their files (`Reading.digests`)."""

    folder: Folder
    digests: Digests
    states: Fingerprints

    @classmethod
    def of(cls, root: Path, reading: Reading) -> Listing:
        """List a folder; files that are read for it must be images."""
        folder = Folder.listed(root)
        return cls(folder, *reading.digests(root, folder.files, check_image))

    @property
    def digest(self) -> str:
        """What the source is known by: paths in the folder, and what the files contain."""
        state = hashlib.blake2b(digest_size=20)
        for file, content in zip(self.folder.files, self.digests, strict=True):
            state.update(file.encode("utf-8", "surrogateescape") + b"\0" + content.tobytes())
        return state.hexdigest()


@dataclass(frozen=True)
class Look:
    """What images are made of files: height and width, colours of the model, and whether these come first."""

    size: tuple[int, int]
    channels: int
    first: bool

    @property
    def mode(self) -> str:
        return IMAGE_MODES.get(self.channels, "RGB")

    @property
    def shape(self) -> tuple[int, ...]:
        depth = next(count for count, mode in IMAGE_MODES.items() if mode == self.mode)
        return (depth, *self.size) if self.first else (*self.size, depth)


class Pictures(Rows):
    """Images of a folder, uint8, decoded when they are asked for.

    root, files : the folder, and paths below it.  digests, states : of the files (`Reading.digests`).  Raises DataError
    where an image cannot be decoded, or was written since it was digested.
    """

    def __init__(self, root: Path, files: Sequence[str], digests: Digests, states: Fingerprints, look: Look) -> None:
        self.root, self.files, self.digests, self.states, self.look = root, files, digests, states, look
        self.shape, self.dtype = (len(files), *look.shape), np.dtype(np.uint8)

    def take(self, places: NDArray[np.int64]) -> Array:
        images = np.empty((len(places), *self.shape[1:]), np.uint8)

        def decode(row: int) -> None:
            images[row] = self._image(int(places[row]))

        threads = min(THREADS, os.cpu_count() or 1, len(places))
        if threads < 2:
            for row in range(len(places)):
                decode(row)
            return images
        with ThreadPoolExecutor(threads) as pool:
            for _ in pool.map(decode, range(len(places))):  # raises what a thread raised
                pass
        return images

    def identity(self, places: NDArray[np.int64]) -> str:
        """Return what some of the images are known by: what their files contain, and what is made of that."""
        return digest(["pictures", self.look.mode, list(self.shape[1:]), digest(self.digests[places])])

    def _image(self, place: int) -> Array:
        key = self.digests[place].tobytes(), self.look
        image: Array | None = DECODED.get(key)
        if image is None:
            path = self.root / self.files[place]
            image = decode_image(path, self.look.size, self.look.mode)
            if fingerprint(os.stat(path)) != tuple(self.states[place]):
                raise changed_while_read(path)
            image = np.moveaxis(image, -1, 0) if self.look.first else image
            DECODED.put(key, image, image.nbytes)
        return image


def decode_image(file: Path, size: tuple[int, int], mode: str) -> Array:
    """Return an image of (height, width), (height, width, channels) uint8; raises DataError."""
    from PIL import Image

    height, width = size
    try:
        with Image.open(file) as opened:
            image = opened.convert(mode)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise _unreadable(file, error) from None
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    pixels = np.asarray(image)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def check_image(file: Path, content: bytes) -> None:
    """Raise DataError for a file that is no image, or not a whole one.

    Checksums tell of a PNG, its end of a JPEG; only what they leave open is decoded.
    """
    from PIL import Image

    try:
        with Image.open(BytesIO(content)) as opened:
            if opened.format == "PNG":
                opened.verify()
            elif opened.format != "JPEG" or END_OF_JPEG not in content[-TAIL:]:
                opened.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise _unreadable(file, error) from None


def _unreadable(file: Path, error: Exception) -> DataError:
    why = str(error).partition(" <_io")[0] or type(error).__name__
    return DataError(f"image {file} cannot be read: {why}")


def read_folder(
    listing: Listing, sides: Sequence[int] | None, input_shape: Shape, others: Sequence[str] | None
) -> dict[str, ArrayLike]:
    """Return the images of each part, and the numbers of their classes.

    sides : size of images, the model's by default.  others : names of the classes of another source, whose numbers
    these images share, empty where it numbers them itself.
    """
    folder, root = listing.folder, listing.folder.root
    numbers = _numbers(folder, others)
    axis = channel_axis(input_shape)
    size = sides or (input_shape[1:] if axis == 0 else input_shape[:-1])
    if len(size) != 2 or None in size:
        raise DataError(f"the model takes inputs of shape {input_shape}; give the size of images with --image-size")
    height, width = (int(side or 0) for side in size)
    look = Look((height, width), (input_shape[axis] if input_shape else 3) or 3, axis == 0)
    arrays: dict[str, ArrayLike] = {}
    for part, start in folder.parts.items():
        own = folder.places(part)
        if not len(own):
            raise DataError(f"folder {root / start} holds no images ({', '.join(IMAGE_FILES)})")
        files = [folder.files[place] for place in own]
        arrays[f"x_{part}"] = Pictures(root, files, listing.digests[own], listing.states[own], look)
        if numbers:
            names = [folder.class_of(file, part) for file in files]
            loose = next((file for file, name in zip(files, names, strict=True) if not name), None)
            if loose is not None:
                raise DataError(f"image {root / loose} lies beside the class folders; put it into one of them")
            arrays[f"y_{part}"] = np.array([numbers[name] for name in names])
    return arrays


def class_names(root: Path) -> list[str]:
    """Return the names of a folder's class folders, in the order of their numbers; none where there is no such."""
    return Folder.listed(root).classes() if root.is_dir() else []


def _numbers(folder: Folder, others: Sequence[str] | None) -> dict[str, int]:
    """The number of each class folder: its place among all, or that of its name in another source."""
    classes, root = folder.classes(), folder.root
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


def channel_axis(input_shape: Shape) -> int:
    """Channels come last unless the first axis alone looks like colours."""
    first = len(input_shape) == 3 and input_shape[0] in IMAGE_MODES and input_shape[-1] not in IMAGE_MODES
    return 0 if first else -1
