"""The command line: declares the commands and calls them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

import typer
from typer.core import TyperCommand

from lrfgraph import __version__
from lrfgraph.commands.asking import asking, cache_folder, looking
from lrfgraph.errors import LrfError, RecipeError
from lrfgraph.options import dprp, pruning
from lrfgraph.options.option import Option
from lrfgraph.options.recipe import OPTIONS
from lrfgraph.options.values import SWITCH, nearest

__all__ = ["app", "main"]

app = typer.Typer(
    name="lrfgraph",
    help="Make a trained Keras CNN smaller by low-rank factorization, and say honestly what was lost.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
cache = typer.Typer(
    help="Look after a cache: ls, du, verify, gc, rm, pin, unpin, push, pull.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(cache, name="cache")


# Options of the recipe as flags -------------------------------------------------------------------------------------


class RecipeCommand(TyperCommand):
    """A command that takes a recipe: the flag of an option is short for ``--set section.key=value``."""

    flags: ClassVar[Mapping[str, Option]] = {option.flag: option for option in OPTIONS.values() if option.flag}

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments with all flags of the recipe written out."""
        own = [text for parameter in self.get_params(ctx) for text in parameter.opts if text.startswith("--")]
        return super().parse_args(ctx, list(written_out(args, self.flags, own)))

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the flags of the recipe below the command's own options."""
        super().format_options(ctx, formatter)
        with formatter.section("Options of the recipe"):
            formatter.write_dl([(_with_symbol(option), f"{option.help}.") for option in self.flags.values()])


class LookingCommand(RecipeCommand):
    """A command that only looks at a model."""

    flags: ClassVar[Mapping[str, Option]] = {
        flag: option for flag, option in RecipeCommand.flags.items() if option.looking
    }


class PruningCommand(RecipeCommand):
    """A command that removes channels and factorizes nothing: its shares are those of ``[prune]``."""

    flags: ClassVar[Mapping[str, Option]] = {
        flag: option
        for flag, option in RecipeCommand.flags.items()
        if option.section not in pruning.UNREAD and option.key != "prune.method"
    } | {f"--{name}": replace(OPTIONS[f"prune.{name}"], flag=f"--{name}") for name in pruning.SHARES}


class TrainingCommand(RecipeCommand):
    """A command that trains with shrinking ranks: its flags are those of ``[dprp]``."""

    flags: ClassVar[Mapping[str, Option]] = {
        flag: option for flag, option in RecipeCommand.flags.items() if option.section not in dprp.UNREAD
    } | {
        f"--{name.replace('_', '-')}": replace(OPTIONS[f"dprp.{name}"], flag=f"--{name.replace('_', '-')}")
        for name in dprp.SHORT
    }


def written_out(arguments: Sequence[str], flags: Mapping[str, Option], others: Sequence[str]) -> Iterator[str]:
    """Yield arguments with every flag of the recipe as ``--set section.key=value``.

    others : long options that the command has beside them.  Raises RecipeError.
    """
    words = iter(arguments)
    for word in words:
        flag, equals, value = word.partition("=")
        if word == "--":
            yield from (word, *words)
        elif flag in flags and flags[flag].kind is SWITCH:
            if equals:
                raise RecipeError(f"option {flag} takes no value, received {value!r}")
            yield from ("--set", f"{flags[flag].key}=true")
        elif flag in flags:
            text = value if equals else next(words, None)
            if text is None:
                raise RecipeError(f"option {flag} needs a value, received none")
            yield from ("--set", f"{flags[flag].key}={text}")
        elif flag.startswith("--") and flag not in others:
            raise RecipeError(f"no such option: {flag}{nearest(flag, [*flags, *others]) or '; --help lists them'}")
        else:
            yield word


def _with_symbol(option: Option) -> str:
    return f"{option.flag} {'|'.join(option.choices) or option.kind.symbol}".rstrip()


