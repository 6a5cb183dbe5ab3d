"""What becomes of every option beside every policy and every other option: nothing is silently without effect.

``.`` it has an effect, ``!`` it is refused, ``n`` it is noted.
"""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import pytest

from lrfgraph.commands.effects import checked
from lrfgraph.errors import RecipeError
from lrfgraph.options import dprp
from lrfgraph.options.asked import Asked
from lrfgraph.options.pruning import ALONE as ALONE_PRUNED
from lrfgraph.options.pruning import UNREAD
from lrfgraph.options.recipe import OPTIONS, Recipe
from lrfgraph.selection.policies import PUBLIC
from tests.options.another import another_value

IMAGES = "data.source=images.npz"
OF_A_REMOTE = ["run.remote_readonly", "run.remote_required"]
OTHERS = [
    key
    for key in OPTIONS
    if key != "data.source" and not key.startswith(("prune.", "dprp.")) and key not in OF_A_REMOTE
]
VALUES = {"select.policy": "budget", "data.image_size": "14x14", "run.remote": "s3://bucket/cache"}


def setting(key: str) -> str:
    value = VALUES.get(key, another_value(OPTIONS[key]))
    return f"{key}={','.join(map(str, value)) if isinstance(value, tuple) else value}"


def verdict(*settings: str) -> str:
    try:
        asked = checked(Asked().with_settings(settings))
    except RecipeError:
        return "!"
    return "n" if asked.notes else "."


# Options and policies -----------------------------------------------------------------------------------------------

BY_POLICY = """
                        accuracy  budget  pareto  threshold  energy  evbmf  uniform
select.min_similarity      !        !       !         .        .       !       !
select.cost                .        !       .         .        .       !       !
select.params              !        .       !         .        .       .       .
select.macs                !        .       !         .        .       .       .
select.max_drop            .        !       .         !        !       !       !
select.point               !        !       .         !        !       !       !
select.points              !        !       .         !        !       !       !
select.probes              .        .       .         !        !       !       !
select.refine              .        .       .         !        !       !       !
select.configuration       !        !       !         !        !       !       !
similarity.metric          n        n       n         .        n       n       n
similarity.tap             n        n       n         .        n       n       n
repair.enabled             .        .       .         .        .       .       .
"""
HEADER, *ROWS = (line.split() for line in BY_POLICY.strip().splitlines())


def test_the_table_has_every_policy_and_what_policies_read() -> None:
    assert set(HEADER) == set(PUBLIC)
    assert {row[0] for row in ROWS} >= {key for key in OPTIONS if key.startswith("select.")} - {
        "select.policy",
        "select.mix",
    }


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_every_option_under_every_policy(row: list[str]) -> None:
    for policy, expected in zip(HEADER, row[1:], strict=True):
        assert verdict(IMAGES, f"select.policy={policy}", setting(row[0])) == expected, policy


def test_a_mix_is_weighed_where_the_cost_is_one() -> None:
    assert verdict(IMAGES, "select.policy=threshold", "select.mix=0.3") == "!"
    assert verdict(IMAGES, "select.policy=threshold", "select.mix=0.3", "select.cost=mix") == "."
    assert verdict(IMAGES, "select.policy=uniform", "select.mix=0.3", "select.cost=mix") == "!"


# Options alone ------------------------------------------------------------------------------------------------------

ALONE = {"select.mix": "!", "select.points": "!", "similarity.metric": "n", "similarity.tap": "n"}
"""With images and nothing else; all others have an effect."""

WITHOUT_IMAGES = {
    "data": {"image_size": "."},
    "record": {},
    "repair": {"enabled": "."},
    "finetune": {"labels": "."},
}
"""In these sections all options need images but those: a size is that of a network which takes any, the others ask
for nothing to be done."""
NEED_IMAGES = {
    "explore.weighting",
    "similarity.tap",
    "select.max_drop",
    "select.point",
    "select.probes",
    "select.refine",
}


@pytest.mark.parametrize("key", OF_A_REMOTE)
def test_options_of_a_remote_need_a_remote(key: str) -> None:
    assert verdict(setting(key)) == "!"
    assert verdict(setting(key), setting("run.remote")) == "."


@pytest.mark.parametrize("key", OTHERS)
def test_every_option_alone(key: str) -> None:
    assert verdict(IMAGES, setting(key)) == ALONE.get(key, ".")


@pytest.mark.parametrize("key", OTHERS)
def test_every_option_without_images(key: str) -> None:
    section, _, name = key.partition(".")
    if section in WITHOUT_IMAGES:
        expected = WITHOUT_IMAGES[section].get(name, "!")
    else:
        expected = "!" if key in NEED_IMAGES else {"similarity.metric": "."}.get(key, ALONE.get(key, "."))
    assert verdict(setting(key)) == expected


# Options and options ------------------------------------------------------------------------------------------------

REFUSED = {
    "select.configuration": (
        "explore.ranks explore.smallest explore.largest explore.multiple select.policy select.min_similarity "
        "select.cost select.params select.macs select.max_drop select.point select.probes select.refine"
    ),
    "select.policy": "select.min_similarity select.cost select.max_drop select.point",
    "select.min_similarity": "select.params select.macs select.max_drop select.point select.probes select.refine",
    "select.params": "select.cost select.max_drop select.point",
    "select.macs": "select.cost select.max_drop select.point",
    "repair.enabled": "repair.images repair.rows repair.rounds repair.steps repair.ridge",
    "finetune.labels": "finetune.alpha",
    "data.val": "data.validation data.split",
    "run.scheduler": "run.workers run.threads",
    "run.workers": "run.threads",
}
"""Pairs in which one option makes the other idle (`select.policy` is budget), or that ask for two policies."""
RESCUED = {"select.point select.points": ".", "similarity.metric select.min_similarity": ".",
           "similarity.tap select.min_similarity": "."}  # fmt: skip
