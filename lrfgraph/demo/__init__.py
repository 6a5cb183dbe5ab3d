"""A small network and real images that ship with the package, and the recipe the demonstration runs them with.

LICENSES.md beside this file says where they come from.
"""

from __future__ import annotations

from pathlib import Path

from lrfgraph.options.recipe import Recipe

__all__ = ["DATA", "MODEL", "recipe"]

FOLDER = Path(__file__).parent
MODEL = FOLDER / "digits_cnn.keras"
DATA = FOLDER / "digits.npz"


def recipe() -> Recipe:
    """Return the recipe of the demonstration: handwritten digits, a short fine-tuning."""
    return Recipe.from_dict(
        {
            "data": {"source": str(DATA), "scale": 1 / 255, "validation": 1000},
            "select": {"policy": "accuracy", "max_drop": 1.0},
            "repair": {"rounds": 1, "steps": 60},
            "finetune": {"epochs": 5},
        }
    )
