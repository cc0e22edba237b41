"""How a model's linear layers are named in its original checkpoint, and in adapters made for that."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class OriginalLayers:
    """Original names of linear layers, with the modules of the denoiser that the rows of each are.

    Names are templates: ``{n}`` stands for the number of a block. Programs that load adapters by original names put
    those of several modules into one where the original has one layer.
    """

    parts: Mapping[str, tuple[str, ...]]
    """By original name the full names of modules, in the order of their rows."""
    rows: Mapping[str, int] = field(default_factory=dict)
    """Rows of a module relative to the others of its original layer; 1 if it is not named."""
    halves_swapped: Collection[str] = ()
    """Modules whose two halves of rows come in the other order in the original."""
