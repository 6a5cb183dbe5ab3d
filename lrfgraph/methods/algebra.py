"""Decompositions that several methods share, batched over the leading group axis, in float64.

All of them go through the Gram matrix of the shorter side: several times faster than LAPACK's SVD, and exact where
it matters, because the other factor is a product with the matrix itself and not a quotient by a singular value.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Sequence

import numpy as np

from lrfgraph.errors import ConfigurationError
from lrfgraph.layers.spec import Array, LayerSpec
from lrfgraph.methods.base import Arrays, Method, Rank, write_rank

__all__ = [
    "balance",
    "cholesky_solver",
    "finish",
    "fix_signs",
    "hosvd",
    "positions_first",
    "principal",
    "split",
    "transpose",
]


UNDER_LOCK = 32
"""Rows of a matrix that is solved in less time than another thread takes to wake up."""


def transpose(matrix: Array) -> Array:
    """Swap the last two axes."""
    return np.swapaxes(matrix, -1, -2)


def fix_signs(vectors: Array) -> Array:
    """Flip columns so that the largest entry of each is positive: LAPACK leaves the sign open."""
    largest = np.argmax(np.abs(vectors), axis=-2, keepdims=True)
    return vectors * np.where(np.take_along_axis(vectors, largest, axis=-2) < 0, -1.0, 1.0)


def principal(gram: Array) -> tuple[Array, Array]:
    """Return eigenvalues, descending and not negative, and eigenvectors of symmetric matrices ``(…, n, n)``."""
    values, vectors = np.linalg.eigh(gram)
    return np.maximum(values[..., ::-1], 0.0), fix_signs(vectors[..., ::-1])


def split(matrix: Array) -> tuple[Array, Array]:
    """Return the SVD of ``(g, m, n)`` matrices as two factors, ``(g, m, r)`` and ``(g, r, n)``, r = min(m, n).

    Each takes the square root of the singular values, so leading columns and rows are the balanced factors of
    every smaller rank.
    """
    m, n = matrix.shape[-2:]
    if n <= m:
        _, right = principal(transpose(matrix) @ matrix)
        first, last = balance((matrix @ right, transpose(right)))
    else:
        _, left = principal(matrix @ transpose(matrix))
        first, last = balance((left, transpose(left) @ matrix))
    return first, last


def cholesky_solver(matrix: Array) -> Callable[[Array], Array]:
    """Return a function of B ``(n, size)`` to X with X·A = B, A being what `matrix` holds then; float32, contiguous.

    A is symmetric and positive, and overwritten; X is NaN where it is not positive. LAPACK's solver is called at its
    address: SciPy's wrapper of it holds Python's lock, so that threads side by side wait for each other, and its
    `solve` estimates the condition as well, half as long again. A small matrix is solved under the lock: letting go of
    it and waiting for it again takes longer.
    """
    posv = _lapack_posv(len(matrix) <= UNDER_LOCK)
    uplo, size, columns, info = ctypes.c_char(b"U"), ctypes.c_int(len(matrix)), ctypes.c_int(), ctypes.c_int()
    before = ctypes.byref(uplo), ctypes.byref(size), ctypes.byref(columns), matrix.ctypes.data, ctypes.byref(size)
    after = ctypes.byref(size), ctypes.byref(info)

    def solve(right: Array) -> Array:
        solution = right.copy()
        columns.value = len(right)
        posv(*before, solution.__array_interface__["data"][0], *after)
        if info.value:
            solution[:] = np.nan
        return solution

    return solve


@functools.cache
def _lapack_posv(locked: bool) -> Callable[..., None]:
    from scipy.linalg import cython_lapack

    capsule = ctypes.py_object(cython_lapack.__pyx_capi__["sposv"])
    name_of, address_of = ctypes.pythonapi.PyCapsule_GetName, ctypes.pythonapi.PyCapsule_GetPointer
    name_of.restype, address_of.restype = ctypes.c_char_p, ctypes.c_void_p
    address_of.argtypes = [ctypes.py_object, ctypes.c_char_p]
    address = address_of(capsule, name_of(capsule))
    prototype = ctypes.PYFUNCTYPE if locked else ctypes.CFUNCTYPE
    routine: Callable[..., None] = prototype(None, *[ctypes.c_void_p] * 8)(address)
    return routine


def positions_first(kernel: Array) -> Array:
    """Return a canonical kernel as ``(g, positions, i, o)`` in float64."""
    inputs, outputs = kernel.shape[-2:]
    return kernel.reshape(kernel.shape[0], -1, inputs, outputs).astype(np.float64)


def hosvd(kernel: Array) -> Arrays:
    """Return the higher-order SVD of a canonical kernel over its two channel modes.

    inputs ``(g, i, p)`` and outputs ``(g, o, q)`` are orthonormal bases, p = min(i, S·o) and q = min(o, S·i);
    core ``(g, S, p, q)``; energy_inputs ``(g, p)`` and energy_outputs ``(g, q)`` the squared singular values of
    the two unfoldings. De Lathauwer, De Moor, Vandewalle, SIAM J. Matrix Anal. Appl. 21 (2000).
    """
    tensor = positions_first(kernel)
    groups, positions, inputs, outputs = tensor.shape
    by_inputs = np.moveaxis(tensor, 1, 2).reshape(groups, inputs, -1)
    by_outputs = tensor.reshape(groups, -1, outputs)
    energy_inputs, basis_inputs = principal(by_inputs @ transpose(by_inputs))
    energy_outputs, basis_outputs = principal(transpose(by_outputs) @ by_outputs)
    p, q = min(inputs, positions * outputs), min(outputs, positions * inputs)
    basis_inputs, basis_outputs = basis_inputs[..., :p], basis_outputs[..., :q]
    return {
        "inputs": basis_inputs,
        "outputs": basis_outputs,
        "core": transpose(basis_inputs)[:, None] @ tensor @ basis_outputs[:, None],
        "energy_inputs": energy_inputs[..., :p],
        "energy_outputs": energy_outputs[..., :q],
    }


def balance(weights: Sequence[Array]) -> tuple[Array, ...]:
    """Scale a chain's weights so that all have one Frobenius norm, per group, without changing their product.

    Where all pieces share one rank (two pieces, or a channelwise one between two) the columns are balanced one by
    one, so slices of balanced factors are balanced too.
    """
    first, *_, last = weights
    if len(weights) == 2 or weights[1].ndim < first.ndim:
        columns = [*(np.moveaxis(w, -1, 1) for w in weights[:-1]), np.moveaxis(last, -2, 1)]
        norms = [np.sqrt(np.sum(np.square(w), axis=tuple(range(2, w.ndim)))) for w in columns]
    else:
        norms = [np.sqrt(np.sum(np.square(w), axis=tuple(range(1, w.ndim)))) for w in weights]
    scales = _equalising(norms)
    if norms[0].ndim == 1:
        return tuple(w * s.reshape(-1, *[1] * (w.ndim - 1)) for w, s in zip(weights, scales, strict=True))
    ends = [s.reshape(s.shape[0], *[1] * (w.ndim - 2), s.shape[1]) for w, s in zip(weights, scales, strict=True)]
    ends[-1] = transpose(ends[-1])
    return tuple(w * s for w, s in zip(weights, ends, strict=True))


def _equalising(norms: Sequence[Array]) -> list[Array]:
    """Return the factors that bring every norm to the geometric mean of all (0 where one of them is 0)."""
    alive = np.all([n > 0 for n in norms], axis=0)
    logs = [np.log(np.where(alive, n, 1.0)) for n in norms]
    mean = sum(logs) / len(logs)
    return [np.where(alive, np.exp(mean - log), 0.0) for log in logs]


def finish(method: Method, layer: LayerSpec, rank: Rank, weights: Sequence[Array]) -> tuple[Array, ...]:
    """Return weights as float32 after a look at their shapes: a rank written by hand can be impossible."""
    shapes = [piece.shape for piece in method.pieces(layer, rank)]
    if [w.shape for w in weights] != shapes:
        full = method.full_rank(layer)
        advice = f"choose at most {write_rank(full)}" if full else "choose a smaller one"
        raise ConfigurationError(f"{layer.name}: {method.name} has no rank {write_rank(rank)}; {advice}")
    return tuple(np.ascontiguousarray(w, dtype=np.float32) for w in weights)
