"""FLUX.1 Kontext: the checkpoint that edits an image by an instruction. Light: torch is imported when used.

It is a flavour of the family ``flux`` and knows only what the core passes to it: the model input, which accepts more
images at the end.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Protocol

from difftrain import Batch, ModelFamily, ModelFlavour, Size, ValidationRequest
from difftrain_flux_kontext.reference_ids import Rule, place_references

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

PIXEL_MULTIPLE = 16
SMALLEST_AUTO_RESIZE = 512 * 512
"""Below this many pixels the pipeline's own sizing would enlarge a reference to a megapixel."""


class SequenceInput(Protocol):
    """The part of the family's model input that this flavour needs."""

    def append(self, latents: Tensor, *, index: int, top: int, left: int) -> SequenceInput:
        """Return the input with one more image at the end of its sequence, placed in position space (latent cells)."""


class Kontext(ModelFlavour["SequenceInput"]):
    """Image editing: reference images follow the target in the token sequence."""

    family: ClassVar[str] = "flux"
    name: ClassVar[str] = "kontext"
    hub_id: ClassVar[str] = "black-forest-labs/FLUX.1-Kontext-dev"
    licence_url: ClassVar[str | None] = "https://huggingface.co/black-forest-labs/FLUX.1-Kontext-dev"
    weights: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "pipeline": ("FluxKontextPipeline", "FluxKontextInpaintPipeline"),
        "guidance_embeds": ("true",),
    }
    max_references: ClassVar[int] = 8
    default_guidance: ClassVar[float] = 2.5
    preferred_sizes: ClassVar[tuple[Size, ...]] = (
        (672, 1568),
        (688, 1504),
        (720, 1456),
        (752, 1392),
        (800, 1328),
        (832, 1248),
        (880, 1184),
        (944, 1104),
        (1024, 1024),
        (1104, 944),
        (1184, 880),
        (1248, 832),
        (1328, 800),
        (1392, 752),
        (1456, 720),
        (1504, 688),
        (1568, 672),
    )

    reference_ids: Rule = "offset"
    """How several references are distinguished: offset (side by side in position space) or index (numbered);
    with one reference both are the same. Use the rule of the program that will draw: ComfyUI's default is offset."""

    def extend_input(self, family: ModelFamily, model_input: SequenceInput, batch: Batch) -> SequenceInput:
        """Build the sequence [target | reference 1 | reference 2 | ...]."""
        sizes = [(reference.shape[-2], reference.shape[-1]) for reference in batch.references]
        for reference, place in zip(batch.references, place_references(sizes, self.reference_ids), strict=True):
            model_input = model_input.append(reference, index=place.index, top=place.top, left=place.left)
        return model_input

    def pipeline_class(self) -> type:
        from difftrain_flux_kontext.several_references import pipeline_with

        return pipeline_with(self.reference_ids)

    def pipeline_arguments(self, request: ValidationRequest) -> dict[str, object]:
        """Return the references, each at the size that the pipeline chooses for it.

        Images smaller than 512x512 are for quick trials: there a reference keeps its own size, reduced
        to the image's area if it is larger, because the pipeline would enlarge it to a megapixel.
        """
        area = request.width * request.height
        auto_resize = area >= SMALLEST_AUTO_RESIZE
        # without max_area the pipeline rescales the requested size to a megapixel
        arguments: dict[str, object] = {"max_area": area, "_auto_resize": auto_resize}
        if request.references:
            sized = [one if auto_resize else _within(one, area) for one in request.references]
            arguments["image"] = sized[0] if len(sized) == 1 else sized
        return arguments


def _within(image: Image.Image, area: int) -> Image.Image:
    """Return the image, reduced to about ``area`` pixels with edges that tokens fill; never enlarged."""
    from PIL import Image

    factor = (area / (image.width * image.height)) ** 0.5
    if factor >= 1:
        return image
    width, height = (max(PIXEL_MULTIPLE, round(edge * factor / PIXEL_MULTIPLE) * PIXEL_MULTIPLE) for edge in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS)
