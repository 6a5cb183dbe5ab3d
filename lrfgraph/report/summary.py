"""What came out of a run, as files: summary.json, hybrid.toml, the resolved recipe, the compressed model."""

from __future__ import annotations

import json
import os
import resource
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lrfgraph.api import Compression, run_name
from lrfgraph.errors import OutputError
from lrfgraph.layers.pieces import layer_cost
from lrfgraph.methods.base import parse_rank
from lrfgraph.network.exporting import FORMATS
from lrfgraph.network.heads import titles
from lrfgraph.run.state import kept_reason
from lrfgraph.selection.configuration import write_configuration
from lrfgraph.selection.problem import Choice

__all__ = ["STAGES", "front", "layer_rows", "result_folder", "summary", "write"]

STAGES = ("baseline", "pruned", "trained", "factorized", "repaired", "finetuned")


def summary(compression: Compression, model: Path) -> dict[str, Any]:
    """Return summary.json as other programs read it (format 1)."""
    from lrfgraph import __version__

    driver, network = compression.driver, compression.network
    exported = driver.data(compression.exported) if compression.exported else None
    stages = {name: _stage(compression, name, model, exported) for name in STAGES}
    nodes = {"run": dict(sorted(driver.run.items())), "reused": dict(sorted(driver.reused.items()))}
    return {
        "format": 1,
        "lrfgraph": __version__,
        "run": run_name(model, driver.identity, driver.recipe),
        "model": {"path": str(model), "digest": compression.original.digest},
        "recipe": driver.recipe.to_dict(),
        "head": network.head,
        **stages,
        "final": stages[compression.final] if exported else None,
        "rejected": list(compression.rejected),
        "pruning": _pruning(compression),
        "shrinking": compression.shrinking,
        "layers": layer_rows(compression),
        "front": front(compression),
        "nodes": nodes,
        "seconds": {name: round(value, 3) for name, value in driver.seconds.items()},
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "warnings": [*compression.notes, *driver.warnings],
    }


def _stage(
    compression: Compression, name: str, model: Path, exported: Mapping[str, Any] | None
) -> dict[str, Any] | None:
    measured = compression.measured.get(name)
    if name == "baseline":
        counts = {"parameters": compression.original.parameters, "macs": compression.original.macs}
        size: int | None = model.stat().st_size
    elif exported is None or name not in compression.models:
        return None
    else:
        pruned = name == "pruned" and compression.pruned is not None and compression.driver.data(compression.pruned)
        counts = {key: (pruned or exported)[key] for key in ("parameters", "macs")}
        size = _file_bytes(compression, name, model, exported)
    measured_names = titles(compression.network.head, compression.network.recipe.data.metric)
    names = dict.fromkeys(("accuracy", *measured_names))
    fields = [field for name in names for field in (name, f"{name}_se")]
    measures = {
        field: {part: (measured or {}).get(part, {}).get(field) for part in ("validation", "test")} for field in fields
    }
    return {**counts, "file_bytes": size, **measures}


def front(compression: Compression) -> list[dict[str, Any]]:
    """Every measured point of the search, largest first, and whether it is the one that was chosen."""
    decision, points = compression.decision, compression.points
    sizes = [(point.parameters, point.macs) for point in points]
    size = decision and (decision.parameters, decision.macs)
    tuned = compression.final == "finetuned"
    same = [place for place, other in enumerate(sizes) if other == size]  # budgets may come to one configuration
    chosen = max(same, key=lambda place: (points[place].trained * (1 if tuned else -1), -place), default=None)
    return [{**point.to_json(), "chosen": place == chosen} for place, point in enumerate(points)]


def _pruning(compression: Compression) -> dict[str, Any] | None:
    """Every group of channels: the layers that write them, how many there were and are, and what is kept and why."""
    if compression.pruned is None:
        return None
    data = compression.driver.data(compression.pruned)
    return {name: data[name] for name in ("groups", "kept", "parameters", "macs")}


def _file_bytes(compression: Compression, stage: str, model: Path, exported: Mapping[str, Any]) -> int | None:
    """Size of the file in the original's format; of a stage on the way, which is kept in ``.keras`` alone, of that."""
    suffix = ".h5" if model.suffix == ".hdf5" else model.suffix
    if stage == compression.final:
        sizes = exported["file_bytes"]
        return int(next((sizes[name] for name in sizes if name.endswith(suffix)), next(iter(sizes.values()))))
    if suffix != ".keras":
        return None
    return compression.driver.store.open(compression.models[stage]).file("model.keras").stat().st_size


def layer_rows(compression: Compression) -> list[dict[str, Any]]:
    """Every layer with a kernel: what became of it, or why it is kept."""
    choices = {choice.layer: choice for choice in compression.decision.choices} if compression.decision else {}
    alone = "only channels are removed" if compression.driver.recipe.prune.alone else ""
    rows = []
    for layer in compression.network.layers:
        if not layer.kind:
            continue
        cost, choice = layer_cost(layer), choices.get(layer.name, Choice(layer.name))
        rows.append(
            {
                "name": layer.name,
                "kind": layer.kind,
                "kernel": list(layer.kernel),
                "method": choice.id.method if choice.id else None,
                "rank": list(parse_rank(choice.id.rank)) if choice.id else [],
                "reason": alone
                or choice.reason
                or ("" if choice.id else kept_reason(layer, compression.driver.recipe)),
                "parameters": [cost.parameters, choice.parameters if choice.id else cost.parameters],
                "macs": [cost.macs, choice.macs if choice.id else cost.macs],
                "similarity": dict(choice.similarity),
            }
        )
    return rows


@contextmanager
def result_folder(path: Path) -> Iterator[Path]:
    """Make sure that results can be written before any work is done; raises OutputError.

    Folders created for it are removed again if the work fails before anything is written.
    """
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        _remove_empty(missing)
        why = "is a file" if path.is_file() else f"cannot be written ({error.strerror})"
        raise OutputError(f"output folder {path} {why}; choose another with --out") from None
    try:
        yield path
    except BaseException:
        _remove_empty(missing)
        raise


def _remove_empty(folders: Sequence[Path]) -> None:
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()


def write(compression: Compression, folder: Path, summary: Mapping[str, Any]) -> None:
    """Write all results into `folder`; each file is replaced whole."""
    texts = {
        "summary.json": json.dumps(summary, indent=1, default=list) + "\n",
        "recipe.toml": compression.driver.recipe.to_toml(),
    }
    if compression.decision:
        texts["hybrid.toml"] = write_configuration(compression.network.digest, compression.decision.choices)
    try:
        for name, text in texts.items():
            partial = folder / f".{name}.partial"
            partial.write_text(text, encoding="utf-8")
            os.replace(partial, folder / name)
        exported = compression.driver.store.open(compression.exported) if compression.exported else None
        sizes = exported.data["file_bytes"] if exported else {}
        for name in {*FORMATS, "hybrid.toml"} - {
            *sizes,
            *texts,
        }:  # of an earlier run, of which the summary says nothing
            (folder / name).unlink(missing_ok=True)
        for name in sizes:
            assert exported is not None
            partial = folder / f".{name}.partial"
            shutil.copyfile(exported.file(name), partial)
            os.replace(partial, folder / name)
    except OSError as error:
        raise OutputError(
            f"output folder {folder} cannot be written ({error.strerror}); choose another with --out"
        ) from None
