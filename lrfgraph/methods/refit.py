"""Refit a chain of pieces to moments: the solver behind repair (METHODS §5.6).

Given G = E[x xᵀ] of what the layer really receives and C = E[x tᵀ] of what it should answer, minimise
tr(ŴᵀGŴ) − 2·tr(ŴᵀC) + λ‖Ŵ − Ŵ₀‖² over all factors of Ŵ at once. One solve costs the same for one million rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lrfgraph.layers.moments import RidgedRows, RowMoments
from lrfgraph.layers.pieces import Piece, compose
from lrfgraph.layers.spec import Array, LayerSpec

__all__ = ["equal_norms", "gradients", "refit"]

Ridged = Array | RidgedRows

RIDGE = 1e-9
"""Keeps the last piece finite where the others are nearly dependent; relative to the mean diagonal."""


def refit(
    layer: LayerSpec,
    pieces: Sequence[Piece],
    weights: Sequence[Array],
    moments: Array | RowMoments,
    cross: Array,
    ridge: float,
    steps: int,
) -> list[Array]:
    """Return new weights of the chain.

    Parameters
    ----------
    weights : where to start, and Ŵ₀.
    moments, cross : (groups, width, width), or rows that are fewer than wide, and (groups, width, outputs); centred
        where a bias is refitted apart.
    ridge : λ in parts of the mean diagonal of `moments`.

    Its parameters are those of the least-squares problem, one each.

    A chain of two matrices has its optimum in closed form (reduced-rank regression); others take `steps` of
    L-BFGS from balanced factors.
    """
    start = [np.asarray(w, dtype=np.float64) for w in weights]
    g, penalty = _ridged(moments, ridge)
    c = cross + penalty * layer.matrix(compose(pieces, start))
    if len(pieces) == 1:  # a kept layer
        return [_as_kernel(layer, _solutions(g, c))]
    if _is_matrix_pair(layer, pieces):
        return _reduced_rank(pieces, g, c)
    return _descend(layer, pieces, equal_norms(start), g, c, steps)


def _is_matrix_pair(layer: LayerSpec, pieces: Sequence[Piece]) -> bool:
    """Whether the chain is (width × r)(r × outputs) in the layer's own matrix view."""
    if len(pieces) != 2 or any(p.form != "mix" for p in pieces):
        return False
    rank = pieces[0].shape[-1]
    rows = int(np.prod(pieces[0].shape[1:-1]))
    return rows == layer.width and pieces[1].parameters == layer.groups * rank * layer.outputs


def _reduced_rank(pieces: Sequence[Piece], g: Ridged, c: Array) -> list[Array]:
    """Least squares, then the leading directions of its outputs: the optimum among all matrices of this rank."""
    rank = pieces[0].shape[-1]
    free = _solutions(g, c)
    _, vectors = np.linalg.eigh(free.swapaxes(1, 2) @ g @ free)
    leading = vectors[:, :, ::-1][:, :, :rank]
    chain = [(free @ leading).reshape(pieces[0].shape), leading.swapaxes(1, 2).reshape(pieces[1].shape)]
    return equal_norms(chain)


def _ridged(moments: Array | RowMoments, ridge: float) -> tuple[Ridged, Array]:
    """Return G + λI and λ, (groups, 1, 1)."""
    if isinstance(moments, RowMoments):
        _, count, width = moments.rows.shape
        scale = np.square(moments.rows).sum(axis=(1, 2), keepdims=True) / (count * width)
        penalty = max(ridge, RIDGE) * np.maximum(scale, 1e-30)
        return RidgedRows(moments, penalty), penalty
    scale = np.trace(moments, axis1=1, axis2=2)[:, None, None] / moments.shape[-1]
    penalty = ridge * np.maximum(scale, 1e-30)
    return moments + penalty * np.eye(moments.shape[-1]), penalty


def _solutions(g: Ridged, c: Array) -> Array:
    return g.solve(c) if isinstance(g, RidgedRows) else np.stack([_solve(a, b) for a, b in zip(g, c, strict=True)])


def _solve(a: Array, b: Array) -> Array:
    from scipy.linalg import LinAlgError, cho_factor, cho_solve

    try:
        return np.asarray(cho_solve(cho_factor(a), b))
    except LinAlgError:
        return np.asarray(np.linalg.lstsq(a, b, rcond=1e-10)[0])


def _descend(
    layer: LayerSpec, pieces: Sequence[Piece], start: list[Array], g: Ridged, c: Array, steps: int
) -> list[Array]:
    """L-BFGS over all pieces, or over all but the last where that one follows from the others in closed form.

    Variable projection (Golub & Pereyra, SIAM J. Numer. Anal. 10, 1973): the gradient at the best last piece is the
    reduced problem's, and what takes 500 steps over all pieces takes 150.
    """
    from scipy.optimize import minimize

    projected = _last_is_matrix(layer, pieces)
    free = start[:-1] if projected else start
    sizes = np.cumsum([0, *(w.size for w in free)])
    unit = 1.0 / max(float(np.sum(c * layer.matrix(compose(pieces, start)))), 1e-30)

    def chain(theta: Array) -> tuple[list[Array], Array, Array]:
        """All pieces, the matrix W they stand for, and G·W."""
        weights = [theta[a:b].reshape(w.shape) for a, b, w in zip(sizes, sizes[1:], free, strict=False)]
        if projected:
            last, w, gw = _best_last(layer, pieces, weights, g, c)
            return [*weights, last.reshape(pieces[-1].shape)], w, gw
        w = layer.matrix(compose(pieces, weights))
        return weights, w, g @ w

    def objective(theta: Array) -> tuple[float, Array]:
        weights, w, gw = chain(theta)
        value = float(np.sum(w * (gw - 2 * c)))
        slope = gradients(layer, pieces, weights, 2 * (gw - c))[: len(free)]
        return unit * value, unit * np.concatenate([d.ravel() for d in slope])

    options = {"maxiter": steps, "maxcor": 20, "ftol": 1e-12, "gtol": 1e-10}
    flat = np.concatenate([w.ravel() for w in free])
    return equal_norms(chain(minimize(objective, flat, jac=True, method="L-BFGS-B", options=options).x)[0])