"""Pairs in which one gives the other an effect that it does not have alone."""

PAIRS = {frozenset((one, other)): "!" for one, others in REFUSED.items() for other in others.split()}
PAIRS |= {frozenset(pair.split()): sign for pair, sign in RESCUED.items()}
PAIRS[frozenset(("finetune.epochs", "finetune.steps"))] = "!"  # two lengths


@pytest.mark.parametrize("one", OTHERS)
def test_every_option_beside_every_other(one: str) -> None:
    for other in OTHERS:
        if other != one:
            signs = {ALONE.get(one, "."), ALONE.get(other, ".")}
            expected = next(sign for sign in "!n." if sign in signs)
            assert verdict(IMAGES, setting(one), setting(other)) == PAIRS.get(frozenset((one, other)), expected), other


def test_nothing_to_train_for() -> None:
    trained = [
        key for key in OPTIONS if key.startswith("finetune.") and key not in ("finetune.epochs", "finetune.labels")
    ]
    for key in trained:
        assert verdict(IMAGES, "finetune.epochs=0", setting(key)) == "!", key
    assert verdict(IMAGES, "finetune.epochs=0", "finetune.labels=false") == "."


# Pruning ------------------------------------------------------------------------------------------------------------

PRUNING = [key for key in OPTIONS if key.startswith("prune.") and key != "prune.method"]
BESIDE_A_SHARE = {"prune.params", "prune.macs", "prune.spread"}


@pytest.mark.parametrize("key", PRUNING)
def test_options_of_pruning_need_pruning(key: str) -> None:
    assert verdict(IMAGES, setting(key)) == "!"
    assert verdict(IMAGES, setting(key), "prune.method=fbp") == "."
    assert verdict(setting(key), "prune.method=fbp") == ("!" if key == "prune.refit" else ".")
    share = "!" if key in BESIDE_A_SHARE else "."
    assert key == "prune.keep" or verdict(IMAGES, setting(key), "prune.method=fbp", "prune.keep=0.5") == share


@pytest.mark.parametrize("key", OTHERS)
def test_what_is_for_factorizing_has_no_effect_where_channels_alone_are_pruned(key: str) -> None:
    read = key == "repair.enabled" or key.partition(".")[0] not in UNREAD  # false asks for nothing
    assert verdict(IMAGES, setting(key), *ALONE_PRUNED) == ("." if read else "!")


# Training with shrinking ranks --------------------------------------------------------------------------------------

TRAINING = [key for key in OPTIONS if key.startswith("dprp.") and key != "dprp.enabled"]
WITH_TEACHER = {"dprp.alpha", "dprp.temperature", "dprp.labels"}


@pytest.mark.parametrize("key", TRAINING)
def test_options_of_training_need_training(key: str) -> None:
    assert verdict(IMAGES, setting(key)) == "!"
    assert verdict(IMAGES, setting(key), *dprp.ALONE) == "."
    if key in WITH_TEACHER:
        assert verdict(IMAGES, setting(key), "dprp.from_scratch=true", *dprp.ALONE) == "!"


@pytest.mark.parametrize("key", OTHERS)
def test_what_is_for_factorizing_has_no_effect_where_a_network_is_trained(key: str) -> None:
    off = key in ("repair.enabled", "finetune.labels")  # false asks for nothing
    read = off or key.partition(".")[0] not in dprp.UNREAD
    assert verdict(IMAGES, setting(key), *dprp.ALONE) == ("." if read and not key.startswith("record.") else "!")
    if key.startswith("record."):  # is read where it weights the matrices
        assert verdict(IMAGES, setting(key), "dprp.weighting=input", *dprp.ALONE) == "."


TWO_POLICIES = [
    ("select.min_similarity", "select.max_drop"), ("select.min_similarity", "select.point"),
    ("select.params", "select.max_drop"), ("select.params", "select.point"),
    ("select.macs", "select.max_drop"), ("select.macs", "select.point"),
]  # fmt: skip
IDLE = [pair for pair in combinations(OTHERS, 2) if PAIRS.get(frozenset(pair)) == "!" and pair not in TWO_POLICIES]


def from_file(one: str, other: str, file: Path) -> Asked:
    recipe = Recipe().with_option("data.source", "images.npz")
    for key in (one, other):
        recipe = recipe.with_option(key, VALUES.get(key, another_value(OPTIONS[key])))
    return Asked(recipe, {one: file, other: file})


@pytest.mark.parametrize(("one", "other"), IDLE)
def test_a_recipe_file_says_in_a_note_what_the_command_line_may_not(one: str, other: str, tmp_path: Path) -> None:
    (note,) = checked(from_file(one, other, tmp_path / "r.toml")).notes
    assert f"in {tmp_path / 'r.toml'} has no effect" in note


@pytest.mark.parametrize(("one", "other"), TWO_POLICIES)
def test_which_of_two_policies_is_for_the_user_to_say(one: str, other: str, tmp_path: Path) -> None:
    assert frozenset((one, other)) in PAIRS
    with pytest.raises(RecipeError, match=r"asks for policy.*asks for policy.*--policy"):
        checked(from_file(one, other, tmp_path / "r.toml"))
