"""The command line: thin. Options become a recipe, the api does the work, the report prints it."""

from __future__ import annotations

import inspect as inspection
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from lrfgraph import __version__
from lrfgraph.errors import LrfError, RecipeError
from lrfgraph.options.recipe import Recipe, fields_of

__all__ = ["COMMON", "OPTIONS", "app", "main"]

app = typer.Typer(
    name="lrfgraph",
    help="Make a trained Keras CNN smaller by low-rank factorization, and say honestly what was lost.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
cache = typer.Typer(
    help="Look after a cache: ls, du, verify, gc, rm, pin, unpin.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(cache, name="cache")

OPTIONS: dict[str, str] = {
    "data": "data.source",
    "scale": "data.scale",
    "mean": "data.mean",
    "std": "data.std",
    "stats": "data.stats",
    "channels": "data.channels",
    "image_size": "data.image_size",
    "out": "run.out",
    "configuration": "select.configuration",
    "cache": "run.cache",
    "policy": "select.policy",
    "params": "select.params",
    "macs": "select.macs",
    "max_drop": "select.max_drop",
    "min_similarity": "select.min_similarity",
    "point": "select.point",
    "methods": "explore.methods",
    "custom": "model.custom",
    "architecture": "model.architecture",
    "unsafe": "model.unsafe",
    "epochs": "finetune.epochs",
    "until": "run.until",
    "workers": "run.workers",
    "scheduler": "run.scheduler",
}
"""Which recipe key each option of the commands fills; ``--set`` reaches all others."""

LOOKING = ("custom", "architecture", "unsafe", "methods", "cache")
"""The options that matter to a command that only looks at a model."""

RecipeFile = Annotated[
    Path | None, typer.Option(help="Recipe in TOML (default: lrfgraph.toml beside the model or here).")
]
Settings = Annotated[list[str] | None, typer.Option("--set", help="Any option: section.key=value; may be repeated.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, on standard output.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
IMPLIED = {
    "point": "pareto",
    "params": "budget",
    "macs": "budget",
    "min_similarity": "threshold",
    "max_drop": "accuracy",
}
"""The policy that an option of one policy asks for, where ``--policy`` does not say."""

Model = Annotated[Path, typer.Argument(help="The model: a .keras or .h5 file.", show_default=False)]

COMMON: dict[str, tuple[Any, Any]] = {
    "recipe": (RecipeFile, None),
    "settings": (Settings, None),
    "json": (Json, False),
    "debug": (Debug, False),
}
"""Options of every command that takes a recipe, beside `OPTIONS`: annotation and default."""

Command = Callable[..., None]


def _parameters(names: Sequence[str]) -> list[inspection.Parameter]:
    """Options as typer reads them; their help is the recipe's."""
    options = {option.key: option for option in fields_of()}
    found = []
    for name in names:
        option, flag = options[OPTIONS[name]], "--" + name.replace("_", "-")
        switch = option.type == "true or false"
        kind: Any = bool if switch else str | None
        annotation = Annotated[kind, typer.Option(flag, help=option.help + ".", show_default=False)]
        found.append(_parameter(name, annotation, False if switch else None))
    return found + [_parameter(name, annotation, default) for name, (annotation, default) in COMMON.items()]


def _parameter(name: str, annotation: Any, default: Any) -> inspection.Parameter:
    return inspection.Parameter(name, inspection.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _takes_recipe(
    names: Sequence[str] = tuple(OPTIONS), beside: bool = True, policy: str = ""
) -> Callable[[Command], Command]:
    """Give a command the options of a recipe; it is called with what they come to.

    policy : the only one that the command is for.

    The command's own parameters come first: MODEL, and arguments of its own. `made`, `base` and `as_json` are
    filled in.
    """

    def decorate(command: Command) -> Command:
        own = [p for p in inspection.signature(command, eval_str=True).parameters.values() if p.name not in FILLED]

        def called(**given: Any) -> None:
            file, settings = given["recipe"], given["settings"]
            if policy and given["policy"] not in (None, policy):
                raise RecipeError(f"{command.__name__} is for policy {policy}, received {given['policy']!r}; use run")
            made, base = read_recipe(given["model"], file, given, settings, beside)
            made = made.with_option("select.policy", policy) if policy else made
            command(**{p.name: given[p.name] for p in own}, made=made, base=base, as_json=given["json"])

        parameters = [p.replace(kind=inspection.Parameter.KEYWORD_ONLY) for p in own] + _parameters(names)
        called.__name__, called.__doc__ = command.__name__, command.__doc__
        called.__signature__ = inspection.Signature(parameters)  # type: ignore[attr-defined]
        called.__annotations__ = {p.name: p.annotation for p in parameters}
        return called

    return decorate


FILLED = ("made", "base", "as_json")


@app.command()
@_takes_recipe()
def run(model: Model, made: Recipe, base: Path, as_json: bool) -> None:
    """Compress MODEL and write the smaller model with an account of what was lost."""
    from lrfgraph.commands.run import run_and_report

    run_and_report(model, made, base, as_json=as_json)


@app.command()
@_takes_recipe(policy="pareto")
def select(model: Model, made: Recipe, base: Path, as_json: bool) -> None:
    """Take one point of the front of MODEL (policy pareto, --point K) and finish it; nothing is explored again."""
    from lrfgraph.commands.run import run_and_report

    run_and_report(model, made, base, as_json=as_json)


@app.command()
@_takes_recipe()
def plan(model: Model, made: Recipe, base: Path, as_json: bool) -> None:
    """Say what `run` would compute and what it would reuse, and why; exit code 3 if there is something to compute."""
    from lrfgraph.commands.plan import plan_and_report

    if plan_and_report(model, made, base, as_json=as_json):
        raise typer.Exit(3)


@app.command()
@_takes_recipe()
def explain(
    model: Model,
    layer: Annotated[str, typer.Argument(help="The layer, as `inspect` writes it.", show_default=False)],
    made: Recipe,
    base: Path,
    as_json: bool,
) -> None:
    """Show the candidates of LAYER in MODEL, which one was chosen, and what excluded the others."""
    from lrfgraph.commands.explain import explain_layer

    explain_layer(model, layer, made, base, as_json=as_json)


@app.command()
@_takes_recipe(LOOKING, beside=False)
def inspect(model: Model, made: Recipe, base: Path, as_json: bool) -> None:
    """Print every layer: kernel, parameters and MACs with their share, break-even ranks, methods or why none."""
    from lrfgraph.commands.inspect import inspect_model

    inspect_model(model, made, as_json=as_json)


Out = Annotated[Path, typer.Option(help="Folder for the results, the model and the cache.")]


@app.command()
def demo(out: Out = Path("lrfgraph-demo"), json: Json = False, debug: Debug = False) -> None:
    """Compress a small network that comes with the package, fine-tuning included; under two minutes on two cores."""
    from lrfgraph.commands.demo import demonstrate

    demonstrate(out, as_json=json)


@app.command()
def version() -> None:
    """Print the version."""
    print(__version__)


# The cache ------------------------------------------------------------------------------------------------------

CacheFolder = Annotated[
    Path | None, typer.Option("--cache", help="Folder of the cache (default: that of lrfgraph.toml here, or cache).")
]
RunName = Annotated[str, typer.Argument(help="Name of a run, as `cache ls` writes it.", show_default=False)]


def _folder(given: Path | None) -> Path:
    if given is not None:
        return given
    here = Path("lrfgraph.toml")
    return Path((Recipe.from_toml(here) if here.is_file() else Recipe()).run.cache)


@cache.command()
def ls(
    kind: Annotated[str | None, typer.Option(help="List the entries of this kind of node.")] = None,
    run: Annotated[str | None, typer.Option(help="List the entries that this run stands on.")] = None,
    cache: CacheFolder = None, json: Json = False, debug: Debug = False,
) -> None:  # fmt: skip
    """List runs with entries, size and age; with --kind or --run the entries themselves."""
    from lrfgraph.commands import cache as caching

    caching.ls(_folder(cache), kind, run, as_json=json)


@cache.command()
def du(cache: CacheFolder = None, json: Json = False, debug: Debug = False) -> None:
    """Print entries and bytes by kind."""
    from lrfgraph.commands import cache as caching

    caching.du(_folder(cache), as_json=json)


@cache.command()
def verify(
    remove: Annotated[bool, typer.Option("--remove", help="Remove what is damaged; the next run computes it.")] = False,
    cache: CacheFolder = None, json: Json = False, debug: Debug = False,
) -> None:  # fmt: skip
    """Digest every file again; exit code 1 if something is damaged."""
    from lrfgraph.commands import cache as caching

    if caching.verify(_folder(cache), remove, as_json=json):
        raise typer.Exit(1)


@cache.command()
def gc(
    max_size: Annotated[str | None, typer.Option(help="Size that may stay, as 5GB; the least used goes first.")] = None,
    older_than: Annotated[str | None, typer.Option(help="Remove what was not used for so long, as 30d.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    cache: CacheFolder = None, json: Json = False, debug: Debug = False,
) -> None:  # fmt: skip
    """Remove what was not used for long, or the least recently used; never what a live or pinned run stands on."""
    from lrfgraph.commands import cache as caching

    caching.gc(_folder(cache), max_size, older_than, dry_run, as_json=json)


@cache.command()
def rm(
    run: Annotated[str | None, typer.Argument(help="Name of a run.", show_default=False)] = None,
    kind: Annotated[str | None, typer.Option(help="Remove all entries of this kind of node.")] = None,
    cache: CacheFolder = None, json: Json = False, debug: Debug = False,
) -> None:  # fmt: skip
    """Remove a run with the entries that no other run stands on, or all entries of a kind."""
    from lrfgraph.commands import cache as caching

    caching.rm(_folder(cache), run, kind, as_json=json)


@cache.command()
def pin(run: RunName, cache: CacheFolder = None, debug: Debug = False) -> None:
    """Keep everything that a run stands on, whatever `gc` is asked to do."""
    from lrfgraph.commands import cache as caching

    caching.pin(_folder(cache), run, True)


@cache.command()
def unpin(run: RunName, cache: CacheFolder = None, debug: Debug = False) -> None:
    """Let `gc` remove again what a run stands on."""
    from lrfgraph.commands import cache as caching

    caching.pin(_folder(cache), run, False)


# From arguments to a recipe -----------------------------------------------------------------------------------------


def read_recipe(
    model: Path, file: Path | None, given: dict[str, Any], settings: list[str] | None, beside: bool = True
) -> tuple[Recipe, Path]:
    """Return the recipe (file, then options, then ``--set``) and the folder its relative paths start from."""
    if file is None and beside:
        file = next((p for p in (model.parent / "lrfgraph.toml", Path("lrfgraph.toml")) if p.is_file()), None)
    made, base = (Recipe.from_toml(file), file.parent) if file else (Recipe(), Path())
    for option, key in OPTIONS.items():
        value = given.get(option)
        if value is not None and value is not False:
            if option in ("data", "stats", "configuration"):
                value = _from_here(value)
            made = made.with_option(key, value if isinstance(value, str) else bool(value))
    implied = next((policy for option, policy in IMPLIED.items() if given.get(option) is not None), None)
    if implied and given.get("policy") is None:
        made = made.with_option("select.policy", implied)
    for setting in settings or ():
        key, equals, value = setting.partition("=")
        if not equals:
            raise RecipeError(f"--set takes section.key=value, received {setting!r}")
        made = made.with_option(key.strip(), value.strip())
    return made, base


def _from_here(value: str) -> str:
    """A path on the command line starts from the working folder, whatever the recipe's folder is."""
    path = Path(value)
    return str(path.absolute()) if path.exists() or "/" in value else value


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
        _say(error.format_message() or "give a command; lrfgraph --help lists them")
        sys.exit(2)


INTERRUPTED = "interrupted; what was finished is kept in the cache, the same command goes on from there"


def _leave(code: int, message: str, program: bool) -> None:
    """Say why and exit; a `program` at once after Ctrl-C: Python would wait for threads busy inside TensorFlow."""
    if code != 130 or not program:
        _say(message)
        sys.exit(code)
    from lrfgraph.network.opening.start import release_stderr

    release_stderr()
    with suppress(OSError):
        _say(message)
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def _say(message: str) -> None:
    print("lrfgraph: " + " ".join(message.split()), file=sys.stderr)
