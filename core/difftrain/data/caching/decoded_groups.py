"""Decodes images in groups of one size, a few groups ahead of what encodes them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from difftrain.data.files.pixels import load_placed, to_pixels
from difftrain.types import PlacedImage, Size

if TYPE_CHECKING:
    from torch import Tensor


def load_pixels(images: Sequence[PlacedImage]) -> Tensor:
    """Return images of one bucket as [B, 3, H, W], -1 to 1, float32."""
    import torch

    return torch.stack([torch.from_numpy(to_pixels(load_placed(image))) for image in images])


def decoded_groups(images: Sequence[PlacedImage], batch_size: int) -> Iterator[tuple[list[PlacedImage], Tensor]]:
    """Yield groups of one bucket size with their pixels; decode the next groups while one is encoded."""
    by_size: dict[Size, list[tuple[int, PlacedImage]]] = defaultdict(list)
    for place, image in enumerate(images):
        by_size[image.geometry.bucket].append((place, image))
    numbered = [g[i : i + batch_size] for g in by_size.values() for i in range(0, len(g), batch_size)]
    if any(group[0][1].record.image.shelf is not None for group in numbered):  # else each size would read all shelves
        numbered.sort(key=lambda group: group[0][0])
    groups = [[image for _, image in group] for group in numbered]
    ahead = 4
    with ThreadPoolExecutor(max_workers=ahead) as pool:
        running = [pool.submit(load_pixels, group) for group in groups[:ahead]]
        for index, group in enumerate(groups):
            pixels = running.pop(0).result()
            if index + ahead < len(groups):
                running.append(pool.submit(load_pixels, groups[index + ahead]))
            yield group, pixels
