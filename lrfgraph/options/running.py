"""The options of where and how the work is done."""

from __future__ import annotations

from dataclasses import dataclass

from lrfgraph.options.option import SET, Section, option
from lrfgraph.options.values import BYTES, INTEGER, PATH, SWITCH, TEXT

__all__ = ["RunOptions"]

WITH_REMOTE = {"run.remote": SET}


@dataclass(frozen=True)
class RunOptions(Section):
    """Where and how the work is done; none of it changes a result."""

    SECTION = "run"
    cache: str = option("cache", PATH, "Folder of the cache", flag="--cache", looking=True)
    remote: str | None = option(None, TEXT, "Remote cache, as s3://…", flag="--remote", looking=True, runs_code=bool)
    remote_readonly: bool = option(False, SWITCH, "Put nothing into the remote", looking=True, only_if=WITH_REMOTE)
    remote_required: bool = option(False, SWITCH, "End where the remote is away", looking=True, only_if=WITH_REMOTE)
    out: str | None = option(None, PATH, "Folder for the results", flag="--out")
    workers: int = option(
        0,
        INTEGER,
        "Processes to work with; 0 for threads in this one",
        low=0,
        flag="--workers",
        only_if={"run.scheduler": None},
    )
    scheduler: str | None = option(
        None, TEXT, "Address of a Dask scheduler, as tcp://host:8786", flag="--scheduler", runs_code=bool
    )
    threads: int = option(
        2,
        INTEGER,
        "Threads to work with, where there are no processes",
        low=1,
        only_if={"run.workers": 0, "run.scheduler": None},
    )
    max_memory: int | None = option(
        None, BYTES, "Memory that a process may take; none for a share of what is left", low=1
    )
    until: str | None = option(None, TEXT, "Kind of node to stop after", flag="--until")
