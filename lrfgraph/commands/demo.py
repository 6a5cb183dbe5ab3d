"""The main job on what ships with the package, in a folder of its own, and what to try there next."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from lrfgraph import demo
from lrfgraph.commands.run import run_and_report
from lrfgraph.errors import OutputError
from lrfgraph.options.recipe import Recipe, fields_of

__all__ = ["NEXT", "demonstrate"]

NEXT = (
    ("what the layers are and what could replace them", "lrfgraph inspect digits_cnn.keras"),
    ("the same again: nothing is computed", "lrfgraph run digits_cnn.keras"),
    ("another rule: only the choice is new", "lrfgraph run digits_cnn.keras --policy threshold --until select"),
    ("what that would take to the end", "lrfgraph plan digits_cnn.keras --policy threshold"),
    ("why a layer became what it is", "lrfgraph explain digits_cnn.keras {layer}"),
)  # fmt: skip
"""What the demonstration proposes to try, as (what it shows, command); ``{layer}`` is one of the network's."""


def demonstrate(out: Path, *, as_json: bool = False) -> None:
    """Compress the network that ships with the package; model, images, recipe, cache and results go to `out`."""
    shipped = demo.recipe()
    recipe = replace(shipped, data=replace(shipped.data, source=demo.DATA.name))
    try:
        out.mkdir(parents=True, exist_ok=True)
        for file in (demo.MODEL, demo.DATA):
            shutil.copyfile(file, out / file.name)
        (out / "lrfgraph.toml").write_text(_changed(recipe), encoding="utf-8")
    except OSError as error:
        raise OutputError(f"folder {out} cannot be written ({error.strerror}); choose another with --out") from None
    placed = replace(recipe, run=replace(recipe.run, cache=str(out / "cache"), out=str(out / "compressed")))
    said = run_and_report(out / demo.MODEL.name, placed, out, as_json=as_json)
    if as_json:
        return
    print(f"\nTo try next, in that folder (cd {out}; lrfgraph.toml there says where the images are):")
    layer = next((row["name"] for row in said["layers"] if row["method"]), said["layers"][0]["name"])
    for what, command in NEXT:
        print(f"  {command.format(layer=layer)}\n      {what}")


def _changed(recipe: Recipe) -> str:
    """Write the options that differ from their defaults as TOML."""
    sections: dict[str, list[str]] = {}
    for option in fields_of():
        value = getattr(getattr(recipe, option.section), option.name)
        if value != option.default:
            sections.setdefault(option.section, []).append(f"{option.name} = {option.kind.write(value)}")
    return "\n\n".join("\n".join([f"[{name}]", *lines]) for name, lines in sections.items()) + "\n"
