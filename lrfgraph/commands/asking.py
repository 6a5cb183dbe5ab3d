"""From the arguments of a command to what is asked for: the recipe file, then the command line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lrfgraph.options.asked import Asked
from lrfgraph.selection.policies import POLICIES

__all__ = ["BESIDE", "ask", "cache_folder"]

BESIDE = "lrfgraph.toml"
"""The recipe that is read where it lies beside the model or in the working folder, and none is named."""


def ask(model: Path, file: Path | None, settings: Sequence[str] | None, *, beside: bool = True) -> Asked:
    """Return what is asked for: the recipe file's options, then those of the command line; raises RecipeError.

    file : the recipe that is named.  settings : ``section.key=value``.  beside : read the recipe that lies beside the
    model or in the working folder where none is named.
    """
    if file is None and beside:
        file = next((path for path in (model.parent / BESIDE, Path(BESIDE)) if path.is_file()), None)
    asked = (Asked.from_file(file) if file else Asked()).with_settings(settings or ())
    here = {key for key, origin in asked.origins.items() if origin is None}
    implied = _implied_policy({key.removeprefix("select.") for key in here if key.startswith("select.")})
    if implied and "select.policy" not in here:
        asked = replace(asked, recipe=asked.recipe.with_option("select.policy", implied))
    return replace(asked, recipe=asked.recipe.placed(Path()))


def _implied_policy(options: set[str]) -> str | None:
    """The policy that options of ``[select]`` ask for: of those that one of them implies, the one that reads most."""
    implied = [p for p in POLICIES.values() if p.public and options.intersection(p.implied_by)]
    return max(implied, key=lambda policy: len(policy.relevant & options)).name if implied else None


def cache_folder(folder: Path | None) -> Path:
    """Return the folder of a cache: the one that is named, else that of the recipe in the working folder."""
    if folder is not None:
        return folder
    here = Path(BESIDE)
    return Path((Asked.from_file(here) if here.is_file() else Asked()).recipe.run.cache)
