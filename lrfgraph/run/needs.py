"""What each stage of a run will need, before it begins: memory of the process, bytes on disk.

Everything follows from what `describe` and `data` said. The constants are measured (pipelines/benchmarks/memory.py).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from lrfgraph.errors import CapacityError
from lrfgraph.images.pictures import DECODED
from lrfgraph.images.sources import npz_bytes
from lrfgraph.layers.rows import positions_of
from lrfgraph.layers.spec import LayerSpec
from lrfgraph.methods import METHODS
from lrfgraph.network import memory
from lrfgraph.network.curvature import BATCH as CURVATURE_BATCH
from lrfgraph.network.evaluating import MOST as EVALUATED_AT_ONCE
from lrfgraph.network.probing import BATCH as PROBED_AT_ONCE
from lrfgraph.network.pruning.repairing import LIVE_BYTES
from lrfgraph.network.recording import BATCH_BYTES, ROWS_IN_MEMORY
from lrfgraph.network.recording import MOST as RECORDED_AT_ONCE
from lrfgraph.network.repair.fit import images_for, rows_for
from lrfgraph.options.recipe import DataOptions, Recipe
from lrfgraph.run.driver import Driver
from lrfgraph.run.joint import SHARES
from lrfgraph.run.state import Network, methods_of
from lrfgraph.selection.recovery import MOST_TRIALS

__all__ = ["NEEDS", "Need", "check", "needs_of"]

START = 600 << 20
"""Python, TensorFlow and Keras, and a first pass through a small network."""

ARRAYS, REFERENCES, IMAGES = 128 << 20, 512 << 20, 256 << 20
"""What the process remembers of the store, of layers and of images, at most."""

WRITTEN = 192 << 20
"""What images take that are written down: a shard as it came, and compressed."""

SPLITS = ("calibration", "repair", "validation", "train", "test")

SEARCHED = 8
"""Configurations that a search measures, about."""

PROBED = 256 << 20
"""What probes have alive of the original at a layer."""

ROWS_ON_DISK = 0.45
"""Share of the bytes of rows that is left of them compressed: measured 0.36 in ResNet-20; fewer zeros leave more."""

GAPS = 4 / 3
"""What TensorFlow takes for activations, against what is alive of them: oneDNN's pools have gaps. They are never given
back: a pass of MobileNetV2 with 64 images, 0.92 GB of activations, takes 1.25 GB and leaves 1.3 GB behind."""

ASSUMED = 1000
"""Images of a split that nobody has counted yet."""

CANDIDATES_A_METHOD = 0.215
"""Mean share of a layer's parameters over ranks spread evenly in the logarithm, from 1 to 100 %."""


@dataclass(frozen=True)
class Need:
    """memory : of the process while the stage runs.  disk : by which the cache grows.  scratch : on disk meanwhile."""

    stage: str
    memory: int
    disk: int
    scratch: int


