"""Steps of a candidate (layer, method, rank): decompose, ranks, factorize, score. No TensorFlow."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from lrfgraph.engine.memory import BoundedCache, array_bytes
from lrfgraph.engine.nodes import Input, Node, Result, Step, Task, digest
from lrfgraph.layers.moments import Moments, NoMoments, RowMoments, linear, shrunk
from lrfgraph.layers.pieces import compose, cost
from lrfgraph.layers.spec import Array, LayerSpec
from lrfgraph.methods import METHODS
from lrfgraph.methods.base import Alike, parse_rank, write_rank
from lrfgraph.run.steps.common import layer_of

if TYPE_CHECKING:
    from lrfgraph.methods.weighting import Unweighting

__all__ = [
    "STEPS", "decompose", "enumerate_names", "factorize", "factors_of", "noise", "ranks", "recorded_moments", "score",
]  # fmt: skip

SMALL_KERNEL = 1 << 16
"""Numbers of a kernel whose factorization at one rank is too little to be a task of its own."""

REFERENCES = BoundedCache(512 << 20, keep_last=True)


def decompose(task: Task) -> Result:
    from lrfgraph.methods.weighting import weigh

    method, layer = METHODS[task.params["method"]], layer_of(task.params)
    kernel = task.inputs["weights"].array("kernel").astype(np.float64)
    moments = recorded_moments(task.inputs.get("record"), layer)
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


def recorded_moments(record: Input | None, layer: LayerSpec) -> Moments | None:
    """Return the recorded moments, or the rows where there are fewer than they are wide: nothing was summed then.

    Where an image gives one row, such few say little of pairs of inputs, and are shrunk accordingly.
    """
    from lrfgraph.layers.rows import grouped, positions_of

    if record is None:
        return None
    if "moments" in record.names():
        return record.array("moments")
    moments = RowMoments(grouped(layer, record.array("rows")).astype(np.float64), constant=True)
    alone = len(layer.input_shapes) == 1 and prod(positions_of(layer)) == 1
    return shrunk(moments) if alone else moments


def _prepared(entry: Input) -> dict[str, Array]:
    return {name.removeprefix("prepared/"): entry.array(name) for name in entry.names() if name.startswith("prepared/")}


def ranks(task: Task) -> Result:
    method, layer = METHODS[task.params["method"]], layer_of(task.params)
    ranks = method.ranks(layer, _prepared(task.inputs["prepared"]), task.params["shares"])
    multiple = task.params["multiple"]
    if multiple > 1:
        rounded = {tuple(max(r // multiple * multiple, min(r, multiple)) for r in rank) for rank in ranks}
        ranks = sorted(rounded)
    data = {"ranks": [write_rank(rank) for rank in ranks]}
    return Result(data, identity=digest(data))


def noise(task: Task) -> Result:
    """Find the ranks at which the kernel's unfoldings by inputs and by outputs stand out from noise."""
    from lrfgraph.methods.algebra import positions_first
    from lrfgraph.selection.noise import noise_rank

    layer = layer_of(task.params)
    tensor = positions_first(task.inputs["weights"].array("kernel").astype(np.float64))
    pairs = []
    for axis in (2, 3):
        flat = np.moveaxis(tensor, axis, 1).reshape(layer.groups, tensor.shape[axis], -1)
        rows, columns = flat.shape[1:]
        ranks = [noise_rank(np.linalg.svd(part, compute_uv=False), rows, columns) for part in flat]
        pairs.append([max(1, *ranks), min(rows, columns)])
    return Result({"ranks": pairs})


def factorize(task: Task) -> Result:
    return next(factorize_together([task]))


def factorize_together(tasks: list[Task]) -> Iterator[Result]:
    """Factorize candidates of one method, either of one kernel or all at one rank of layers of one geometry."""
    first, rank = tasks[0].params, parse_rank(tasks[0].params["rank"])
    method, layer = METHODS[first["method"]], layer_of(first)
    if not isinstance(method, Alike):
        for task in tasks:  # a slice of what `decompose` stored is not stored twice
            yield (
                Result({"nests": True})
                if method.nests
                else _stored(_make_factors(method, layer, task.inputs["prepared"], task.params["rank"]))
            )
        return
    prepared = [task.inputs["prepared"] for task in tasks]
    together = method.factorize_alike(layer, [_prepared(one) for one in prepared], rank)
    for one, raw in zip(prepared, together, strict=True):
        yield _stored(_undo(one)(raw))


def _stored(arrays: tuple[Array, ...]) -> Result:
    return Result({}, dict(enumerate_names(arrays)))


def enumerate_names(arrays: tuple[Array, ...]) -> list[tuple[str, Array]]:
    return [(str(index), array) for index, array in enumerate(arrays)]


def _make_factors(method: Any, layer: LayerSpec, prepared: Input, rank: str) -> tuple[Array, ...]:
    return _undo(prepared)(method.factorize(layer, _prepared(prepared), parse_rank(rank)))


def _undo(prepared: Input) -> Unweighting:
    from lrfgraph.methods.weighting import Unweighting

    arrays = {n.removeprefix("undo/"): prepared.array(n) for n in prepared.names() if n.startswith("undo/")}
    return Unweighting.from_arrays(arrays)


