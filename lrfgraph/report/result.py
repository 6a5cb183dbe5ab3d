"""What a run came to, as a program, a notebook or a person at a terminal looks at it."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any

from lrfgraph.errors import ConfigurationError
from lrfgraph.report import summary as results
from lrfgraph.report import tables
from lrfgraph.report.account import account, account_table, advice
from lrfgraph.report.design_space import design_space_figure, layers_figure, write_design_space
from lrfgraph.report.pictures import png
from lrfgraph.report.shrinking import epochs_figure, epochs_table, ranks_figure, write_epochs
from lrfgraph.run.state import Compression

__all__ = ["Result"]


class Result:
    """A finished run: the smaller model, and the account of what was lost.

    compression : what the stages came to.  path : of the model file.  notes : what became of the options.
    """

    def __init__(self, compression: Compression, path: Path, notes: Sequence[str] = ()) -> None:
        self.compression, self.path, self.notes = compression, path, tuple(notes)

    @cached_property
    def summary(self) -> dict[str, Any]:
        """All numbers, as summary.json has them."""
        summary = results.summary(self.compression, self.path)
        summary["warnings"] += self.notes
        summary["account"] = account(self.compression, summary)
        summary["advice"] = advice(self.compression, summary)
        return summary

    @property
    def front(self) -> list[dict[str, Any]]:
        """The measured configurations of the search, largest first; ``chosen`` is true of one."""
        front: list[dict[str, Any]] = self.summary["front"]
        return front

    @cached_property
    def model(self) -> Any:
        """The smaller model, a Keras model that is not compiled; loaded when it is first asked for."""
        from lrfgraph.network.opening.loading import load_model

        compression = self.compression
        if compression.exported is None:
            raise ConfigurationError("the run stopped before a model was written; leave run.until out")
        entry, options = compression.driver.store.open(compression.exported), compression.driver.recipe.model
        name = next(iter(sorted(entry.data["file_bytes"], reverse=True)))  # .keras, where it could be written
        return load_model(entry.file(name), custom=options.custom, unsafe=options.unsafe)

    def table(self) -> tables.Table:
        """Return parameters, MACs, file and what was measured, after every stage."""
        return tables.result_table(self.summary)

    @property
    def pictures(self) -> dict[str, bytes]:
        """The pictures of the run as PNG, by name: what was measured and chosen, the layers before and after."""
        figures = {
            "design_space.png": design_space_figure(self.compression),
            "layers.png": layers_figure(self.compression),
            "epochs.png": epochs_figure(self.compression),
            "ranks.png": ranks_figure(self.compression),
        }
        return {name: png(figure) for name, figure in figures.items() if figure is not None}

    def write(self, folder: str | Path) -> Path:
        """Write all that `lrfgraph run` leaves into a folder, and return it. Raises OutputError."""
        with results.result_folder(Path(folder)) as path:
            write_design_space(self.compression, path)
            write_epochs(self.compression, path)
            results.write(self.compression, path, self.summary)
        return path

    def tables(self) -> list[tables.Table]:
        """Return what there is to be looked at: channels, layers, the front, before and after, and the time it took."""
        compression, summary = self.compression, self.summary
        shown = [
            (compression.pruned, tables.pruning_table),
            (compression.shrinking, epochs_table),
            (compression.decision, tables.layers_table),
            (compression.points, tables.front_table),
            (compression.exported, tables.result_table),
            (True, account_table),
        ]
        return [table(summary) for there, table in shown if there]

    def remarks(self) -> list[str]:
        """Return what is to be said beside the tables, in lines."""
        summary = self.summary
        notes = [f"note: {note}" for note in summary["warnings"]]
        return [tables.stage_line(summary), *notes, *(f"advice: {sentence}" for sentence in summary["advice"][:1])]

    def __str__(self) -> str:
        return "\n\n".join([*map(str, self.tables()), "\n".join(self.remarks())])

    def __repr__(self) -> str:
        base, final = self.summary["baseline"], self.summary["final"]
        size = f"{final['parameters'] / base['parameters']:.1%} of the parameters" if final else "stopped early"
        return f"<lrfgraph.Result of {self.path.name}: {size}>"

    def _repr_html_(self) -> str:
        pictures = (
            f'<img alt="{name}" style="max-width:100%" src="data:image/png;base64,{b64encode(content).decode()}"/>'
            for name, content in self.pictures.items()
        )
        remarks = "<br>".join(map(escape, self.remarks()))
        return "\n".join([*(table.html() for table in self.tables()), f"<p>{remarks}</p>", *pictures])
