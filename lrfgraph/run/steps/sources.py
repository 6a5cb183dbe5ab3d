"""Steps that read what the user gave: the model and the images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lrfgraph.engine.memory import BoundedCache, array_bytes
from lrfgraph.engine.nodes import Input, Result, Step, Task, digest
from lrfgraph.engine.rows import Chosen, Rows, Told
from lrfgraph.errors import DataError
from lrfgraph.images import preprocessing as images
from lrfgraph.images import snapshot, sources
from lrfgraph.images import splits as splitting
from lrfgraph.images.pictures import Pictures
from lrfgraph.images.reading import Reading
from lrfgraph.options.recipe import DataOptions
from lrfgraph.options.values import names_function
from lrfgraph.run.steps.common import network_of, save_model

if TYPE_CHECKING:
    from lrfgraph.network.heads import Head

__all__ = ["STEPS", "data", "describe", "images_of", "try_preprocessings"]

IMAGES = BoundedCache(256 << 20, keep_last=True)


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
    """Divide the images and decide the head from their labels; each split is known by what its images say.

    Calibration, repair and validation images are kept as they came: nobody reads them from the source again. No more
    images are read than these, but where the source says nothing of an image without its pixels.
    """
    params, options, base = task.params, _data_options(task.locators), Path(task.locators["base"])
    inputs = {name: tuple(shape) for name, shape in params["inputs"]}
    output_shape = tuple(params["output_shape"])
    reading = _reading(task.locators, task.scratch, task.progress)
    dataset = sources.load(options, base, inputs, reading)
    if dataset.digest != params["source"]:
        raise DataError(_changed(options))
    splits = splitting.split(dataset, replace(options, calibration=max(params["calibration"], params["repair"])))
    preprocessings = images.preprocessings(options, inputs, base)
    head, notes = _head(params, options, splits.validation.labels(dataset))
    arrays: dict[str, Any] = {}
    identities: dict[str, str] = {}
    parts: dict[str, dict[str, Any]] = {}
    kept: dict[str, tuple[Chosen, ...]] = {}
    divided = _parts(splits, params)
    told = _counting(reading, sum(map(len, divided.values())) * len(preprocessings), "images looked at")
    for name, part in divided.items():
        part.images(dataset, preprocessings)[:1]  # raises where the shapes do not fit
        raws, targets = part.raws(dataset), targets_of(head, part.labels(dataset), output_shape)
        identities[name] = _identity(name, preprocessings, raws, targets, told)
        parts[name] = {"source": part.source, "images": len(part), "labels": targets is not None}
        if name in snapshot.KEPT:
            kept[name] = raws
        else:
            arrays[f"{name}/indices"] = part.indices
        if name == "validation" and targets is not None:
            arrays["validation/y"] = targets
    how, statistics = snapshot.preprocessing_arrays(preprocessings)
    whole = snapshot.kept_arrays(kept)
    told = _counting(reading, sum(map(len, whole.values())), "images written")
    arrays |= {name: Told(array, told) for name, array in whole.items()} | statistics
    result = {
        "source": dataset.digest,
        "identities": identities,
        "parts": parts,
        "preprocessing": how,
        "inputs": params["inputs"],
        "output_shape": list(output_shape),
        "head": head.name,
        "chance": head.chance(arrays["validation/y"]) if "validation/y" in arrays else None,
        "notes": [*splits.notes, *dataset.notes, *notes],
    }
    return Result(result, arrays, identity=digest(identities))


def _head(params: Mapping[str, Any], options: DataOptions, labels: Any) -> tuple[Head, list[str]]:
    """The head that the recipe says or the labels decide, and what has to be said about labels that it cannot use."""
    from lrfgraph.network.heads import HEADS, decide, unfit

    shapes, output_shape = [tuple(shape) for _, shape in params["inputs"]], tuple(params["output_shape"])
    name, activation = options.head, params["activation"]
    if name == "auto":
        name = decide(params["proposed"], activation, labels, output_shape, shapes)
    reason = unfit(name, activation, output_shape)
    if reason:
        raise DataError(f"[data] head {name} {reason}; choose another with --set data.head=NAME")
    head = HEADS[name]
    if labels is None or head.targets(labels, output_shape) is not None:
        return head, []
    if labels.ndim > 2:  # a picture an image is a target, and not the network's
        raise DataError(
            f"targets have shape {labels.shape[1:]}, the model's output {output_shape}; give one of its shape"
        )
    own = "it is measured against its own input" if output_shape in shapes else "nothing is measured against them"
    return head, [f"labels of shape {labels.shape[1:]} are no targets of the model's output {output_shape}: {own}"]


def _parts(splits: splitting.Splits, params: Mapping[str, Any]) -> dict[str, splitting.Part]:
    """The splits by name, without empty ones; calibration images are the first of the repair images."""
    most = splits.calibration
    parts = {name: splitting.Part(most.source, most.indices[: params[name]]) for name in ("calibration", "repair")}
    parts["validation"] = splits.validation
    parts |= {name: part for name, part in (("train", splits.train), ("test", splits.test)) if part is not None}
    return {name: part for name, part in parts.items() if len(part)}


def _counting(reading: Reading, total: int, message: str) -> Callable[[int], None]:
    """A function that is told of images one after the other, and tells how many there were."""
    done = 0

    def count(images: int) -> None:
        nonlocal done
        done += images
        reading.tell(done, total, message)

    return count


def _identity(
    name: str,
    preprocessings: Sequence[images.Preprocessing],
    raws: Sequence[Chosen],
    targets: Any,
    told: Callable[[int], None],
) -> str:
    """Digest a split: what is done to its images, the images, and the targets that are measured or learned."""
    content = [_digest_of(how) for how in preprocessings] + [_identity_of(raw, told) for raw in raws]
    if targets is not None and name not in ("calibration", "repair"):
        content.append(digest(targets))
    return digest(content)


def _identity_of(raw: Chosen, told: Callable[[int], None]) -> str:
    """What some images are known by: their numbers, but of files what these contain."""
    return raw.whole.identity(raw.places) if isinstance(raw.whole, Pictures) else digest(Told(raw, told))


def targets_of(head: Head, labels: Any, output_shape: tuple[int, ...]) -> Any:
    """Return what the head makes of labels, or ``None``."""
    return None if labels is None else head.targets(labels, output_shape)


def _changed(options: DataOptions) -> str:
    source = str(options.source)
    if names_function(source):
        return (
            f"data function {source} gives other images, or another order, when it is called again; let it give the "
            "same each time, with a fixed seed"
        )
    return f"data {source} is not what it was when this run looked at it first; run again when nobody writes it"


def _digest_of(preprocessing: images.Preprocessing) -> str:
    content = [preprocessing.scale, preprocessing.bgr, list(preprocessing.input_shape)]
    return digest(content + [None if v is None else digest(v) for v in (preprocessing.mean, preprocessing.std)])


def _data_options(locators: Mapping[str, Any]) -> DataOptions:
    return DataOptions(**_tuples(locators["data"]))


def _tuples(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _tuples(v) for k, v in value.items()}
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value


def images_of(
    entry: Input, locators: Mapping[str, Any], name: str, scratch: Callable[[], Path] | None = None
) -> tuple[images.Images, Any]:
    """Return one split's images, read and preprocessed as they are asked for, and its targets (or ``None``).

    Training and test images are read from the source and must be those that were divided; raises DataError.
    scratch : gives the folder for what a source has that can only be read from its beginning.
    """
    data = entry.data
    key = data["identities"][name], name, data["head"]
    known: tuple[images.Images, Any] | None = IMAGES.get(key)
    if known is not None:
        return known
    how = snapshot.read_preprocessings(data["preprocessing"], entry.names(), entry.array)
    if name in snapshot.KEPT:
        targets = entry.array("validation/y") if name == "validation" and data["parts"][name]["labels"] else None
        read = snapshot.kept_images(entry.rows, name, how), targets
    else:
        read = _from_source(entry, locators, name, how, _reading(locators, scratch))
    if not any(isinstance(raw, Rows) for raw in read[0].raws):  # else of this very cache, or of files as they are now
        IMAGES.put(key, read, array_bytes(read))
    return read


def _reading(
    locators: Mapping[str, Any],
    scratch: Callable[[], Path] | None,
    progress: Callable[[int, int, str], None] | None = None,
) -> Reading:
    cache = locators.get("cache")
    return Reading(Path(cache) if cache else None, keep=False, scratch=scratch, progress=progress)


def _from_source(
    entry: Input, locators: Mapping[str, Any], name: str, how: tuple[images.Preprocessing, ...], reading: Reading
) -> tuple[images.Images, Any]:
    from lrfgraph.network.heads import HEADS

    data, options = entry.data, _data_options(locators)
    inputs = {own: tuple(shape) for own, shape in data["inputs"]}
    dataset = sources.load(options, Path(locators["base"]), inputs, reading)
    if dataset.digest != data["source"]:
        raise DataError(_changed(options))
    part = splitting.Part(data["parts"][name]["source"], entry.array(f"{name}/indices"))
    return part.images(dataset, how), targets_of(HEADS[data["head"]], part.labels(dataset), tuple(data["output_shape"]))


def try_preprocessings(model: Input, entry: Input, locators: Mapping[str, Any]) -> dict[str, float]:
    """Return the measure that decides, on up to 500 validation images, under each usual preprocessing, best first."""
    from lrfgraph.network.evaluating import predict, pseudo_values
    from lrfgraph.network.heads import head_of

    kept, targets = images_of(entry, locators, "validation")
    raws, options = [raw[:500] for raw in kept.raws], _data_options(locators)
    head = head_of(entry.data["head"], model.data["structure"]["activation"])
    inputs = {name: tuple(shape) for name, shape in entry.data["inputs"]}
    measured = {}
    for name, other in images.guesses(raws[0], options).items():
        tried = images.Images(tuple(raws), images.preprocessings(other, inputs))
        each = pseudo_values(
            next(iter(head.measures)), predict(network_of(model, locators["trust"]), tried), targets[:500], head
        )
        if each is not None:
            measured[name] = float(each.mean())
    return dict(sorted(measured.items(), key=lambda item: -item[1]))


STEPS = (
    Step("describe", 9, describe, decides=True),
    Step("data", 4, data, decides=True),
)
