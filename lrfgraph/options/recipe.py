"""The recipe: every option of a run, one frozen class per section.

A TOML file, the command line and Python fill the same classes, so a value is checked in one place whatever way
it came. Names that live in other modules' tables (methods, policies, metrics) are checked where the table is,
with `check_choice`.
"""

from __future__ import annotations

import difflib
import json
import math
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import MISSING, Field, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar, cast

from lrfgraph.errors import RecipeError

__all__ = [
    "DataOptions",
    "ExploreOptions",
    "FinetuneOptions",
    "ModelOptions",
    "Option",
    "Recipe",
    "RecordOptions",
    "RepairOptions",
    "RunOptions",
    "SelectOptions",
    "SimilarityOptions",
    "check_choice",
    "fields_of",
]

T = TypeVar("T")

NOTHING = ("", "none", "auto")
BYTE_UNITS = {"TB": 10**12, "GB": 10**9, "MB": 10**6, "KB": 10**3, "B": 1}


@dataclass(frozen=True)
class Kind:
    """How the values of an option are read, checked and written.

    name : for messages.  parse : text to value, ValueError where it cannot.  check : a Python or TOML value to
    the value that is kept, ValueError where the type is wrong.  write : value to a TOML literal.
    text : whether a TOML string is parsed as text is on the command line (``"1/255"``, ``"5GB"``).
    """

    name: str
    parse: Callable[[str], Any]
    check: Callable[[Any], Any]
    write: Callable[[Any], str] = repr
    text: bool = False


def _of(*types: type) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            raise ValueError(value)
        return value

    return check


def _number(text: str) -> float:
    above, _, below = text.partition("/")
    if below and float(below) == 0:
        raise ValueError(text)
    return _finite(float(above) / float(below) if below else float(above))


def _finite(value: Any) -> float:
    number = float(_of(int, float)(value))
    if not math.isfinite(number):
        raise ValueError(value)
    return number


def _switch(text: str) -> bool:
    words = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
    if text.lower() not in words:
        raise ValueError(text)
    return words[text.lower()]


def _names(text: str) -> tuple[str, ...]:
    """Names between commas, or a list as a recipe file has it."""
    if text.startswith("["):
        with suppress(tomllib.TOMLDecodeError):  # a pattern may begin with a bracket, too
            return _checked_names(tomllib.loads(f"names = {text}")["names"])
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _checked_names(value: Any) -> tuple[str, ...]:
    return tuple(_of(str)(item) for item in _of(list, tuple)(value))


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(_number(part) for part in _names(text))


def _checked_numbers(value: Any) -> tuple[float, ...]:
    several = value if isinstance(value, list | tuple) else [value]
    return tuple(_number(item) if isinstance(item, str) else _finite(item) for item in several)


def _image_size(text: str) -> tuple[int, int]:
    height, _, width = text.lower().partition("x")
    return int(height), int(width or height)


def _checked_image_size(value: Any) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else _of(list, tuple)(value)
    height, width = (_of(int)(item) for item in pair)
    return height, width


def _bytes(text: str) -> int:
    upper = text.strip().upper().replace("IB", "B")
    unit = next((unit for unit in BYTE_UNITS if upper.endswith(unit)), "")
    return round(float(upper.removesuffix(unit)) * BYTE_UNITS.get(unit, 1))


def _quoted(value: Any) -> str:
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")


def _list_of(write: Callable[[Any], str]) -> Callable[[Any], str]:
    return lambda values: "[" + ", ".join(map(write, values)) + "]"


TEXT = Kind("text", str, _of(str), _quoted)
SWITCH = Kind("true or false", _switch, _of(bool), lambda value: str(value).lower())
INTEGER = Kind("a whole number", int, _of(int))
NUMBER = Kind("a number", _number, _finite, text=True)
NAMES = Kind("a list of names", _names, _checked_names, _list_of(_quoted), text=True)
NUMBERS = Kind("a list of numbers", _numbers, _checked_numbers, _list_of(repr), text=True)
IMAGE_SIZE = Kind("a size as 32 or 32x48", _image_size, _checked_image_size, _list_of(repr), text=True)
BYTES = Kind("a number of bytes, or text as 5GB", _bytes, _of(int), text=True)


