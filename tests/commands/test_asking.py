from __future__ import annotations

from pathlib import Path

import pytest

from lrfgraph.cli import RecipeCommand, written_out
from lrfgraph.commands.asking import ask, cache_folder
from lrfgraph.errors import RecipeError

MODEL = Path("model.keras")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_flag_is_short_for_a_setting() -> None:
    words = ["m.h5", "--data", "--x", "--scale=1/255", "--unsafe", "--json", "--set", "a.b=c", "--", "--policy"]
    assert list(written_out(words, RecipeCommand.flags, ["--json", "--set"])) == [
        "m.h5", "--set", "data.source=--x", "--set", "data.scale=1/255", "--set", "model.unsafe=true", "--json",
        "--set", "a.b=c", "--", "--policy",
    ]  # fmt: skip


@pytest.mark.parametrize("words", [["--polcy", "x"], ["--data"], ["--unsafe=yes"]])
def test_flags_that_are_wrong(words: list[str]) -> None:
    with pytest.raises(RecipeError, match=words[0].partition("=")[0]):
        list(written_out(words, RecipeCommand.flags, []))


def test_the_recipe_beside_the_model_or_here_is_read(tmp_path: Path) -> None:
    (tmp_path / "lrfgraph.toml").write_text("[finetune]\nepochs = 3\n")
    (tmp_path / "models").mkdir()
    assert ask(MODEL, None, []).recipe.finetune.epochs == 3
    assert ask(Path("models") / MODEL, None, []).recipe.finetune.epochs == 3
    (tmp_path / "models" / "lrfgraph.toml").write_text("[finetune]\nepochs = 4\n")
    assert ask(Path("models") / MODEL, None, []).recipe.finetune.epochs == 4
    assert ask(Path("models") / MODEL, Path("lrfgraph.toml"), []).recipe.finetune.epochs == 3
    assert ask(Path("models") / MODEL, None, [], beside=False).recipe.finetune.epochs == 10
    assert ask(Path("models") / MODEL, None, ["finetune.epochs=5"]).recipe.finetune.epochs == 5


def test_all_paths_are_absolute(tmp_path: Path) -> None:
    asked = ask(MODEL, None, ["data.source=x.npz"])
    assert asked.recipe.run.cache == str(tmp_path / "cache")
    assert asked.recipe.data.source == str(tmp_path / "x.npz")


@pytest.mark.parametrize(
    ("setting", "policy"),
    [("params=0.5", "budget"), ("macs=0.5", "budget"), ("min_similarity=0.9", "threshold"), ("point=1", "pareto"),
     ("max_drop=2", "accuracy"), ("cost=macs", "accuracy")],
)  # fmt: skip
def test_an_option_of_one_policy_asks_for_it(setting: str, policy: str) -> None:
    assert ask(MODEL, None, [f"select.{setting}"]).recipe.select.policy == policy
    assert ask(MODEL, None, [f"select.{setting}", "select.policy=uniform"]).recipe.select.policy == "uniform"


def test_the_cache_is_where_the_recipe_here_has_it(tmp_path: Path) -> None:
    assert cache_folder(None) == Path("cache")
    (tmp_path / "lrfgraph.toml").write_text('[run]\ncache = "elsewhere"\n')
    assert cache_folder(None) == tmp_path / "elsewhere"
    assert cache_folder(Path("named")) == Path("named")
