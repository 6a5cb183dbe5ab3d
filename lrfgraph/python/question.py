"""From the arguments of a call to what is asked for: the same options as on the command line, checked the same way."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from lrfgraph import api
from lrfgraph.commands.asking import command_of, modules_of
from lrfgraph.commands.effects import checked
from lrfgraph.engine.events import Event
from lrfgraph.errors import RecipeError
from lrfgraph.images.naming import Inputs
from lrfgraph.options import dprp
from lrfgraph.options.asked import Asked
from lrfgraph.options.option import Option, is_unknown
from lrfgraph.options.pruning import SHARES, UNREAD
from lrfgraph.options.recipe import OPTIONS, Recipe
from lrfgraph.python.objects import images_file, is_path, model_file
from lrfgraph.run.stages import inputs_of

__all__ = ["WORDS", "question"]

SECTIONS = tuple(dict.fromkeys(option.section for option in OPTIONS.values()))
WORDS: Mapping[str, Option] = {
    option.flag.removeprefix("--").replace("-", "_"): option for option in OPTIONS.values() if option.flag
}
"""The options that are keywords of their own, by name: those with a flag on the command line."""

WORDS_OF_PRUNE = {word: option for word, option in WORDS.items() if option.section not in UNREAD} | {
    name: OPTIONS[f"prune.{name}"] for name in SHARES
}
"""The same where channels are removed alone: shares are then those of ``[prune]``."""

WORDS_OF_TRAIN = {word: option for word, option in WORDS.items() if option.section not in dprp.UNREAD} | {
    name: OPTIONS[f"dprp.{name}"] for name in dprp.SHORT
}
"""The same where ranks shrink in training: its words are those of ``[dprp]``."""

WORDS_OF = {"prune": WORDS_OF_PRUNE, "train": WORDS_OF_TRAIN}

SOURCES = ("data.source", "data.val")
"""Options that may be arrays."""


@contextmanager
def question(
    model: Any,
    images: Any,
    recipe: Any,
    words: Mapping[str, Any],
    own: Sequence[str] = (),
    on_event: Callable[[Event], None] | None = None,
) -> Iterator[tuple[Path, Asked]]:
    """Give the model's file and what is asked for; while it is carried out, modules that it names are found.

    words : sections with their options, and short options.  own : settings that the call itself says.  on_event : told
    of images that are written down.  Raises LrfError.
    """
    asked = replace(_recipe(recipe), spelling=_spelling)
    command = command_of(own) if own else ""
    short = WORDS_OF.get(command, WORDS)
    values = dict(_options(words, short))
    if images is not None:
        if "data.source" in values:
            raise RecipeError("images are given twice, as images and as data; leave one of them out")
        values["data.source"] = images
    arrays = {key: values.pop(key) for key in SOURCES if values.get(key) is not None}
    for key, value in values.items():
        asked = asked.with_value(key, os.fspath(value) if isinstance(value, os.PathLike) else value)
    if own:
        asked = replace(asked.with_own(own, command), spelling=partial(_spelling, short=short))
    if not is_path(model) and asked.here("model.custom"):
        raise RecipeError("custom has no effect on a Keras model that is given itself; leave it out")
    if not all(map(is_path, (model, *arrays.values()))):
        _check_first(asked, arrays)
    cache = Path(asked.recipe.run.cache)
    path, custom = model_file(model, cache)
    if custom:
        asked = replace(asked, recipe=asked.recipe.with_option("model.custom", custom))
    for key, value in arrays.items():
        with modules_of(asked):
            source = images_file(value, _inputs(path, asked), cache, _telling(on_event))
        asked = asked.with_value(key, source)
    asked = checked(asked)
    with modules_of(asked):
        yield path, replace(asked, recipe=asked.recipe.placed(Path()))


def _telling(on_event: Callable[[Event], None] | None) -> Callable[[int, int, str], None] | None:
    if on_event is None:
        return None
    return lambda done, total, message: on_event(
        Event("progress", "images/data", "data", done=done, total=total, message=message)
    )


def _check_first(asked: Asked, arrays: Mapping[str, Any]) -> None:
    """Raise LrfError for options that are refused, before models and arrays are written for nothing."""
    for key, value in arrays.items():
        asked = asked.with_value(key, os.fspath(value) if is_path(value) else "images.npz")
    recipe = checked(asked).recipe
    with modules_of(asked):
        api.check(recipe)
    api.store_of(recipe)


def _inputs(model: Path, asked: Asked) -> Callable[[], Inputs]:
    """A function that says what the network takes; the model is read for it."""

    def inputs() -> Inputs:
        driver, network = api.read(model, asked.recipe)
        return inputs_of(driver.data(network.model)["structure"])

    return inputs


def _recipe(recipe: Any) -> Asked:
    if recipe is None:
        return Asked()
    if is_path(recipe):
        return Asked.from_file(Path(recipe))
    if isinstance(recipe, Mapping):
        recipe = Recipe.from_dict(recipe)
    if not isinstance(recipe, Recipe):
        raise RecipeError(f"recipe must be a file, a dictionary or a Recipe; received {type(recipe).__name__}")
    return Asked(recipe)


def _options(words: Mapping[str, Any], short: Mapping[str, Option]) -> Iterator[tuple[str, Any]]:
    """Yield the options that keywords say, by key, each once."""
    known: set[str] = set()
    for word, value in words.items():
        for key, own in _of_word(word, value, short):
            if key in known:
                raise RecipeError(
                    f"{key} is said twice, by itself and in {key.partition('.')[0]}; leave one of them out"
                )
            known.add(key)
            yield key, own


def _of_word(word: str, value: Any, short: Mapping[str, Option]) -> Iterator[tuple[str, Any]]:
    if word in SECTIONS and isinstance(value, Mapping):
        yield from ((f"{word}.{name}", own) for name, own in value.items())
    elif word in short:
        yield short[word].key, value
    elif word in SECTIONS:
        raise RecipeError(f"{word} must be a dictionary of options and values; received {value!r}")
    else:
        raise RecipeError(f"keyword {word!r} {is_unknown(word, [*short, *SECTIONS])}")


def _spelling(key: str, short: Mapping[str, Option] = WORDS) -> str:
    """An option as a keyword."""
    word = next((word for word, option in short.items() if option.key == key), None)
    section, _, name = key.partition(".")
    return word or f"{section}=dict({name}=…)"
