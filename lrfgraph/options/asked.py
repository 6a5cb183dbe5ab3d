"""What a user asked for: a recipe, and where each of its options was said."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from lrfgraph.errors import RecipeError
from lrfgraph.options.recipe import Recipe, find_option, read_toml

__all__ = ["Asked"]


@dataclass(frozen=True)
class Asked:
    """A recipe and where its options were said.

    origins : by ``section.key``, the recipe file that says it, ``None`` for the command line; what nobody said is not
    in it.  folder : where modules of the user's are looked for.
    """

    recipe: Recipe = field(default_factory=Recipe)
    origins: Mapping[str, Path | None] = field(default_factory=dict)
    folder: Path = field(default_factory=Path)

    @classmethod
    def from_file(cls, file: Path) -> Asked:
        """Read a recipe file; its relative paths start from its own folder."""
        sections = read_toml(file)
        recipe = Recipe.from_dict(sections)
        keys = [f"{section}.{name}" for section, values in sections.items() for name in values]
        return cls(recipe.placed(file.parent, keys), dict.fromkeys(keys, file), file.parent)

    def with_settings(self, settings: Iterable[str]) -> Asked:
        """Add what the command line says, each as ``section.key=value``; relative paths start from the working folder.

        Raises RecipeError.
        """
        recipe, origins = self.recipe, dict(self.origins)
        for setting in settings:
            text, equals, value = setting.partition("=")
            if not equals:
                raise RecipeError(f"--set takes section.key=value, received {setting!r}")
            key = find_option(text.strip()).key
            recipe, origins[key] = recipe.with_option(key, value.strip()).placed(Path(), [key]), None
        return replace(self, recipe=recipe, origins=origins)