@dataclass(frozen=True)
class Option:
    """One option as the command line, the documentation and the tests see it.

    optional : whether ``none`` (or ``auto``) is a value.  low, high : inclusive, above : exclusive bound.
    """

    section: str
    name: str
    kind: Kind
    default: Any
    help: str
    choices: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None
    above: float | None = None
    whole_from: float | None = None
    optional: bool = False

    @property
    def key(self) -> str:
        return f"{self.section}.{self.name}"

    @property
    def type(self) -> str:
        """What values the option takes, in words."""
        return self.kind.name + (", or none" if self.optional else "")

    @property
    def allowed(self) -> str:
        """The choices or the range, in words; empty where the kind says it all."""
        bounds = (("above", self.above), ("at least", self.low), ("at most", self.high))
        said = [f"{word} {bound:g}" for word, bound in bounds if bound is not None]
        if self.whole_from is not None:
            said = [f"a share above {self.above:g} and below 1, or a count of at least {self.whole_from:g}"]
        return " | ".join(self.choices) or " and ".join(said)

    def read(self, text: str) -> Any:
        """Return the value that `text` says; raises RecipeError."""
        if self.optional and text.strip().lower() in NOTHING:
            return None
        try:
            return self.check(self.kind.parse(text.strip()))
        except (ValueError, OverflowError):
            raise self._wrong(text) from None

    def check(self, value: Any) -> Any:
        """Return `value` as it is kept (lists as tuples, whole numbers as floats where those are meant)."""
        if value is None and self.optional:
            return None
        if isinstance(value, str) and (self.kind.text or (self.optional and value.lower() in NOTHING)):
            return self.read(value)
        try:
            kept = self.kind.check(value)
        except (ValueError, TypeError):
            raise self._wrong(value) from None
        if self.choices:
            check_choice(self.section, self.name, kept, self.choices)
        for number in kept if isinstance(kept, tuple) else (kept,):
            if not isinstance(number, str) and not self._in_range(number):
                raise self._wrong(value)
        return kept

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


def check_choice(section: str, key: str, value: str, choices: Iterable[str]) -> str:
    """Return `value` if it is one of `choices`; raises RecipeError that names the nearest and lists all."""
    names = list(choices)
    if value in names:
        return value
    raise RecipeError(f"[{section}] {key}: {value!r} is unknown{_nearest(str(value), names)}choose from {_join(names)}")


