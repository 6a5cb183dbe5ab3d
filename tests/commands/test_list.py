from __future__ import annotations

import json

import pytest
from conftest import Call

from lrfgraph.commands.list import TOPICS
from lrfgraph.methods import METHODS
from lrfgraph.options.recipe import OPTIONS


@pytest.mark.parametrize("topic", TOPICS)
def test_every_topic_is_listed_as_text_and_as_json(topic: str, call: Call) -> None:
    rows = json.loads(call("list", topic, "--json").out)
    text = call("list", topic).out
    assert rows
    for row in rows:
        assert str(next(iter(row.values()))) in text


def test_the_lists_are_the_tables(call: Call) -> None:
    assert [row["key"] for row in json.loads(call("list", "options", "--json").out)] == list(OPTIONS)
    assert [row["method"] for row in json.loads(call("list", "methods", "--json").out)] == list(METHODS)
    assert [row["list"] for row in json.loads(call("list", "--json").out)] == list(TOPICS)
    assert "given" not in call("list", "policies").out


def test_an_option_is_listed_with_its_flag_values_and_default(call: Call) -> None:
    row = next(r for r in json.loads(call("list", "options", "--json").out) if r["key"] == "select.params")
    assert row == {
        "key": "select.params",
        "flag": "--params",
        "default": "none",
        "help": "Share of the parameters that may be kept",
        "values": "a number, or none, above 0 and at most 1",
    }
