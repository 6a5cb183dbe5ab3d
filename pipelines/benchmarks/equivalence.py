"""A cached answer is the answer: edits to networks, images and recipes, run on a growing cache and on an empty one.

A walk: a small random network, small random images and a small recipe, changed a little again and again (weights,
slices, configuration, data format, names, order, paths, options, threads). After every edit what a run decides,
measures and writes is compared bit for bit between the two caches. What the growing cache computed is held against
what it had to: a node was needed if no earlier one had the same step, parameters and contents of its inputs.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

SIDE, CLASSES = 8, 4
ARCHITECTURES = ("plain", "branches", "separable", "grouped", "shared", "nested")
ACTIVATIONS = ("relu", "elu", "tanh", "sigmoid")
FIRST = {
    "data.calibration": "24", "data.validation": "20", "data.allow_chance": "true", "explore.ranks": "2",
    "explore.methods": "svd_channel,svd", "select.policy": "budget", "select.params": "0.7", "repair.steps": "3",
    "repair.rounds": "1", "repair.images": "30", "finetune.epochs": "0", "record.rows": "256",
}  # fmt: skip
OPTIONS: dict[str, tuple[str, ...]] = {
    "data.calibration": ("24", "20", "28"),
    "data.validation": ("20", "24"),
    "data.split": ("stratified", "blocks"),
    "data.seed": ("0", "1"),
    "data.scale": ("1.0", "0.5"),
    "record.rows": ("256", "128"),
    "record.moment_rows": ("32768", "512"),
    "record.seed": ("0", "1"),
    "explore.ranks": ("2", "3", "1"),
    "explore.methods": ("svd_channel,svd", "svd_channel,svd,cp", "cp,qr", "svd_spatial,svd"),
    "explore.weighting": ("two_sided", "input", "plain"),
    "explore.skip": ("none", "late"),
    "explore.multiple": ("1", "2"),
    "select.params": ("0.7", "0.8", "0.6", "0.70001"),
    "repair.enabled": ("true", "false"),
    "repair.steps": ("3", "4"),
    "repair.rounds": ("1", "0"),
    "repair.ridge": ("0.001", "0.01"),
    "repair.rows": ("65536", "300"),
    "finetune.epochs": ("0", "0", "1"),
    "finetune.learning_rate": ("0.0003", "0.001"),
    "finetune.seed": ("0", "1"),
    "similarity.tap": ("linear", "activation"),
    "run.threads": ("2", "1"),
}
"""Values that an edit chooses from; where an option has no effect under the others, nothing must run."""


@dataclass(frozen=True)
class Design:
    """A network to be built: everything that acts, and what things are called."""

    architecture: str
    seed: int = 0
    scales: Mapping[str, float] = field(default_factory=dict)
    activation: str = "relu"
    strides: int = 1
    padding: str = "same"
    dilation: int = 1
    epsilon: float = 1e-3
    bias: bool = True
    begin: int = 0
    constant: float = 0.5
    data_format: str = "channels_last"
    names: Mapping[str, str] = field(default_factory=dict)
    swapped: bool = False
    suffix: str = ".keras"


@dataclass(frozen=True)
class State:
    """What a run is asked for."""

    design: Design
    options: Mapping[str, str] = field(default_factory=lambda: dict(FIRST))
    pixels: Mapping[tuple[str, int], int] = field(default_factory=dict)
    labels: Mapping[tuple[str, int], int] = field(default_factory=dict)
    order: int = 0
    model_folder: str = "a"
    data_name: str = "images.npz"


# Edits --------------------------------------------------------------------------------------------------------------

Edit = Callable[[np.random.Generator, State], State]


def design(**choices: tuple[Any, ...]) -> Edit:
    """An edit that sets one attribute of the network to another of its values."""
    ((name, values),) = choices.items()

    def edit(random: np.random.Generator, state: State) -> State:
        others = [value for value in values if value != getattr(state.design, name)]
        return replace(state, design=replace(state.design, **{name: others[random.integers(len(others))]}))

    return edit


def weights(random: np.random.Generator, state: State) -> State:
    """Scale one variable of one layer a little."""
    name = f"{random.choice(['early', 'middle', 'norm', 'late', 'head'])}/{random.integers(4)}"
    scales = {**state.design.scales, name: float(random.choice([1.01, 0.99, 3.0, 1.0]))}
    return replace(state, design=replace(state.design, scales=scales))


def named(random: np.random.Generator, state: State) -> State:
    """Call a layer, the input or the model otherwise."""
    name = str(random.choice(["early", "middle", "norm", "images", "network"]))
    names = {**state.design.names, name: f"{name}_{random.integers(3)}"}
    return replace(state, design=replace(state.design, names=names))


def option(random: np.random.Generator, state: State) -> State:
    """Give one option another of its values."""
    key = str(random.choice(list(OPTIONS)))
    return replace(state, options={**state.options, key: str(random.choice(OPTIONS[key]))})


def pixel(random: np.random.Generator, state: State) -> State:
    """Change one image of one part."""
    where = (str(random.choice(["x_train", "x_test"])), int(random.integers(20)))
    return replace(state, pixels={**state.pixels, where: int(random.integers(1, 4))})


def label(random: np.random.Generator, state: State) -> State:
    """Change one label of one part."""
    where = (str(random.choice(["y_train", "y_test"])), int(random.integers(20)))
    return replace(state, labels={**state.labels, where: int(random.integers(CLASSES))})


def moved_model(random: np.random.Generator, state: State) -> State:
    return replace(state, model_folder="b" if state.model_folder == "a" else "a")


def moved_data(random: np.random.Generator, state: State) -> State:
    return replace(state, data_name="others.npz" if state.data_name == "images.npz" else "images.npz")


def threads(random: np.random.Generator, state: State) -> State:
    return replace(
        state, options={**state.options, "run.threads": "1" if state.options.get("run.threads") != "1" else "2"}
    )


NOTHING: frozenset[str] = frozenset()
NAMES = frozenset({"describe", "select", "rebuild", "finetune", "export", "evaluate"})
"""A file that says other names is read; the decision names layers, and the rebuilt model carries all names on."""

EDITS: dict[str, tuple[Edit, frozenset[str] | None]] = {
    "weights": (weights, None),
    "activation": (design(activation=ACTIVATIONS), None),
    "strides": (design(strides=(1, 2)), None),
    "padding": (design(padding=("same", "valid")), None),
    "dilation": (design(dilation=(1, 2)), None),
    "epsilon": (design(epsilon=(1e-3, 1e-2)), None),
    "bias": (design(bias=(True, False)), None),
    "slice": (design(begin=(0, 1, 2)), None),
    "constant": (design(constant=(0.5, 0.25)), None),
    "data format": (design(data_format=("channels_last", "channels_first")), None),
    "option": (option, None),
    "pixel": (pixel, None),
    "label": (label, None),
    "order of images": (lambda random, state: replace(state, order=int(random.integers(3))), None),
    "names": (named, NAMES),
    "order of layers": (design(swapped=(False, True)), frozenset({"describe"})),
    "file format": (design(suffix=(".keras", ".h5")), frozenset({"describe"})),
    "model moved": (moved_model, NOTHING),
    "images moved": (moved_data, NOTHING),
    "threads": (threads, NOTHING),
    "again": (lambda random, state: state, NOTHING),
}
"""By name: the edit, and for one that changes no result the kinds of nodes that may run all the same."""


# Networks and images ------------------------------------------------------------------------------------------------


def build(plan: Design) -> Any:
    """Build the network; equal weights whatever things are called and in which order they are made."""
    import keras
    from keras import layers

    def name(own: str) -> str:
        return plan.names.get(own, own)

    def convolution(own: str, filters: int, **more: Any) -> Any:
        settings = {"padding": plan.padding, "use_bias": plan.bias, "activation": plan.activation} | more
        return layers.Conv2D(filters, 3, name=name(own), **settings)

    def separable(own: str) -> Any:
        return layers.SeparableConv2D(6, 3, padding="same", depth_multiplier=1, name=name(own))

    def grouped(own: str) -> Any:
        return layers.Conv2D(6, 3, padding="same", groups=2, name=name(own))

    makers = {"separable": separable, "grouped": grouped}
    inputs = keras.Input((SIDE, SIDE, 3), name=name("images"))
    x = convolution("early", 6, strides=plan.strides)(inputs)
    x = layers.BatchNormalization(epsilon=plan.epsilon, name=name("norm"))(x)
    x = x * plan.constant
    part = x[..., plan.begin : plan.begin + 4]
    middle = makers.get(plan.architecture, lambda own: convolution(own, 6, padding="same", dilation_rate=plan.dilation))
    if plan.architecture == "branches":
        calls = [lambda: convolution("middle", 6, padding="same")(part), lambda: layers.Conv2D(6, 1, name="side")(x)]
        results = [call() for call in (calls if not plan.swapped else calls[::-1])]
        x = layers.Add(name="sum")(results if not plan.swapped else results[::-1])
    elif plan.architecture == "shared":
        layer = convolution("middle", 4, padding="same")
        x = layer(layer(part))
    elif plan.architecture == "nested":
        inner = keras.Input((None, None, 4))
        x = keras.Model(inner, middle("middle")(inner), name="inner")(part)
    else:
        x = middle("middle")(part)
    x = layers.Flatten(data_format=plan.data_format, name="flat")(x)
    x = layers.Dense(12, activation="relu", name="late")(x)
    outputs = layers.Dense(CLASSES, activation="softmax", name="head")(x)
    model = keras.Model(inputs, outputs, name=name("network"))
    fill(model, plan)
    return model


def fill(model: Any, plan: Design) -> None:
    """Give every variable its values, drawn by what it belongs to and not by when it was made."""
    own_names = {new: old for old, new in plan.names.items()}
    for layer in every_layer(model):
        own = own_names.get(layer.name, layer.name)
        values = []
        for number, weight in enumerate(layer.weights):
            random = np.random.default_rng([plan.seed, *own.encode(), number])
            drawn = random.normal(0, 0.4, weight.shape)
            drawn = 0.5 + np.abs(drawn) if "variance" in weight.path else drawn
            values.append((drawn * plan.scales.get(f"{own}/{number}", 1.0)).astype("float32"))
        layer.set_weights(values)


def every_layer(model: Any) -> Iterator[Any]:
    for layer in model.layers:
        if hasattr(layer, "layers"):
            yield from every_layer(layer)
        elif layer.weights:
            yield layer


def images(state: State) -> dict[str, np.ndarray]:
    """Draw the images and labels, with the pixels and labels that were edited."""
    random = np.random.default_rng(7)
    arrays: dict[str, np.ndarray] = {}
    for part, count in (("train", 70), ("test", 30)):
        arrays[f"x_{part}"] = random.integers(0, 4, (count, SIDE, SIDE, 3), dtype=np.uint8)
        arrays[f"y_{part}"] = np.arange(count) % CLASSES
    for (name, index), value in (state.pixels | state.labels).items():
        arrays[name][index] = value
    if state.order:
        order = np.random.default_rng(state.order).permutation(70)
        arrays |= {name: arrays[name][order] for name in ("x_train", "y_train")}
    return arrays


# Runs ---------------------------------------------------------------------------------------------------------------


def outcome(state: State, folder: Path, cache: Path) -> tuple[dict[str, Any], Counter[str]]:
    """Run, as a new process would; return what came of it and the nodes that were computed, by kind."""
    import keras
    from keras.models import load_model

    from lrfgraph.api import compress
    from lrfgraph.engine.memory import forget
    from lrfgraph.errors import LrfError
    from lrfgraph.options.recipe import Recipe

    forget()
    keras.backend.clear_session()
    model, source = folder / state.model_folder / f"net{state.design.suffix}", folder / state.data_name
    model.parent.mkdir(exist_ok=True)
    build(state.design).save(model)
    np.savez(source, **images(state))
    recipe = Recipe().with_option("run.cache", str(cache)).with_option("data.source", str(source))
    for key, value in state.options.items():
        recipe = recipe.with_option(key, value)
    try:
        compression = compress(model, recipe)
    except LrfError as error:
        return {"refused": str(error).replace(str(folder), "").replace(state.model_folder, "")}, Counter()
    result: dict[str, Any] = {
        "decision": compression.decision.to_json() if compression.decision else None,
        "measured": compression.measured,
        "notes": [note for note in compression.notes if state.data_name not in note],
    }
    if compression.exported:
        written = load_model(
            compression.driver.store.open(compression.exported).file("compressed.keras"), compile=False
        )
        result["names"] = [layer.name for layer in every_layer(written)] + [tensor.name for tensor in written.inputs]
        result["weights"] = [weight.tobytes().hex() for weight in written.get_weights()]
    return result, Counter({kind: count for kind, count in compression.driver.run.items() if count})


class Contents:
    """What was computed on a growing cache: by step, parameters and contents of inputs, whatever the keys."""

    def __init__(self, cache: Path) -> None:
        self.cache = cache
        self.known: set[str] = set()
        self.questions: set[str] = set()
        self.contents: dict[str, str] = {}

    def again(self) -> list[str]:
        """Take in what is new; name the nodes that were computed although the same had been."""
        from lrfgraph.engine.nodes import digest

        fresh = []
        for path in self.cache.glob("v2/*/??/*/entry.json"):
            manifest = json.loads(path.read_text(encoding="utf-8"))
            if manifest["key"] not in self.known:
                fresh.append(manifest)
                self.known.add(manifest["key"])
                said = {name: value for name, value in manifest["data"].items() if name != "history"}
                arrays = {name: value[1] for name, value in manifest["files"].items()}
                whole = any(name.startswith("files/") for name in manifest["files"])  # a model is what its key says
                self.contents[manifest["key"]] = manifest["key"] if whole else digest([said, arrays])
        repeated = []
        for manifest in sorted(fresh, key=lambda each: each["created"]):
            parts = manifest["components"]
            inputs = {name: self.contents.get(identity, identity) for name, identity in parts["inputs"].items()}
            question = digest([parts["step"], parts["version"], parts["params"], inputs])
            if question in self.questions:
                repeated.append(manifest["name"])
            self.questions.add(question)
        return repeated


def walk(seed: int, count: int, folder: Path, restart: int) -> Iterator[dict[str, Any]]:
    """Yield what each edit came to."""
    random = np.random.default_rng(seed)
    cache = folder / "growing"
    contents, state = Contents(cache), State(Design(ARCHITECTURES[0]))
    names = list(EDITS)
    for number in range(count):
        if number % restart == 0:
            state = State(Design(ARCHITECTURES[(number // restart) % len(ARCHITECTURES)], seed=seed))
            outcome(state, folder, cache)
            contents.again()
        name = names[int(random.integers(len(names)))]
        edit, allowed = EDITS[name]
        state = edit(random, state)
        warm, run = outcome(state, folder, cache)
        repeated = contents.again()
        empty = folder / "empty"
        shutil.rmtree(empty, ignore_errors=True)
        cold, _ = outcome(state, folder, empty)
        idle = sorted(set(run) - allowed) if allowed is not None else []
        yield {
            "edit": name,
            "equal": warm == cold,
            "differs": sorted(key for key in warm.keys() | cold.keys() if warm.get(key) != cold.get(key)),
            "refused": warm.get("refused"),
            "run": sum(run.values()),
            "repeated": repeated,
            "not needed": {kind: run[kind] for kind in idle},
            "state": repr(state),
        }


def main() -> None:
    """Walk, print what went wrong, write the figures."""
    from networks import write
    from warm_process import warm_reloading

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=500, help="edits")
    parser.add_argument("--seed", type=int, default=0, help="of the walk")
    parser.add_argument("--restart", type=int, default=12, help="edits until the next architecture")
    parser.add_argument("--out", type=Path, required=True, help="result file, JSON")
    asked = parser.parse_args()
    started, steps = time.perf_counter(), []
    with warm_reloading(), tempfile.TemporaryDirectory() as folder:
        for number, step in enumerate(walk(asked.seed, asked.count, Path(folder), asked.restart), 1):
            steps.append(step)
            wrong = not step["equal"] or step["repeated"] or step["not needed"]
            if wrong or number % 25 == 0:
                shown = step if wrong else {"run": step["run"]}
                print(number, f"{time.perf_counter() - started:.0f} s", shown, flush=True)
            write(asked.out, summary(steps))


def summary(steps: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the figures of a walk, and every step that was not as it should be."""
    extra = sum(len(step["repeated"]) + sum(step["not needed"].values()) for step in steps)
    run = sum(step["run"] for step in steps)
    return {
        "edits": len(steps),
        "equal": sum(step["equal"] for step in steps),
        "refused alike": sum(step["refused"] is not None and step["equal"] for step in steps),
        "nodes run": run,
        "nodes run that need not": extra,
        "share": round(extra / max(run, 1), 5),
        "edits by kind": dict(Counter(step["edit"] for step in steps)),
        "wrong": [step for step in steps if not step["equal"] or step["repeated"] or step["not needed"]],
    }


if __name__ == "__main__":
    main()
