"""Recipes of edits with their captions as token ids, on the device, so that a step only picks indices."""

from __future__ import annotations

from pathlib import Path

import architecture
import numpy as np
import torch
from images import DeviceRecipes
from recipes import TURNS, Edit, collect
from tokenizers import Tokenizer
from torch import Tensor

CAPTION_TOKENS = 40
"""Longer captions are cut in training."""


def load_tokenizers(folder: Path) -> tuple[Tokenizer, Tokenizer]:
    """Return CLIP's and T5's tokenizers, without the libraries' default padding and cutting."""
    loaded = []
    for name in ("tokenizer", "tokenizer_2"):
        tokenizer = Tokenizer.from_file(str(folder / name / "tokenizer.json"))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        loaded.append(tokenizer)
    return loaded[0], loaded[1]


class Pool:
    """Recipes on the device with their captions as token ids; the last caption is the empty one."""

    def __init__(self, made: list[Edit], tokenizers: tuple[Tokenizer, Tokenizer], device: torch.device) -> None:
        recipes = collect(made)
        captions = [*sorted(set(recipes.captions)), ""]
        place = {caption: index for index, caption in enumerate(captions)}
        self.caption = torch.tensor([place[caption] for caption in recipes.captions], device=device)
        clip, t5 = tokenizers
        self.clip_ids = _token_ids(clip, captions, clip.token_to_id(architecture.CLIP_EOS)).to(device)
        self.t5_ids = _token_ids(t5, captions, 0).to(device)
        self.recipes = DeviceRecipes.upload(recipes, device)
        quarter = np.isin(recipes.turn, [TURNS.index("left"), TURNS.index("right")])
        self.any_size = torch.from_numpy(np.flatnonzero(~quarter)).to(device)
        self.every = torch.arange(len(recipes.turn), device=device)

    def draw(self, count: int, square: bool) -> Tensor:
        """Return indices of random recipes; quarter turns only for square images."""
        candidates = self.every if square else self.any_size
        return candidates[torch.randint(len(candidates), (count,), device=candidates.device)]

    def text(self, index: Tensor, length: int, dropout: float) -> tuple[Tensor, Tensor]:
        """Return CLIP and T5 ids of the recipes' captions, T5's padded to ``length``; some become the empty caption."""
        caption = self.caption[index]
        dropped = torch.rand(caption.shape, device=caption.device) < dropout
        caption = torch.where(dropped, len(self.t5_ids) - 1, caption)
        ids = self.t5_ids[caption]
        padded = torch.zeros(len(index), length, dtype=torch.long, device=ids.device)
        padded[:, : min(length, CAPTION_TOKENS)] = ids[:, :length]
        return self.clip_ids[caption], padded


def _token_ids(tokenizer: Tokenizer, captions: list[str], pad: int) -> Tensor:
    ids = torch.full((len(captions), CAPTION_TOKENS), pad)
    for index, encoding in enumerate(tokenizer.encode_batch(captions)):
        found = encoding.ids[:CAPTION_TOKENS]
        found[-1] = encoding.ids[-1]
        ids[index, : len(found)] = torch.tensor(found)
    return ids
