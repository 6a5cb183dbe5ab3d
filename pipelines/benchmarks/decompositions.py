"""Our decompositions against TensorLy's: processor seconds and squared errors on kernels of ResNet-20 and VGG-16.

    python pipelines/benchmarks/decompositions.py --models MODELS --out decompositions.json

Each (kernel, method) is factorized at ranks for some shares of its parameters, by our method (what all ranks share
once, then each rank) and by TensorLy (each rank by itself, its own defaults but for the sweeps of CP, which are as many
as ours at most). One BLAS thread; VGG-16 has random weights, and stands for the size of its kernels.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from networks import print_table, write

from lrfgraph.engine.workers import one_blas_thread
from lrfgraph.layers.pieces import compose
from lrfgraph.layers.spec import LayerSpec
from lrfgraph.methods import METHODS
from lrfgraph.methods.base import Rank, write_rank

SHARES = (0.05, 0.2)
SWEEPS = 50
VGG_LAYERS = ("block1_conv2", "block2_conv2", "block3_conv2", "block4_conv1", "block5_conv1", "predictions")
Array = np.ndarray[Any, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, required=True, help="folder of the model files")
    parser.add_argument("--out", type=Path, required=True, help="result file, JSON")
    parser.add_argument("--methods", nargs="+", default=list(THEIRS), choices=list(THEIRS))
    parser.add_argument("--vgg-layers", nargs="*", default=VGG_LAYERS, help="layers of VGG-16")
    given = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for network, layers in (("ResNet-20", resnet20(given.models)), ("VGG-16", vgg16(given.vgg_layers))):
        for layer, kernel in layers:
            for name in given.methods:
                if not METHODS[name].reason(layer):
                    with one_blas_thread(), warnings.catch_warnings():
                        warnings.simplefilter("ignore", UserWarning)  # TensorLy's, where a rank exceeds a mode
                        rows += [{"network": network, **row} for row in compare(name, layer, kernel)]
            table = list(summary(rows))
            write(given.out, {"summary": table, "rows": rows})  # large kernels take minutes
        print_table(list(table[0]), [list(row.values()) for row in table])


def resnet20(models: Path) -> Iterator[tuple[LayerSpec, Array]]:
    from lrfgraph.network.opening.loading import load_model

    yield from kernels(load_model(models / "resnet20_cifar10.h5"))


def vgg16(names: Sequence[str]) -> Iterator[tuple[LayerSpec, Array]]:
    import keras

    keras.utils.set_random_seed(0)
    model = keras.applications.VGG16(weights=None)
    yield from ((layer, kernel) for layer, kernel in kernels(model) if layer.name in names)


def kernels(model: Any) -> Iterator[tuple[LayerSpec, Array]]:
    from lrfgraph.network.describing import describe

    description = describe(model)
    for number, layer in enumerate(description.layers):
        if layer.kind and layer.groups == 1:
            yield layer, description.arrays[f"layers/{number}/kernel"].astype(np.float64)


def compare(name: str, layer: LayerSpec, kernel: Array) -> Iterator[dict[str, Any]]:
    """Yield what each rank took and lost; what our ranks share is divided among them."""
    method = METHODS[name]
    prepared, shared = timed(lambda: method.prepare(layer, kernel))
    ranks = method.ranks(layer, prepared, SHARES)
    for rank in ranks:
        weights, seconds = timed(lambda rank=rank: method.factorize(layer, prepared, rank))
        chain = [weight.astype(np.float64) for weight in weights]
        ours = compose(method.pieces(layer, rank), chain).reshape(kernel.shape)
        for variant, decompose in THEIRS[name].items():
            other, their_seconds = timed(lambda rank=rank, decompose=decompose: decompose(layer, kernel, rank))
            yield {
                "layer": layer.name,
                "method": name,
                "tensorly": variant,
                "rank": write_rank(rank),
                "seconds": seconds + shared / len(ranks),
                "seconds_tensorly": their_seconds,
                "error": lost(kernel, ours),
                "error_tensorly": lost(kernel, other.reshape(kernel.shape)),
            }


def summary(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield one line for each network, method and function of TensorLy: seconds together, errors in the median."""
    groups = defaultdict(list)
    for row in rows:
        groups[row["network"], row["method"], row["tensorly"]].append(row)
    for (network, method, variant), members in groups.items():
        ratios = [(row["error_tensorly"] + 1e-9) / (row["error"] + 1e-9) for row in members]
        yield {
            "network": network,
            "method": method,
            "tensorly": variant,
            "ranks": len(members),
            "seconds": round(sum(row["seconds"] for row in members), 3),
            "seconds_tensorly": round(sum(row["seconds_tensorly"] for row in members), 3),
            "error_tensorly_over_ours": round(statistics.median(ratios), 4),
            "worst": round(max(ratios), 4),
            "best": round(min(ratios), 4),
        }


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    started = time.process_time()
    result = work()
    return result, time.process_time() - started