@dataclass(frozen=True)
class _Facts:
    """What the needs follow from.  calls : by layer, index of its first.  counts : images by split.  image : bytes
    of one, as it came.  outputs : numbers the network puts out for one.  source : bytes of what lies in memory
    of the sources."""

    network: Network
    traffic: memory.Traffic
    calls: Mapping[str, int]
    counts: Mapping[str, int]
    image: int
    outputs: int
    source: int = 0

    @property
    def recipe(self) -> Recipe:
        return self.network.recipe

    @property
    def model(self) -> int:
        return 4 * self.network.parameters

    @cached_property
    def layers(self) -> list[LayerSpec]:
        return list(self.network.factorizable())

    @cached_property
    def refittable(self) -> list[LayerSpec]:
        return [layer for layer in self.network.layers if layer.kind and not layer.kept and not layer.unrefittable]

    @property
    def curved(self) -> bool:
        return self.recipe.explore.weighting == "two_sided" or "curvature" in self.network.policy.needs

    @cached_property
    def moments(self) -> int:
        return sum(
            8 * layer.groups * (layer.width + 1) ** 2 for layer in self.layers if self.rows(layer)[1] > layer.width
        )

    @cached_property
    def curvatures(self) -> int:
        return sum(8 * layer.groups * layer.outputs**2 for layer in self.layers)

    def summed(self, layer: LayerSpec) -> bool:
        """Whether there are rows enough for a matrix of moments."""
        return self.rows(layer)[1] > layer.width

    def rows(self, layer: LayerSpec) -> tuple[int, int]:
        """Rows of a layer that are stored, and rows that enter its moments (`layers.rows.Sampler`)."""
        options, images = self.recipe.record, self.counts["calibration"]
        if not images:
            return 0, 0
        calls = len(layer.input_shapes)
        most = max(min(options.rows, options.max_rows_bytes // (4 * layer.groups * layer.width)), 1)
        stored, drawn = 0, 0
        for call in range(calls):
            grid = prod(positions_of(layer, call))
            count = min(max(-(-options.moment_rows // (images * calls)), 1), grid)
            stored, drawn = stored + min(max(most // (images * calls), 1), count), drawn + images * count
        stride = max(-(-images * stored // most), 1)
        return -(-images // stride) * stored, drawn

    def chunk(self, each: int, most: int) -> int:
        """Bytes of the activations of all images that run at once, `each` of so many bytes."""
        return each * memory.images_in_flight(each, most)


# Stage by stage -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Use:
    """What one stage uses beyond what is there already, see `Need`.  left : what of its memory stays.
    flight : what of its memory activations take, see `GAPS`."""

    memory: int = 0
    left: int = 0
    disk: int = 0
    scratch: int = 0
    flight: int = 0


def _data(facts: _Facts) -> _Use:
    """Images are read when they are written down, shard by shard; what a source has in memory stays there."""
    counts = facts.counts
    kept = facts.image * (max(counts["calibration"], counts["repair"]) + counts["validation"])
    left = facts.source + min(kept + facts.image * counts["calibration"], IMAGES)
    return _Use(facts.source + min(3 * kept, WRITTEN), left, kept)


def _flight(facts: _Facts) -> int:
    most = max(facts.counts[split] for split in ("repair", "validation", "test"))
    return 2 * facts.chunk(facts.traffic.forward, min(EVALUATED_AT_ONCE, max(most, 1)))


def _evaluation(facts: _Facts) -> int:
    return _flight(facts) + 12 * facts.counts["test"] * facts.outputs


def _baseline(facts: _Facts) -> _Use:
    return _Use(_evaluation(facts), 0, 4 * facts.counts["validation"] * facts.outputs, 0, _flight(facts))


def _explore(facts: _Facts) -> _Use:
    """Record and curvature run side by side, and beside the measuring of the original (`run.beside`), as many of the
    three as there are threads; then layers are decomposed."""
    rows = sum(4 * layer.groups * layer.width * facts.rows(layer)[0] for layer in facts.layers)
    batch = min(BATCH_BYTES, min(RECORDED_AT_ONCE, facts.counts["calibration"]) * facts.traffic.backward)
    recording = 2 * batch + min(rows, ROWS_IN_MEMORY) + facts.moments
    curvature = facts.curvatures if facts.curved else 0
    backward = 2 * facts.chunk(facts.traffic.backward, CURVATURE_BATCH) if facts.curved else 0
    numbers = sum(
        2 * layer.weights + layer.groups * layer.outputs**2
        for layer in facts.layers
        for _ in methods_of(layer, facts.recipe)
    )
    left = min(ARRAYS, facts.moments + curvature)
    disk = int(ROWS_ON_DISK * rows) + facts.moments + curvature + 8 * numbers
    threads, measuring = 1 if facts.recipe.run.workers else facts.recipe.run.threads, _flight(facts)
    if threads == 2:
        measuring = max(measuring - backward, 0)
    flight = batch + backward + (measuring if threads > 1 else 0)
    recording += flight - batch
    return _Use(recording + 2 * curvature, left, disk, max(rows - ROWS_IN_MEMORY, 0), flight)


def _prune(facts: _Facts) -> _Use:
    """Everything is recorded as for exploring; then both networks hold what is live of as many images as fit a rule."""
    if not facts.recipe.prune.method:
        return _Use()
    explored = _explore(facts)
    if facts.recipe.prune.searches:
        trials = (explored, _candidates(facts), _probe(facts), _select(facts), _repair(facts))
        explored = replace(explored, disk=len(SHARES) * sum(trial.disk for trial in trials))
    live = min(LIVE_BYTES, 2 * facts.counts["repair"] * facts.traffic.forward)
    most, disk = max(explored.memory, 2 * live), explored.disk + 2 * facts.model
    return _Use(most, explored.left, disk, explored.scratch, max(explored.flight, 2 * live))


def _train(facts: _Facts) -> _Use:
    """Two networks, and the trained one's state: its weights, gradients and two moments; written after every epoch.

    Before that, what weights the matrices is recorded.
    """
    options = facts.recipe.dprp
    if not options.enabled:
        return _Use()
    recorded = _explore(facts) if options.weighs else _Use()
    batch = min(options.batch, max(facts.counts["train"], 1))
    flight = 2 * batch * facts.traffic.backward
    disk = 4 * options.epochs * facts.model + recorded.disk
    most = max(12 * facts.model + flight, recorded.memory)
    return _Use(most, 0, disk, recorded.scratch, max(flight, recorded.flight))


def _candidates(facts: _Facts) -> _Use:
    few = sum(
        8 * layer.groups * layer.width * facts.rows(layer)[0] for layer in facts.layers if not facts.summed(layer)
    )
    references = min(REFERENCES, 2 * facts.moments + few)
    factors = sum(
        4 * layer.weights * CANDIDATES_A_METHOD * facts.recipe.explore.ranks
        for layer in facts.layers
        for method in methods_of(layer, facts.recipe)
        if not METHODS[method].nests
    )
    largest = max((8 * layer.weights for layer in facts.layers), default=0)
    return _Use(references + 8 * largest, references, int(factors))


def _probe(facts: _Facts) -> _Use:
    if not (facts.network.policy.refines and facts.network.probes(facts.counts["calibration"])):
        return _Use()
    flight = PROBED + facts.chunk(facts.traffic.forward, PROBED_AT_ONCE)
    return _Use(facts.model + flight, flight=flight)


def _select(facts: _Facts) -> _Use:
    """A policy that searches repairs and measures what it tries, and may try how far fine-tuning goes."""
    if facts.network.policy.search is None and not facts.recipe.select.refine:
        return _Use()
    repair, tries = _repair(facts), SEARCHED
    trial = _finish(facts) if facts.network.finetunes and facts.network.policy.trials else _Use()
    memory = max(repair.memory, _evaluation(facts), trial.memory)
    disk, flight = tries * repair.disk // 2 + MOST_TRIALS * trial.disk, max(repair.flight, trial.flight)
    return replace(repair, memory=memory, left=trial.left, disk=disk, flight=flight)


def _repair(facts: _Facts) -> _Use:
    """One configuration: the streams, and the rows of one layer at a time."""
    if not facts.network.repairs:
        return _Use(0, 0, 2 * facts.model)
    images, rows = facts.counts["repair"], facts.recipe.repair.rows
    streams, refits = [], []
    for layer in facts.refittable:
        count = images_for(layer, images, rows)
        streams.append(2 * count * facts.traffic.standing(facts.calls[layer.name]))
        drawn = min(rows_for(layer, rows), count * prod(positions_of(layer)))
        square = 8 * layer.groups * layer.width * min(layer.width, drawn)  # of few rows: the rows themselves
        refits.append(4 * drawn * layer.groups * (layer.width + 2 * layer.outputs) + 6 * square)
    waiting, limit = max(streams, default=0), memory.stream_limit(facts.recipe.run.max_memory)
    flight, held = _flight(facts), min(waiting, limit)
    most = 2 * facts.model + held + flight + max(refits, default=0)
    return _Use(most, 0, 3 * facts.model, waiting - held, flight)


def _finish(facts: _Facts) -> _Use:
    """Training holds the weights six times over (its own, gradients, two moments, the best, a checkpoint)."""
    options, written = facts.recipe.finetune, 3 * facts.model
    if not facts.network.finetunes:
        return _Use(3 * facts.model, 0, written)
    batch = min(options.batch, max(facts.counts["train"], 1))
    flight = 2 * batch * facts.traffic.backward
    return _Use(8 * facts.model + flight, 0, written, 0, flight)


def _evaluate(facts: _Facts) -> _Use:
    """Two models are measured side by side."""
    return _Use(2 * _evaluation(facts), 0, 16 * facts.counts["test"] * facts.outputs, 0, 2 * _flight(facts))


NEEDS: dict[str, Callable[[_Facts], _Use]] = {
    "data": _data,
    "baseline": _baseline,
    "prune": _prune,
    "train": _train,
    "explore": _explore,
    "candidates": _candidates,
    "probe": _probe,
    "select": _select,
    "rebuild": _repair,
    "finish": _finish,
    "evaluate": _evaluate,
}
"""By stage (`run.stages.STAGES`)."""

FEWER_ROWS = ("repair.rows", (32768, 16384, 8192)), ("repair.images", (1024, 256))
NO_REPAIR = (("repair.enabled", (False,)),)
LESS_TRAINING = ("finetune.batch", (64, 32, 16, 8)), ("finetune.epochs", (0,))
REMEDIES: dict[str, tuple[tuple[str, tuple[Any, ...]], ...]] = {
    "explore": (("explore.weighting", ("input",)),),
    "probe": (("select.probes", (0,)),),
    "select": FEWER_ROWS + LESS_TRAINING + NO_REPAIR,
    "rebuild": FEWER_ROWS + NO_REPAIR,
    "train": (("dprp.batch", (64, 32, 16, 8)),),
    "finish": LESS_TRAINING,
}
"""By stage, options that make it need less and values to try, the mildest first."""


def needs_of(driver: Driver, network: Network) -> list[Need]:
    """Return what each stage needs, in order; images that are not counted yet are taken to be as many as asked for."""
    structure = driver.data(network.model)["structure"]
    counts, image = {}, sum(prod(structure["shapes"][str(slot)][1:]) for slot in structure["inputs"])
    if network.recipe.data.source is None:
        counts = dict.fromkeys(SPLITS, 0)
    if network.data is not None:
        entry = driver.store.open(network.data)
        counts = dict.fromkeys(SPLITS, 0) | {name: part["images"] for name, part in entry.data["parts"].items()}
        raws = [info for name, info in entry.manifest["arrays"].items() if name.startswith("calibration/x/")]
        image = sum(np.dtype(info["dtype"]).itemsize * prod(info["shape"][1:]) for info in raws)
    facts = _facts(network, structure, counts, image)
    facts = replace(facts, source=_source_bytes(network.recipe.data, driver.base, image * sum(facts.counts.values())))
    there, taken, result = START + 3 * facts.model, 0, []
    for stage, use_of in NEEDS.items():
        use = use_of(facts)
        taken = max(taken, int(GAPS * use.flight))
        result.append(Need(stage, there + use.memory - use.flight + taken, use.disk, use.scratch))
        there += use.left
    return result


def _source_bytes(options: DataOptions, base: Path, images: int) -> int:
    """Bytes of images and labels that a process has in memory of its sources; `images` of all images together.

    What a function of the user's returns; of a folder the last that were decoded; of a file what is read as a whole.
    """
    total = 0
    for path in (base / name for name in (options.source, options.val) if name):
        total += npz_bytes(path) if path.is_file() else min(images, DECODED.limit) if path.is_dir() else images
    return total


def _facts(network: Network, structure: Mapping[str, Any], counts: Mapping[str, int], image: int) -> _Facts:
    calls, names = structure["calls"], [layer.name for layer in network.layers]
    shapes = {int(slot): shape for slot, shape in structure["shapes"].items()}
    traffic = memory.Traffic.of_shapes(
        [(read, written) for _, read, written in calls], structure["inputs"], structure["outputs"], shapes
    )
    first = {names[number]: index for index, (number, _, _) in reversed(list(enumerate(calls)))}
    outputs = prod(shapes[structure["outputs"][0]][1:])
    recipe = network.recipe
    asked = {"calibration": recipe.data.calibration, "repair": max(recipe.repair.images, recipe.data.calibration)}
    known = {**dict.fromkeys(SPLITS, ASSUMED), **asked, **counts}
    return _Facts(network, traffic, first, known, image, outputs)


def check(driver: Driver, network: Network, stages: Collection[str]) -> None:
    """Raise CapacityError for the first of some stages that does not fit into the memory that a run may take."""
    limit = memory.allowance(network.recipe.run.max_memory)
    for need in needs_of(driver, network):
        if need.stage in stages and need.memory > limit:
            raise CapacityError(
                f"{need.stage} needs about {_gigabytes(need.memory)} of memory, {_gigabytes(limit)} may be taken; "
                f"{_remedy(driver, network, need, limit)}"
            )


def _remedy(driver: Driver, network: Network, need: Need, limit: int) -> str:
    for key, values in REMEDIES.get(need.stage, ()):
        for value in values:
            changed = replace(network, recipe=network.recipe.with_option(key, value))
            less = next(other for other in needs_of(driver, changed) if other.stage == need.stage)
            if less.memory <= limit:
                return f"set {key}={str(value).lower()} (then about {_gigabytes(less.memory)}) or raise run.max_memory"
    return "raise run.max_memory, or take a machine with more memory"


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.2g} GB" if size < 1e10 else f"{size / 1e9:.0f} GB"
