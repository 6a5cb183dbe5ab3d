"""The command line: thin. Options become a recipe, the api does the work, the report prints it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from lrfgraph import __version__
from lrfgraph.errors import LrfError, RecipeError
from lrfgraph.recipe import Recipe

__all__ = ["OPTIONS", "app", "main"]

app = typer.Typer(
    name="lrfgraph",
    help="Make a trained Keras CNN smaller by low-rank factorization, and say honestly what was lost.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

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
    "methods": "explore.methods",
    "custom": "model.custom",
    "architecture": "model.architecture",
    "unsafe": "model.unsafe",
    "epochs": "finetune.epochs",
    "until": "run.until",
    "workers": "run.workers",
    "scheduler": "run.scheduler",
}
"""Which recipe key each option of `run` and `plan` fills; ``--set`` reaches all others."""

Model = Annotated[Path, typer.Argument(help="The model: a .keras or .h5 file.", show_default=False)]
Text = str | None


def _option(help: str, flag: str | None = None) -> Any:
    return typer.Option(*([flag] if flag else []), help=help, show_default=False)


Data = Annotated[Text, _option("Images: FILE.npz, a folder of class folders, or package.module:function.")]
Scale = Annotated[Text, _option("Factor for pixel values, as 1/255.")]
Mean = Annotated[Text, _option("Mean per channel, subtracted after scaling.")]
Std = Annotated[Text, _option("Standard deviation per channel.")]
Stats = Annotated[Text, _option("A .npz with arrays mean and std of the image's shape.")]
Channels = Annotated[Text, _option("Order of colours the network expects: rgb or bgr.")]
ImageSize = Annotated[Text, _option("Size that images from folders are resized to, as 32 or 32x48.")]
Out = Annotated[Text, _option("Folder for the results (default: MODEL-compressed beside you).")]
RecipeFile = Annotated[Path | None, _option("A recipe in TOML (default: lrfgraph.toml beside the model or here).")]
Configuration = Annotated[Text, _option("A hybrid.toml to use as it is, in place of a policy.")]
Cache = Annotated[Text, _option("Folder of the cache (default: cache).")]
Policy = Annotated[Text, _option("How the configuration is chosen: threshold, budget, …")]
Params = Annotated[Text, _option("Share of the parameters to keep, as 0.4 (policy budget).")]
Macs = Annotated[Text, _option("Share of the MACs to keep, as 0.5 (policy budget).")]
MaxDrop = Annotated[Text, _option("Points of validation accuracy that may be lost (policy accuracy).")]
MinSimilarity = Annotated[Text, _option("Similarity each layer must keep, 0 to 1 (policy threshold).")]
Methods = Annotated[Text, _option("Methods to try, as cp,tucker (default: all).")]
Custom = Annotated[Text, _option("Custom objects, as package.module:Name,…")]
Architecture = Annotated[Text, _option("Model JSON for a file that holds weights alone.")]
Unsafe = Annotated[bool, _option("Open files that carry code, such as Lambda layers.", "--unsafe")]
Epochs = Annotated[Text, _option("Epochs of the one fine-tuning; 0 for none.")]
Until = Annotated[Text, _option("Stop after this kind of node, as select.")]
WorkerCount = Annotated[Text, _option("Worker processes; 0 for threads.")]
Scheduler = Annotated[Text, _option("Address of a Dask scheduler, as tcp://host:8786.")]
Settings = Annotated[list[str] | None, _option("Any other option: section.key=value; may be repeated.", "--set")]
Json = Annotated[bool, _option("Print summary.json alone on standard output.", "--json")]
Debug = Annotated[bool, _option("Show the traceback of an error.", "--debug")]


@app.command()
def run(
    model: Model, data: Data = None, scale: Scale = None, mean: Mean = None, std: Std = None, stats: Stats = None,
    channels: Channels = None, image_size: ImageSize = None, out: Out = None, recipe: RecipeFile = None,
    configuration: Configuration = None, cache: Cache = None, policy: Policy = None, params: Params = None,
    macs: Macs = None, max_drop: MaxDrop = None, min_similarity: MinSimilarity = None, methods: Methods = None,
    custom: Custom = None, architecture: Architecture = None, unsafe: Unsafe = False, epochs: Epochs = None,
    until: Until = None, workers: WorkerCount = None, scheduler: Scheduler = None, settings: Settings = None,
    json: Json = False, debug: Debug = False,
) -> None:  # fmt: skip
    """Compress MODEL and write the smaller model with an account of what was lost."""
    from lrfgraph.report.running import run_and_report

    made, base = read_recipe(model, recipe, locals(), settings)
    run_and_report(model, made, base, as_json=json)


@app.command()
def inspect(
    model: Model, custom: Custom = None, architecture: Architecture = None, unsafe: Unsafe = False,
    json: Json = False, debug: Debug = False,
) -> None:  # fmt: skip
    """Print every layer: kernel, parameters and MACs with their share, break-even ranks, methods or why none."""
    from lrfgraph.report.inspecting import inspect_model

    made, _ = read_recipe(model, None, locals(), None, beside=False)
    inspect_model(model, made, as_json=json)


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
            if option in ("data", "stats"):
                value, base = _from_here(value, base)
            made = made.with_option(key, value if isinstance(value, str) else bool(value))
    for setting in settings or ():
        key, equals, value = setting.partition("=")
        if not equals:
            raise RecipeError(f"--set takes section.key=value, received {setting!r}")
        made = made.with_option(key.strip(), value.strip())
    return made, base


def _from_here(value: str, base: Path) -> tuple[str, Path]:
    """A path on the command line starts from the working folder, whatever the recipe's folder is."""
    path = Path(value)
    return (str(path.absolute()) if path.exists() or "/" in value else value), base


def main() -> None:
    """Run the command line; a user's mistake is one line on standard error and exit code 2."""
    debug = "--debug" in sys.argv
    try:
        app(standalone_mode=False)
    except LrfError as error:
        if debug:
            raise
        _say(str(error))
        sys.exit(error.exit_code)
    except typer.Exit as error:
        sys.exit(error.exit_code)
    except typer.Abort:
        sys.exit(130)
    except KeyboardInterrupt:
        _say("interrupted; what was finished is kept in the cache, the same command goes on from there")
        sys.exit(130)
    except Exception as error:
        if debug or not hasattr(error, "format_message"):
            raise
        _say(error.format_message())
        sys.exit(2)


def _say(message: str) -> None:
    print("lrfgraph: " + " ".join(message.split()), file=sys.stderr)


@app.command()
def version() -> None:
    """Print the version."""
    print(__version__)
