"""The main job on what ships with the package, in a folder of its own, and what to try there next."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from lrfgraph import demo
from lrfgraph.commands.run import run_and_report
from lrfgraph.errors import OutputError
from lrfgraph.options.asked import Asked

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
        (out / "lrfgraph.toml").write_text(recipe.to_toml(defaults=False), encoding="utf-8")
    except OSError as error:
        raise OutputError(f"folder {out} cannot be written ({error.strerror}); choose another with --out") from None
    run = replace(recipe.run, cache=str(out / "cache"), out=str(out / "compressed"))
    placed = replace(recipe, run=run).placed(out, ["data.source"]).placed(Path())
    summary = run_and_report(out / demo.MODEL.name, Asked(placed), as_json=as_json)
    if as_json:
        return
    print(f"\nTo try next, in that folder (cd {out}; lrfgraph.toml there says where the images are):")
    layer = next((row["name"] for row in summary["layers"] if row["method"]), summary["layers"][0]["name"])
    for what, command in NEXT:
        print(f"  {command.format(layer=layer)}\n      {what}")
