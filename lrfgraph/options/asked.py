"""What a user asked for: a recipe, and where each of its options was said."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lrfgraph.errors import RecipeError
from lrfgraph.options.option import find
from lrfgraph.options.recipe import OPTIONS, Recipe
from lrfgraph.options.values import read_toml, toml_literal

__all__ = ["Asked", "literal"]


def _flag(key: str) -> str:
    """An option as the command line has it."""
    return OPTIONS[key].flag or f"--set {key}"


@dataclass(frozen=True)
class Asked:
    """A recipe and where its options were said.

    origins : by ``section.key``, the recipe file that says it, ``None`` for the command line; what nobody said is not
    in it.  folder : where modules of the user's are looked for first.  notes : what became of an option otherwise
    than its recipe file says.  spelling : how whoever asks says an option, by key.
    """

    recipe: Recipe = field(default_factory=Recipe)
    origins: Mapping[str, Path | None] = field(default_factory=dict)
    folder: Path = field(default_factory=Path)
    notes: tuple[str, ...] = ()
    spelling: Callable[[str], str] = _flag

    @classmethod
    def from_file(cls, file: Path) -> Asked:
        """Read a recipe file; its relative paths start from its own folder."""
        sections = read_toml(file)
        recipe = Recipe.from_dict(sections)
        keys = [f"{section}.{name}" for section, values in sections.items() for name in values]
        return cls(recipe.placed(file.parent, keys), dict.fromkeys(keys, file), file.parent)

    def with_settings(self, settings: Iterable[str]) -> Asked:
        """Add what the command line says, each as ``section.key=value``; relative paths start from the working folder.

        Raises RecipeError, also where it says two things of one option.
        """
        asked = self
        for setting in settings:
            text, equals, value = setting.partition("=")
            if not equals:
                raise RecipeError(f"--set takes section.key=value, received {setting!r}")
            asked = asked.with_value(text.strip(), value.strip())
        return asked

    def with_value(self, key: str, value: Any) -> Asked:
        """Add what is said of one option, as text or as its value; see `with_settings`."""
        key = find(key, OPTIONS).key
        recipe = self.recipe.with_option(key, value).placed(Path(), [key])
        if self.here(key) and recipe != self.recipe:
            values = " and ".join(literal(key, asked) for asked in (self.recipe, recipe))
            raise RecipeError(f"{key} is said twice, received {values}; leave one of them out")
        return replace(self, recipe=recipe, origins={**self.origins, key: None})

    def with_own(self, settings: Iterable[str], name: str) -> Asked:
        """Add what a command, of this name, says itself; raises RecipeError where its caller says otherwise."""
        asked = self
        for setting in settings:
            key, _, value = setting.partition("=")
            own = asked.recipe.with_option(key, value)
            if asked.here(key) and own != asked.recipe:
                values = f"{literal(key, own)}, received {literal(key, asked.recipe)}"
                raise RecipeError(f"{name} is with {key} = {values}; leave it out, or use run")
            asked = replace(asked, recipe=own, origins={**asked.origins, key: None})
        return asked

    def here(self, key: str) -> bool:
        """Whether the command line says an option."""
        return key in self.origins and self.origins[key] is None

    def means(self, key: str) -> bool:
        """Whether somebody wants an option to have an effect.

        A recipe as a run writes it says every option: in a file, one that has its default value asks for nothing.
        """
        return self.here(key) or (key in self.origins and self.recipe.value(key) != OPTIONS[key].default)

    def name(self, key: str) -> str:
        """An option as whoever said it knows it."""
        if not self.here(key):
            return f"{key} in {self.origins[key]}" if key in self.origins else key
        return self.spelling(key)


def literal(key: str, recipe: Recipe) -> str:
    """Write the value of an option as a recipe file has it."""
    value = recipe.value(key)
    return "none" if value is None else toml_literal(value)
