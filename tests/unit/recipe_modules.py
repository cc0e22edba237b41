"""The modules of tools/tiny_kontext for tests, without their general names (`data`, `training`) staying importable."""

from __future__ import annotations

import importlib
import random
import sys
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import torch

from difftrain_flux.built_in import TINY_FOLDER

FOLDER = Path(__file__).parents[2] / "tools" / "tiny_kontext"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py"))
TOKENIZERS = TINY_FOLDER
"""The shipped folder keeps them where the recipe keeps them in its state folder."""


@cache
def recipe_modules() -> SimpleNamespace:
    """Return every module of the recipe by name; imported once per process, then removed from `sys.modules` again."""
    hidden = {name: sys.modules.pop(name) for name in NAMES if name in sys.modules}
    sys.path.insert(0, str(FOLDER))
    importlib.invalidate_caches()
    try:
        return SimpleNamespace(**{name: importlib.import_module(name) for name in NAMES})
    finally:
        sys.path.remove(str(FOLDER))
        for name in NAMES:
            sys.modules.pop(name, None)
        sys.modules.update(hidden)


def drawn(edit, photograph: torch.Tensor | None = None, size: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    """Return reference and target of one edit, [3, H, W] each; on black if no photograph [3, H, W] is given."""
    recipe = recipe_modules()
    photograph = torch.zeros(3, size, size) if photograph is None else photograph
    uploaded = recipe.images.DeviceRecipes.upload(recipe.recipes.collect([edit]), torch.device("cpu"))
    references, targets = recipe.images.pairs(uploaded, photograph[None])
    return references[0], targets[0]


def first_of(kind: str, draw, seed: int = 0):
    """Return the first edit of a kind that `draw` gives."""
    rng = random.Random(seed)
    return next(edit for edit in (draw(rng) for _ in range(10_000)) if edit.kind == kind)


def words_of(caption: str) -> list[str]:
    """Convert to lower case, without stops and commas."""
    return caption.lower().replace(".", "").replace(",", "").split()
