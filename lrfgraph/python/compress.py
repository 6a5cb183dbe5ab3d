"""What Python programs and notebooks call: the same runs as the command line's, on what a program holds."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from lrfgraph import api
from lrfgraph.commands.run import carry_out
from lrfgraph.options import dprp, pruning
from lrfgraph.python.question import question
from lrfgraph.report.progress import Progress
from lrfgraph.report.result import Result
from lrfgraph.run.driver import Driver
from lrfgraph.run.state import Network

__all__ = ["compress", "inspect", "plan", "prune", "train"]


def compress(model: Any, images: Any = None, *, recipe: Any = None, progress: bool = True, **options: Any) -> Result:
    """Compress a trained Keras network, and return the smaller one with an account of what was lost.

    Parameters
    ----------
    model : a Keras model, or the path of a ``.keras`` or ``.h5`` file.
    images : what the network is judged on: ``(x, y)``, ``(x, y, x_test, y_test)``, ``((x, y), (x_test, y_test))``, a
        dictionary of arrays (``x_train``, ``y_train``, ``x_val``, …), images alone, one to three `tf.data.Dataset`s,
        or what ``--data`` takes: a ``.npz`` file, a folder of class folders, ``package.module:function``.
    recipe : a TOML file, a dictionary of sections, or a `Recipe`; keywords win over it.
    progress : show what is done, in a notebook, a terminal, or as a line now and then.
    options : sections with their options, ``select={"policy": "budget"}``, and what the command line has a flag for,
        ``max_drop=1.0``; `lrfgraph list options` prints all.

    Models and arrays are kept in the cache by their content: a second call computes what is new in it. Results are
    written where ``out`` says; without it they are in the `Result` alone.  Raises LrfError for what the user can mend.
    """
    return _compress(model, images, recipe, progress, options)


def prune(model: Any, images: Any = None, *, recipe: Any = None, progress: bool = True, **options: Any) -> Result:
    """Remove whole channels of a network and factorize nothing; arguments and result are those of `compress`."""
    return _compress(model, images, recipe, progress, options, pruning.ALONE)


def train(model: Any, images: Any = None, *, recipe: Any = None, progress: bool = True, **options: Any) -> Result:
    """Train a network while the ranks of its layers shrink; arguments and result are those of `compress`.

    ``params``, ``macs``, ``epochs``, ``from_scratch``, ``matricization``, ``crop`` and ``flip`` are those of ``dprp``.
    """
    return _compress(model, images, recipe, progress, options, dprp.ALONE)


def _compress(
    model: Any, images: Any, recipe: Any, progress: bool, options: dict[str, Any], own: Sequence[str] = ()
) -> Result:
    with ExitStack() as stack:
        listener = stack.enter_context(Progress()) if progress else None
        path, asked = stack.enter_context(question(model, images, recipe, options, own, listener))
        out = asked.recipe.run.out
        return carry_out(path, asked, Path(out) if out else None, on_event=listener)


def plan(model: Any, images: Any = None, *, recipe: Any = None, **options: Any) -> tuple[Driver, bool]:
    """Look up what `compress` with these arguments would run and reuse; see `api.plan`."""
    with question(model, images, recipe, options) as (path, asked):
        return api.plan(path, asked.recipe, base=asked.folder)


def inspect(model: Any, *, recipe: Any = None, **options: Any) -> Network:
    """Read a model and return what is in it; options as those of `compress`."""
    with question(model, None, recipe, options) as (path, asked):
        return api.inspect(path, asked.recipe)
