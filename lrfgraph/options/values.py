"""One value of an option: read from text, checked, written as TOML. There is one copy of each of these rules."""

from __future__ import annotations

import difflib
import json
import math
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lrfgraph.errors import RecipeError

__all__ = [
    "BYTES",
    "FUNCTION",
    "IMAGE_SIZE",
    "INTEGER",
    "NAMES",
    "NUMBER",
    "NUMBERS",
    "PATH",
    "SOURCE",
    "SWITCH",
    "TEXT",
    "Kind",
    "names_function",
    "nearest",
    "parse_age",
    "parse_bytes",
    "parse_fraction",
    "parse_toml",
    "read_toml",
    "toml_literal",
    "toml_sections",
]

BYTE_UNITS = {"": 1, "B": 1}
BYTE_UNITS |= {f"{prefix}B": 1000**power for power, prefix in enumerate("KMGT", start=1)}
BYTE_UNITS |= {f"{prefix}IB": 1024**power for power, prefix in enumerate("KMGT", start=1)}
AGE_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
SWITCHES = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
WRITTEN_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


@dataclass(frozen=True)
class Kind:
    """How the values of an option are read and checked.

    name : for messages.  symbol : for the help of a command.  parse : text to value, ValueError where it cannot.
    check : a value from Python or TOML to the value that an option has, ValueError or TypeError where it cannot be
    one.  text : whether a TOML string is parsed as text is on the command line (``"1/255"``, ``"5GB"``).
    place : a value and the folder that its relative paths start from, to the same value wherever one stands.
    """

    name: str
    symbol: str
    parse: Callable[[str], Any]
    check: Callable[[Any], Any]
    text: bool = False
    place: Callable[[Any, Path], Any] = lambda value, _: value


# Text to value ------------------------------------------------------------------------------------------------------


def parse_fraction(text: str) -> float:
    """Read a finite number, which may be a quotient.

    >>> parse_fraction("0.25"), parse_fraction("1/4")
    (0.25, 0.25)
    """
    numerator, slash, denominator = text.partition("/")
    divisor = float(denominator) if slash else 1.0
    if divisor == 0:
        raise ValueError(text)
    return _finite(float(numerator) / divisor)


def parse_bytes(text: str) -> int:
    """Read a number of bytes; GB and its like are powers of 1000, GiB and its like powers of 1024.

    >>> parse_bytes("5GB"), parse_bytes("1.5 MiB"), parse_bytes("100")
    (5000000000, 1572864, 100)
    """
    return int(_with_unit(text.upper(), BYTE_UNITS))


def parse_age(text: str) -> float:
    """Read a number of seconds; the unit is not optional.

    >>> parse_age("30d"), parse_age("12h")
    (2592000.0, 43200.0)
    """
    return _with_unit(text.lower(), AGE_UNITS)


def _with_unit(text: str, units: Mapping[str, int]) -> float:
    match = re.fullmatch(r"\s*([\d.]+(?:E[+-]?\d+)?)\s*([A-Z]*)\s*", text, re.IGNORECASE)
    if match is None or match[2] not in units:
        raise ValueError(text)
    return _finite(float(match[1]) * units[match[2]])


def _parse_switch(text: str) -> bool:
    if text.lower() not in SWITCHES:
        raise ValueError(text)
    return SWITCHES[text.lower()]


def _parse_names(text: str) -> tuple[str, ...]:
    """Read names between commas, or a list as a recipe file has it."""
    if text.startswith("["):
        with suppress(tomllib.TOMLDecodeError):  # a pattern may begin with a bracket, too
            return _names(tomllib.loads(f"names = {text}")["names"])
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _parse_numbers(text: str) -> tuple[float, ...]:
    return tuple(parse_fraction(part) for part in _parse_names(text))


def _parse_image_size(text: str) -> tuple[int, int]:
    height, _, width = text.lower().partition("x")
    return int(height), int(width or height)


# A value from Python or TOML ----------------------------------------------------------------------------------------


def _instance_of(*types: type) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            raise ValueError(value)
        return value

    return check


