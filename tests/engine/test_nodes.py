"""Keys are exact and do not change by accident."""

from __future__ import annotations

import numpy as np
import pytest

from lrfgraph.engine.nodes import Node, components_of, digest, key_of

NODE = Node("conv/tucker/4x4", "factorize", {"rank": [4, 4], "share": 0.5}, {"kernel": "k"}, {"path": "/tmp/x"})


def test_golden_digests() -> None:
    assert digest(b"lrfgraph") == "00b0fc771f3ad54744a994bb92c538a0d2fa041e"
    assert digest({"b": [1, 2.5, None, True], "a": "é"}) == "8fafea013b3afa6eba13d867ce6c93c08dfa3a1d"
    assert digest(np.arange(6, dtype="float32").reshape(2, 3)) == "581a4296dba09a8ad16b43bde8ef7a85f415eb75"
    assert key_of(NODE, 3, {"kernel": "abc"}) == "factorize/c9c744475056a4d856656bac8c5c94d7a5436a6d"


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
    ],
)
def test_names_places_and_order_are_not_in_the_key(other: Node) -> None:
    assert key_of(other, 3, {"kernel": "abc"}) == key_of(NODE, 3, {"kernel": "abc"})


def test_version_parameters_and_inputs_are_in_the_key() -> None:
    key = key_of(NODE, 3, {"kernel": "abc"})
    assert key_of(NODE, 4, {"kernel": "abc"}) != key
    assert key_of(NODE, 3, {"kernel": "abd"}) != key
    assert key_of(Node(NODE.name, NODE.step, {**NODE.params, "share": 0.6}, NODE.inputs), 3, {"kernel": "abc"}) != key
    assert key == f"factorize/{digest(components_of(NODE, 3, {'kernel': 'abc'}))}"


def test_not_a_number_has_no_digest() -> None:
    with pytest.raises(ValueError, match="JSON"):
        digest({"a": float("nan")})
