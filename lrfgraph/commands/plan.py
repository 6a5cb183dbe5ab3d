"""What a run would do, before it does it: by kind of node, with the reason and the price."""

from __future__ import annotations

import json
import textwrap
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lrfgraph import api
from lrfgraph.engine.plan import PlannedNode
from lrfgraph.engine.plan import plan as explain
from lrfgraph.network.memory import allowance
from lrfgraph.options.asked import Asked
from lrfgraph.report import tables
from lrfgraph.run.driver import Driver
from lrfgraph.run.needs import Need

__all__ = ["plan_and_report"]

LONGEST = 100
"""Characters of a reason that the table shows; ``--json`` has all of it, for every node."""

UNREAD = "what memory and disk each stage needs is known once the model has been read; run `lrfgraph inspect` on it"

FOLLOWS = (
    "what comes after that depends on results that are not there yet; run with --until KIND, and plan again, for more"
)


def plan_and_report(model: Path, asked: Asked, *, as_json: bool = False) -> bool:
    """Print what would run and what would be reused; returns whether anything would run."""
    driver, complete = api.plan(model, asked.recipe, base=asked.folder)
    plans = [explain(lookup.resolution, driver.store, lookup.targets) for lookup in driver.lookups]
    missing = [node for stage in plans for node in stage.missing]
    work = bool(missing) or not complete
    kinds = list(dict.fromkeys(node.step for stage in plans for node in stage.nodes))
    rows = [_kind(kind, driver, [node for node in missing if node.step == kind]) for kind in kinds]
    stated = api.needs(model, asked.recipe, base=asked.folder)
    limit = allowance(asked.recipe.run.max_memory)
    if as_json:
        nodes = [asdict(node) for node in missing]
        counts = {"run": dict(driver.run), "reused": dict(driver.reused)}
        account = {"nodes": counts, "complete": complete, "kinds": rows, "missing": nodes, "notes": asked.notes}
        account |= {"stages": [asdict(need) for need in stated], "max_memory": limit, "refused": driver.refused or None}
        print(json.dumps(account, indent=1))
        return work
    print(tables.columns(["kind", "to run", "reused", "seconds", "size", "why"], map(_cells, rows), right=range(1, 5)))
    print(f"\n{_price(rows)}")
    if not complete:
        print(FOLLOWS)
    print(f"\n{_memory(stated, limit)}")
    if driver.refused:
        print(f"run would be refused: {driver.refused}")
    for note in asked.notes:
        print(f"note: {note}")
    return work


def _price(rows: list[dict[str, Any]]) -> str:
    run, reused = (sum(row[key] for row in rows) for key in ("run", "reused"))
    if not run:
        return f"nothing to run, {reused} nodes reused"
    timed = [row for row in rows if row["run"] and row["seconds"] is not None]
    price = f"{run} {'node' if run == 1 else 'nodes'} to run, {reused} reused"
    if timed:
        seconds = tables.seconds_text(sum(row["seconds"] for row in timed))
        price += f"; about {seconds} of work and {tables.bytes_text(sum(row['bytes'] for row in timed))} of cache"
    untimed = [row["kind"] for row in rows if row["run"] and row["seconds"] is None]
    return price + (f"; never timed here: {', '.join(untimed)}" if untimed else "")


def _memory(stated: list[Need], limit: int) -> str:
    """What every stage needs if all of it is computed, and what may be taken."""
    if not stated:
        return UNREAD
    whole = max(n.memory for n in stated), sum(n.disk for n in stated), max(n.scratch for n in stated)
    sizes = [(need.stage, need.memory, need.disk, need.scratch) for need in stated]
    rows = [
        [name, *(tables.bytes_text(size) if size else "" for size in each)] for name, *each in [*sizes, ("all", *whole)]
    ]
    table = tables.columns(["stage", "memory", "disk", "scratch"], rows, right=range(1, 4))
    return f"{table}\n\n{tables.bytes_text(limit)} of memory may be taken (run.max_memory)"


def _kind(kind: str, driver: Driver, missing: list[PlannedNode]) -> dict[str, Any]:
    timed = [node for node in missing if node.seconds is not None]
    return {
        "kind": kind,
        "run": driver.run[kind],
        "reused": driver.reused[kind],
        "seconds": round(sum(node.seconds or 0 for node in timed), 3) if timed else None,
        "bytes": sum(node.bytes or 0 for node in timed) if timed else None,
        "why": dict(Counter(node.why for node in missing).most_common()),
    }


def _cells(row: dict[str, Any]) -> list[str]:
    reasons = list(row["why"].items())
    short = [(textwrap.shorten(why, LONGEST, placeholder=" …"), count) for why, count in reasons[:2]]
    why = "; ".join(f"{reason} ({count})" if row["run"] > 1 else reason for reason, count in short)
    others = sum(count for _, count in reasons[2:])
    return [
        row["kind"],
        str(row["run"]),
        str(row["reused"]),
        "?" if row["run"] and row["seconds"] is None else f"{row['seconds'] or 0:.1f}" if row["run"] else "",
        tables.bytes_text(row["bytes"]) if row["bytes"] else "",
        why + (f"; {others} for other reasons" if others else ""),
    ]
