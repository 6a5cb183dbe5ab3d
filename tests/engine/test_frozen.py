"""What travels through the graph and between rooms cannot be changed by who reads it: a key says what it was."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import lrfgraph

ROOMS = ("engine", "images", "layers", "methods", "selection")
GROWING = {"Freed", "Local", "Waiting"}
"""Records of what goes on, made to be changed."""


def records() -> Iterator[type]:
    for room in ROOMS:
        folder = Path(lrfgraph.__file__).parent / room
        for module in pkgutil.walk_packages([str(folder)], f"lrfgraph.{room}."):
            for value in vars(importlib.import_module(module.name)).values():
                own = isinstance(value, type) and value.__module__ == module.name
                if own and dataclasses.is_dataclass(value) and dataclasses.fields(value):
                    yield value


@pytest.mark.parametrize("record", list(records()), ids=lambda r: r.__name__)
def test_records_cannot_be_changed(record: type) -> None:
    bare = object.__new__(record)
    first = dataclasses.fields(record)[0].name
    if record.__name__ in GROWING:
        setattr(bare, first, None)
        return
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(bare, first, None)
