"""What a model file holds, read without Keras: its configuration, its weights and a digest of both.

Nothing here runs or builds anything a file says. Links to other files are never followed, and a file that
declares far more bytes than it has is refused before they are allocated.
"""

from __future__ import annotations

import io
import json
import math
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lrfgraph.engine.nodes import digest
from lrfgraph.errors import LrfError, ModelError

__all__ = ["Archive", "model_digest", "one_line", "open_archive", "read_config"]

Arrays = dict[str, NDArray[Any]]
EXPANSION = 64  # a file may unpack to this many times its size …
SLACK = 1 << 20  # … and this many bytes
PASSING = {"compile_config", "keras_version", "backend", "shared_object_id"}
ENDS = {"input_layers", "output_layers"}
LFS = b"version https://git-lfs"


@dataclass(frozen=True)
class Archive:
    """A model file, read.

    config : the model's configuration as JSON, or ``None`` in a weights-only file.  weights : every weight by
    its path in the file; optimizer state left out.  order : in legacy HDF5 files the layers and the paths of
    their weights, in order; empty in the Keras 3 layout, whose HDF5 bytes are then in `raw`.
    written_by : versions of Keras and its backend.
    """

    path: Path
    config: dict[str, Any] | None
    weights: Arrays
    order: tuple[tuple[str, tuple[str, ...]], ...] = ()
    raw: bytes = b""
    keras: str = ""
    backend: str = ""

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.weights.values())


def model_digest(path: Path | str) -> str:
    """Return the digest of a model file's configuration and weights; Keras is not imported.

    Optimizer state, compile options, the file's name and its dates do not enter, so the same model saved again
    has the same digest.  Raises ModelError for what is no model file.
    """
    archive = open_archive(Path(path))
    config = _lasting(archive.config or {})
    if archive.order:
        weights: Any = [[name, [digest(archive.weights[p]) for p in paths]] for name, paths in archive.order if paths]
    else:
        weights = [[name, digest(archive.weights[name])] for name in sorted(archive.weights)]
    return digest({"config": config, "weights": weights})


def _lasting(config: Any) -> Any:
    """Drop from a configuration what changes from one saving to the next: addresses, versions, compile options, and
    whether a single input or output is a list of one."""
    if isinstance(config, dict):
        lasting = {key: _lasting(value) for key, value in config.items() if key not in PASSING}
        for key in ENDS & lasting.keys():
            if isinstance(lasting[key], list) and len(lasting[key]) == 1 and isinstance(lasting[key][0], list):
                lasting[key] = lasting[key][0]
        return lasting
    if isinstance(config, float) and not math.isfinite(config):
        return str(config)  # Keras writes what JSON has no word for
    return [_lasting(item) for item in config] if isinstance(config, list) else config


def open_archive(path: Path) -> Archive:
    """Read a ``.h5`` or ``.keras`` file; which of the two it is, its first bytes say.

    Raises ModelError in one line for anything else, and for a file that is damaged.
    """
    kind = _sniff(path)
    try:
        return _READERS[kind](path)
    except LrfError:
        raise
    except Exception as error:  # h5py and zipfile raise nearly anything on damaged bytes
        raise ModelError(f"{path}: the file is damaged ({one_line(error)}); get a fresh copy of it") from error


def read_config(path: Path) -> dict[str, Any]:
    """Read a model's configuration from JSON (``model.to_json()``); raises ModelError."""
    try:
        return _parse(path.read_text(encoding="utf-8"), path)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({one_line(error)}); give the model's JSON") from error
    except UnicodeDecodeError as error:
        raise ModelError(f"{path}: is not JSON text; write it with model.to_json()") from error


