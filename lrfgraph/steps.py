"""STEPS: what each kind of node computes. This is where the engine meets the network and the mathematics.

A step reads its parameters and inputs and returns a result; it touches neither the store nor the graph. Each has
a version, raised by hand when its numbers change. TensorFlow is loaded only by the steps that run the network.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import numpy as np

from lrfgraph.engine.nodes import Input, Result, Step, Task, digest
from lrfgraph.methods import METHODS
from lrfgraph.methods.base import parse_rank, write_rank
from lrfgraph.network.layers import Array, LayerSpec
from lrfgraph.network.pieces import compose, cost
from lrfgraph.recipe import DataOptions
from lrfgraph.selection import POLICIES, Candidate, LayerChoices, Problem, totals

__all__ = ["STEPS", "geometry", "network_of", "try_preprocessings"]

T = TypeVar("T")


class _Memo:
    """The last few values computed in this process, by key: models, images, per-layer references."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.values: OrderedDict[Any, Any] = OrderedDict()
        self.lock = threading.RLock()

    def get(self, key: Any, make: Callable[[], T]) -> T:
        with self.lock:
            if key in self.values:
                self.values.move_to_end(key)
                return self.values[key]  # type: ignore[no-any-return]
        value = make()
        with self.lock:
            self.values[key] = value
            while len(self.values) > self.size:
                self.values.popitem(last=False)
        return value


MODELS, IMAGES, REFERENCES = _Memo(3), _Memo(4), _Memo(8)
MODEL_LOCK = threading.Lock()

GEOMETRY = (
    "kind",
    "kernel",
    "strides",
    "dilation",
    "padding",
    "output_padding",
    "depthwise",
    "input_shapes",
    "output_shapes",
)


def geometry(layer: LayerSpec) -> dict[str, Any]:
    """Return the part of a layer that its factorization and cost depend on: no name, no position in the network."""
    data = layer.to_json()
    return {name: data[name] for name in GEOMETRY}


def _layer(params: Mapping[str, Any]) -> LayerSpec:
    return LayerSpec.from_json({"name": "", "class_name": "", **_lists(params["layer"])})


def _lists(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _lists(v) for k, v in value.items()}
    return [_lists(v) for v in value] if isinstance(value, list | tuple) else value


def network_of(entry: Input) -> Any:
    """Return the Keras model of an entry that holds one, loaded once per process."""
    from lrfgraph.network.reading import load_model

    def load() -> Any:
        trust = entry.data.get("trust", {})
        return load_model(entry.file("model.keras"), custom=trust.get("custom", ()), unsafe=trust.get("unsafe", False))

    with MODEL_LOCK:
        return MODELS.get(str(entry.file("model.keras")), load)


def _save(model: Any, folder: Path, name: str = "model.keras") -> Path:
    path = folder / name
    model.save(path)
    return path


# describe, data ------------------------------------------------------------------------------------------------


def _describe(task: Task) -> Result:
    from lrfgraph.network.describing import describe
    from lrfgraph.network.reading import load_model

    trust = {"custom": list(task.params["custom"]), "unsafe": task.params["unsafe"]}
    architecture = task.where.get("architecture")
    model = load_model(Path(task.where["model"]), **trust, architecture=Path(architecture) if architecture else None)
    description = describe(model)
    data = {
        "layers": [layer.to_json() for layer in description.layers],
        "structure": description.structure,
        "trust": trust,
        "parameters": int(model.count_params()),
        "macs": sum(layer.macs for layer in description.layers),
        "network": description.digest,
    }
    files = {"model.keras": _save(model, task.scratch())}
    return Result(data, description.arrays, files, identity=description.digest)


