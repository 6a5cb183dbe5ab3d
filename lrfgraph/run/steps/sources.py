"""Steps that read what the user gave: the model and the images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lrfgraph.engine.memory import BoundedCache, array_bytes
from lrfgraph.engine.nodes import Input, Result, Task, digest
from lrfgraph.options.recipe import DataOptions
from lrfgraph.run.steps.common import network_of, save_model

__all__ = ["data", "describe", "images_of", "try_preprocessings"]

IMAGES = BoundedCache(1 << 30, keep_last=True)
PARTS = ("calibration", "repair", "validation", "train", "test")


def describe(task: Task) -> Result:
    from lrfgraph.network.describing import describe
    from lrfgraph.network.opening.loading import load_model

    trust = {"custom": list(task.params["custom"]), "unsafe": task.params["unsafe"]}
    architecture = task.locators.get("architecture")
    model = load_model(Path(task.locators["model"]), **trust, architecture=Path(architecture) if architecture else None)
    size = task.params.get("image_shape")
    description = describe(model, tuple(size) if size else None)
    data = {
        "layers": [layer.to_json() for layer in description.layers],
        "structure": description.structure,
        "image_shape": size,
        "parameters": int(model.count_params()),
        "macs": sum(layer.macs for layer in description.layers),
        "network": description.digest,
    }
    files = {"model.keras": save_model(model, task.scratch())}
    return Result(data, description.arrays, files, identity=description.digest)


def data(task: Task) -> Result:
    from lrfgraph.images import splits as data

    params, options, base = task.params, _data_options(task.locators), Path(task.locators["base"])
    options = replace(options, calibration=max(params["calibration"], params["repair"]))
    input_shape, output_shape = tuple(params["input_shape"]), tuple(params["output_shape"])
    dataset = data.load(options, base, input_shape)
    splits = data.split(dataset, options)
    preprocessing = data.preprocessing(options, input_shape, base)
    how = _digest_of(preprocessing)
    kind = data.task_of(options, splits.validation.labels(dataset), input_shape, output_shape)
    arrays, identities, parts = {}, {}, {}
    for name in PARTS:
        part = getattr(splits, "calibration" if name == "repair" else name)
        if part is not None and name in ("calibration", "repair"):
            part = data.Part(part.source, part.indices[: params[name]])
        if part is None or not len(part):
            continue
        labels = data.targets_of(part.labels(dataset), kind, output_shape)
        part.images(dataset, preprocessing)[:1]  # raises where the shapes do not fit
        said = [how, digest(dataset.x(part.source)[part.indices])]
        if labels is not None and name not in ("calibration", "repair"):
            said.append(digest(labels))
        arrays[name], identities[name] = part.indices, digest(said)
        parts[name] = {"source": part.source, "images": len(part), "labels": labels is not None}
    chance = None
    if kind == "classification" and parts["validation"]["labels"]:
        labels = data.targets_of(splits.validation.labels(dataset), kind, output_shape)
        chance = data.chance_level(labels) if labels is not None else None
    found = {
        "identities": identities,
        "parts": parts,
        "task": kind,
        "chance": chance,
        "notes": list(splits.notes) + list(dataset.notes),
    }
    return Result(
        found | {"input_shape": list(input_shape), "output_shape": list(output_shape)},
        arrays,
        identity=digest(identities),
    )


def _digest_of(preprocessing: Any) -> str:
    said = [preprocessing.scale, preprocessing.bgr, list(preprocessing.input_shape)]
    return digest(said + [None if v is None else digest(v) for v in (preprocessing.mean, preprocessing.std)])


def _data_options(locators: Mapping[str, Any]) -> DataOptions:
    return DataOptions(**_tuples(locators["data"]))


def _tuples(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _tuples(v) for k, v in value.items()}
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value


def images_of(entry: Input, locators: Mapping[str, Any], name: str) -> tuple[Any, Any]:
    """Return one split's images, preprocessed as they are asked for, and its targets (or ``None``)."""
    from lrfgraph.images import splits as data

    said = entry.data
    options, base, shape = _data_options(locators), Path(locators["base"]), tuple(said["input_shape"])

    def load() -> tuple[Any, Any]:
        dataset = data.load(options, base, shape)
        part = data.Part(said["parts"][name]["source"], entry.array(name))
        images = part.images(dataset, data.preprocessing(options, shape, base))
        return images, data.targets_of(part.labels(dataset), said["task"], tuple(said["output_shape"]))

    return IMAGES.get_or_make((said["identities"][name], name), load, array_bytes)


def try_preprocessings(model: Input, entry: Input, locators: Mapping[str, Any]) -> dict[str, float]:
    """Return the accuracy on up to 500 validation images under each usual preprocessing, best first."""
    from lrfgraph.images import splits as data
    from lrfgraph.network.training import measure, predict

    said = entry.data
    options, base, shape = _data_options(locators), Path(locators["base"]), tuple(said["input_shape"])
    dataset = data.load(options, base, shape)
    part = data.Part(said["parts"]["validation"]["source"], entry.array("validation")[:500])
    y = data.targets_of(part.labels(dataset), said["task"], tuple(said["output_shape"]))
    raw = dataset.x(part.source)[part.indices]
    found = {
        name: float(
            measure(
                predict(network_of(model, locators["trust"]), data.prepare(raw, other, shape, base)), y, said["task"]
            )["accuracy"]
        )
        for name, other in data.guesses(raw, options).items()
    }
    return dict(sorted(found.items(), key=lambda item: -item[1]))