def one_line(error: object, limit: int = 240) -> str:
    """Return an error's text on one line, cut where it is long."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _sniff(path: Path) -> Literal["h5", "keras"]:
    if path.is_dir():
        if (path / "saved_model.pb").exists():
            raise ModelError(
                f"{path}: is a SavedModel folder, which Keras 3 cannot turn into layers; load it in the program that "
                "made it and export it there with model.save('model.keras')"
            )
        raise ModelError(f"{path}: is a folder; give a .keras or .h5 file")
    try:
        with path.open("rb") as stream:
            head = stream.read(32)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror or error}); give a .keras or .h5 file") from error
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return "h5"
    if head.startswith(b"PK\x03\x04"):
        return "keras"
    if head.startswith(LFS):
        raise ModelError(f"{path}: is a Git LFS pointer, not the model; fetch the real file with `git lfs pull`")
    shown = head[:16].decode("latin-1").encode("unicode_escape").decode() if head else "nothing"
    raise ModelError(f"{path}: is no Keras model (it begins with {shown!r}); give a .keras or .h5 file")


def _parse(text: str | bytes, path: Path) -> dict[str, Any]:
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: its model configuration is not JSON ({one_line(error)})") from error
    if not isinstance(config, dict) or not isinstance(config.get("class_name"), str):
        raise ModelError(f"{path}: its configuration is no Keras model; expected class_name and config")
    return config


def _datasets(group: Any, path: Path, limit: int) -> Arrays:
    """Read every dataset below `group` by its path; soft and external links are not followed."""
    import h5py

    names: list[bytes] = []

    def collect(name: bytes, about: Any) -> None:
        if about.type == h5py.h5o.TYPE_DATASET:
            names.append(name)

    h5py.h5o.visit(group.id, collect, info=True)  # names alone: h5py's own walk opens every group on its way
    paths = [name.decode("utf-8") for name in names if not name.startswith((b"optimizer/", b"optimizer_weights/"))]
    items = {name: group[name] for name in paths}
    if any(_is_elsewhere(item) for item in items.values()):
        raise ModelError(f"{path}: its weights point into other files, which is refused; save it again")
    if any(item.dtype.kind not in "biufcV" or item.shape is None for item in items.values()):
        raise ModelError(f"{path}: holds weights that are not numbers; save it again from Keras")
    declared = sum(item.size * item.dtype.itemsize for item in items.values())
    if declared > limit:
        raise ModelError(f"{path}: declares {declared} bytes of weights but cannot hold them; the file is damaged")
    return {name: item[()] if item.shape else np.asarray(item[()]) for name, item in items.items()}


def _is_elsewhere(dataset: Any) -> bool:
    """Whether a dataset's bytes lie in other files (asked of HDF5 directly: there are hundreds of them)."""
    import h5py

    created = dataset.id.get_create_plist()
    return bool(created.get_external_count()) or created.get_layout() == h5py.h5d.VIRTUAL


def _names(group: Any, attribute: str) -> list[str]:
    """Read a list of names, which Keras splits over numbered attributes when it is long."""
    if attribute in group.attrs:
        values = list(group.attrs[attribute])
    else:
        values, part = [], 0
        while f"{attribute}{part}" in group.attrs:
            values += list(group.attrs[f"{attribute}{part}"])
            part += 1
    return [_text(value) for value in values]


def _text(value: Any) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)


def _read_h5(path: Path) -> Archive:
    import h5py

    size = path.stat().st_size
    with h5py.File(path, "r") as file:
        text = file.attrs.get("model_config")
        config = None if text is None else _parse(_text(text), path)
        group = file.get("model_weights", file)
        weights = _datasets(group, path, EXPANSION * size + SLACK)
        versions = {
            name: _text(file.attrs.get(name, group.attrs.get(name, ""))) for name in ("keras_version", "backend")
        }
        order = []
        for name in _names(group, "layer_names"):
            try:
                layer = group[name]
            except KeyError as error:
                raise ModelError(f"{path}: the weights of layer {name} are missing; the file is damaged") from error
            order.append((name, tuple(f"{name}/{weight}" for weight in _names(layer, "weight_names"))))
            absent = [p for p in order[-1][1] if p not in weights]
            if absent:
                raise ModelError(f"{path}: the weight {absent[0]} is missing; the file is damaged")
    raw = b"" if order else path.read_bytes()
    return Archive(path, config, weights, tuple(order), raw, versions["keras_version"], versions["backend"])


def _read_keras(path: Path) -> Archive:
    import h5py

    limit = EXPANSION * path.stat().st_size + SLACK
    with zipfile.ZipFile(path) as archive:
        sizes = {info.filename: info.file_size for info in archive.infolist()}
        for name in ("config.json", "model.weights.h5"):
            if name not in sizes:
                raise ModelError(f"{path}: has no {name}; it is no .keras file or was cut short")
            if sizes[name] > limit:
                raise ModelError(f"{path}: {name} unpacks to {sizes[name]} bytes, which is refused")
        if any(name.startswith("assets/") and not name.endswith("/") for name in sizes):
            raise ModelError(f"{path}: holds vocabularies or other assets; save the network without these layers")
        config = _parse(archive.read("config.json"), path)
        raw = archive.read("model.weights.h5")
        metadata = json.loads(archive.read("metadata.json")) if "metadata.json" in sizes else {}
    with h5py.File(io.BytesIO(raw), "r") as file:
        weights = _datasets(file, path, EXPANSION * len(raw) + SLACK)
    version = metadata.get("keras_version", "3") if isinstance(metadata, dict) else "3"
    return Archive(path, config, weights, (), raw, str(version))


_READERS = {"h5": _read_h5, "keras": _read_keras}
