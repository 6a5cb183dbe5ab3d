"""What a factorization method is: NumPy in, NumPy out, a chain of pieces for any layer kind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from lrfgraph.layers.pieces import Piece
from lrfgraph.layers.spec import Array, LayerSpec

__all__ = ["Alike", "Arrays", "Method", "Rank", "parse_rank", "write_rank"]

Rank = tuple[int, ...]
Arrays = dict[str, Array]


class Method(Protocol):
    """One factorization.

    name, version : the version is raised by hand when the numbers change.
    nests : factors of a smaller rank are slices of those of a larger one, so nothing is stored per rank.
    iterates : every rank is found by iterations of its own, which take far longer than what else a candidate costs.
    whitens : which side of the kernel activation-aware weighting may act on: ``row`` (the whole patch),
        ``channel`` (input channels alone) or ``none``.
    ranks_by_unfolding : its ranks are those of the kernel unfolded by inputs and by outputs, or by outputs alone, so
        that a rule which finds the ranks of unfoldings (``evbmf``; Kim et al., ICLR 2016) can name one.
    """

    name: str
    version: int
    nests: bool
    iterates: bool
    whitens: str
    ranks_by_unfolding: bool

    def reason(self, layer: LayerSpec) -> str:
        """Say why the method does not apply to `layer`, or return ``""``."""
        ...

    def prepare(self, layer: LayerSpec, kernel: Array) -> Arrays:
        """Compute what all ranks share from the (possibly weighted) canonical kernel."""
        ...

    def ranks(self, layer: LayerSpec, prepared: Arrays, shares: Sequence[float]) -> list[Rank]:
        """Choose at most one rank for each share of the layer's parameters, ascending, without repeats."""
        ...

    def pieces(self, layer: LayerSpec, rank: Rank) -> tuple[Piece, ...]:
        """Return the shapes of the chain at `rank`."""
        ...

    def factorize(self, layer: LayerSpec, prepared: Arrays, rank: Rank) -> tuple[Array, ...]:
        """Return the weights of the chain, of the shapes that `pieces` says, norms balanced."""
        ...

    def full_rank(self, layer: LayerSpec) -> Rank | None:
        """Return the rank at which the factorization is exact, or ``None`` if there is no such rank."""
        ...


@runtime_checkable
class Alike(Protocol):
    """A method that fits layers of one geometry quicker side by side than one after the other."""

    def factorize_alike(self, layer: LayerSpec, prepared: Sequence[Arrays], rank: Rank) -> list[tuple[Array, ...]]:
        """Return what `Method.factorize` returns of each, bit for bit."""
        ...


def write_rank(rank: Rank) -> str:
    """Write a rank as people read it.

    >>> write_rank((24, 31))
    '24x31'
    """
    return "x".join(map(str, rank))


def parse_rank(text: str) -> Rank:
    """Read what `write_rank` wrote; raises ValueError for anything else."""
    rank = tuple(int(part) for part in str(text).split("x"))
    if min(rank) < 1:
        raise ValueError(f"ranks start at 1, received {text!r}")
    return rank
