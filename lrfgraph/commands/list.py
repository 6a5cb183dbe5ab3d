"""What can be asked for, printed from the tables that decide it: nothing is listed a second time."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from typing import Any

from lrfgraph.layers.kinds import LAYER_KINDS
from lrfgraph.layers.similarity import METRICS
from lrfgraph.methods import METHODS
from lrfgraph.network.heads import HEADS
from lrfgraph.options.option import check_choice
from lrfgraph.options.recipe import OPTIONS
from lrfgraph.options.values import toml_literal
from lrfgraph.pruning import SCORES
from lrfgraph.report import tables
from lrfgraph.run.steps import STEPS
from lrfgraph.selection.policies import POLICIES, PUBLIC

__all__ = ["TOPICS", "list_topic"]

Row = dict[str, Any]
LAST = ("help", "values")


def options() -> list[Row]:
    """Every option of a recipe."""
    return [
        {
            "key": option.key,
            "flag": option.flag,
            "values": option.type + (f", {option.allowed}" if option.allowed else ""),
            "default": "none" if option.default is None else toml_literal(option.default),
            "help": option.help,
        }
        for option in OPTIONS.values()
    ]


def methods() -> list[Row]:
    """Every factorization method, and what a layer becomes by it."""
    return [{"method": name, "help": _first_sentence(type(method))} for name, method in METHODS.items()]


def policies() -> list[Row]:
    """Every rule that picks one candidate per layer."""
    return [{"policy": name, "help": POLICIES[name].help} for name in PUBLIC]


def scores() -> list[Row]:
    """Every score that says which channels matter least."""
    return [{"score": name, "help": score.help} for name, score in SCORES.items()]


def metrics() -> list[Row]:
    """Every similarity of a candidate to its layer; Y is the layer's output, Ŷ the candidate's."""
    return [{"metric": name, "help": metric.formula} for name, metric in METRICS.items()]


def heads() -> list[Row]:
    """Every meaning that a network's output can have, and what is measured then; the first measure decides."""
    return [{"head": name, "help": ", ".join(head.measures)} for name, head in HEADS.items()]


def kinds() -> list[Row]:
    """Every kind of layer that can be factorized."""
    return [
        {"kind": name, "class": kind.keras_class, "family": kind.family.name, "axes": kind.spatial}
        for name, kind in LAYER_KINDS.items()
    ]


def nodes() -> list[Row]:
    """Every kind of node, in the order of a run; `--until` stops after one."""
    return [
        {"node": name, "version": step.version, "help": _first_sentence(step.compute)} for name, step in STEPS.items()
    ]


TOPICS: dict[str, Callable[[], list[Row]]] = {
    topic.__name__: topic for topic in (options, methods, scores, policies, metrics, heads, kinds, nodes)
}


def list_topic(topic: str | None, *, as_json: bool = False) -> None:
    """Print the rows of a topic; without one, the topics."""
    if topic is None:
        rows = [{"list": name, "help": _first_sentence(function)} for name, function in TOPICS.items()]
    else:
        rows = TOPICS[check_choice("list", "TOPIC", topic, TOPICS)]()
    if as_json:
        print(json.dumps(rows, indent=1, ensure_ascii=False))
        return
    titles = [title for title in rows[0] if title not in LAST]
    print(tables.columns([*titles, ""], [[*(str(row[title]) for title in titles), _last(row)] for row in rows]))


def _last(row: Row) -> str:
    """The column that wraps: what a row is, and its values."""
    return " ".join([row.get("help", ""), *(f"({row[name]})" for name in LAST[1:] if name in row)]).strip()


def _first_sentence(described: Any) -> str:
    first = (inspect.getdoc(described) or "").partition("\n\n")[0]
    return " ".join(first.replace("``", "`").split())
