"""The frozen encoders of a run: loaded when first needed, out of the way otherwise."""

from __future__ import annotations

import threading

import torch

from difftrain.contracts import ImageEncoder, TextEncoder
from difftrain.train.plan import RunPlan
from difftrain.types import ModelLocation

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


class Encoders:
    """Text and image encoders of one model location."""

    def __init__(self, plan: RunPlan, location: ModelLocation, device: torch.device) -> None:
        self._plan, self._location, self._device = plan, location, device
        self._text: TextEncoder | None = None
        self._image: ImageEncoder | None = None
        self._lock = threading.Lock()

    @property
    def compute_dtype(self) -> torch.dtype:
        return torch.bfloat16 if self._plan.config.mixed_precision == "bf16" else torch.float32

    @property
    def image_dtype(self) -> torch.dtype:
        return DTYPES.get(self._plan.config.vae_dtype, self.compute_dtype)

    @property
    def image_identity(self) -> str:
        """What changes latents: the model's part, the dtype that it runs in, and tiles, whose seams show."""
        tiling = "|tiled" if self._plan.config.vae_enable_tiling else ""
        return f"{self._plan.family.image_identity(self._location)}|{self.image_dtype}{tiling}"

    @property
    def text_identity(self) -> str:
        """What changes text embeddings."""
        return f"{self._plan.family.text_identity(self._location, self._plan.flavour)}|{self.compute_dtype}"

    def text(self) -> TextEncoder:
        with self._lock:
            if self._text is None:
                self._text = self._plan.family.load_text_encoder(
                    self._location, self._plan.flavour, self._device, self.compute_dtype
                )
            return self._text

    def image(self) -> ImageEncoder:
        """The image encoder on the run's device, to encode with."""
        encoder = self.resting_image()
        encoder.move(self._device)
        return encoder

    def resting_image(self) -> ImageEncoder:
        """The image encoder where it is; on the CPU when it was not loaded before."""
        config = self._plan.config
        with self._lock:
            if self._image is None:
                self._image = self._plan.family.load_image_encoder(
                    self._location,
                    torch.device("cpu"),
                    self.image_dtype,
                    tiling=config.vae_enable_tiling,
                    slicing=config.vae_enable_slicing,
                )
            return self._image

    def make_room(self) -> None:
        """Let the text encoders go and move the image encoder to the CPU."""
        self._text = None
        if self._image is not None:
            self._image.move(torch.device("cpu"))
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
