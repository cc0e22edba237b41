"""The frozen encoders of a run: loaded when first needed, off the device otherwise."""

from __future__ import annotations

import gc
import threading

import torch

from difftrain.contracts import ImageEncoder, TextEncoder
from difftrain.model.precision.quantise_encoders import place_quantised
from difftrain.planning.model_plan import ModelPlan
from difftrain.startup.encoded_form import compute_dtype, image_dtype
from difftrain.types import ModelLocation


class Encoders:
    """Text and image encoders of one model location."""

    def __init__(self, plan: ModelPlan, location: ModelLocation, device: torch.device) -> None:
        self._plan, self._location, self._device = plan, location, device
        self._text: TextEncoder | None = None
        self._image: ImageEncoder | None = None
        self._lock = threading.Lock()
        self.in_use = threading.RLock()
        """Hold it while using an encoder, so that no other thread moves it."""

    @property
    def compute_dtype(self) -> torch.dtype:
        return _dtype(compute_dtype(self._plan.config))

    @property
    def image_dtype(self) -> torch.dtype:
        return _dtype(image_dtype(self._plan.config))

    def text(self) -> TextEncoder:
        with self._lock:
            if self._text is None:
                self._text = self._load_text()
            return self._text

    def _load_text(self) -> TextEncoder:
        plan, cpu = self._plan, torch.device("cpu")
        quantizers = plan.text_quantizers
        loaded_on = cpu if quantizers else self._device
        encoder = plan.family.load_text_encoder(self._location, plan.flavour, loaded_on, self.compute_dtype)
        if quantizers:
            place_quantised(
                encoder.models(),
                quantizers,
                self._device,
                quantize_on=cpu if plan.config.quantize_via == "cpu" else self._device,
                family=plan.family.name,
            )
        return encoder

    def image(self) -> ImageEncoder:
        """Return the image encoder on the run's device, ready to encode."""
        encoder = self.idle_image_encoder()
        encoder.move(self._device)
        return encoder

    def idle_image_encoder(self) -> ImageEncoder:
        """Return the image encoder wherever it is; on the CPU if it was not loaded before."""
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

    def release(self) -> None:
        """Free the text encoders and move the image encoder to the CPU, once nobody uses them."""
        with self.in_use:
            if self._text is not None:
                self._text = None
                gc.collect()  # text encoders refer to themselves: only this frees their gigabytes at once
            if self._image is not None:
                self._image.move(torch.device("cpu"))
            if self._device.type == "cuda":
                torch.cuda.empty_cache()


def _dtype(name: str) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, name)
    return dtype
