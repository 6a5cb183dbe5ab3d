from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrfgraph.options.values import (
    PATH,
    SOURCE,
    names_function,
    nearest,
    parse_age,
    parse_bytes,
    parse_fraction,
    toml_literal,
    toml_sections,
)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0), ("5GB", 5 * 10**9), ("5GiB", 5 * 2**30), ("1.5 MiB", 1572864), ("2kb", 2000), (" 7 ", 7),
        ("1TiB", 2**40), ("1e3", 1000), ("1E3B", 1000),
    ],
)  # fmt: skip
def test_sizes(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "5 apples", "-1GB", "GB", "5 G B", "inf", "nan", "1.2.3", "1e999GB", "5s"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(ValueError):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("text", "seconds"), [("30d", 2592000), ("12h", 43200), ("1.5m", 90), ("2W", 1209600), ("9s", 9)]
)
def test_ages(text: str, seconds: float) -> None:
    assert parse_age(text) == seconds


@pytest.mark.parametrize("text", ["", "30", "d", "3 years", "-1d", "5GB"])
def test_ages_that_are_none(text: str) -> None:
    with pytest.raises(ValueError):
        parse_age(text)


@pytest.mark.parametrize("text", ["", "1/0", "1/", "/2", "1/2/3", "inf", "nan", "a"])
def test_fractions_that_are_none(text: str) -> None:
    with pytest.raises(ValueError):
        parse_fraction(text)


scalars = (
    st.text(st.characters(exclude_categories=["Cs"]))
    | st.booleans()
    | st.integers(-(2**62), 2**62)
    | st.floats(allow_nan=False, allow_infinity=False)
)


@given(st.dictionaries(st.sampled_from("abc"), scalars | st.lists(scalars, max_size=3)))
def test_any_value_round_trips_through_toml(values: dict[str, object]) -> None:
    assert tomllib.loads(toml_sections({"section": values}))["section"] == values


def test_none_is_written_as_a_word() -> None:
    assert toml_sections({"a": {"b": None}}) == '[a]\nb = "none"\n'
    assert toml_literal(("x", 1)) == '["x", 1]'


def test_paths_are_placed_and_functions_stay(tmp_path: Path) -> None:
    (tmp_path / "odd:name").write_text("")
    assert PATH.place("a/b.npz", tmp_path) == str(tmp_path / "a" / "b.npz")
    assert PATH.place("/a/b.npz", tmp_path) == "/a/b.npz"
    assert SOURCE.place("images.npz", tmp_path) == str(tmp_path / "images.npz")
    assert SOURCE.place("package.module:function", tmp_path) == "package.module:function"
    assert SOURCE.place("odd:name", tmp_path) == str(tmp_path / "odd:name")
    assert not names_function("C:/images")


def test_nearest() -> None:
    assert nearest("tuker", ["cp", "tucker"]) == ", did you mean 'tucker'?"
    assert nearest("zzz", ["cp", "tucker"]) == ""