def _nearest(value: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(value, list(names), n=1, cutoff=0.5)
    return f", did you mean {close[0]!r}? " if close else "; "


def _join(names: Iterable[str]) -> str:
    return ", ".join(names)


def _option(default: T, kind: Kind, help: str, **limits: Any) -> T:
    # Typed as the default so that type checkers see the class as they would with a plain default.
    return field(default=default, metadata={"kind": kind, "help": help, **limits})


class _Section:
    """Checks every field on the way in, whoever builds the class."""

    def __post_init__(self) -> None:
        for entry in fields(cast(Any, self)):
            option = _as_option(type(self).SECTION, entry)  # type: ignore[attr-defined]
            object.__setattr__(self, entry.name, option.check(getattr(self, entry.name)))


def _as_option(section: str, entry: Field[Any]) -> Option:
    limits = dict(entry.metadata)
    return Option(section, entry.name, limits.pop("kind"), entry.default, limits.pop("help"), **limits)


@dataclass(frozen=True)
class ModelOptions(_Section):
    """How the model file is opened."""

    SECTION = "model"
    custom: tuple[str, ...] = _option((), NAMES, "Custom objects the model needs, as package.module:name")
    architecture: str | None = _option(
        None, TEXT, "Model JSON that belongs to a file that holds weights alone", optional=True
    )
    unsafe: bool = _option(False, SWITCH, "Open files that carry code to be run, such as Lambda layers")


@dataclass(frozen=True)
class DataOptions(_Section):
    """Where the images are, what is done to them before the network sees them, and how they are divided."""

    SECTION = "data"
    source: str | None = _option(
        None, TEXT, "Images: a .npz file, a folder of class folders, or package.module:function", optional=True
    )
    scale: float | None = _option(None, NUMBER, "Factor that pixel values are multiplied with, as 1/255", optional=True)
    mean: tuple[float, ...] | None = _option(None, NUMBERS, "Mean per channel, subtracted after scaling", optional=True)
    std: tuple[float, ...] | None = _option(
        None, NUMBERS, "Standard deviation per channel, divided by after the mean", optional=True, above=0
    )
    stats: str | None = _option(
        None, TEXT, "A .npz file with arrays mean and std of the image's shape, used like mean and std", optional=True
    )
    channels: str = _option("rgb", TEXT, "Order of colours that the network expects", choices=("rgb", "bgr"))
    image_size: tuple[int, int] | None = _option(
        None, IMAGE_SIZE, "Height and width that images from folders are resized to", optional=True, low=1
    )
    calibration: int = _option(1024, INTEGER, "Images that activations are recorded from", low=1)
    validation: float = _option(
        0.1, NUMBER, "Part of the training images held out for decisions, at most 5000", above=0, whole_from=2
    )
    split: str = _option(
        "stratified",
        TEXT,
        "How images are held out: spread over each class, or in runs of neighbours (video tracks)",
        choices=("stratified", "blocks"),
    )
    seed: int = _option(0, INTEGER, "Seed of the division into calibration, validation and training", low=0)
    head: str = _option("auto", TEXT, "What the network's output means: auto, or a row of the table of heads")
    allow_chance: bool = _option(False, SWITCH, "Go on although the model is no better than chance on these images")


@dataclass(frozen=True)
class RecordOptions(_Section):
    """What is kept of the activations."""

    SECTION = "record"
    rows: int = _option(8192, INTEGER, "Rows of each layer that are kept", low=2)
    moment_rows: int = _option(32768, INTEGER, "Rows of each layer that its moments are summed over", low=2)
    max_rows_bytes: int = _option(67108864, BYTES, "Size that the kept rows of one layer may have", low=1024)
    seed: int = _option(0, INTEGER, "Seed of the sample of rows", low=0)


@dataclass(frozen=True)
class ExploreOptions(_Section):
    """Which candidates are made."""

    SECTION = "explore"
    methods: tuple[str, ...] = _option((), NAMES, "Factorization methods to try; empty for all that apply")
    ranks: int = _option(24, INTEGER, "Ranks tried per layer and method", low=1, high=4096)
    smallest: float = _option(0.01, NUMBER, "Smallest share of a layer's parameters that is tried", above=0, high=1)
    largest: float = _option(1.0, NUMBER, "Largest share of a layer's parameters that is tried", above=0, high=1)
    weighting: str = _option(
        "two_sided",
        TEXT,
        "What factors minimise: the kernel's error, the output's, or the network's",
        choices=("plain", "input", "two_sided"),
    )
    skip: tuple[str, ...] = _option((), NAMES, "Layers left as they are, as name patterns (conv1*, head/dense)")
    multiple: int = _option(1, INTEGER, "Ranks are multiples of this number", low=1)


@dataclass(frozen=True)
class SimilarityOptions(_Section):
    """How a candidate is compared with its layer."""

    SECTION = "similarity"
    metric: str = _option("cosine", TEXT, "Similarity of a candidate's outputs to its layer's")
    tap: str = _option(
        "linear", TEXT, "Where outputs are compared: before or after the activation", choices=("linear", "activation")
    )


@dataclass(frozen=True)
class SelectOptions(_Section):
    """How one candidate per layer is picked."""

    SECTION = "select"
    policy: str = _option("accuracy", TEXT, "Rule that picks one candidate per layer")
    min_similarity: float = _option(0.97, NUMBER, "Similarity that a candidate must reach", low=0, high=1)
    cost: str = _option("parameters", TEXT, "What is to become small", choices=("parameters", "macs", "mix"))
    mix: float = _option(0.5, NUMBER, "Weight of the parameters where the cost is a mix", low=0, high=1)
    params: float | None = _option(
        None, NUMBER, "Share of the parameters that may be kept", optional=True, above=0, high=1
    )
    macs: float | None = _option(None, NUMBER, "Share of the MACs that may be kept", optional=True, above=0, high=1)
    max_drop: float = _option(1.0, NUMBER, "Points of accuracy that may be lost on validation", low=0, high=100)
    configuration: str | None = _option(None, TEXT, "A hybrid.toml to be used in place of a policy", optional=True)
    point: int | None = _option(None, INTEGER, "Number of the point on the front to be taken", optional=True, low=0)
    points: int = _option(12, INTEGER, "Points of the front that are measured", low=2, high=200)
    probes: int = _option(
        0, INTEGER, "Candidates of each layer whose effect on the network's output is measured", low=0, high=100
    )
    refine: int = _option(
        0, INTEGER, "Exchanges between layers that are tried, each judged after repair", low=0, high=1000
    )


@dataclass(frozen=True)
class RepairOptions(_Section):
    """How factors are refitted with the whole network in view, without labels."""

    SECTION = "repair"
    enabled: bool = _option(True, SWITCH, "Refit the factors to the original's activations, layer by layer")
    images: int = _option(3072, INTEGER, "Images the refit is made from", low=1)
    rows: int = _option(65536, INTEGER, "Rows of each layer that the refit sees", low=2)
    rounds: int = _option(3, INTEGER, "Further rounds where a ReLU follows", low=0, high=100)
    steps: int = _option(250, INTEGER, "Solver steps per layer and round", low=1)
    ridge: float = _option(0.001, NUMBER, "Regularization, in parts of the moments' mean diagonal", low=0)


@dataclass(frozen=True)
class FinetuneOptions(_Section):
    """The one training of the whole compressed network."""

    SECTION = "finetune"
    epochs: int = _option(10, INTEGER, "Passes over the training images; 0 for none", low=0)
    batch: int = _option(128, INTEGER, "Images per step", low=1)
    learning_rate: float = _option(3e-4, NUMBER, "Learning rate of the first step, falls to 0 as a cosine", above=0)
    alpha: float = _option(0.9, NUMBER, "Weight of the original network's answers against the labels", low=0, high=1)
    temperature: float = _option(2.0, NUMBER, "Temperature at which answers are compared", above=0)
    crop: int = _option(0, INTEGER, "Pixels that images are shifted by at random", low=0)
    flip: bool = _option(False, SWITCH, "Mirror images left to right at random")
    labels: bool = _option(True, SWITCH, "Use labels where there are any")
    weight_decay: float = _option(0.0, NUMBER, "Decoupled weight decay of kernels that are no factors", low=0)
    seed: int = _option(0, INTEGER, "Seed of the order of images and of their shifts", low=0)


@dataclass(frozen=True)
class RunOptions(_Section):
    """Where and how the work is done; none of it changes a result."""

    SECTION = "run"
    cache: str = _option("cache", TEXT, "Folder of the cache")
    out: str | None = _option(None, TEXT, "Folder for the results", optional=True)
    workers: int = _option(0, INTEGER, "Processes to work with; 0 for threads in this one", low=0)
    scheduler: str | None = _option(None, TEXT, "Address of a Dask scheduler, as tcp://host:8786", optional=True)
    threads: int = _option(2, INTEGER, "Threads per process", low=1)
    max_memory: int | None = _option(None, BYTES, "Memory that live activations may take", optional=True, low=1)
    max_cache: int | None = _option(None, BYTES, "Size that the cache may grow to", optional=True, low=1)
    until: str | None = _option(None, TEXT, "Kind of node to stop after", optional=True)


@dataclass(frozen=True)
class Recipe:
    """All sections; a section left out keeps its defaults."""

    model: ModelOptions = field(default_factory=ModelOptions)
    data: DataOptions = field(default_factory=DataOptions)
    record: RecordOptions = field(default_factory=RecordOptions)
    explore: ExploreOptions = field(default_factory=ExploreOptions)
    similarity: SimilarityOptions = field(default_factory=SimilarityOptions)
    select: SelectOptions = field(default_factory=SelectOptions)
    repair: RepairOptions = field(default_factory=RepairOptions)
    finetune: FinetuneOptions = field(default_factory=FinetuneOptions)
    run: RunOptions = field(default_factory=RunOptions)

    @classmethod
    def from_toml(cls, path: str | Path) -> Recipe:
        """Read a recipe file; raises RecipeError if it is missing, is no TOML, or says something unknown."""
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"recipe {path} cannot be read: {error}; give a TOML file") from None
        return cls.from_text(text, str(path))

    @classmethod
    def from_text(cls, text: str, name: str = "recipe") -> Recipe:
        """Read a recipe from TOML text."""
        try:
            return cls.from_dict(tomllib.loads(text))
        except tomllib.TOMLDecodeError as error:
            raise RecipeError(f"{name} is not valid TOML: {error}") from None

    @classmethod
    def from_dict(cls, sections: Mapping[str, Any]) -> Recipe:
        """Build a recipe from ``{section: {key: value}}``."""
        table = _table(cls)
        made = {}
        for section, values in sections.items():
            if section not in table:
                raise RecipeError(f"section [{section}] is unknown{_nearest(section, table)}choose from {_join(table)}")
            if not isinstance(values, Mapping):
                raise RecipeError(f"[{section}] must be a section of keys and values; received {values!r}")
            for key in values:
                _known(table[section], section, key)
            made[section] = type(getattr(cls(), section))(**values)
        return cls(**made)

    def with_option(self, key: str, value: Any) -> Recipe:
        """Return a copy in which option ``section.key`` has this value; text is parsed by the option's kind."""
        table = _table(type(self))
        section, _, name = key.partition(".")
        if not name or section not in table:
            every = [option.key for options in table.values() for option in options.values()]
            same_name = [known for known in every if known.endswith("." + key)]
            hint = f", did you mean {same_name[0]!r}? " if same_name else _nearest(key, every)
            raise RecipeError(f"option {key!r} is unknown{hint}sections are {_join(table)}")
        option = _known(table[section], section, name)
        kept = option.read(value) if isinstance(value, str) else option.check(value)
        return replace(self, **{section: replace(getattr(self, section), **{name: kept})})

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Return ``{section: {key: value}}``, tuples as they are."""
        return asdict(self)

    def to_toml(self) -> str:
        """Write every option as TOML that `from_toml` reads back to an equal recipe."""
        blocks = []
        for section, options in _table(type(self)).items():
            lines = [f"[{section}]"]
            for name, option in options.items():
                value = getattr(getattr(self, section), name)
                lines.append(f"{name} = " + ('"none"' if value is None else option.kind.write(value)))
            blocks.append("\n".join(lines))
        return "\n\n".join(blocks) + "\n"


def fields_of(recipe: type[Recipe] = Recipe) -> Iterator[Option]:
    """Iterate over all options in the order in which they are declared."""
    for section in fields(recipe):
        assert section.default_factory is not MISSING
        for entry in fields(section.default_factory()):
            yield _as_option(section.name, entry)


def _table(recipe: type[Recipe]) -> dict[str, dict[str, Option]]:
    table: dict[str, dict[str, Option]] = {}
    for option in fields_of(recipe):
        table.setdefault(option.section, {})[option.name] = option
    return table


def _known(options: Mapping[str, Option], section: str, key: str) -> Option:
    if key not in options:
        raise RecipeError(f"[{section}] {key!r} is unknown{_nearest(key, options)}choose from {_join(options)}")
    return options[key]
