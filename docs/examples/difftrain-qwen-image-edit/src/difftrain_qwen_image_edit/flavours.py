"""The two checkpoints: what tells their weights apart, and how their references join the target's tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import difftrain as dt

if TYPE_CHECKING:
    from torch import Tensor

QwenInput = dict[str, Any]
"""The arguments of the transformer's call."""


def pack(latents: Tensor) -> Tensor:
    """Tokens [B, h/2 * w/2, 4C] of latents [B, C, 1, h, w]: 2x2 cells each."""
    cells = latents.squeeze(2).unflatten(3, (-1, 2)).unflatten(2, (-1, 2))
    return cells.permute(0, 2, 4, 1, 3, 5).flatten(1, 2).flatten(2)


def image_shape(latents: Tensor) -> tuple[int, int, int]:
    """(1, rows, columns) in tokens."""
    return 1, latents.shape[-2] // 2, latents.shape[-1] // 2


class Edit(dt.ModelFlavour[QwenInput]):
    """One reference, which the text encoder sees in the size that the VAE does."""

    family: ClassVar[str] = "qwen-image-edit"
    name: ClassVar[str] = "edit"
    hub_id: ClassVar[str] = "Qwen/Qwen-Image-Edit"
    weights: ClassVar[Mapping[str, tuple[str, ...]]] = {"pipeline": ("QwenImageEditPipeline",)}
    max_references: ClassVar[int] = 1
    max_pixels: ClassVar[int | None] = 1536 * 1536
    default_guidance_real: ClassVar[float] = 4.0
    settings: ClassVar[Mapping[str, Any]] = {"picture": "<|vision_start|><|image_pad|><|vision_end|>"}

    def extend_input(self, family: dt.ModelFamily, model_input: QwenInput, batch: dt.Batch) -> QwenInput:
        """The sequence [target | reference 1 | reference 2 | ...]."""
        import torch

        target = model_input["hidden_states"]
        tokens = torch.cat([target, *(pack(reference).to(target) for reference in batch.references)], dim=1)
        shapes = [*model_input["img_shapes"][0], *map(image_shape, batch.references)]
        return {**model_input, "hidden_states": tokens, "img_shapes": [shapes] * len(tokens)}


class Edit2509(Edit):
    """Up to three references, which the text encoder sees in the area of 384x384."""

    name: ClassVar[str] = "edit-2509"
    hub_id: ClassVar[str] = "Qwen/Qwen-Image-Edit-2509"
    weights: ClassVar[Mapping[str, tuple[str, ...]]] = {"pipeline": ("QwenImageEditPlusPipeline",)}
    max_references: ClassVar[int] = 3
    settings: ClassVar[Mapping[str, Any]] = {"picture": "Picture {}: " + Edit.settings["picture"], "view": 384 * 384}
