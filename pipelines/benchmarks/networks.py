"""The networks that the benchmarks measure: which images each takes and what is done to them; shared arguments."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lrfgraph.options.recipe import Recipe

UNIT = {"data.scale": "1/255"}
IMAGENET = {**UNIT, "data.mean": "0.485,0.456,0.406", "data.std": "0.229,0.224,0.225"}


@dataclass(frozen=True)
class Network:
    """A model file and the images it was trained on.

    data : name of the data set, ``""`` where there is none.  options : its preprocessing, as recipe options.
    stats : a file beside the model with each pixel's mean and deviation.  classifies : has a class output to measure.
    """

    file: str
    data: str
    options: Mapping[str, str] = field(default_factory=dict)
    stats: str = ""
    classifies: bool = True


NETWORKS = {
    Path(network.file).stem: network
    for network in (
        Network("resnet20_cifar10.h5", "cifar10", UNIT),
        Network("mobilenetv2_imagenet.h5", "imagenet_sample", {"data.scale": "1/128", "data.mean": "1"}),
        Network("resnet56_cifar10.h5", "cifar10", IMAGENET),
        Network("resnet8_mlperftiny_cifar10.h5", "cifar10"),
        Network("vgg6_cifar10.h5", "cifar10", stats="cifar10_pixel_stats.npz"),
        Network("vgg_bn_cifar10.h5", "cifar10", UNIT),
        Network("mobilenet_cifar10.h5", "cifar10", UNIT),
        Network("squeezenet_cifar10.h5", "cifar10", UNIT),
        Network("cnn_gtsrb.h5", "gtsrb", {**UNIT, "data.split": "blocks"}),
        Network("lenet5_mnist.h5", "mnist", UNIT),
        Network("conv1d_mnist1d.h5", "mnist1d"),
        Network("autoencoder_mnist.h5", "mnist", UNIT, classifies=False),
        Network("mobilenet_vww96.h5", "", classifies=False),
        Network("streaming_wakeword.h5", "", classifies=False),
    )
}


def arguments(about: str, networks: Sequence[str] = ()) -> argparse.ArgumentParser:
    """Return a parser of what every benchmark takes."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--models", type=Path, required=True, help="folder of the model files")
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets, NAME.npz")
    parser.add_argument("--out", type=Path, required=True, help="result file, JSON")
    parser.add_argument("--cache", type=Path, required=True, help="folder of the cache")
    parser.add_argument("--set", action="append", default=[], metavar="section.key=value", help="any recipe option")
    if networks:
        parser.add_argument("--networks", nargs="+", default=list(networks), choices=list(NETWORKS))
    return parser


def recipe_of(name: str, given: argparse.Namespace, **options: Any) -> Recipe:
    """Return the recipe of one network; ``section__key=value`` sets an option, ``--set`` has the last word."""
    network, recipe = NETWORKS[name], Recipe().with_option("run.cache", str(given.cache))
    if network.data:
        recipe = recipe.with_option("data.source", str((given.data / f"{network.data}.npz").resolve()))
    if network.stats:
        recipe = recipe.with_option("data.stats", str((given.models / network.stats).resolve()))
    said = dict(network.options) | {key.replace("__", "."): value for key, value in options.items()}
    for key, value in said.items():
        recipe = recipe.with_option(key, value)
    for setting in given.set:
        key, _, value = setting.partition("=")
        recipe = recipe.with_option(key, value)
    return recipe


def model_path(name: str, given: argparse.Namespace) -> Path:
    return Path(given.models) / NETWORKS[name].file


def print_table(titles: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a table in plain text."""
    text = [[f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row] for row in (titles, *rows)]
    widths = [max(len(row[i]) for row in text) for i in range(len(titles))]
    for row in text:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip(), flush=True)


def write(path: Path, results: Mapping[str, Any]) -> None:
    """Write a result file: what was measured, and the commit, command (folders by name) and machine."""
    path.parent.mkdir(parents=True, exist_ok=True)
    origin = {
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": _commit(),
        "command": " ".join(Path(word).name if os.sep in word else word for word in sys.argv),
        "machine": _machine(),
    }
    path.write_text(json.dumps({**origin, **results}, indent=1) + "\n", encoding="utf-8")


def _commit() -> str:
    """Return the commit that runs, with a ``+`` where files differ from it."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *words]
        return subprocess.run(command, check=False, capture_output=True, text=True).stdout.strip()

    return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")


def _machine() -> str:
    """Return cores, memory and the versions that numbers may depend on."""
    from importlib.metadata import version

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    packages = " ".join(f"{name} {version(name)}" for name in ("tensorflow", "keras", "numpy"))
    cores = len(os.sched_getaffinity(0))
    return f"{cores} cores {platform.machine()}, {memory:.0f} GiB, Python {platform.python_version()}, {packages}"