Model = Annotated[Path, typer.Argument(help="The model: a .keras or .h5 file.", show_default=False)]
Layer = Annotated[str, typer.Argument(help="The layer, as `inspect` writes it.", show_default=False)]
RecipeFile = Annotated[
    Path | None, typer.Option(help="Recipe in TOML (default: lrfgraph.toml beside the model or here).")
]
Settings = Annotated[list[str] | None, typer.Option("--set", help="Any option: section.key=value; may be repeated.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, on standard output.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


# Compressing --------------------------------------------------------------------------------------------------------


@app.command(cls=RecipeCommand)
def run(model: Model, recipe: RecipeFile = None, settings: Settings = None,
        json: Json = False, debug: Debug = False) -> None:  # fmt: skip
    """Compress MODEL and write the smaller model with an account of what was lost."""
    from lrfgraph.commands.run import run_and_report

    with asking(model, recipe, settings) as asked:
        run_and_report(model, asked, as_json=json)


@app.command(cls=RecipeCommand)
def select(model: Model, recipe: RecipeFile = None, settings: Settings = None,
           json: Json = False, debug: Debug = False) -> None:  # fmt: skip
    """Take one point of the front of MODEL (policy pareto, --point K) and finish it; nothing is explored again."""
    from lrfgraph.commands.select import POLICY, select_point

    with asking(model, recipe, settings, policy=POLICY) as asked:
        select_point(model, asked, as_json=json)


@app.command(cls=PruningCommand)
def prune(model: Model, recipe: RecipeFile = None, settings: Settings = None,
          json: Json = False, debug: Debug = False) -> None:  # fmt: skip
    """Remove whole channels of MODEL, every layer that they are coupled with narrowed, and write the smaller model."""
    from lrfgraph.commands.run import run_and_report

    with asking(model, recipe, settings, own=pruning.ALONE, flags=PruningCommand.flags) as asked:
        run_and_report(model, asked, as_json=json)


@app.command(cls=TrainingCommand)
def train(model: Model, recipe: RecipeFile = None, settings: Settings = None,
          json: Json = False, debug: Debug = False) -> None:  # fmt: skip
    """Train MODEL while the ranks of its layers shrink, and write the smaller model; nothing is left to retrain."""
    from lrfgraph.commands.run import run_and_report

    with asking(model, recipe, settings, own=dprp.ALONE, flags=TrainingCommand.flags) as asked:
        run_and_report(model, asked, as_json=json)


@app.command(cls=RecipeCommand)
def plan(model: Model, recipe: RecipeFile = None, settings: Settings = None,
         json: Json = False, debug: Debug = False) -> None:  # fmt: skip
    """Say what `run` would compute and what it would reuse, and why; exit code 3 if there is something to compute."""
    from lrfgraph.commands.plan import plan_and_report

    with asking(model, recipe, settings) as asked:
        work = plan_and_report(model, asked, as_json=json)
    if work:
        raise typer.Exit(3)


@app.command(cls=RecipeCommand)
def explain(model: Model, layer: Layer, recipe: RecipeFile = None, settings: Settings = None,
            json: Json = False, debug: Debug = False) -> None:  # fmt: skip
    """Show the candidates of LAYER in MODEL, which one was chosen, and what excluded the others."""
    from lrfgraph.commands.explain import explain_layer

    with asking(model, recipe, settings) as asked:
        explain_layer(model, layer, asked, as_json=json)


@app.command(cls=LookingCommand)
def inspect(model: Model, recipe: RecipeFile = None, settings: Settings = None,
            json: Json = False, debug: Debug = False) -> None:  # fmt: skip
    """Print every layer: kernel, parameters and MACs with their share, break-even ranks, methods or why none."""
    from lrfgraph.commands.inspect import inspect_model

    with looking(recipe, settings) as asked:
        inspect_model(model, asked, as_json=json)


Topic = Annotated[str | None, typer.Argument(help="What to list; without it, what can be listed.", show_default=False)]
Out = Annotated[Path, typer.Option(help="Folder for the results, the model and the cache.")]


@app.command("list")
def list_(topic: Topic = None, json: Json = False, debug: Debug = False) -> None:
    """List the options of a recipe, the methods, the policies, the metrics: all that can be asked for."""
    from lrfgraph.commands.list import list_topic

    list_topic(topic, as_json=json)


@app.command()
def demo(out: Out = Path("lrfgraph-demo"), json: Json = False, debug: Debug = False) -> None:
    """Compress a small network that comes with the package, fine-tuning included; two to three minutes on two cores."""
    from lrfgraph.commands.demo import demonstrate

    demonstrate(out, as_json=json)


@app.command()
def version() -> None:
    """Print the version."""
    print(__version__)


# The cache ----------------------------------------------------------------------------------------------------------

Cache = Annotated[
    Path | None, typer.Option("--cache", help="Folder of the cache (default: that of lrfgraph.toml here, or cache).")
]
RunName = Annotated[str, typer.Argument(help="Name of a run, as `cache ls` writes it.", show_default=False)]


@cache.command()
def ls(
    kind: Annotated[str | None, typer.Option(help="List the entries of this kind of node.")] = None,
    run: Annotated[str | None, typer.Option(help="List the entries that this run stands on.")] = None,
    cache: Cache = None, json: Json = False, debug: Debug = False,
) -> None:  # fmt: skip
    """List runs with entries, size and age; with --kind or --run the entries themselves."""
    from lrfgraph.commands import cache as commands

    commands.ls(cache_folder(cache), kind, run, as_json=json)


@cache.command()
def du(cache: Cache = None, json: Json = False, debug: Debug = False) -> None:
    """Print entries and bytes by kind."""
    from lrfgraph.commands import cache as commands

    commands.du(cache_folder(cache), as_json=json)


@cache.command()
def verify(
    remove: Annotated[bool, typer.Option("--remove", help="Remove what is damaged; the next run computes it.")] = False,
    cache: Cache = None, json: Json = False, debug: Debug = False,
) -> None:  # fmt: skip
    """Digest every file again; exit code 1 if something is damaged."""
    from lrfgraph.commands import cache as commands

    if commands.verify(cache_folder(cache), remove, as_json=json):
        raise typer.Exit(1)


@cache.command()
def gc(
    max_size: Annotated[str | None, typer.Option(help="Size that may stay, as 5GB; the least used goes first.")] = None,
    older_than: Annotated[str | None, typer.Option(help="Remove what was not used for so long, as 30d.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    cache: Cache = None, json: Json = False, debug: Debug = False,
) -> None:  # fmt: skip
    """Remove what was not used for long, or the least recently used; never what a live or pinned run stands on."""
    from lrfgraph.commands import cache as commands

    commands.gc(cache_folder(cache), max_size, older_than, dry_run, as_json=json)


@cache.command()
def rm(
    run: Annotated[str | None, typer.Argument(help="Name of a run.", show_default=False)] = None,
    kind: Annotated[str | None, typer.Option(help="Remove all entries of this kind of node.")] = None,
    cache: Cache = None, json: Json = False, debug: Debug = False,
) -> None:  # fmt: skip
    """Remove a run with the entries that no other run stands on, or all entries of a kind."""
    from lrfgraph.commands import cache as commands

    commands.rm(cache_folder(cache), run, kind, as_json=json)


@cache.command()
def pin(run: RunName, cache: Cache = None, debug: Debug = False) -> None:
    """Keep everything that a run stands on, whatever `gc` is asked to do."""
    from lrfgraph.commands import cache as commands

    commands.pin(cache_folder(cache), run, True)


@cache.command()
def unpin(run: RunName, cache: Cache = None, debug: Debug = False) -> None:
    """Let `gc` remove again what a run stands on."""
    from lrfgraph.commands import cache as commands

    commands.pin(cache_folder(cache), run, False)


Remote = Annotated[str, typer.Option("--remote", help="URL of the remote.", show_default=False)]


@cache.command()
def push(run: RunName, remote: Remote, cache: Cache = None, json: Json = False, debug: Debug = False) -> None:
    """Put what a run stands on into the remote."""
    from lrfgraph.commands import cache as commands

    commands.push(cache_folder(cache), run, remote, as_json=json)


@cache.command()
def pull(run: RunName, remote: Remote, cache: Cache = None, json: Json = False, debug: Debug = False) -> None:
    """Fetch what a run stands on, so that it can be gone on with without the remote; exit code 1 if some is absent."""
    from lrfgraph.commands import cache as commands

    if not commands.pull(cache_folder(cache), run, remote, as_json=json):
        raise typer.Exit(1)


# The program --------------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit; a user's mistake is one line on standard error and exit code 2."""
    program = arguments is None
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    try:
        code = app(args=arguments, prog_name="lrfgraph", standalone_mode=False)
        if code == 130:  # typer's answer to Ctrl-C
            raise KeyboardInterrupt
        sys.exit(code if isinstance(code, int) else 0)
    except LrfError as error:
        if debug:
            raise
        _leave(error.exit_code, str(error), program)
    except typer.Exit as error:
        sys.exit(error.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        _leave(130, INTERRUPTED, program)
    except BrokenPipeError:  # whoever read the output has seen enough
        sys.stderr.close()
        sys.exit(0)
    except Exception as error:
        if debug or not hasattr(error, "format_message"):
            raise
        _print_error(error.format_message() or "give a command; lrfgraph --help lists them")
        sys.exit(2)


INTERRUPTED = "interrupted; what was finished is kept in the cache, the same command goes on from there"


def _leave(code: int, message: str, program: bool) -> None:
    """Say why and exit; a `program` at once after Ctrl-C: Python would wait for threads busy inside TensorFlow."""
    if code != 130 or not program:
        _print_error(message)
        sys.exit(code)
    from lrfgraph.network.opening.start import release_stderr

    release_stderr()
    with suppress(OSError):
        _print_error(message)
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def _print_error(message: str) -> None:
    print("lrfgraph: " + " ".join(message.split()), file=sys.stderr)