def factors_of(layer: LayerSpec, method_name: str, rank: str, factors: Input, prepared: Input) -> tuple[Array, ...]:
    """Return a candidate's weights, from its entry or sliced out of what all ranks share."""
    method = METHODS[method_name]
    if method.nests:
        return _make_factors(method, layer, prepared, rank)
    pieces = method.pieces(layer, parse_rank(rank))
    return tuple(factors.array(str(index)) for index in range(len(pieces)))


def score(task: Task) -> Result:
    from lrfgraph.layers import similarity

    layer, method, rank = layer_of(task.params), task.params["method"], task.params["rank"]
    pieces = METHODS[method].pieces(layer, parse_rank(rank))
    kernel = compose(pieces, factors_of(layer, method, rank, task.inputs["factors"], task.inputs["prepared"]))
    matrix = layer.matrix(kernel.astype(np.float64))
    reference = _reference(task, layer)
    error = matrix - reference.kernel
    spread = linear(reference.linear.moments) @ error
    sums = similarity.Moments.of(reference.linear, error * reference.scale, spread * reference.scale)
    metrics = similarity.from_moments(sums)
    distortion = (1.0 - metrics["relative_error"]) ** 2
    if "record" in task.inputs and task.params["tap"] == "activation":
        metrics = similarity.from_rows(reference.outputs, reference.tap(matrix * reference.scale))
    data = {
        "similarity": metrics,
        "distortion": distortion,
        "weight_error": float(np.vdot(error, error)) / reference.energy,
        "predicted": None,
    }
    if "curvature" in task.inputs:
        h = task.inputs["curvature"].array("curvature")
        data["predicted"] = similarity.output_error(error, spread, _per_column(layer, h))
    count = cost(layer, pieces)
    return Result({"parameters": count.parameters, "macs": count.macs, **data})


def _per_column(layer: LayerSpec, h: Array) -> Array:
    """Spread H over the columns of a layer that scatters its inputs, which are (position, output)."""
    if not layer.family.scatters:
        return h
    return np.stack([np.kron(np.eye(layer.positions), one) for one in h])


class _LayerReference:
    """What all candidates of a layer are compared with: its own linear response and, at the activation tap, outputs."""

    def __init__(self, task: Task, layer: LayerSpec) -> None:
        from lrfgraph.layers.rows import grouped
        from lrfgraph.layers.similarity import ACTIVATIONS, Reference

        weights, record = task.inputs["weights"], task.inputs.get("record")
        self.kernel = layer.matrix(weights.array("kernel").astype(np.float64))
        self.energy = float(np.vdot(self.kernel, self.kernel))
        repeat = layer.positions if layer.family.scatters else 1
        stored = set(weights.names())

        def row(name: str, otherwise: float) -> Array:
            shape = (layer.groups, 1, layer.outputs)
            value = (
                weights.array(name).astype(np.float64).reshape(shape) if name in stored else np.full(shape, otherwise)
            )
            return np.tile(value, (1, 1, repeat))

        self.scale = row("scale", 1.0)
        shift = row("shift", 0.0) if "shift" in stored else row("bias", 0.0)
        moments = recorded_moments(record, layer)
        self.linear = Reference.of(self.kernel * self.scale, shift, NoMoments() if moments is None else moments)
        self.shift = shift
        if record is not None and task.params["tap"] == "activation":
            self.activation = ACTIVATIONS[task.params["tail"]]
            self.rows = grouped(layer, record.array("rows")).astype(np.float32)
            self.outputs = self.tap(self.linear.kernel)

    def tap(self, kernel: Array) -> Array:
        """Outputs of the sampled rows after the activation, (n, groups·outputs)."""
        outputs = self.rows @ kernel.astype(np.float32) + self.shift.astype(np.float32)
        return self.activation(np.moveaxis(outputs, 0, 1).reshape(outputs.shape[1], -1))


def _reference(task: Task, layer: LayerSpec) -> _LayerReference:
    record = task.inputs.get("record")
    inputs = (task.inputs["weights"].identity, record.identity if record else "")
    key = (*inputs, digest(dict(task.params["layer"])), task.params["tap"], task.params["tail"])
    return REFERENCES.get_or_make(key, lambda: _LayerReference(task, layer), array_bytes)


def _of_one_kernel(node: Node) -> Hashable:
    """Candidates of one layer and method share what all ranks share."""
    return node.inputs["prepared"]


def _beside(node: Node) -> Hashable | None:
    """The same, of a method that takes little more than slices of it; of one that iterates, layers of one geometry at
    one rank, as long as their kernels are small: what large ones take is arithmetic, and memory."""
    params = node.params
    if not METHODS[params["method"]].iterates:
        return _of_one_kernel(node)
    if prod(params["layer"]["kernel"]) > SMALL_KERNEL:
        return None
    return params["method"], params["rank"], digest(params["layer"])


STEPS = (
    Step("decompose", 3, decompose),
    Step("ranks", 2, ranks, decides=True),
    Step("noise", 1, noise),
    Step("factorize", 1, factorize, factorize_together, small=_beside),
    Step("score", 4, score, small=_of_one_kernel),
)
