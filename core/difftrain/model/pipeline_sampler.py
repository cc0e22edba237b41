"""Validation images through a stock diffusers pipeline around the model in training."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from difftrain.types import TextEmbeds, ValidationRequest

if TYPE_CHECKING:
    import torch
    from PIL import Image
    from torch import Tensor, nn


class PipelineSampler:
    """A :class:`~difftrain.types.Sampler` that calls a diffusers pipeline.

    Build the pipeline from the denoiser in training, the VAE and a scheduler, with None for its text encoders. The
    sampler passes steps, generator and text: a tensor ``prompt_embeds`` of the family's text encoder becomes the
    argument ``prompt_embeds``, and that of the negative prompt ``negative_prompt_embeds``.
    """

    def __init__(
        self,
        pipeline: Any,
        arguments: Callable[[ValidationRequest], Mapping[str, object]],
        *,
        device: torch.device,
        dtype: torch.dtype,
        without_references: Any = None,
    ) -> None:
        """Take over the pipeline.

        Args:
            pipeline: Its VAE is replaced by a copy if it has another dtype: pipelines pass it tensors of the text's.
            arguments: Gives the other arguments of the pipeline's call, such as width, guidance and reference images.
            device: The denoiser's. The VAE visits it for each image.
            dtype: Of text embeddings and VAE.
            without_references: A pipeline of the same parts for requests without references; None takes ``pipeline``.
        """
        self._pipeline, self._without_references = pipeline, without_references or pipeline
        self._arguments, self._device, self._dtype = arguments, device, dtype
        self._vae = pipeline.vae if pipeline.vae.dtype == dtype else copy.deepcopy(pipeline.vae).to(dtype)
        for each in (self._pipeline, self._without_references):
            each.register_modules(vae=self._vae)
            each.set_progress_bar_config(disable=True)

    def __call__(self, request: ValidationRequest) -> Image.Image:
        """Draw one image. Equal seeds start from equal noise on every device; training modes stay as they are."""
        import torch

        pipeline = self._pipeline if request.references else self._without_references
        modules = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
        with torch.no_grad(), _evaluating(modules), _visiting(self._vae, self._device):
            image: Image.Image = pipeline(
                num_inference_steps=request.steps,
                generator=torch.Generator("cpu").manual_seed(request.seed),
                **self._batched("", request.text),
                **self._batched("negative_", request.negative_text or {}),
                **self._arguments(request),
            ).images[0]
        return image

    def _batched(self, prefix: str, text: TextEmbeds) -> dict[str, Tensor]:
        return {f"{prefix}{name}": tensor[None].to(self._device, self._dtype) for name, tensor in text.items()}


@contextmanager
def _evaluating(modules: list[nn.Module]) -> Iterator[None]:
    """Switch dropout off, and afterwards give every submodule its own mode back."""
    training = [part for module in modules for part in module.modules() if part.training]
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True


@contextmanager
def _visiting(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Move a module to a device, and afterwards back to where it was."""
    home = next(module.parameters()).device
    module.to(device)
    try:
        yield
    finally:
        module.to(home)
