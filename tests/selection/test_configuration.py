"""hybrid.toml: what is written is read back; what is wrong in it is said in one line that names the nearest."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrfgraph.errors import ConfigurationError
from lrfgraph.selection.configuration import read_configuration, write_configuration
from lrfgraph.selection.problem import CandidateId, Choice

METHODS = ("tucker", "cp", "svd")
LAYERS = ("conv2d_3", "block/conv", "dense")


def read(folder: Path, text: str) -> list[CandidateId]:
    path = folder / "hybrid.toml"
    path.write_text(text, encoding="utf-8")
    return read_configuration(path, LAYERS, METHODS)


NAMES = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=12)
CHOICE = st.one_of(
    st.builds(
        lambda m, r: (m, "x".join(map(str, r))), st.sampled_from(METHODS), st.lists(st.integers(1, 999), min_size=1)
    ),
    st.builds(lambda reason: (None, reason), NAMES),
)


@settings(max_examples=50, deadline=None)
@given(choices=st.dictionaries(NAMES, CHOICE, max_size=6))
def test_round_trip(choices: dict[str, tuple[str | None, str]], tmp_path_factory: pytest.TempPathFactory) -> None:
    rows = [Choice(n, CandidateId(n, m, text)) if m else Choice(n, reason=text) for n, (m, text) in choices.items()]
    path = tmp_path_factory.mktemp("configuration") / "hybrid.toml"
    path.write_text(write_configuration("abc", rows), encoding="utf-8")
    found = read_configuration(path, list(choices), METHODS)
    assert found == [(name, method, said) for name, (method, said) in choices.items() if method]


def test_layers_left_out_are_kept_and_numbers_serve_as_ranks(tmp_path: Path) -> None:
    text = '[layers.dense]\nmethod = "svd"\nrank = 8\n[layers.conv2d_3]\nmethod = "keep"\n'
    assert read(tmp_path, text) == [("dense", "svd", "8")]
    assert read(tmp_path, "") == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[layers.conv2d_4]\nmethod = "cp"\nrank = "8"', r"no layer 'conv2d_4', did you mean 'conv2d_3'\?"),
        ('[layers.dense]\nmethod = "tuker"\nrank = "8"', r"'tuker' is unknown, did you mean 'tucker'\?"),
        ('[layers.dense]\nrank = 0\nmethod = "svd"', r"dense: rank must be written .* received 0"),
        ('[layers.dense]\nmethod = "svd"', r"received None"),
        ('[layers.dense]\nmethod = "svd"\nrank = "8x"', r"received '8x'"),
        ('[layers.dense]\nmethod = "svd"\nrank = -3', r"received -3"),
        ('[layers.dense]\nmethod = "svd"\nranks = "8"', r"dense: 'ranks' is unknown"),
        ('[layers.dense]\nrank = "8"', r"dense: method None is unknown"),
        ('[layer.dense]\nmethod = "svd"\nrank = "8"', r"'layer' is unknown; layers are tables \[layers.NAME\]"),
        ("layers = 3", r"\[layers\] must hold one table per layer"),
        ("[layers", r"cannot be read"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said) as caught:
        read(tmp_path, text)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"nowhere.toml cannot be read.*give a hybrid.toml"):
        read_configuration(tmp_path / "nowhere.toml", LAYERS, METHODS)
