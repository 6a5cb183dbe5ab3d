"""The recipe: every option of a run, one frozen class per section.

A TOML file, the command line and Python fill the same classes, so a value is checked in one place whatever way
it came. Names that live in other modules' tables (methods, policies, metrics) are checked where the table is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from lrfgraph.errors import RecipeError
from lrfgraph.options.dprp import DprpOptions
from lrfgraph.options.finetuning import FinetuneOptions
from lrfgraph.options.option import WITH_IMAGES, Option, Section, find, is_unknown, option, options_of
from lrfgraph.options.pruning import PruneOptions
from lrfgraph.options.running import RunOptions
from lrfgraph.options.values import (
    BYTES,
    FUNCTION,
    IMAGE_SIZE,
    INTEGER,
    NAMES,
    NUMBER,
    NUMBERS,
    PATH,
    SOURCE,
    SWITCH,
    TEXT,
    names_function,
    parse_toml,
    read_toml,
    toml_sections,
)  # fmt: skip

__all__ = [
    "OPTIONS", "DataOptions", "ExploreOptions", "FinetuneOptions", "ModelOptions", "Recipe", "RecordOptions",
    "RepairOptions", "RunOptions", "SelectOptions", "SimilarityOptions",
]  # fmt: skip

HELD_OUT = {**WITH_IMAGES, "data.val": None}
WITH_REPAIR = {"repair.enabled": True}
CHOOSING = {"select.configuration": None}


@dataclass(frozen=True)
class ModelOptions(Section):
    """How the model file is opened."""

    SECTION = "model"
    custom: tuple[str, ...] = option(
        (), NAMES, "Custom objects of the model, as package.module:name", flag="--custom", looking=True, runs_code=bool
    )
    architecture: str | None = option(
        None, PATH, "Model JSON that belongs to a file that holds weights alone", flag="--architecture", looking=True
    )
    unsafe: bool = option(
        False,
        SWITCH,
        "Open files that carry code to be run, such as Lambda layers",
        flag="--unsafe",
        looking=True,
        runs_code=bool,
    )


@dataclass(frozen=True)
class DataOptions(Section):
    """Where the images are, what is done to them before the network sees them, and how they are divided."""

    SECTION = "data"
    ONLY_IF = WITH_IMAGES
    source: str | None = option(
        None,
        SOURCE,
        "Images: a .npz file, a folder of class folders, or package.module:function",
        flag="--data",
        only_if={},
        runs_code=names_function,
    )
    val: str | None = option(
        None,
        SOURCE,
        "Images that the network was not trained on, to decide on: like --data; else a part of the training images",
        flag="--val",
        runs_code=names_function,
    )
    scale: float | None = option(None, NUMBER, "Factor that pixel values are multiplied with, as 1/255", flag="--scale")
    mean: tuple[float, ...] | None = option(None, NUMBERS, "Mean per channel, subtracted after scaling", flag="--mean")
    std: tuple[float, ...] | None = option(
        None, NUMBERS, "Standard deviation per channel, divided by after the mean", above=0, flag="--std"
    )
    stats: str | None = option(
        None, PATH, "A .npz file with arrays mean and std of the image's shape, used like mean and std", flag="--stats"
    )
    channels: str = option(
        "rgb", TEXT, "Order of colours that the network expects", choices=("rgb", "bgr"), flag="--channels"
    )
    image_size: tuple[int, int] | None = option(
        None,
        IMAGE_SIZE,
        "Height and width that images from folders are resized to",
        low=1,
        flag="--image-size",
        only_if={},
    )
    calibration: int = option(1024, INTEGER, "Images that activations are recorded from", low=1)
    validation: float = option(
        0.1,
        NUMBER,
        "Part of the training images held out for decisions, at most 5000",
        above=0,
        whole_from=2,
        only_if=HELD_OUT,
    )
    split: str = option(
        "stratified",
        TEXT,
        "How images are held out: spread over each class, or in runs of neighbours (video tracks)",
        choices=("stratified", "blocks"),
        only_if=HELD_OUT,
    )
    seed: int = option(0, INTEGER, "Seed of the division into calibration, validation and training", low=0)
    head: str = option("auto", TEXT, "What the network's output means: auto, or a row of the table of heads")
    metric: str | None = option(
        None,
        FUNCTION,
        "Measure that decides, as package.module:function(targets, outputs); larger is better",
        flag="--metric",
        runs_code=bool,
    )
    allow_chance: bool = option(False, SWITCH, "Go on although the model is no better than chance on these images")


@dataclass(frozen=True)
class RecordOptions(Section):
    """What is kept of the activations."""

    SECTION = "record"
    ONLY_IF = WITH_IMAGES
    rows: int = option(8192, INTEGER, "Rows of each layer that are kept", low=2)
    moment_rows: int = option(32768, INTEGER, "Rows of each layer that its moments are summed over", low=2)
    max_rows_bytes: int = option(67108864, BYTES, "Size that the kept rows of one layer may have", low=1024)
    seed: int = option(0, INTEGER, "Seed of the sample of rows", low=0)


@dataclass(frozen=True)
class ExploreOptions(Section):
    """Which candidates are made."""

    SECTION = "explore"
    methods: tuple[str, ...] = option(
        (), NAMES, "Factorization methods to try; empty for all that apply", flag="--methods", looking=True
    )
    ranks: int = option(24, INTEGER, "Ranks tried per layer and method", low=1, high=4096, only_if=CHOOSING)
    smallest: float = option(
        0.01, NUMBER, "Smallest share of a layer's parameters that is tried", above=0, high=1, only_if=CHOOSING
    )
    largest: float = option(
        1.0, NUMBER, "Largest share of a layer's parameters that is tried", above=0, high=1, only_if=CHOOSING
    )
    weighting: str = option(
        "two_sided",
        TEXT,
        "What factors minimise: the kernel's error, the output's, or the network's",
        choices=("plain", "input", "two_sided"),
        only_if=WITH_IMAGES,
    )
    skip: tuple[str, ...] = option(
        (), NAMES, "Layers left as they are, as name patterns (conv1*, head/dense)", looking=True
    )
    multiple: int = option(1, INTEGER, "Ranks are multiples of this number", low=1, only_if=CHOOSING)


@dataclass(frozen=True)
class SimilarityOptions(Section):
    """How a candidate is compared with its layer."""

    SECTION = "similarity"
    metric: str = option("cosine", TEXT, "Similarity of a candidate's outputs to its layer's")
    tap: str = option(
        "linear",
        TEXT,
        "Where outputs are compared: before or after the activation",
        choices=("linear", "activation"),
        only_if=WITH_IMAGES,
    )


@dataclass(frozen=True)
class SelectOptions(Section):
    """How one candidate per layer is picked."""

    SECTION = "select"
    policy: str = option("accuracy", TEXT, "Rule that picks one candidate per layer", flag="--policy")
    min_similarity: float = option(
        0.97,
        NUMBER,
        "Similarity that a candidate must reach",
        low=0,
        high=1,
        flag="--min-similarity",
        only_if={"select.params": None, "select.macs": None},
    )
    cost: str = option("parameters", TEXT, "What is to become small", choices=("parameters", "macs", "mix"))
    mix: float = option(
        0.5, NUMBER, "Weight of the parameters where the cost is a mix", low=0, high=1, only_if={"select.cost": "mix"}
    )
    params: float | None = option(
        None, NUMBER, "Share of the parameters that may be kept", above=0, high=1, flag="--params"
    )
    macs: float | None = option(None, NUMBER, "Share of the MACs that may be kept", above=0, high=1, flag="--macs")
    max_drop: float = option(
        1.0, NUMBER, "Points of accuracy that may be lost on validation", low=0, high=100, flag="--max-drop"
    )
    configuration: str | None = option(
        None, PATH, "A hybrid.toml to be used in place of a policy", flag="--configuration"
    )
    point: int | None = option(None, INTEGER, "Number of the point on the front to be taken", low=0, flag="--point")
    points: int = option(12, INTEGER, "Points of the front that are measured", low=2, high=200)
    probes: int | None = option(
        None,
        INTEGER,
        "Candidates of each layer that are tried in the network; auto: 3 where a layer has more outputs than there are "
        "images",
        low=0,
        high=100,
        only_if=WITH_IMAGES,
    )
    refine: int = option(
        0,
        INTEGER,
        "Exchanges between layers that are tried, each judged after repair",
        low=0,
        high=1000,
        only_if=WITH_IMAGES,
    )


@dataclass(frozen=True)
class RepairOptions(Section):
    """How factors are refitted with the whole network in view, without labels."""

    SECTION = "repair"
    ONLY_IF = WITH_REPAIR
    enabled: bool = option(
        True, SWITCH, "Refit the factors to the original's activations, layer by layer", only_if=WITH_IMAGES
    )
    images: int = option(3072, INTEGER, "Images the refit is made from", low=1)
    rows: int = option(65536, INTEGER, "Rows of each layer that the refit sees", low=2)
    rounds: int = option(3, INTEGER, "Further rounds where a ReLU follows", low=0, high=100)
    steps: int = option(250, INTEGER, "Solver steps per layer and round", low=1)
    ridge: float = option(0.001, NUMBER, "Regularization, in parts of the moments' mean diagonal", low=0)


@dataclass(frozen=True)
class Recipe:
    """All sections; a section left out keeps its defaults."""

    model: ModelOptions = field(default_factory=ModelOptions)
    data: DataOptions = field(default_factory=DataOptions)
    record: RecordOptions = field(default_factory=RecordOptions)
    prune: PruneOptions = field(default_factory=PruneOptions)
    dprp: DprpOptions = field(default_factory=DprpOptions)
    explore: ExploreOptions = field(default_factory=ExploreOptions)
    similarity: SimilarityOptions = field(default_factory=SimilarityOptions)
    select: SelectOptions = field(default_factory=SelectOptions)
    repair: RepairOptions = field(default_factory=RepairOptions)
    finetune: FinetuneOptions = field(default_factory=FinetuneOptions)
    run: RunOptions = field(default_factory=RunOptions)

    @classmethod
    def from_toml(cls, path: str | Path) -> Recipe:
        """Read a recipe file; raises RecipeError if it is missing, is no TOML, or says something unknown."""
        return cls.from_dict(read_toml(path))

    @classmethod
    def from_text(cls, text: str, name: str = "recipe") -> Recipe:
        """Read a recipe from TOML text."""
        return cls.from_dict(parse_toml(text, name))

    @classmethod
    def from_dict(cls, sections: Mapping[str, Any]) -> Recipe:
        """Build a recipe from ``{section: {key: value}}``."""
        defaults = cls()
        classes = {entry.name: type(getattr(defaults, entry.name)) for entry in fields(cls)}
        filled: dict[str, Any] = {}
        for section, values in sections.items():
            if section not in classes:
                raise RecipeError(f"section [{section}] {is_unknown(section, classes)}")
            if not isinstance(values, Mapping):
                raise RecipeError(f"[{section}] must be a section of keys and values; received {values!r}")
            for name in values:
                find(f"{section}.{name}", OPTIONS)
            filled[section] = classes[section](**values)
        return cls(**filled)

    def with_option(self, key: str, value: Any) -> Recipe:
        """Return a copy in which option ``section.key`` has this value; text is parsed by the option's kind."""
        entry = find(key, OPTIONS)
        checked = entry.read(value) if isinstance(value, str) else entry.check(value)
        return replace(self, **{entry.section: replace(getattr(self, entry.section), **{entry.name: checked})})

    def value(self, key: str) -> Any:
        """Return the value of option ``section.key``."""
        entry = find(key, OPTIONS)
        return getattr(getattr(self, entry.section), entry.name)

    def placed(self, folder: Path, keys: Iterable[str] | None = None) -> Recipe:
        """Return a copy whose paths, which start from a folder, are absolute; of all options or of some."""
        recipe = self
        for key in OPTIONS if keys is None else keys:
            value = self.value(key)
            place = value if value is None else OPTIONS[key].kind.place(value, folder)
            recipe = recipe if place == value else recipe.with_option(key, place)
        return recipe

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Return ``{section: {key: value}}``, tuples as they are."""
        return asdict(self)

    def to_toml(self, *, defaults: bool = True) -> str:
        """Write every option as TOML that `from_toml` reads back to an equal recipe.

        defaults : write options that have their default value, too.
        """
        sections: dict[str, dict[str, Any]] = {}
        for entry in OPTIONS.values():
            value = self.value(entry.key)
            if defaults or value != entry.default:
                sections.setdefault(entry.section, {})[entry.name] = value
        return toml_sections(sections)


OPTIONS: Mapping[str, Option] = {
    entry.key: entry
    for section in fields(Recipe)
    for entry in options_of(type(getattr(Recipe(), section.name))).values()
}
"""All options by ``section.key``, in the order in which they are declared."""