def _last_is_matrix(layer: LayerSpec, pieces: Sequence[Piece]) -> bool:
    """Whether the last piece is a plain (r × outputs) matrix a group, in the layer's own matrix view too."""
    last = pieces[-1]
    plain = last.form == "mix" and last.parameters == last.shape[0] * last.shape[-2] * last.shape[-1]
    return plain and (layer.rows == "patch" or layer.positions == 1)


def _best_last(
    layer: LayerSpec, pieces: Sequence[Piece], weights: Sequence[Array], g: Ridged, c: Array
) -> tuple[Array, Array, Array]:
    """Least squares for the last piece, given the others; with the matrix W of the whole chain and G·W."""
    rows = compose(pieces[:-1], weights).reshape(layer.groups, layer.width, -1)
    spread = g @ rows
    gram, response = rows.swapaxes(1, 2) @ spread, rows.swapaxes(1, 2) @ c
    size = gram.shape[-1]
    gram += RIDGE * np.trace(gram, axis1=1, axis2=2)[:, None, None] / size * np.eye(size)
    last = _solutions(gram, response)
    return last, rows @ last, spread @ last


def gradients(layer: LayerSpec, pieces: Sequence[Piece], weights: Sequence[Array], slope: Array) -> list[Array]:
    """Pull the gradient with respect to the layer's matrix, (groups, width, columns), back to every piece."""
    if pieces[0].form == "core":
        return _core_gradients(weights, slope[0])
    partial = [weights[0]]
    for piece, weight in zip(pieces[1:-1], weights[1:-1], strict=True):
        partial.append(partial[-1] * weight[..., None, :] if piece.form == "channelwise" else partial[-1] @ weight)
    flow = _as_kernel(layer, slope)
    slopes: list[Array] = []
    for piece, weight, before in zip(pieces[:0:-1], weights[:0:-1], partial[::-1], strict=True):
        if piece.form == "channelwise":
            slopes.append(_fold((before * flow).sum(-2), weight.shape))
            flow = _fold(flow * weight[..., None, :], before.shape)
        else:
            slopes.append(_fold(before.swapaxes(-1, -2) @ flow, weight.shape))
            flow = _fold(flow @ weight.swapaxes(-1, -2), before.shape)
    return [flow, *slopes[::-1]]


def _as_kernel(layer: LayerSpec, matrix: Array) -> Array:
    """Undo `LayerSpec.matrix`."""
    if layer.rows == "patch" or layer.positions == 1:
        return matrix.reshape(layer.kernel)
    split = matrix.reshape(layer.groups, layer.inputs, layer.positions, layer.outputs)
    return np.moveaxis(split, 1, 2).reshape(layer.kernel)


def _fold(array: Array, shape: tuple[int, ...]) -> Array:
    """Sum over the axes along which `shape` was broadcast."""
    axes = tuple(i for i, (a, b) in enumerate(zip(array.shape, shape, strict=True)) if a != b)
    return array.sum(axis=axes, keepdims=True) if axes else array


def _core_gradients(cores: Sequence[Array], slope: Array) -> list[Array]:
    """The same for a TT-matrix: contract the slope with all cores but one."""
    rows, columns = [core.shape[1] for core in cores], [core.shape[2] for core in cores]
    tensor = slope.reshape(*rows, *columns)
    d = len(cores)
    letters = "abcdefgh"
    whole = letters[:d] + letters[:d].upper()
    bonds = "tuvwxyz"
    terms = [f"{bonds[k]}{letters[k]}{letters[k].upper()}{bonds[k + 1]}" for k in range(d)]
    slopes = []
    for k in range(d):
        others = [terms[j] for j in range(d) if j != k]
        slopes.append(
            np.einsum(
                ",".join([whole, *others]) + "->" + _inner_bonds(terms[k], k, d),
                tensor,
                *(c for j, c in enumerate(cores) if j != k),
                optimize=True,
            )
        )
    return [s.reshape(core.shape) for s, core in zip(slopes, cores, strict=True)]


def _inner_bonds(term: str, k: int, d: int) -> str:
    # The outer bonds have extent 1 and appear in one core alone: they are dropped and put back by a reshape.
    return term[1 if k == 0 else 0 : len(term) - (1 if k == d - 1 else 0)]


def equal_norms(weights: Sequence[Array]) -> list[Array]:
    """Scale the pieces to equal Frobenius norms without changing their product."""
    norms = np.array([np.linalg.norm(w) for w in weights])
    if not np.all(norms > 0):
        return list(weights)
    common = float(np.exp(np.log(norms).mean()))
    return [w * (common / n) for w, n in zip(weights, norms, strict=True)]
