"""How many channels go: within the targets, and no more than they ask for."""

from __future__ import annotations

import numpy as np
import pytest

from lrfgraph.errors import ConfigurationError
from lrfgraph.pruning.base import Ranking
from lrfgraph.pruning.channels import Channels, Dependencies, Group, Kernel, Weight
from lrfgraph.pruning.widths import Widths, by_loss, by_share, uniform

WIDTHS = {"a": 40, "b": 60, "c": 20}


def chain() -> Dependencies:
    """Three layers in a row that read 10 inputs, and one that answers with 5."""
    channels, weights, kernels, groups = Channels(), [], [], []
    inputs = channels.new(10)
    channels.keep(inputs, "input")
    for number, (name, width) in enumerate([*WIDTHS.items(), ("end", 5)]):
        outputs = channels.new(width)
        shape = (len(inputs), width)
        weights.append(Weight(name, 0, shape, {0: inputs, 1: outputs}, shape[0] * width * 4 ** (3 - number)))
        weights.append(Weight(name, 1, (width,), {0: outputs}))
        kernels.append(Kernel(name, inputs[None], outputs[None]))
        if name != "end":
            groups.append(Group(name, (name,), (), tuple(outputs.tolist())))
        inputs = outputs
    size = sum(int(np.prod(w.shape)) for w in weights), sum(w.macs for w in weights)
    return Dependencies(tuple(groups), {"end": "leaves"}, tuple(kernels), tuple(weights), *size)


def rankings(scale: dict[str, float]) -> dict[str, Ranking]:
    rng = np.random.default_rng(0)
    return {
        group.name: Ranking(
            tuple(int(c) for c in rng.permutation(group.channels)),
            tuple(scale[group.name] * np.cumsum(np.arange(1, len(group.channels) + 1)) ** 2.0),
        )
        for group in chain().groups
    }


EQUAL = dict.fromkeys(WIDTHS, 1.0)


def removed(widths: Widths, ranked: dict[str, Ranking]) -> list[int]:
    return [channel for name, count in widths.removed.items() for channel in ranked[name].order[:count]]


@pytest.mark.parametrize("choose", [uniform, by_loss])
@pytest.mark.parametrize(("params", "macs"), [(0.5, None), (None, 0.3), (0.5, 0.5), (0.9, 0.2), (0.06, None)])
def test_targets_are_met_and_not_by_far(choose, params, macs) -> None:  # type: ignore[no-untyped-def]
    dependencies, ranked = chain(), rankings(EQUAL)
    widths = choose(dependencies, ranked, params, macs)
    assert (widths.parameters, widths.macs) == dependencies.size(removed(widths, ranked))
    shares = [(params, widths.parameters / dependencies.parameters), (macs, widths.macs / dependencies.macs)]
    assert all(have <= limit for limit, have in shares if limit is not None)
    assert any(have > limit - 0.05 for limit, have in shares if limit is not None)
    assert all(count < WIDTHS[name] for name, count in widths.removed.items())


def test_a_share_is_kept_of_every_group() -> None:
    widths = by_share(chain(), rankings(EQUAL), 0.6)
    assert widths.removed == {"a": 16, "b": 24, "c": 8}
    assert by_share(chain(), rankings(EQUAL), 0.001).removed == {"a": 39, "b": 59, "c": 19}
    assert by_share(chain(), rankings(EQUAL), 1.0).parameters == chain().parameters


def test_the_group_that_matters_least_narrows_most() -> None:
    widths = by_loss(chain(), rankings({**EQUAL, "b": 1e-6}), 0.5, None)
    assert widths.removed["b"] / WIDTHS["b"] > 1.2 * widths.removed["a"] / WIDTHS["a"]


def test_losses_are_less_than_those_of_equal_shares() -> None:
    ranked = rankings({"a": 1.0, "b": 0.01, "c": 5.0})

    def loss(widths: Widths) -> float:
        return sum(ranked[name].losses[count - 1] for name, count in widths.removed.items() if count)

    assert loss(by_loss(chain(), ranked, 0.5, None)) < loss(uniform(chain(), ranked, 0.5, None))


@pytest.mark.parametrize("choose", [uniform, by_loss])
def test_what_cannot_be_is_refused_in_one_line(choose) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigurationError, match=r"one channel a group .* of the MACs, received 0\.1%"):
        choose(chain(), rankings(EQUAL), None, 0.001)


def test_joined_channels_have_one_number_and_the_first_reason() -> None:
    channels = Channels()
    one, other = channels.new(3), channels.new(3)
    channels.keep(other[:1], "because")
    channels.join(one, other)
    assert channels.roots(one).tolist() == channels.roots(other).tolist() == [0, 1, 2]
    assert channels.reason_of(int(one[0])) == "because"
    assert channels.reason_of(int(one[1])) == ""