def _data(task: Task) -> Result:
    from lrfgraph import data

    params, options, base = task.params, _data_options(task.where), Path(task.where["base"])
    options = replace(options, calibration=params["calibration"])
    input_shape, output_shape = tuple(params["input_shape"]), tuple(params["output_shape"])
    dataset = data.load(options, base, input_shape)
    splits = data.split(dataset, options)
    preprocessing = data.preprocessing(options, input_shape, base)
    how = _digest_of(preprocessing)
    kind = data.task_of(options, splits.validation.labels(dataset), input_shape, output_shape)
    arrays, identities, parts = {}, {}, {}
    for name in PARTS:
        part = getattr(splits, name)
        if part is None or not len(part):
            continue
        labels = data.targets_of(part.labels(dataset), kind, output_shape)
        part.images(dataset, preprocessing)[:1]  # raises where the shapes do not fit
        said = [how, digest(dataset.x(part.source)[part.indices])]
        if labels is not None and name != "calibration":
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


PARTS = ("calibration", "validation", "train", "test")


def _data_options(where: Mapping[str, Any]) -> DataOptions:
    return DataOptions(**_tuples(where["data"]))


def _tuples(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _tuples(v) for k, v in value.items()}
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value


def images_of(entry: Input, where: Mapping[str, Any], name: str) -> tuple[Any, Any]:
    """Return one split's images, preprocessed as they are asked for, and its targets (or ``None``)."""
    from lrfgraph import data

    said = entry.data
    options, base, shape = _data_options(where), Path(where["base"]), tuple(said["input_shape"])

    def load() -> tuple[Any, Any]:
        dataset = data.load(options, base, shape)
        part = data.Part(said["parts"][name]["source"], entry.array(name))
        images = part.images(dataset, data.preprocessing(options, shape, base))
        return images, data.targets_of(part.labels(dataset), said["task"], tuple(said["output_shape"]))

    return IMAGES.get((said["identities"][name], name), load)


# record, curvature: one pass for all layers ----------------------------------------------------------------------


def _record_together(tasks: list[Task]) -> list[Result]:
    from lrfgraph.network.recording import record

    first = tasks[0]
    images, _ = images_of(first.inputs["data"], first.where, "calibration")
    options = first.params["options"]
    layers = [_named_layer(task) for task in tasks]
    recordings = record(network_of(first.inputs["model"]), layers, images, **options, progress=first.progress)
    return [
        Result(
            {"count": r.count, "images": len(images)},
            {"rows": r.rows} | ({} if r.moments is None else {"moments": r.moments}),
        )
        for r in recordings
    ]


def _curvature_together(tasks: list[Task]) -> list[Result]:
    from lrfgraph.network.curvature import curvature

    first = tasks[0]
    images, _ = images_of(first.inputs["data"], first.where, "calibration")
    images = images[: first.params["images"]]
    model = first.inputs["model"]
    layers = [_named_layer(task) for task in tasks]
    found = curvature(
        network_of(model),
        layers,
        images,
        model.data["structure"]["output"],
        first.params["seed"],
        progress=first.progress,
    )
    return [Result({}, {"curvature": h}) for h in found]


def _named_layer(task: Task) -> LayerSpec:
    by_name = {layer["name"]: layer for layer in task.inputs["model"].data["layers"]}
    return LayerSpec.from_json(by_name[task.where["layer"]])


def _record(task: Task) -> Result:
    return _record_together([task])[0]


def _curvature(task: Task) -> Result:
    return _curvature_together([task])[0]


# decompose, ranks, factorize, score -----------------------------------------------------------------------------


def _decompose(task: Task) -> Result:
    from lrfgraph.methods.weighting import weigh

    method, layer = METHODS[task.params["method"]], _layer(task.params)
    kernel = task.inputs["weights"].array("kernel").astype(np.float64)
    moments = _moments(task.inputs.get("record"), layer)
    output = _output_weight(task, layer)
    weighted, undo = weigh(method, layer, kernel, moments, output)
    prepared = method.prepare(layer, weighted)
    arrays = {f"prepared/{name}": value for name, value in prepared.items()}
    return Result({}, arrays | {f"undo/{name}": value for name, value in undo.to_arrays().items()})


def _output_weight(task: Task, layer: LayerSpec) -> Array | None:
    if "curvature" in task.inputs:
        return task.inputs["curvature"].array("curvature")
    weights = task.inputs["weights"]
    if task.params["weighting"] == "plain" or "scale" not in weights.names():
        return None
    return weights.array("scale").astype(np.float64).reshape(layer.groups, layer.outputs)


