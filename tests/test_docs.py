"""README says what is there: every command, option, method and policy it names exists, and none is missing."""

from __future__ import annotations

import re
import runpy
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Call

from lrfgraph.cli import COMMON, OPTIONS
from lrfgraph.methods import METHODS
from lrfgraph.options.recipe import fields_of
from lrfgraph.selection.policies import PUBLIC

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = {
    *((name,) for name in ("run", "inspect", "plan", "explain", "select", "demo", "version")),
    *(("cache", name) for name in ("ls", "du", "verify", "gc", "rm", "pin", "unpin")),
}


def section(title: str) -> str:
    return README.split(f"\n## {title}\n")[1].split("\n## ")[0]


def first_column(text: str) -> list[str]:
    """Return the words in code style in the first column of a text's tables."""
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    return [name for row in rows for name in re.findall(r"`([^`]+)`", row.split(" | ")[0])]


def commands() -> Iterator[list[str]]:
    """Every lrfgraph command in README, in running text and in blocks."""
    for text in re.findall(r"`(lrfgraph [^`]+)`", README) + re.findall(r"^\$? ?(lrfgraph [a-z].*)$", README, re.M):
        yield shlex.split(text)[1:]


def test_methods_table_is_the_table_of_methods() -> None:
    assert first_column(section("Methods")) == list(METHODS)


def test_policies_table_is_the_table_of_policies() -> None:
    assert set(first_column(section("Choosing"))) == set(PUBLIC)


def test_options_table_is_that_of_this_version() -> None:
    made: dict[str, Any] = runpy.run_path(str(ROOT / "pipelines" / "readme.py"))
    assert made["replaced"](README) == README, "run python pipelines/readme.py"
    assert first_column(section("Options")) == [option.key for option in fields_of()]


@pytest.mark.parametrize("words", list(commands()), ids=" ".join)
def test_every_command_in_readme_exists_with_its_options(words: list[str], call: Call) -> None:
    name = tuple(words[:2] if words[0] == "cache" else words[:1])
    assert name in COMMANDS
    said = call(*name, "--help")
    assert said.code == 0
    for word in words:
        if word.startswith("--"):
            assert f"{word} " in said.out


def test_every_command_is_in_readme(call: Call) -> None:
    named = {tuple(words[:2] if words[0] == "cache" else words[:1]) for words in commands()}
    assert named == COMMANDS
    listed = re.findall(r"^  ([a-z]+)  ", call("--help").out.split("Commands:")[1], re.M)
    assert {name[0] for name in named} == set(listed)
    listed = re.findall(r"^  ([a-z]+)  ", call("cache", "--help").out.split("Commands:")[1], re.M)
    assert {name[1] for name in named if name[0] == "cache"} == set(listed)


def test_every_option_in_readme_exists() -> None:
    known = {f"--{name.replace('_', '-')}" for name in OPTIONS} | {"--set", "--recipe", "--json", "--debug"}
    assert {"settings", "recipe", "json", "debug"} == COMMON.keys()
    of_others = {"--kind", "--run", "--remove", "--max-size", "--older-than", "--dry-run", "--picture"}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", README)) <= known | of_others
    for key in set(re.findall(r"--set ([a-z_]+\.[a-z_]+)=", README)) - {"section.key"}:
        assert key in {option.key for option in fields_of()}


def test_recipe_in_readme_is_one() -> None:
    from lrfgraph import Recipe

    (text,) = re.findall(r"```toml\n(.*?)```", README, re.S)
    assert Recipe.from_text(text).select.min_similarity == 0.95


def test_exit_codes_are_those_of_the_errors() -> None:
    from lrfgraph.errors import Interrupted, LrfError

    rows = re.findall(r"^\| (\d+) \|", README, re.M)
    assert rows == ["0", "1", "2", "3", "130"]
    assert {str(LrfError.exit_code), str(Interrupted.exit_code)} <= set(rows)


def test_pictures_and_files_exist() -> None:
    for path in re.findall(r"\]\(([^)h][^)]*)\)", README):
        assert (ROOT / path).is_file()
        assert (ROOT / path).stat().st_size < 200_000
    for path in ("LICENSE", "CHANGELOG.md", "cache/README.md", "lrfgraph/demo/LICENSES.md", "tests/data/README.md"):
        assert (ROOT / path).is_file()


def test_ci_runs_what_readme_says() -> None:
    checks = (ROOT / ".ci" / "run").read_text()
    assert "pip install -e '.[test]' && pytest" in README
    assert "-e '.[test]'" in checks
    assert "step tests pytest" in checks


def test_version_is_one(call: Call) -> None:
    import tomllib

    from lrfgraph import __version__

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == __version__ == call("version").out.strip()
    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text()
