"""Model files opened without running anything they carry: screened, modernized, built, filled and checked.

The configuration is judged as JSON before Keras sees it, and every declared weight is compared with what the
file holds before memory is taken for it.
"""

from __future__ import annotations

import importlib
import inspect
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lrfgraph.errors import LrfError, ModelError
from lrfgraph.network.opening.archive import Archive, model_digest, one_line, open_archive, read_config
from lrfgraph.network.opening.consent import Config, as_dict, custom_objects, entries, screen
from lrfgraph.network.opening.legacy import modernize
from lrfgraph.network.opening.start import start_keras
from lrfgraph.network.operations import numbers_of

__all__ = ["load_model", "locate_operations", "model_digest"]

OPERATION_MODULES = ("numpy", "nn", "core", "math", "image", "linalg")
APPLICATION_MODULES = ("convnext", "inception_resnet_v2")
"""Of keras.applications, those that bring layers of their own."""
GROWTH = 4  # a model may need this many times the bytes of its file's weights …
SLACK = 1 << 20  # … and this many bytes


def load_model(
    path: Path | str,
    *,
    custom: Sequence[str] = (),
    unsafe: bool = False,
    architecture: Path | None = None,
) -> Any:
    """Open a ``.keras`` or ``.h5`` file and return the Keras model, not compiled.

    Parameters
    ----------
    custom : classes and functions the file refers to, as ``package.module:Name``.
    unsafe : allow what runs code from the file (Lambda layers).
    architecture : the model's JSON, for a file that holds weights alone.

    Raises
    ------
    ModelError : one line saying why the file cannot be opened and what to supply.
    """
    archive = open_archive(Path(path))
    start_keras()
    config = archive.config
    if architecture is not None:
        config = read_config(architecture)
    if config is None:
        raise ModelError(
            f"{path}: holds weights but no architecture (layers: {_layers_found(archive)}); give the model's JSON, "
            "written by model.to_json(), with --architecture model.json"
        )
    try:
        objects = custom_objects(custom)
        config = modernize(config, archive.keras if architecture is None else "")
        locate_operations(config)
        screen(config, objects, unsafe, path)
        if archive.backend == "theano":
            raise ModelError(
                f"{path}: was written with Theano, whose kernels are flipped; save it again with TensorFlow"
            )
        model = _build(config, archive, objects, unsafe)
        _check_finite(model, archive)
    except LrfError:
        raise
    except RecursionError as error:
        raise ModelError(f"{path}: its configuration is nested too deeply; the file is damaged") from error
    except Exception as error:  # Keras raises nearly anything on a configuration it does not understand
        raise ModelError(f"{path}: Keras cannot build it ({_keras_says(error)})") from error
    return model


def _keras_says(error: Exception) -> str:
    text = str(error).rpartition("Exception encountered: ")[2]
    if "Could not interpret activation" in text or "Could not locate function" in text or "Unknown" in text:
        return one_line(text, 160) + "; supply what is missing with --custom package.module:Name"
    return one_line(text, 200)


def _layers_found(archive: Archive) -> str:
    names = [name for name, weights in archive.order if weights]
    if not names:
        names = list(dict.fromkeys(name.split("/vars/")[0].removeprefix("layers/") for name in archive.weights))
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")


def locate_operations(config: Config) -> bool:
    """Say in a legacy configuration where its operations (``x + y``, ``ops.relu(x)``) and the layers that
    keras.applications brings live; return whether any do.

    Keras writes them into HDF5 files by class alone and then cannot find them itself; nor does it read an ellipsis
    (``x[..., 1:]``) from there, which becomes the slices that it stands for.
    """
    layers = _locate_layers_of_applications(config)
    return _locate_functions(config) or layers


def _locate_layers_of_applications(config: Config) -> bool:
    """Only a layer with just the arguments of Keras' own: others may have given theirs the same name."""
    import keras

    located = False
    for entry, _ in entries(config):
        own = as_dict(entry.get("config"))
        if "module" in entry or hasattr(keras.layers, entry["class_name"]) or "trainable" not in own:
            continue
        for name in APPLICATION_MODULES:
            space = importlib.import_module(f"keras.src.applications.{name}")
            cls = vars(space).get(entry["class_name"])
            if isinstance(cls, type) and issubclass(cls, keras.layers.Layer):
                arguments = inspect.signature(cls).parameters.values()
                names = {argument.name for argument in arguments if argument.kind is not argument.VAR_KEYWORD}
                if own.keys() - {"name", "trainable", "dtype"} == names:
                    entry.update(module=space.__name__, registered_name=cls.__name__)
                    located = True
    return located


def _locate_functions(config: Config) -> bool:
    import keras

    spaces = [importlib.import_module(f"keras.src.ops.{name}") for name in OPERATION_MODULES]
    located = False
    for entry, _ in entries(config):
        # some classes have the name of a layer (Add, Multiply), but every layer says whether it is trainable
        name, nodes = entry["class_name"], entry.get("inbound_nodes")
        if (
            "module" in entry
            or not nodes
            or not isinstance(nodes[0], dict)
            or "trainable" in as_dict(entry.get("config"))
        ):
            continue
        for space in spaces:
            cls = vars(space).get(name)
            if isinstance(cls, type) and issubclass(cls, keras.Operation):
                entry.update(module=space.__name__, registered_name=name)
                for node in nodes:
                    _write_out_ellipsis(node["args"])
                located = True
                break
    return located


