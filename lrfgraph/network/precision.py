"""Models whose layers compute in half precision: what is recorded, solved for and learned is computed in float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["is_half", "rounding", "single_precision", "to_single_precision"]

HALVES = {"float16": 2.0**-11, "bfloat16": 2.0**-8}
"""Relative rounding error by type."""


def _half_layers(model: Any) -> list[Any]:
    return [layer for layer in model._flatten_layers() if layer.compute_dtype in HALVES]


def is_half(model: Any) -> bool:
    """Whether any layer of a model computes in half precision."""
    return bool(_half_layers(model))


def rounding(model: Any) -> float:
    """Return the relative rounding error of the coarsest half precision in a model, 0 where there is none."""
    return max((HALVES[layer.compute_dtype] for layer in _half_layers(model)), default=0.0)


def to_single_precision(model: Any) -> Any:
    """Let all layers of a model compute in float32, for good; variables stay what they are."""
    for layer in _half_layers(model):
        layer.dtype_policy = "float32"
    return model


@contextmanager
def single_precision(model: Any) -> Iterator[None]:
    """Let all layers of a model compute in float32, and afterwards as they did."""
    policies = [(layer, layer.dtype_policy) for layer in _half_layers(model)]
    to_single_precision(model)
    try:
        yield
    finally:
        for layer, policy in policies:
            layer.dtype_policy = policy
