"""Arranges several references side by side in position space. Pure, no torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Rule = Literal["offset", "index"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """First component and corner of one reference's position ids."""

    index: int
    top: int
    """Latent cells."""
    left: int
    """Latent cells."""


def place_references(sizes: Iterable[tuple[int, int]], rule: Rule) -> list[Placement]:
    """Return places of references whose position ids do not overlap.

    Args:
        sizes: (height, width) of each reference in latent cells, in the order of the sequence.
        rule: ``offset`` gives all of them index 1 and puts each below or beside the previous ones, whichever
            keeps the whole closer to a square; ``index`` gives them 1, 2, 3, ... and no offset.

    Source:
        The behaviour of ComfyUI's reference latents, methods "offset" and "index"; for one reference both
        match diffusers' FluxKontextPipeline.
    """
    if rule == "index":
        return [Placement(index=number, top=0, left=0) for number, _ in enumerate(sizes, start=1)]
    placements = []
    total_height = total_width = 0
    for height, width in sizes:
        grows_more_down = height + total_height > width + total_width
        top, left = (0, total_width) if grows_more_down else (total_height, 0)
        placements.append(Placement(index=1, top=top, left=left))
        total_height = max(total_height, height + top)
        total_width = max(total_width, width + left)
    return placements
