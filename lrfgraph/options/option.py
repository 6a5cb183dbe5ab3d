"""An option: a field of a section, with all that the command line, the checks and the documentation need of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any, ClassVar, TypeVar

from lrfgraph.errors import RecipeError
from lrfgraph.options.values import Kind, nearest

__all__ = [
    "ON",
    "SET",
    "WITH_IMAGES",
    "Option",
    "Section",
    "check_choice",
    "find",
    "holds",
    "is_unknown",
    "option",
    "options_of",
]

T = TypeVar("T")

NOTHING = ("", "none", "auto")

SET = object()
"""In `Option.only_if`: any value but none, false and 0."""

ON = object()
"""In `Option.only_if`: any value but false and 0; none, which is auto, is one."""

WITH_IMAGES = {"data.source": SET}


def holds(needed: Any, value: Any) -> bool:
    """Whether the value of another option is what `Option.only_if` needs: that value, or any of `SET` or `ON`."""
    if needed is SET or needed is ON:
        return bool(value) or (needed is ON and value is None)
    return bool(value == needed)


@dataclass(frozen=True)
class Option:
    """One option of a recipe.

    choices : all values, where they are few.  low, high : inclusive, above : exclusive bound.  whole_from : from 1 on
    values are whole numbers, and at least this.
    flag : short form of ``--set section.key=value``.  looking : whether a command that only looks at a model reads it.
    only_if : what other options must say for this one to have an effect, by key; see `holds`.
    runs_code : whether a value lets code be run that is not lrfgraph's; only who runs a command may say such a value.
    """

    section: str
    name: str
    default: Any
    kind: Kind
    help: str
    choices: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None
    above: float | None = None
    whole_from: float | None = None
    flag: str = ""
    looking: bool = False
    only_if: Mapping[str, Any] = field(default_factory=dict)
    runs_code: Callable[[Any], bool] = field(default=lambda _: False)

    @property
    def key(self) -> str:
        return f"{self.section}.{self.name}"

    @property
    def optional(self) -> bool:
        """Whether ``none`` (or ``auto``) is a value."""
        return self.default is None

    @property
    def type(self) -> str:
        """What values the option takes, in words."""
        return self.kind.name + (", or none" if self.optional else "")

    @property
    def allowed(self) -> str:
        """The choices or the range, in words; empty where the kind says it all."""
        bounds = (("above", self.above), ("at least", self.low), ("at most", self.high))
        words = [f"{word} {bound:g}" for word, bound in bounds if bound is not None]
        if self.whole_from is not None:
            words = [f"a share above {self.above:g} and below 1, or a count of at least {self.whole_from:g}"]
        return " | ".join(self.choices) or " and ".join(words)

    def read(self, text: str) -> Any:
        """Return the value that a text stands for; raises RecipeError."""
        if self.optional and text.strip().lower() in NOTHING:
            return None
        try:
            return self.check(self.kind.parse(text.strip()))
        except (ValueError, OverflowError):
            raise self._wrong(text) from None

    def check(self, value: Any) -> Any:
        """Return a value as the option has it (lists as tuples, whole numbers as floats where those are meant)."""
        if value is None and self.optional:
            return None
        if isinstance(value, str) and (self.kind.text or (self.optional and value.lower() in NOTHING)):
            return self.read(value)
        try:
            checked = self.kind.check(value)
        except (ValueError, TypeError):
            raise self._wrong(value) from None
        if self.choices:
            check_choice(self.section, self.name, checked, self.choices)
        for number in checked if isinstance(checked, tuple) else (checked,):
            if not isinstance(number, str) and not self._in_range(number):
                raise self._wrong(value)
        return checked

    def _in_range(self, number: float) -> bool:
        if self.whole_from is not None and number >= 1:
            return number >= self.whole_from and number == int(number)
        return (
            (self.low is None or number >= self.low)
            and (self.high is None or number <= self.high)
            and (self.above is None or number > self.above)
        )

    def _wrong(self, value: Any) -> RecipeError:
        allowed = f", {self.allowed}" if self.allowed else ""
        return RecipeError(f"[{self.section}] {self.name} must be {self.type}{allowed}; received {value!r}")


def option(default: T, kind: Kind, help: str, **attributes: Any) -> T:
    """Declare an option as the field of a section; `attributes` are those of `Option`."""
    # Typed as the default so that type checkers see the class as they would with a plain default.
    return field(default=default, metadata={"kind": kind, "help": help, **attributes})


@dataclass(frozen=True)
class Section:
    """A group of options; every value is checked, whoever builds the class."""

    SECTION: ClassVar[str]
    ONLY_IF: ClassVar[Mapping[str, Any]] = {}
    """`Option.only_if` of the options that do not say it themselves."""

    def __post_init__(self) -> None:
        for entry in options_of(type(self)).values():
            object.__setattr__(self, entry.name, entry.check(getattr(self, entry.name)))


def options_of(section: type[Section]) -> Mapping[str, Option]:
    """Return the options of a section by name, in the order in which they are declared."""
    return _options_of(section)  # type: ignore[arg-type]  # a class is hashable


@cache
def _options_of(section: type[Section]) -> Mapping[str, Option]:
    common = {"only_if": section.ONLY_IF}
    return {
        entry.name: Option(section.SECTION, entry.name, entry.default, **{**common, **entry.metadata})
        for entry in fields(section)
    }


def check_choice(section: str, key: str, value: str, choices: Iterable[str]) -> str:
    """Return `value` if it is one of `choices`; raises RecipeError that names the nearest and lists all."""
    names = list(choices)
    if value in names:
        return value
    raise RecipeError(f"[{section}] {key}: {value!r} {is_unknown(str(value), names)}")


def find(key: str, options: Mapping[str, Option]) -> Option:
    """Return the option ``section.key``; raises RecipeError that names the nearest where there is none."""
    section, _, name = key.partition(".")
    sections = list(dict.fromkeys(other.section for other in options.values()))
    if key in options:
        return options[key]
    if name and section in sections:
        names = [other.name for other in options.values() if other.section == section]
        raise RecipeError(f"[{section}] {name!r} {is_unknown(name, names)}")
    same_name = [other for other in options if other.endswith("." + key)]
    hint = f", did you mean {same_name[0]!r}?" if same_name else nearest(key, options) or ";"
    raise RecipeError(f"option {key!r} is unknown{hint} sections are {', '.join(sections)}")


def is_unknown(value: str, names: Iterable[str]) -> str:
    """Say, after a value, that it is none of `names`, which is the nearest, and which there are."""
    names = list(names)
    return f"is unknown{nearest(value, names) or ';'} choose from {', '.join(names)}"
