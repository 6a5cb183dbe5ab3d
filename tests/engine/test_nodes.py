"""Keys are exact and do not change by accident."""

from __future__ import annotations

import numpy as np
import pytest

from lrfgraph.engine.nodes import Node, Ref, Result, Step, digest
from lrfgraph.engine.resolve import resolve
from lrfgraph.engine.store import Store

KERNEL = Ref("abc", "decompose/123")
NODE = Node("conv/tucker/4x4", "factorize", {"rank": [4, 4], "share": 0.5}, {"kernel": KERNEL}, {"path": "/tmp/x"})


def key_of(node: Node, version: int = 3) -> str:
    """The key as a run finds it."""
    step = Step("factorize", version, lambda task: Result())
    return resolve([node], {"factorize": step}, Store("nowhere")).nodes[node.name].key


def test_golden_digests() -> None:
    assert digest(b"lrfgraph") == "00b0fc771f3ad54744a994bb92c538a0d2fa041e"
    assert digest({"b": [1, 2.5, None, True], "a": "é"}) == "8fafea013b3afa6eba13d867ce6c93c08dfa3a1d"
    assert digest(np.arange(6, dtype="float32").reshape(2, 3)) == "581a4296dba09a8ad16b43bde8ef7a85f415eb75"


def test_golden_key_of_a_run() -> None:
    assert key_of(NODE) == "factorize/c9c744475056a4d856656bac8c5c94d7a5436a6d"


def test_byte_order_and_memory_order_do_not_matter_shape_and_dtype_do() -> None:
    array = np.arange(6, dtype="float32").reshape(2, 3)
    assert digest(array.astype(">f4")) == digest(array)
    assert digest(np.asfortranarray(array)) == digest(array)
    assert digest(array.reshape(3, 2)) != digest(array)
    assert digest(array.astype("float64")) != digest(array)


@pytest.mark.parametrize(
    "other",
    [
        Node("another name", NODE.step, NODE.params, NODE.inputs, NODE.locators),
        Node(NODE.name, NODE.step, dict(reversed(NODE.params.items())), NODE.inputs, NODE.locators),
        Node(NODE.name, NODE.step, NODE.params, NODE.inputs, {"path": "/elsewhere"}),
        Node(NODE.name, NODE.step, NODE.params, {"kernel": Ref("abc", "another/456", "layers/3")}),
    ],
)
def test_names_places_and_order_are_not_in_the_key(other: Node) -> None:
    assert key_of(other) == key_of(NODE)


@pytest.mark.parametrize(
    "other",
    [
        Node(NODE.name, NODE.step, {**NODE.params, "share": 0.6}, NODE.inputs),
        Node(NODE.name, NODE.step, NODE.params, {"kernel": Ref("abd", KERNEL.key)}),
        Node(NODE.name, NODE.step, NODE.params, {"weights": KERNEL}),
        Node(NODE.name, NODE.step, NODE.params, {**NODE.inputs, "record": Ref("r", "record/1")}),
    ],
)
def test_parameters_and_inputs_are_in_the_key(other: Node) -> None:
    assert key_of(other) != key_of(NODE)


def test_the_version_is_in_the_key() -> None:
    assert key_of(NODE, 4) != key_of(NODE, 3)


def test_not_a_number_has_no_digest() -> None:
    with pytest.raises(ValueError, match="JSON"):
        digest({"a": float("nan")})
