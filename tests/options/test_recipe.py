from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrfgraph.errors import RecipeError
from lrfgraph.options.option import Option, check_choice
from lrfgraph.options.recipe import OPTIONS, DataOptions, Recipe, SelectOptions


@pytest.mark.parametrize("option", OPTIONS.values(), ids=lambda option: option.key)
def test_every_option_is_described_and_its_default_valid(option: Option) -> None:
    assert option.help
    assert "\n" not in option.help
    assert option.check(option.default) == option.default
    assert getattr(getattr(Recipe(), option.section), option.name) == option.default


def test_sections_name_themselves() -> None:
    for section in dataclasses.fields(Recipe):
        assert section.name == type(getattr(Recipe(), section.name)).SECTION


def test_defaults_round_trip_through_toml() -> None:
    assert Recipe.from_text(Recipe().to_toml()) == Recipe()


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(
    lambda text: text.lower() not in ("none", "auto")
)


@settings(max_examples=40, deadline=None)
@given(
    source=texts,
    custom=st.lists(texts, max_size=3),
    scale=st.none() | st.floats(allow_nan=False, allow_infinity=False),
    std=st.none() | st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=4),
    size=st.none() | st.tuples(st.integers(1, 999), st.integers(1, 999)),
    unsafe=st.booleans(),
)
def test_any_recipe_round_trips_through_toml(*, source, custom, scale, std, size, unsafe) -> None:
    recipe = Recipe.from_dict(
        {
            "model": {"custom": custom, "unsafe": unsafe},
            "data": {"source": source, "scale": scale, "std": std, "image_size": size},
        }
    )
    assert Recipe.from_text(recipe.to_toml()) == recipe


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("data.scale", "1/255", 1 / 255),
        ("data.scale", "auto", None),
        ("data.mean", "0.5, 1/4,0.1", (0.5, 0.25, 0.1)),
        ("data.mean", "0.5", (0.5,)),
        ("data.image_size", "32", (32, 32)),
        ("data.image_size", "32x48", (32, 48)),
        ("data.validation", "500", 500.0),
        ("explore.methods", "cp,tucker", ("cp", "tucker")),
        ("explore.methods", "", ()),
        ("explore.skip", '["fc", "head/*"]', ("fc", "head/*")),
        ("explore.skip", "[cd]onv*", ("[cd]onv*",)),
        ("finetune.epochs", "0", 0),
        ("finetune.learning_rate", "3e-4", 3e-4),
        ("finetune.flip", "yes", True),
        ("finetune.labels", "False", False),
        ("run.max_memory", "5GB", 5_000_000_000),
        ("run.max_memory", "1.5 MiB", 1_572_864),
        ("run.max_memory", "None", None),
        ("record.max_rows_bytes", "4096", 4096),
        ("select.params", "0.4", 0.4),
    ],
)
def test_text_is_parsed_by_kind(key: str, text: str, value: object) -> None:
    section, name = key.split(".")
    assert getattr(getattr(Recipe().with_option(key, text), section), name) == value


def test_with_option_changes_one_value_only() -> None:
    changed = Recipe().with_option("select.min_similarity", "0.95")
    assert changed == Recipe(select=SelectOptions(min_similarity=0.95))
    assert changed.with_option("select.min_similarity", 0.97) == Recipe()


def test_toml_takes_fractions_sizes_and_lists(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text('[data]\nscale = "1/255"\nmean = 0.5\nimage_size = 32\n[run]\nmax_memory = "2GB"\n')
    recipe = Recipe.from_toml(path)
    assert recipe.data == DataOptions(scale=1 / 255, mean=(0.5,), image_size=(32, 32))
    assert recipe.run.max_memory == 2_000_000_000


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ("[selct]\npolicy = 'x'", r"section \[selct\] is unknown, did you mean 'select'\? choose from model, data"),
        ("[select]\nmin_simlarity = 0.9", r"\[select\] 'min_simlarity' is unknown, did you mean 'min_similarity'\?"),
        ("[select]\nmin_similarity = 1.5", r"\[select\] min_similarity .*at least 0 and at most 1; received 1.5"),
        ("[select]\nmin_similarity = 'high'", r"a number.*received 'high'"),
        ("[select]\nparams = 0", r"above 0 and at most 1; received 0"),
        ("[record]\nrows = '8192'", r"a whole number.*received '8192'"),
        ("[record]\nrows = true", r"a whole number.*received True"),
        ("[record]\nrows = 10.5", r"a whole number.*received 10.5"),
        ("[finetune]\nflip = 1", r"true or false; received 1"),
        ("[finetune]\nlearning_rate = nan", r"a number, or none, above 0; received nan"),
        ("[data]\nvalidation = 1", r"a share above 0 and below 1, or a count of at least 2; received 1"),
        ("[data]\nvalidation = 2.5", r"received 2.5"),
        ("[data]\nstd = [1.0, 0.0]", r"above 0; received \[1.0, 0.0\]"),
        ("[data]\nscale = '1/0'", r"received '1/0'"),
        ("[data]\nchannels = 'rbg'", r"'rbg' is unknown, did you mean .*choose from rgb, bgr"),
        ("[data]\nimage_size = [1, 2, 3]", r"a size as 32 or 32x48.*received \[1, 2, 3\]"),
        ("[explore]\nmethods = [1]", r"a list of names; received \[1\]"),
        ("select = 3", r"\[select\] must be a section"),
        ("[select", r"not valid TOML"),
    ],
)
def test_bad_recipes_are_refused_in_one_line(toml: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text(toml)
    with pytest.raises(RecipeError, match=message) as caught:
        Recipe.from_toml(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("min_similarity", r"did you mean 'select.min_similarity'\?"),
        ("selekt.policy", r"did you mean 'select.policy'\?"),
        ("select.polici", r"did you mean 'policy'\?"),
    ],
)
def test_unknown_options_suggest_the_nearest(key: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Recipe().with_option(key, "1")


def test_python_values_are_checked_too() -> None:
    with pytest.raises(RecipeError, match=r"received 1.5"):
        SelectOptions(min_similarity=1.5)


def test_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"none\.toml cannot be read"):
        Recipe.from_toml(tmp_path / "none.toml")


def test_check_choice() -> None:
    assert check_choice("explore", "methods", "cp", ["cp", "tucker"]) == "cp"
    with pytest.raises(RecipeError, match=re.escape("did you mean 'tucker'? choose from cp, tucker")):
        check_choice("explore", "methods", "tuker", ["cp", "tucker"])


def test_reading_a_recipe_needs_no_numpy() -> None:
    code = "import sys; from lrfgraph.options.recipe import Recipe; Recipe(); sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
