from __future__ import annotations

from pathlib import Path

import pytest

from lrfgraph.errors import RecipeError
from lrfgraph.options.asked import Asked


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "sub" / "r.toml"
    path.parent.mkdir()
    path.write_text('[data]\nsource = "x.npz"\nscale = 0.5\n[run]\ncache = "c"\n[select]\nconfiguration = "none"\n')
    return path


def test_it_knows_who_said_what(file: Path) -> None:
    asked = Asked.from_file(file).with_settings(["data.scale=1/4", "select.params = 0.5"])
    assert asked.recipe.data.scale == 0.25
    assert asked.recipe.select.params == 0.5
    assert asked.origins == {
        "data.source": file, "data.scale": None, "run.cache": file, "select.configuration": file, "select.params": None,
    }  # fmt: skip


def test_paths_start_from_whoever_says_them(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    asked = Asked.from_file(file)
    assert asked.recipe.data.source == str(file.parent / "x.npz")
    assert asked.recipe.run.cache == str(file.parent / "c")
    assert asked.recipe.select.configuration is None
    assert asked.with_settings(["data.source=y.npz"]).recipe.data.source == str(tmp_path / "y.npz")
    assert asked.with_settings(["data.source=none"]).recipe.data.source is None
    assert asked.with_settings(["data.source=mine:images"]).recipe.data.source == "mine:images"


def test_a_setting_has_a_key_and_a_value() -> None:
    with pytest.raises(RecipeError, match=r"section\.key=value, received 'data.scale'"):
        Asked().with_settings(["data.scale"])
    with pytest.raises(RecipeError, match=r"did you mean 'data.scale'\?"):
        Asked().with_settings(["scale=1"])
