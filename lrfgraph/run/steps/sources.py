"""Steps that read what the user gave: the model and the images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lrfgraph.engine.memory import BoundedCache, array_bytes
from lrfgraph.engine.nodes import Input, Result, Step, Task, digest
from lrfgraph.images import preprocessing as images
from lrfgraph.images import sources
from lrfgraph.images import splits as splitting
from lrfgraph.options.recipe import DataOptions
from lrfgraph.run.steps.common import network_of, save_model

__all__ = ["STEPS", "data", "describe", "images_of", "try_preprocessings"]

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
    """Divide the images and decide the head from their labels; each split is known by what its images say."""
    from lrfgraph.network.heads import HEADS, decide

    params, options, base = task.params, _data_options(task.locators), Path(task.locators["base"])
    options = replace(options, calibration=max(params["calibration"], params["repair"]))
    input_shape, output_shape = tuple(params["input_shape"]), tuple(params["output_shape"])
    dataset = sources.load(options, base, input_shape)
    splits = splitting.split(dataset, options)
    preprocessing = images.preprocessing(options, input_shape, base)
    how = _digest_of(preprocessing)
    labels = splits.validation.labels(dataset)
    name = options.head
    if name == "auto":
        name = decide(params["proposed"], params["activation"], labels, output_shape, input_shape)
    head = HEADS[name]
    arrays, identities, parts = {}, {}, {}
    for name in PARTS:
        part = getattr(splits, "calibration" if name == "repair" else name)
        if part is not None and name in ("calibration", "repair"):
            part = splitting.Part(part.source, part.indices[: params[name]])
        if part is None or not len(part):
            continue
        targets = targets_of(head, part.labels(dataset), output_shape)
        part.images(dataset, preprocessing)[:1]  # raises where the shapes do not fit
        content = [how, digest(dataset.x(part.source)[part.indices])]
        if targets is not None and name not in ("calibration", "repair"):
            content.append(digest(targets))
        arrays[name], identities[name] = part.indices, digest(content)
        parts[name] = {"source": part.source, "images": len(part), "labels": targets is not None}
    targets = targets_of(head, labels, output_shape)
    result = {
        "identities": identities,
        "parts": parts,
        "head": head.name,
        "chance": None if targets is None else head.chance(targets),
        "notes": list(splits.notes) + list(dataset.notes),
        "input_shape": list(input_shape),
        "output_shape": list(output_shape),
    }
    return Result(result, arrays, identity=digest(identities))


def targets_of(head: Any, labels: Any, output_shape: tuple[int, ...]) -> Any:
    """Return what the head makes of labels, or ``None``."""
    return None if labels is None else head.targets(labels, output_shape)


def _digest_of(preprocessing: Any) -> str:
    content = [preprocessing.scale, preprocessing.bgr, list(preprocessing.input_shape)]
    return digest(content + [None if v is None else digest(v) for v in (preprocessing.mean, preprocessing.std)])


def _data_options(locators: Mapping[str, Any]) -> DataOptions:
    return DataOptions(**_tuples(locators["data"]))


def _tuples(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _tuples(v) for k, v in value.items()}
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value


def images_of(entry: Input, locators: Mapping[str, Any], name: str) -> tuple[Any, Any]:
    """Return one split's images, preprocessed as they are asked for, and its targets (or ``None``)."""
    from lrfgraph.network.heads import HEADS

    split = entry.data
    options, base, shape = _data_options(locators), Path(locators["base"]), tuple(split["input_shape"])

    def load() -> tuple[Any, Any]:
        dataset = sources.load(options, base, shape)
        part = splitting.Part(split["parts"][name]["source"], entry.array(name))
        prepared = part.images(dataset, images.preprocessing(options, shape, base))
        return prepared, targets_of(HEADS[split["head"]], part.labels(dataset), tuple(split["output_shape"]))

    return IMAGES.get_or_make((split["identities"][name], name, split["head"]), load, array_bytes)


def try_preprocessings(model: Input, entry: Input, locators: Mapping[str, Any]) -> dict[str, float]:
    """Return the measure that decides, on up to 500 validation images, under each usual preprocessing, best first."""
    from lrfgraph.network.evaluating import predict, pseudo_values
    from lrfgraph.network.heads import head_of

    split = entry.data
    options, base, shape = _data_options(locators), Path(locators["base"]), tuple(split["input_shape"])
    dataset = sources.load(options, base, shape)
    part = splitting.Part(split["parts"]["validation"]["source"], entry.array("validation")[:500])
    head = head_of(split["head"], model.data["structure"]["activation"])
    targets = targets_of(head, part.labels(dataset), tuple(split["output_shape"]))
    raw = dataset.x(part.source)[part.indices]
    measured = {}
    for name, other in images.guesses(raw, options).items():
        outputs = predict(network_of(model, locators["trust"]), images.prepare(raw, other, shape, base))
        each = pseudo_values(next(iter(head.measures)), outputs, targets, head)
        if each is not None:
            measured[name] = float(each.mean())
    return dict(sorted(measured.items(), key=lambda item: -item[1]))


STEPS = (
    Step("describe", 6, describe, decides=True),
    Step("data", 2, data, decides=True),
)