def _finite(value: Any) -> float:
    number = float(_instance_of(int, float)(value))
    if not math.isfinite(number):
        raise ValueError(value)
    return number


def _function(value: Any) -> str:
    text = str(_instance_of(str)(value))
    if not names_function(text):
        raise ValueError(value)
    return text


def _names(value: Any) -> tuple[str, ...]:
    return tuple(_instance_of(str)(item) for item in _instance_of(list, tuple)(value))


def _numbers(value: Any) -> tuple[float, ...]:
    items = value if isinstance(value, list | tuple) else [value]
    return tuple(parse_fraction(item) if isinstance(item, str) else _finite(item) for item in items)


def _image_size(value: Any) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else _instance_of(list, tuple)(value)
    height, width = (_instance_of(int)(item) for item in pair)
    return height, width


# Paths and functions ------------------------------------------------------------------------------------------------


def names_function(text: str) -> bool:
    """Return whether a text is written ``package.module:function``."""
    return WRITTEN_FUNCTION.fullmatch(text) is not None


def _place_path(value: str, folder: Path) -> str:
    return str((folder / value).absolute())


def _place_source(value: str, folder: Path) -> str:
    return value if names_function(value) and not (folder / value).exists() else _place_path(value, folder)


# The kinds ----------------------------------------------------------------------------------------------------------

TEXT = Kind("text", "TEXT", str, _instance_of(str))
PATH = Kind("text", "PATH", str, _instance_of(str), place=_place_path)
SOURCE = Kind("text", "SOURCE", str, _instance_of(str), place=_place_source)
FUNCTION = Kind("package.module:function", "FUNCTION", _function, _function)
SWITCH = Kind("true or false", "", _parse_switch, _instance_of(bool))
INTEGER = Kind("a whole number", "INTEGER", int, _instance_of(int))
NUMBER = Kind("a number", "NUMBER", parse_fraction, _finite, text=True)
NAMES = Kind("a list of names", "NAMES", _parse_names, _names, text=True)
NUMBERS = Kind("a list of numbers", "NUMBERS", _parse_numbers, _numbers, text=True)
IMAGE_SIZE = Kind("a size as 32 or 32x48", "SIZE", _parse_image_size, _image_size, text=True)
BYTES = Kind("a number of bytes, or text as 5GB", "BYTES", parse_bytes, _instance_of(int), text=True)


# TOML --------------------------------------------------------------------------------------------------------------


def toml_literal(value: Any) -> str:
    """Write text, a truth value, a finite number or a list of such as TOML.

    >>> toml_literal("a\\nb"), toml_literal(True), toml_literal((0.5, 1))
    ('"a\\\\nb"', 'true', '[0.5, 1]')
    """
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(toml_literal, value)) + "]"
    return str(value).lower() if isinstance(value, bool) else repr(value)


def toml_sections(sections: Mapping[str, Mapping[str, Any]]) -> str:
    """Write ``{section: {key: value}}`` as TOML; ``None`` is written as the text ``none``."""
    blocks = []
    for section, values in sections.items():
        lines = [f"{key} = {toml_literal('none' if value is None else value)}" for key, value in values.items()]
        blocks.append("\n".join([f"[{section}]", *lines]))
    return "\n\n".join(blocks) + "\n"


def read_toml(path: str | Path) -> dict[str, Any]:
    """Return what a TOML file says; raises RecipeError."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"recipe {path} cannot be read: {error}; give a TOML file") from None
    return parse_toml(text, str(path))


def parse_toml(text: str, name: str) -> dict[str, Any]:
    """Return what TOML text says; raises RecipeError, in which `name` is that of the text."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{name} is not valid TOML: {error}") from None


# Messages -----------------------------------------------------------------------------------------------------------


def nearest(value: str, names: Iterable[str]) -> str:
    """Return ``, did you mean 'name'?`` for the name most like a value, or ``""`` where none is like it."""
    close = difflib.get_close_matches(value, list(names), n=1, cutoff=0.5)
    return f", did you mean {close[0]!r}?" if close else ""
