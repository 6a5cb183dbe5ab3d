"""A configuration as a file: hybrid.toml, written by a run, edited by hand, fed back with ``--configuration``."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lrfgraph.errors import ConfigurationError
from lrfgraph.options.values import nearest, toml_literal
from lrfgraph.selection.problem import CandidateId, Choice

__all__ = ["KEEP", "read_configuration", "write_configuration"]

KEEP = "keep"


def write_configuration(network: str, choices: Sequence[Choice]) -> str:
    """Return TOML with one table per layer; a kept layer carries its reason as a comment."""
    lines = ['# One table per layer; method = "keep" leaves a layer unfactorized.', f"model = {toml_literal(network)}"]
    for choice in choices:
        lines += ["", f"[layers.{toml_literal(choice.layer)}]"]
        if choice.id is not None:
            lines += [f"method = {toml_literal(choice.id.method)}", f"rank = {toml_literal(choice.id.rank)}"]
        else:
            lines += [f"method = {toml_literal(KEEP)}  # {choice.reason}"]
    return "\n".join(lines) + "\n"


def read_configuration(path: str | Path, layers: Sequence[str], methods: Sequence[str]) -> list[CandidateId]:
    """Return the candidate of every layer that is not kept; raises ConfigurationError.

    Layers that the file does not name are kept. Whether a rank is possible is for the method to say.
    """
    try:
        whole = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigurationError(f"configuration {path} cannot be read: {error}; give a hybrid.toml") from None
    tables = whole.get("layers", {})
    for name in whole.keys() - {"layers", "model"}:
        raise ConfigurationError(f"configuration {path}: {name!r} is unknown; layers are tables [layers.NAME]")
    if not isinstance(tables, Mapping):
        raise ConfigurationError(f"configuration {path}: [layers] must hold one table per layer")
    chosen = []
    for layer, table in tables.items():
        if layer not in layers:
            raise ConfigurationError(f"configuration {path}: the model has no layer {layer!r}{nearest(layer, layers)}")
        for key in table.keys() - {"method", "rank"} if isinstance(table, Mapping) else ():
            raise ConfigurationError(f"configuration {path}: {layer}: {key!r} is unknown; a layer has method and rank")
        method = table.get("method") if isinstance(table, Mapping) else None
        if method == KEEP:
            continue
        if method not in methods:
            choices = f"method {method!r} is unknown{nearest(str(method), methods) or ';'} choose from"
            raise ConfigurationError(f"configuration {path}: {layer}: {choices} {', '.join([*methods, KEEP])}")
        chosen.append(CandidateId(layer, str(method), _rank(path, layer, table.get("rank"))))
    return chosen


def _rank(path: str | Path, layer: str, value: Any) -> str:
    text = str(value).replace(" ", "")
    if not all(part.isdigit() and int(part) > 0 for part in text.split("x")):
        raise ConfigurationError(
            f'configuration {path}: {layer}: rank must be written as "8" or "24x31", received {value!r}'
        )
    return text