def _write_out_ellipsis(arguments: list[Any]) -> None:
    """Replace an ellipsis in the index of ``[tensor, index]`` by as many whole slices as the tensor has axes left."""
    if len(arguments) != 2 or as_dict(arguments[0]).get("class_name") != "__keras_tensor__":
        return
    index = arguments[1] if isinstance(arguments[1], list) else [arguments[1]]
    places = [place for place, item in enumerate(index) if as_dict(item).get("class_name") == "__ellipsis__"]
    if not places:
        return
    added = sum(item is None for item in index)  # new axes, which take none of the tensor's
    missing = len(arguments[0]["config"]["shape"]) - (len(index) - 1 - added)
    whole = {"class_name": "__slice__", "config": {"start": None, "stop": None, "step": None}}
    arguments[1] = [*index[: places[0]], *([whole] * missing), *index[places[0] + 1 :]]


def _build(config: Config, archive: Archive, objects: Mapping[str, Any], unsafe: bool) -> Any:
    """Build the model without memory for its weights, compare them with the file's, then fill them."""
    import keras

    named = {
        e["registered_name"]: objects[e["class_name"]]
        for e, _ in entries(config)
        if e["class_name"] in objects and isinstance(e.get("registered_name"), str)
    }
    try:
        with keras.StatelessScope(initialize_variables=False):
            model = keras.saving.deserialize_keras_object(
                config, custom_objects={**objects, **named}, safe_mode=not unsafe
            )
        if not isinstance(model, keras.Model) or not getattr(model, "inputs", None):
            raise ModelError(f"{archive.path}: says no input shape; save it after model.build(input_shape)")
        needed = sum(int(np.prod(v.shape, dtype=object)) * 4 for v in model.variables)
        if needed > GROWTH * archive.nbytes + SLACK:
            raise ModelError(
                f"{archive.path}: its configuration asks for {needed} bytes of weights, it holds {archive.nbytes}; "
                "the file is damaged, or the architecture belongs to other weights"
            )
        pairs = _pairs(model, archive)
    except BaseException:
        keras.utils.clear_session(free_memory=False)  # else Keras makes the refused variables at its next chance
        raise
    filled = _filled_by(pairs)
    with keras.StatelessScope():
        pass  # variables that wait for their memory get it when a scope is left
    for variable, value in pairs:
        if id(variable) not in filled:
            variable.assign(value)
    if archive.order:
        for layer in _all_layers(model):
            if hasattr(layer, "finalize_state") and layer.weights:
                layer.finalize_state()
    else:
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / "model.weights.h5"
            copy.write_bytes(archive.raw)
            with warnings.catch_warnings():
                # A layer that is skipped would keep random weights. The filter is the whole process's, and other
                # threads run meanwhile: it takes nothing but what Keras itself says here.
                warnings.filterwarnings("error", category=UserWarning, module=r"keras\.")
                model.load_weights(copy)
    return model


def _filled_by(pairs: Sequence[tuple[Any, Any]]) -> set[int]:
    """Have variables that wait for their memory take the file's numbers in place of random ones; return which do.

    Random numbers for the weights of a VGG-16 take seconds.
    """
    filled = set()
    for variable, value in pairs:
        if getattr(variable, "_value", 0) is None and getattr(variable, "_initializer", None) is not None:
            variable._initializer = partial(_given, value)
            filled.add(id(variable))
    return filled


def _given(value: Any, shape: Any, dtype: Any = None) -> Any:
    import keras

    return keras.ops.convert_to_tensor(value, dtype)


def _pairs(model: Any, archive: Archive) -> list[tuple[Any, Any]]:
    """Match a legacy file's weights with the model's variables, layer by layer; raises ModelError."""
    if not archive.order:
        return []
    path = archive.path
    layers = [layer for layer in model.layers if layer.weights]
    stored = {name: weights for name, weights in archive.order if weights}
    if {layer.name for layer in layers} != set(stored):  # the same layers under other names: their order says which
        if len(layers) != len(stored):
            raise ModelError(
                f"{path}: holds weights of {len(stored)} layers ({_layers_found(archive)}) where the architecture has "
                f"{len(layers)}; give the architecture these weights belong to"
            )
        stored = {layer.name: weights for layer, weights in zip(layers, stored.values(), strict=True)}
    pairs = []
    for layer in layers:
        variables = layer.trainable_weights + layer.non_trainable_weights
        values = [archive.weights[name] for name in stored[layer.name]]
        if len(variables) != len(values):
            raise ModelError(f"{path}: layer {layer.name} needs {len(variables)} weights, the file holds {len(values)}")
        for variable, value in zip(variables, values, strict=True):
            shape = tuple(variable.shape)
            # Keras 1 kept the kernels of Conv1D as those of a Conv2D of width 1
            fitted = value[:, 0] if value.ndim == len(shape) + 1 == 4 and value.shape[1] == 1 else value
            if fitted.shape != shape:
                raise ModelError(
                    f"{path}: layer {layer.name} needs a weight of shape {shape}, the file holds {value.shape}; the "
                    "file is damaged, or the architecture belongs to other weights"
                )
            pairs.append((variable, fitted))
    return pairs


def _all_layers(model: Any) -> Iterator[Any]:
    for layer in model.layers:
        yield from _all_layers(layer) if hasattr(layer, "layers") else (layer,)


def _check_finite(model: Any, archive: Archive) -> None:
    for variable in model.variables:
        value = numbers_of(variable)
        ends = [value.min(), value.max()] if value.size and value.dtype.kind == "f" else []  # NaN is both
        if not np.isfinite(ends).all():
            layer = variable.path.rpartition("/")[0] or variable.path
            raise ModelError(f"{archive.path}: layer {layer} holds NaN or infinite weights; train or export it again")
