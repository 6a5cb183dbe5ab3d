"""A configuration that is used as it is, held against the model before anything runs."""

from __future__ import annotations

from lrfgraph.errors import ConfigurationError
from lrfgraph.layers.spec import LayerSpec
from lrfgraph.methods import METHODS
from lrfgraph.methods.base import parse_rank, write_rank
from lrfgraph.run.driver import Driver
from lrfgraph.run.state import Network, kept_reason, methods_of
from lrfgraph.selection.configuration import read_configuration
from lrfgraph.selection.problem import CandidateId

__all__ = ["given_candidates"]


def given_candidates(driver: Driver, network: Network) -> tuple[CandidateId, ...] | None:
    """Read the configuration that is to be used as it is, if there is one, and hold it against the model."""
    path, recipe = driver.recipe.select.configuration, driver.recipe
    if path is None:
        return None
    layers = {layer.name: layer for layer in network.layers}
    candidates = read_configuration(driver.base / path, list(layers), tuple(METHODS))
    for candidate in candidates:
        layer, method = layers[candidate.layer], candidate.method
        reason = METHODS[method].reason(layer) if layer.kind else layer.kept or "has no kernel"
        if reason:
            raise ConfigurationError(f"configuration {path}: {layer.name}: {method} does not apply ({reason})")
        if kept_reason(layer, recipe) or method not in methods_of(layer, recipe):
            raise ConfigurationError(
                f"configuration {path}: {layer.name}: {method} is excluded by explore.methods or explore.skip; "
                "leave them out"
            )
        _check_rank(path, layer, candidate)
    return tuple(candidates)


def _check_rank(path: str, layer: LayerSpec, candidate: CandidateId) -> None:
    method, rank = METHODS[candidate.method], parse_rank(candidate.rank)
    full = method.full_rank(layer)
    try:
        method.pieces(layer, rank)
        # some methods have chains of several lengths; only like is compared with like
        fits = full is None or len(full) != len(rank) or all(r <= most for r, most in zip(rank, full, strict=True))
    except (ValueError, IndexError, KeyError):
        fits = False
    if not fits:
        most = f", its largest is {write_rank(full)}" if full else ""
        raise ConfigurationError(
            f"configuration {path}: {layer.name}: {method.name} has no rank {candidate.rank}{most}"
        )
