from __future__ import annotations

import sys
from pathlib import Path

import pytest

from lrfgraph.cli import RecipeCommand, written_out
from lrfgraph.commands.asking import ask, asking, cache_folder, looking
from lrfgraph.errors import RecipeError
from lrfgraph.options.recipe import OPTIONS
from tests.options.another import another_value

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
    assert ask(Path("models") / MODEL, None, ["finetune.epochs=5"]).recipe.finetune.epochs == 5
    with looking(None, []) as asked:
        assert asked.recipe.finetune.epochs is None


def test_all_paths_are_absolute(tmp_path: Path) -> None:
    with asking(MODEL, None, ["data.source=x.npz"]) as asked:
        assert asked.recipe.run.cache == str(tmp_path / "cache")
        assert asked.recipe.data.source == str(tmp_path / "x.npz")


def test_the_cache_is_where_the_recipe_here_has_it(tmp_path: Path) -> None:
    assert cache_folder(None) == Path("cache")
    (tmp_path / "lrfgraph.toml").write_text('[run]\ncache = "elsewhere"\n')
    assert cache_folder(None) == tmp_path / "elsewhere"
    assert cache_folder(Path("named")) == Path("named")


# Code ---------------------------------------------------------------------------------------------------------------

CODE = {
    "model.custom": '["evil:Layer"]',
    "model.unsafe": "true",
    "data.source": '"evil:images"',
    "data.val": '"evil:images"',
    "data.metric": '"evil:metric"',
    "run.remote": '"s3://evil/cache"',
    "run.scheduler": '"tcp://evil:8786"',
}


def write(path: Path, key: str, value: str) -> Path:
    section, _, name = key.partition(".")
    path.write_text(f"[{section}]\n{name} = {value}\n")
    return path


def test_these_options_let_code_be_run() -> None:
    values = {key: another_value(option) for key, option in OPTIONS.items()} | dict.fromkeys(
        ("data.source", "data.val"), "evil:images"
    )
    assert {key for key, option in OPTIONS.items() if option.runs_code(values[key])} == set(CODE)


@pytest.mark.parametrize("beside", [True, False], ids=["beside the model", "in the working folder"])
@pytest.mark.parametrize("key", CODE)
def test_a_recipe_that_is_not_named_brings_no_code(key: str, beside: bool, tmp_path: Path) -> None:
    folder = tmp_path / "downloads"
    folder.mkdir()
    file = write((folder if beside else tmp_path) / "lrfgraph.toml", key, CODE[key])
    with pytest.raises(RecipeError, match=rf"{key} = .* lets code be run.*on the command line.*--recipe "):
        ask(folder / MODEL, None, [])
    assert ask(folder / MODEL, file, []).recipe.value(key)
    assert ask(folder / MODEL, None, [f"{key}=none" if key != "model.unsafe" else f"{key}=false"])


def test_a_path_is_no_code(tmp_path: Path) -> None:
    (tmp_path / "evil:images").write_text("")
    write(tmp_path / "lrfgraph.toml", "data.source", '"evil:images"')
    assert ask(MODEL, None, []).recipe.data.source == str(tmp_path / "evil:images")


def test_modules_are_found_where_they_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))  # as `python -m` does: it must stand first afterwards, too
    folder = tmp_path / "recipes"
    folder.mkdir()
    file = write(folder / "r.toml", "model.custom", '["mine:Layer"]')
    before = list(sys.path)
    with asking(MODEL, file, []):
        assert sys.path == [*before, str(folder), str(tmp_path)]
    with looking(None, ["model.custom=mine:Layer"]):
        assert sys.path == [*before, str(tmp_path), str(tmp_path)]
    with asking(MODEL, None, []):
        assert sys.path == before


# The policy ---------------------------------------------------------------------------------------------------------


def policy(settings: list[str], file: str = "", only: str = "") -> str:
    """The policy that the command line and a recipe file come to, with images."""
    path = Path("r.toml")
    path.write_text(file)
    with asking(MODEL, path if file else None, ["data.source=x.npz", *settings], policy=only) as asked:
        return asked.recipe.select.policy


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ("", "accuracy"),
        ("cost=macs", "accuracy"),
        ("max_drop=2", "accuracy"),
        ("params=0.5", "budget"),
        ("macs=0.5", "budget"),
        ("params=0.5 macs=0.5", "budget"),
        ("min_similarity=0.9", "threshold"),
        ("point=1", "pareto"),
        ("point=1 max_drop=2", "pareto"),
        ("params=0.5 policy=uniform", "uniform"),
        ("params=none max_drop=2", "accuracy"),
    ],
)
def test_an_option_of_one_policy_asks_for_it(settings: str, expected: str) -> None:
    assert policy([f"select.{setting}" for setting in settings.split()]) == expected


@pytest.mark.parametrize(
    ("settings", "file", "expected"),
    [
        ("max_drop=2", 'policy = "pareto"', "pareto"),
        ("params=0.5", 'policy = "uniform"', "uniform"),
        ("policy=budget params=0.5", 'policy = "uniform"', "budget"),
        ("", "params = 0.5", "budget"),
        ("max_drop=2", "points = 5", "accuracy"),
        ("max_drop=2", "params = 0.5", "accuracy"),
    ],
)
def test_a_policy_of_the_recipe_stays(settings: str, file: str, expected: str) -> None:
    assert policy([f"select.{setting}" for setting in settings.split()], f"[select]\n{file}\n") == expected


def test_select_says_what_gives_way_to_it() -> None:
    assert policy(["select.point=1"], only="pareto") == "pareto"
    Path("r.toml").write_text('[select]\npolicy = "threshold"\n')
    with asking(MODEL, Path("r.toml"), ["data.source=x.npz"], policy="pareto") as asked:
        assert asked.recipe.select.policy == "pareto"
        assert asked.notes == ("select.policy in r.toml gives way to pareto, which select is for",)


# A recipe as a run writes it ------------------------------------------------------------------------------------------


def test_a_recipe_that_says_every_default_is_silent() -> None:
    for settings in ([], ["select.params=0.5"], ["data.source=none"], ["select.policy=uniform", "select.params=0.5"]):
        with asking(MODEL, None, ["data.source=x.npz", *settings] if settings != ["data.source=none"] else []) as asked:
            Path("r.toml").write_text(asked.recipe.to_toml())
        with asking(MODEL, Path("r.toml"), []) as again:
            assert again.recipe == asked.recipe
            assert again.notes == ()


def test_an_idle_option_of_a_recipe_is_a_note() -> None:
    Path("r.toml").write_text("[finetune]\nbatch = 64\n[select]\nmin_similarity = 0.9\n")
    with asking(MODEL, Path("r.toml"), ["select.params=0.5"]) as asked:
        assert asked.recipe.select.policy == "budget"
        assert asked.notes == (
            "finetune.batch in r.toml has no effect where data.source is none",
            "select.min_similarity in r.toml has no effect where select.params is 0.5",
        )


def test_a_policy_of_a_recipe_that_cannot_measure_is_a_note() -> None:
    Path("r.toml").write_text('[select]\npolicy = "pareto"\n')
    with asking(MODEL, Path("r.toml"), []) as asked:
        assert asked.notes == ("select.policy in r.toml measures on images, there are none: threshold decides",)
