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

from lrfgraph.api import Outcome, run_name
from lrfgraph.errors import OutputError
from lrfgraph.layers.pieces import layer_cost
from lrfgraph.network.heads import HEADS
from lrfgraph.run.nodes import kept_reason
from lrfgraph.selection.configuration import write_configuration

__all__ = ["STAGES", "result_folder", "summary", "write"]

STAGES = ("baseline", "factorized", "repaired", "finetuned")


def summary(outcome: Outcome, model: Path) -> dict[str, Any]:
    """Return summary.json as other programs read it (format 1)."""
    from lrfgraph import __version__

    walk, network = outcome.walk, outcome.network
    exported = walk.data(outcome.exported) if outcome.exported else None
    stages = {name: _stage(outcome, name, model, exported) for name in STAGES}
    nodes = {"run": dict(sorted(walk.run.items())), "reused": dict(sorted(walk.reused.items()))}
    return {
        "format": 1,
        "lrfgraph": __version__,
        "run": run_name(model, walk.identity, walk.recipe),
        "model": {"path": str(model), "digest": network.digest},
        "recipe": walk.recipe.to_dict(),
        **stages,
        "final": stages[outcome.final] if exported else None,
        "layers": layer_rows(outcome),
        "nodes": nodes,
        "seconds": {name: round(value, 3) for name, value in walk.seconds.items()},
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "warnings": [*outcome.notes, *walk.warnings],
    }


def _stage(outcome: Outcome, name: str, model: Path, exported: Mapping[str, Any] | None) -> dict[str, Any] | None:
    measured = outcome.measured.get(name)
    if name == "baseline":
        counted = {"parameters": outcome.network.parameters, "macs": outcome.network.macs}
        size: int | None = model.stat().st_size
    elif exported is None or (name != "factorized" and measured is None):
        return None
    else:
        counted = {key: exported[key] for key in ("parameters", "macs")}
        size = _file_bytes(outcome, name, model, exported)
    measures = HEADS[outcome.network.head].measures
    names = ("accuracy",) if "accuracy" in measures else ("accuracy", *measures)
    fields = [field for name in names for field in (name, f"{name}_se")]
    said = {
        field: {part: (measured or {}).get(part, {}).get(field) for part in ("validation", "test")} for field in fields
    }
    return {**counted, "file_bytes": size, **said}


def _file_bytes(outcome: Outcome, stage: str, model: Path, exported: Mapping[str, Any]) -> int:
    """Size of the written file in the original's format; of a stage on the way, of its entry in the cache."""
    if stage == outcome.final:
        name = "compressed.h5" if model.suffix in (".h5", ".hdf5") else "compressed.keras"
        return int(exported["file_bytes"][name])
    return outcome.walk.store.open(outcome.models[stage]).file("model.keras").stat().st_size


def layer_rows(outcome: Outcome) -> list[dict[str, Any]]:
    """Every layer with a kernel: what became of it, or why it is kept."""
    chosen = {c["layer"]: c for c in (outcome.decision or {}).get("choices", [])}
    rows = []
    for layer in outcome.network.layers:
        if not layer.kind:
            continue
        cost, choice = layer_cost(layer), chosen.get(layer.name, {})
        taken = choice.get("method") is not None
        rows.append(
            {
                "name": layer.name,
                "kind": layer.kind,
                "kernel": list(layer.kernel),
                "method": choice.get("method"),
                "rank": [int(r) for r in choice["rank"].split("x")] if taken else [],
                "reason": choice.get("reason") or ("" if taken else kept_reason(layer, outcome.walk.recipe)),
                "parameters": [cost.parameters, choice["parameters"] if taken else cost.parameters],
                "macs": [cost.macs, choice["macs"] if taken else cost.macs],
                "similarity": choice.get("similarity", {}),
            }
        )
    return rows


@contextmanager
def result_folder(path: Path) -> Iterator[Path]:
    """Make sure that results can be written before any work is done; raises OutputError.

    What was made for it goes again if the work fails before anything is written.
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


def write(outcome: Outcome, folder: Path, said: Mapping[str, Any]) -> None:
    """Write all results into `folder`; each file is replaced whole."""
    texts = {
        "summary.json": json.dumps(said, indent=1, default=list) + "\n",
        "recipe.toml": outcome.walk.recipe.to_toml(),
    }
    if outcome.decision:
        texts["hybrid.toml"] = write_configuration(outcome.network.digest, outcome.decision["choices"])
    try:
        for name, text in texts.items():
            partial = folder / f".{name}.partial"
            partial.write_text(text, encoding="utf-8")
            os.replace(partial, folder / name)
        stale = () if outcome.exported else ("compressed.keras", "compressed.h5")
        for name in stale:  # of an earlier run: the summary beside them would speak of another model
            (folder / name).unlink(missing_ok=True)
        if outcome.exported:
            entry = outcome.walk.store.open(outcome.exported)
            for name in ("compressed.keras", "compressed.h5"):
                partial = folder / f".{name}.partial"
                shutil.copyfile(entry.file(name), partial)
                os.replace(partial, folder / name)
    except OSError as error:
        raise OutputError(
            f"output folder {folder} cannot be written ({error.strerror}); choose another with --out"
        ) from None
