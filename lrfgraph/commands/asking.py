"""From the arguments of a command to what is asked for: the recipe file, then the command line.

Code is run only where the command line names it, or names the recipe that does: a recipe that is merely found beside
a model came with the model.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from lrfgraph.errors import RecipeError
from lrfgraph.options.asked import Asked, literal
from lrfgraph.options.option import Option
from lrfgraph.options.recipe import OPTIONS
from lrfgraph.options.values import names_function

__all__ = ["BESIDE", "ask", "asking", "cache_folder", "command_of", "looking"]

COMMANDS = {"prune": "prune", "dprp": "train"}
"""What a command is called that says options of a section itself."""

BESIDE = "lrfgraph.toml"
"""The recipe that is read where it lies beside the model or in the working folder, and none is named."""


def command_of(own: Sequence[str]) -> str:
    """Return what the command is called that says these settings itself."""
    return COMMANDS[own[0].partition(".")[0]]


@contextmanager
def asking(
    model: Path,
    file: Path | None,
    settings: Sequence[str] | None,
    *,
    policy: str = "",
    own: Sequence[str] = (),
    flags: Mapping[str, Option] | None = None,
) -> Iterator[Asked]:
    """Give what is asked for; while it is carried out, modules that it names are found.

    file : the recipe that is named.  settings : ``section.key=value``.  policy : the only one the command is for.
    own : settings that the command itself says.  flags : of the command, where they are not those of the options.
    Raises RecipeError for what is unknown, contradictory or without effect.
    """
    from lrfgraph.commands.effects import checked, with_policy  # with the policies comes NumPy

    asked = ask(model, file, settings)
    if own:
        asked = asked.with_own(own, command_of(own))
    if flags is not None:
        asked = replace(asked, spelling=partial(_spelling, {option.key: flag for flag, option in flags.items()}))
    asked = checked(with_policy(asked, policy) if policy else asked)
    with modules_of(asked):
        yield replace(asked, recipe=asked.recipe.placed(Path()))


@contextmanager
def looking(file: Path | None, settings: Sequence[str] | None) -> Iterator[Asked]:
    """Give what is asked of a command that only looks at a model; only a recipe that is named is read."""
    asked = (Asked.from_file(file) if file else Asked()).with_settings(settings or ())
    for key in asked.origins:
        if asked.here(key) and not OPTIONS[key].looking:
            raise RecipeError(f"{asked.name(key)} has no effect on what is only looked at; leave it out")
    with modules_of(asked):
        yield replace(asked, recipe=asked.recipe.placed(Path()))


def _spelling(flags: Mapping[str, str], key: str) -> str:
    return flags.get(key, f"--set {key}")


def ask(model: Path, file: Path | None, settings: Sequence[str] | None) -> Asked:
    """Return what the recipe file and the command line say; see `asking`."""
    if file is not None:
        return Asked.from_file(file).with_settings(settings or ())
    beside = next((path for path in (model.parent / BESIDE, Path(BESIDE)) if path.is_file()), None)
    asked = replace(Asked.from_file(beside), folder=Path()) if beside else Asked()
    asked = asked.with_settings(settings or ())
    for key, origin in asked.origins.items():
        value = asked.recipe.value(key)
        if origin is not None and value is not None and OPTIONS[key].runs_code(value):
            raise RecipeError(
                f"{origin}: {key} = {literal(key, asked.recipe)} lets code be run, which only a recipe that is named "
                f"may; say {OPTIONS[key].flag or key} on the command line, or name the recipe with --recipe {origin}"
            )
    return asked


@contextmanager
def modules_of(asked: Asked) -> Iterator[None]:
    """Have modules found in the recipe's folder and the working folder, after all installed ones, if any is named."""
    values = [asked.recipe.value(option.key) for option in OPTIONS.values()]
    texts = [text for value in values for text in (value if isinstance(value, tuple) else (value,))]
    folders = [str(folder.absolute()) for folder in (asked.folder, Path())]
    if not any(isinstance(text, str) and names_function(text) for text in texts):
        folders = []
    before = list(sys.path)
    sys.path.extend(folders)
    try:
        yield
    finally:
        sys.path[:] = before


def cache_folder(folder: Path | None) -> Path:
    """Return the folder of a cache: the one that is named, else that of the recipe in the working folder."""
    if folder is not None:
        return folder
    here = Path(BESIDE)
    return Path((Asked.from_file(here) if here.is_file() else Asked()).recipe.run.cache)