def lost(kernel: Array, other: Array) -> float:
    return float(np.sum(np.square(kernel - other)) / np.sum(np.square(kernel)))


# TensorLy's, each as a kernel of the same shape ----------------------------------------------------------------------


def _matrix_svd(function: str) -> Callable[[LayerSpec, Array, Rank], Array]:
    def decompose(layer: LayerSpec, kernel: Array, rank: Rank) -> Array:
        from tensorly.tenalg import svd_interface

        matrix = kernel.reshape(-1, layer.outputs)
        left, values, right = svd_interface(matrix, n_eigenvecs=rank[0], method=function)
        return (left * values) @ right

    return decompose


def _spatial_svd(function: str) -> Callable[[LayerSpec, Array, Rank], Array]:
    def decompose(layer: LayerSpec, kernel: Array, rank: Rank) -> Array:
        from tensorly.tenalg import svd_interface

        k1, k2 = layer.spatial
        split = kernel.reshape(k1, k2, layer.inputs, layer.outputs).transpose(0, 2, 1, 3)
        left, values, right = svd_interface(split.reshape(k1 * layer.inputs, -1), n_eigenvecs=rank[0], method=function)
        return ((left * values) @ right).reshape(split.shape).transpose(0, 2, 1, 3)

    return decompose


def _tucker(layer: LayerSpec, kernel: Array, rank: Rank) -> Array:
    from tensorly.decomposition import partial_tucker
    from tensorly.tenalg import multi_mode_dot

    tensor = kernel.reshape(-1, layer.inputs, layer.outputs)
    (core, factors), _ = partial_tucker(tensor, rank=list(rank), modes=[1, 2], init="svd")
    return np.asarray(multi_mode_dot(core, factors, modes=[1, 2]))


def _cp(layer: LayerSpec, kernel: Array, rank: Rank) -> Array:
    import tensorly
    from tensorly.decomposition import parafac

    tensor = kernel.reshape(-1, layer.inputs, layer.outputs)
    return np.asarray(
        tensorly.cp_to_tensor(
            parafac(tensor, rank[0], init="svd", n_iter_max=SWEEPS, normalize_factors=True, random_state=0)
        )
    )


def _tt(layer: LayerSpec, kernel: Array, rank: Rank) -> Array:
    from tensorly.decomposition import tensor_train

    tensor = np.moveaxis(kernel[0], -2, 0)
    return np.moveaxis(np.asarray(tensor_train(tensor, [1, *rank, 1]).to_tensor()), 0, -2)


THEIRS: dict[str, dict[str, Callable[[LayerSpec, Array, Rank], Array]]] = {
    "svd": {name: _matrix_svd(name) for name in ("truncated_svd", "randomized_svd")},
    "svd_channel": {name: _matrix_svd(name) for name in ("truncated_svd", "randomized_svd")},
    "svd_spatial": {name: _spatial_svd(name) for name in ("truncated_svd", "randomized_svd")},
    "tucker": {"partial_tucker": _tucker},
    "tt": {"tensor_train": _tt},
    "cp": {"parafac": _cp},
}

if __name__ == "__main__":
    main()