def _moments(record: Input | None, layer: LayerSpec) -> Array | None:
    """Return the recorded moments, or those of the rows where the layer is wider than what was summed."""
    if record is None:
        return None
    if "moments" in record.names():
        return record.array("moments")
    from lrfgraph.network.rows import add_moments

    rows = record.array("rows")
    total = np.zeros((layer.groups, layer.width + 1, layer.width + 1))
    add_moments(total, layer, rows)
    return total / len(rows)


def _prepared(entry: Input) -> dict[str, Array]:
    return {name.removeprefix("prepared/"): entry.array(name) for name in entry.names() if name.startswith("prepared/")}


def _ranks(task: Task) -> Result:
    method, layer = METHODS[task.params["method"]], _layer(task.params)
    ranks = method.ranks(layer, _prepared(task.inputs["prepared"]), task.params["shares"])
    multiple = task.params["multiple"]
    if multiple > 1:
        rounded = {tuple(max(r // multiple * multiple, min(r, multiple)) for r in rank) for rank in ranks}
        ranks = sorted(rounded)
    data = {"ranks": [write_rank(rank) for rank in ranks]}
    return Result(data, identity=digest(data))


def _factorize(task: Task) -> Result:
    method, layer = METHODS[task.params["method"]], _layer(task.params)
    if method.nests:
        return Result({"nests": True})  # a slice of what `decompose` stored; nothing is stored twice
    return Result({}, dict(enumerate_names(_make_factors(method, layer, task.inputs["prepared"], task.params["rank"]))))


def enumerate_names(arrays: tuple[Array, ...]) -> list[tuple[str, Array]]:
    return [(str(index), array) for index, array in enumerate(arrays)]


def _make_factors(method: Any, layer: LayerSpec, prepared: Input, rank: str) -> tuple[Array, ...]:
    from lrfgraph.methods.weighting import Unweighting

    undo = Unweighting.from_arrays(
        {n.removeprefix("undo/"): prepared.array(n) for n in prepared.names() if n.startswith("undo/")}
    )
    raw = method.factorize(layer, _prepared(prepared), parse_rank(rank))
    return undo(raw)


def factors_of(layer: LayerSpec, method_name: str, rank: str, factors: Input, prepared: Input) -> tuple[Array, ...]:
    """Return a candidate's weights, from its entry or sliced out of what all ranks share."""
    method = METHODS[method_name]
    if method.nests:
        return _make_factors(method, layer, prepared, rank)
    pieces = method.pieces(layer, parse_rank(rank))
    return tuple(factors.array(str(index)) for index in range(len(pieces)))


def _score(task: Task) -> Result:
    from lrfgraph import similarity

    layer, method, rank = _layer(task.params), task.params["method"], task.params["rank"]
    pieces = METHODS[method].pieces(layer, parse_rank(rank))
    kernel = compose(pieces, factors_of(layer, method, rank, task.inputs["factors"], task.inputs["prepared"]))
    matrix = layer.matrix(kernel.astype(np.float64))
    weights, record = task.inputs["weights"], task.inputs.get("record")
    reference = _reference(task, layer)
    scaled = matrix * reference.scale
    metrics = similarity.from_moments(reference.linear, scaled)
    distortion = (1.0 - metrics["relative_error"]) ** 2
    if record is not None and task.params["tap"] == "activation":
        metrics = similarity.from_rows(reference.outputs, reference.tap(scaled))
    original = layer.matrix(weights.array("kernel").astype(np.float64))
    error = matrix - original
    data = {
        "similarity": metrics,
        "distortion": distortion,
        "weight_error": float(np.sum(error**2) / np.sum(original**2)),
        "predicted": None,
    }
    if "curvature" in task.inputs:
        h = task.inputs["curvature"].array("curvature")
        data["predicted"] = similarity.output_error(error, reference.linear.moments, _per_column(layer, h))
    count = cost(layer, pieces)
    return Result({"parameters": count.parameters, "macs": count.macs, **data})


def _per_column(layer: LayerSpec, h: Array) -> Array:
    """Spread H over a transposed convolution's columns, which are (position, output)."""
    if layer.family != "transposed":
        return h
    return np.stack([np.kron(np.eye(layer.positions), one) for one in h])


class _LayerReference:
    """What all candidates of a layer are compared with: its own linear response and, at the activation tap, outputs."""

    def __init__(self, task: Task, layer: LayerSpec) -> None:
        from lrfgraph.network.rows import grouped
        from lrfgraph.similarity import ACTIVATIONS, Reference

        weights, record = task.inputs["weights"], task.inputs.get("record")
        kernel = layer.matrix(weights.array("kernel").astype(np.float64))
        repeat = layer.positions if layer.family == "transposed" else 1
        stored = set(weights.names())

        def row(name: str, otherwise: float) -> Array:
            shape = (layer.groups, 1, layer.outputs)
            value = (
                weights.array(name).astype(np.float64).reshape(shape) if name in stored else np.full(shape, otherwise)
            )
            return np.tile(value, (1, 1, repeat))

        self.scale = row("scale", 1.0)
        shift = row("shift", 0.0) if "shift" in stored else row("bias", 0.0)
        moments = _moments(record, layer)
        if moments is None:
            moments = np.eye(layer.width + 1)[None].repeat(layer.groups, 0)
        self.linear = Reference.of(kernel * self.scale, shift, moments)
        self.shift = shift
        if record is not None and task.params["tap"] == "activation":
            self.activation = ACTIVATIONS[task.params["tail"]]
            self.rows = grouped(layer, record.array("rows")).astype(np.float32)
            self.outputs = self.tap(self.linear.kernel)

    def tap(self, kernel: Array) -> Array:
        """Outputs of the sampled rows after the activation, (n, groups·outputs)."""
        made = self.rows @ kernel.astype(np.float32) + self.shift.astype(np.float32)
        return self.activation(np.moveaxis(made, 0, 1).reshape(made.shape[1], -1))


def _reference(task: Task, layer: LayerSpec) -> _LayerReference:
    record = task.inputs.get("record")
    key = (task.inputs["weights"].identity, record.identity if record else "", digest(dict(task.params["layer"])))
    return REFERENCES.get((*key, task.params["tap"], task.params["tail"]), lambda: _LayerReference(task, layer))


# select -----------------------------------------------------------------------------------------------------------


def _select(task: Task) -> Result:
    problem = _problem(task)
    options = SimpleNamespace(**task.params["options"])
    decision = POLICIES[options.policy](problem, options)
    parameters, macs = totals(problem, decision.choices)
    choices = [
        {
            "layer": c.layer,
            "method": c.candidate.method,
            "rank": c.candidate.rank,
            "similarity": dict(c.candidate.similarity),
        }
        | {"parameters": c.candidate.parameters, "macs": c.candidate.macs, "reason": ""}
        if c.candidate
        else {"layer": c.layer, "method": None, "reason": c.reason}
        for c in decision.choices
    ]
    said = [(c["layer"], c["method"], c.get("rank")) for c in choices]
    data = {"choices": choices, "notes": decision.notes, "parameters": parameters, "macs": macs}
    return Result(data, identity=digest(said))


def _problem(task: Task) -> Problem:
    """Gather the scores of all candidates; an input's name is ``layer|method|rank``."""
    found: dict[str, list[Candidate]] = {}
    for name, entry in task.inputs.items():
        layer, method, rank = name.rsplit("|", 2)
        found.setdefault(layer, []).append(Candidate(layer, method, rank, **entry.data))
    layers = tuple(
        LayerChoices(name, parameters, macs, tuple(found.get(name, ())), kept)
        for name, parameters, macs, kept in task.params["layers"]
    )
    return Problem(layers, task.params["parameters"], task.params["macs"], task.params["metric"])


# rebuild, finetune, export, evaluate -------------------------------------------------------------------------------


def _rebuild(task: Task) -> Result:
    from lrfgraph.network.rebuilding import Chain, rebuild

    model = task.inputs["model"]
    layers = {layer["name"]: LayerSpec.from_json(layer) for layer in model.data["layers"]}
    chains = {}
    for index, (name, method, rank) in enumerate(task.params["choices"]):
        layer = layers[name]
        inputs = task.inputs[f"{index}/factors"], task.inputs[f"{index}/prepared"]
        weights = factors_of(layer, method, rank, *inputs)
        chains[name] = Chain(method, METHODS[method].pieces(layer, parse_rank(rank)), weights, None)
    rebuilt = rebuild(network_of(model), chains)
    return Result({"trust": model.data["trust"]}, files={"model.keras": _save(rebuilt, task.scratch())})


def _finetune(task: Task) -> Result:
    from lrfgraph.network.training import finetune

    data, student = task.inputs["data"], task.inputs["student"]
    x, y = images_of(data, task.where, "train")
    x_val, y_val = images_of(data, task.where, "validation")
    tuned, history = finetune(
        _fresh(student),
        network_of(task.inputs["teacher"]),
        x,
        y,
        x_val,
        y_val,
        task.params["options"],
        task.params["task"],
        task.scratch(),
        task.progress,
    )
    files = {"model.keras": _save(tuned, task.scratch())}
    return Result({"trust": student.data["trust"], "history": history}, files=files)


def _fresh(entry: Input) -> Any:
    """Load a model that is about to be changed, apart from the copy that others share."""
    from lrfgraph.network.reading import load_model

    trust = entry.data["trust"]
    return load_model(entry.file("model.keras"), custom=trust["custom"], unsafe=trust["unsafe"])


def _export(task: Task) -> Result:
    from lrfgraph.network.rebuilding import save, verify_files

    model = task.inputs["model"]
    folder = task.scratch()
    network = network_of(model)
    save(network, folder)
    counted = verify_files(network, folder, model.data["trust"])
    files = {name: folder / name for name in ("compressed.keras", "compressed.h5")}
    return Result({**counted, "file_bytes": {name: path.stat().st_size for name, path in files.items()}}, files=files)


def try_preprocessings(model: Input, entry: Input, where: Mapping[str, Any]) -> dict[str, float]:
    """Return the accuracy on up to 500 validation images under each usual preprocessing, best first."""
    from lrfgraph import data
    from lrfgraph.network.training import measure, predict

    said = entry.data
    options, base, shape = _data_options(where), Path(where["base"]), tuple(said["input_shape"])
    dataset = data.load(options, base, shape)
    part = data.Part(said["parts"]["validation"]["source"], entry.array("validation")[:500])
    y = data.targets_of(part.labels(dataset), said["task"], tuple(said["output_shape"]))
    raw = dataset.x(part.source)[part.indices]
    found = {
        name: float(
            measure(predict(network_of(model), data.prepare(raw, other, shape, base)), y, said["task"])["accuracy"]
        )
        for name, other in data.guesses(raw, options).items()
    }
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _evaluate(task: Task) -> Result:
    from lrfgraph.network.training import measure, predict

    x, y = images_of(task.inputs["data"], task.where, task.params["part"])
    outputs = predict(network_of(task.inputs["model"]), x)
    measured = measure(outputs, x if y is None else y, task.params["task"])
    small = outputs.size <= 4_000_000
    return Result(measured, {"outputs": outputs.astype(np.float32)} if small else {})


STEPS: dict[str, Step] = {
    step.name: step
    for step in (
        Step("describe", 1, _describe, decides=True),
        Step("data", 1, _data, decides=True),
        Step("record", 1, _record, _record_together),
        Step("curvature", 1, _curvature, _curvature_together),
        Step("decompose", 1, _decompose),
        Step("ranks", 1, _ranks, decides=True),
        Step("factorize", 1, _factorize),
        Step("score", 1, _score),
        Step("select", 1, _select, decides=True),
        Step("rebuild", 1, _rebuild),
        Step("finetune", 1, _finetune),
        Step("export", 1, _export),
        Step("evaluate", 1, _evaluate),
    )
}
