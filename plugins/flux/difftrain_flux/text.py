"""Text to embeddings: CLIP's pooled output and T5's sequence, as the stock pipeline's `encode_prompt` makes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from difftrain import ModelFlavour, ModelLocation, TextEmbeds, TextEncoder, loading
from difftrain_flux.model_files.components import local_folder
from difftrain_flux.model_files.folder import TEXT_COMPONENTS
from difftrain_flux.text_length import text_length

if TYPE_CHECKING:
    from PIL import Image
    from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5TokenizerFast

CLIP_TOKENS = 77


class FluxTextEncoder(TextEncoder):
    """CLIP-L and T5-XXL with their tokenizers."""

    def __init__(
        self,
        *,
        clip: CLIPTextModel,
        clip_tokenizer: CLIPTokenizer,
        t5: T5EncoderModel,
        t5_tokenizer: T5TokenizerFast,
        t5_tokens: int,
    ) -> None:
        self._clip = clip
        self._clip_tokenizer = clip_tokenizer
        self._t5 = t5
        self._t5_tokenizer = t5_tokenizer
        self._t5_tokens = self.max_tokens = t5_tokens

    def models(self) -> tuple[CLIPTextModel, T5EncoderModel]:
        return self._clip, self._t5

    def cut_captions(self, captions: Sequence[str]) -> list[str]:
        """Return captions too long for T5; CLIP reading only 77 tokens is no loss, see :meth:`encode`."""
        if not captions:
            return []
        # verbose=False: the tokenizer would warn about a long text although it only counts
        tokens = self._t5_tokenizer(list(captions), truncation=False, verbose=False).input_ids
        return [caption for caption, own in zip(captions, tokens, strict=True) if len(own) > self._t5_tokens]

    @torch.no_grad()
    def encode(
        self, captions: Sequence[str], references: Sequence[Sequence[Image.Image]] | None = None
    ) -> list[TextEmbeds]:
        """Return for each caption ``prompt_embeds`` [T, D] of T5 and ``pooled_prompt_embeds`` [P] of CLIP.

        Encoded one by one: a caption then gives the same bits whatever else is encoded with it, and T5 over
        512 padded tokens fills a GPU alone. Texts longer than a tokenizer's limit are cut;
        :meth:`cut_captions` reports only cuts by T5: CLIP's 77 tokens are short, and the model reads the prompt
        mainly through T5.
        """
        return [self._encode(caption) for caption in captions]

    def _encode(self, caption: str) -> TextEmbeds:
        clip_ids = _token_ids(self._clip_tokenizer, caption, CLIP_TOKENS).to(self._clip.device)
        t5_ids = _token_ids(self._t5_tokenizer, caption, self._t5_tokens).to(self._t5.device)
        return {
            "prompt_embeds": self._t5(t5_ids, output_hidden_states=False)[0][0].cpu(),
            "pooled_prompt_embeds": self._clip(clip_ids, output_hidden_states=False).pooler_output[0].cpu(),
        }


def _token_ids(tokenizer: CLIPTokenizer | T5TokenizerFast, caption: str, length: int) -> Tensor:
    """Return [1, length], padded or cut."""
    tokens = tokenizer([caption], padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    ids: Tensor = tokens.input_ids
    return ids


def load_text_encoder(
    location: ModelLocation, flavour: ModelFlavour, device: torch.device, dtype: torch.dtype
) -> FluxTextEncoder:
    """Load both encoders in ``dtype`` (T5 keeps the modules in float32 that it lists)."""
    folder = local_folder(location, TEXT_COMPONENTS)
    from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5TokenizerFast

    with loading(folder / "text_encoder"):
        clip = CLIPTextModel.from_pretrained(folder, subfolder="text_encoder", dtype=dtype)
    with loading(folder / "text_encoder_2"):
        t5 = T5EncoderModel.from_pretrained(folder, subfolder="text_encoder_2", dtype=dtype)
    with loading(folder / "tokenizer"):
        clip_tokenizer = CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer")
    with loading(folder / "tokenizer_2"):
        t5_tokenizer = T5TokenizerFast.from_pretrained(folder, subfolder="tokenizer_2")
    return FluxTextEncoder(
        clip=_frozen(clip, device),
        clip_tokenizer=clip_tokenizer,
        t5=_frozen(t5, device),
        t5_tokenizer=t5_tokenizer,
        t5_tokens=text_length(location, flavour),
    )


def _frozen(model: torch.nn.Module, device: torch.device) -> torch.nn.Module:
    return model.to(device).requires_grad_(False).eval()
