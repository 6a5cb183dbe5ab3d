"""README and docs/ speak of what is there: every command, option, method, policy and file that they name exists."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Call

from lrfgraph.commands.list import policies
from lrfgraph.methods import METHODS
from lrfgraph.options.recipe import OPTIONS, Recipe
from lrfgraph.pruning import SCORES
from pipelines import documents

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXT = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
README = PAGES[0].read_text(encoding="utf-8")
SECTIONS = {option.section for option in OPTIONS.values()}
SUFFIXES = {"csv", "h5", "json", "keras", "npz", "png", "py", "svg", "toml"}
OF_DASK_AND_KUBERNETES = {
    "--create-namespace",
    "--generate-name",
    "--image",
    "--no-dashboard",
    "--nthreads",
    "--overrides",
    "--repo",
    "--resources",
    "--restart",
}
SCRIPTS = re.compile(r"^.*\b(?:pip|pytest|python)\b.*$|^ *dask (?:scheduler|worker) .*$", re.M)


def first_columns(title: str) -> list[str]:
    """Return the words in code style in the first column of the tables with this title."""
    tables = re.findall(rf"^\| {title} \|.*\n\|[-| ]+\n((?:\|.*\n)+)", TEXT, re.M)
    return [
        name for table in tables for row in table.splitlines() for name in re.findall(r"`([^`]+)`", row.split("|")[1])
    ]


def commands() -> Iterator[list[str]]:
    """Every command in the text, in running text and in blocks."""
    blocks = "\n".join(text for kind, text in re.findall(r"^```(\w*)\n(.*?)^```", TEXT, re.M | re.S) if not kind)
    for text in re.findall(r"`(lrfgraph [^`]+)`", TEXT) + re.findall(r"(lrfgraph [a-z].*)$", blocks, re.M):
        yield shlex.split(text, comments=True)[1:]


def subcommands(call: Call, *group: str) -> set[str]:
    return set(re.findall(r"^  ([a-z]+)  ", call(*group, "--help").out.split("Commands:")[1], re.M))


def options_of(call: Call, *name: str) -> set[str]:
    return set(re.findall(r"^  (--[a-z-]+)", call(*name, "--help").out, re.M))


@pytest.mark.parametrize("words", list(commands()), ids=" ".join)
def test_every_command_exists_with_its_options(words: list[str], call: Call) -> None:
    name = words[:2] if words[0] == "cache" else words[:1]
    assert name[-1] in subcommands(call, *name[:-1])
    assert {word.partition("=")[0] for word in words if word.startswith("--")} <= options_of(call, *name)


def test_every_option_exists(call: Call) -> None:
    names = [(name,) for name in subcommands(call) - {"cache"}]
    names += [("cache", name) for name in subcommands(call, "cache")]
    options = {option for name in names for option in options_of(call, *name)}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", SCRIPTS.sub("", TEXT))) <= options | OF_DASK_AND_KUBERNETES


def test_every_key_exists() -> None:
    spans = re.findall(r"```.*?```|`[^`\n]+`", TEXT, re.S)
    named = {
        match for span in spans for match in re.findall(r"(?<![\w./-])([a-z]+)\.([a-z_]+[a-z0-9])(?![\w.:(/-])", span)
    }
    keys = {f"{section}.{name}" for section, name in named if section in SECTIONS and name not in SUFFIXES}
    assert keys
    assert keys <= OPTIONS.keys()


@pytest.mark.parametrize(
    ("title", "table"),
    [("method", METHODS.keys()), ("score", SCORES.keys()), ("policy", {row["policy"] for row in policies()})],
)
def test_every_method_score_and_policy_exists(title: str, table: set[str]) -> None:
    assert first_columns(title)
    assert set(first_columns(title)) <= table


def test_recipes_are_recipes() -> None:
    texts = re.findall(r"```toml\n(.*?)```", TEXT, re.S)
    assert texts
    for text in texts:
        assert Recipe.from_text(text) != Recipe()


def test_exit_codes_are_those_of_the_errors() -> None:
    from lrfgraph.errors import Interrupted, LrfError

    rows = re.findall(r"^\| (\d+) \|", TEXT, re.M)
    assert rows == ["0", "1", "2", "3", "130"]
    assert {str(LrfError.exit_code), str(Interrupted.exit_code)} <= set(rows)


def test_links_and_pictures_lead_somewhere() -> None:
    for page in PAGES:
        for path in re.findall(r"\]\(([^)h#][^)#]*)", page.read_text(encoding="utf-8")):
            assert (page.parent / path).is_file(), path
            assert (page.parent / path).stat().st_size < 200_000
    for path in ("LICENSE", "CHANGELOG.md", "cache/README.md", "lrfgraph/demo/LICENSES.md", "tests/data/README.md"):
        assert (ROOT / path).is_file()


@pytest.mark.parametrize("page", documents.PAGES, ids=lambda page: page.name)
def test_figures_are_those_of_the_result_files(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert documents.BLOCK.search(text)
    assert documents.written(text) == text, "python pipelines/documents.py writes the figures anew"


FIGURE = re.compile(r"\d(?:[\d.,]*\d)? ?(?:%|points|times|seconds|s\b|minutes|[kMG]i?B\b|candidates)")


def test_figures_stand_in_blocks_alone() -> None:
    """What is measured is written from a result file, or it is not said; pages on options say what they ask for."""
    for page in documents.PAGES:
        assert FIGURE.findall(documents.BLOCK.sub("", page.read_text(encoding="utf-8"))) == [], page


def test_result_files_say_what_they_were_measured_with() -> None:
    files = sorted(documents.RESULTS.glob("*.json"))
    assert files
    for file in files:
        assert documents.result(file.stem)


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
