"""The parts of the small model: FLUX.1's architecture in every part, small in every size."""

from __future__ import annotations

import random
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import edits

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, FluxTransformer2DModel
    from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5TokenizerFast

RECIPE_VERSION = 2
WIDTH = 128
"""Width of both text encoders."""
LATENT_CHANNELS = 16
TEXT_TOKENS = 64
"""Tokens of T5: padding to 512 would cost several times what the small images do."""
VAE_CHANNELS = (32, 64, 128, 128)
CLIP_BOS, CLIP_EOS = "<|startoftext|>", "<|endoftext|>"
MORE_WORDS = """
sharp sharpen sharper blur blurred blurry deblur focus clear clean clean-up noise noisy denoise restore repair
quality high low old new style painting drawing sketch watercolour cartoon person face man woman child dog cat
house car street city room table day night summer winter snow rain sun moon star water fire stone one two three
large small big little near far behind front above below between with without of for from by an and or not is
are
"""
"""Known as words although training hardly ever uses them, so that a user's captions are short sequences."""


def captions_for_vocabulary(count: int = 40_000) -> list[str]:
    """Return the captions of training, for the tokenizers; the same on every machine."""
    from sources import PHOTOGRAPHS, STAMP_SUBJECTS

    rng = random.Random(0)
    subjects = (*(photograph.subject for photograph in PHOTOGRAPHS), *STAMP_SUBJECTS.values())
    return [edits.edit(rng).caption for _ in range(count)] + [
        edits.text_to_image(rng, subjects).caption for _ in range(count)
    ]


def words_of(captions: list[str]) -> list[str]:
    """Return every word, with its capitalised form, sorted."""
    plain = {word.strip(".,") for caption in captions for word in caption.lower().split()} | set(MORE_WORDS.split())
    return sorted(plain | {word.capitalize() for word in plain})


def build_t5_tokenizer(captions: list[str]) -> T5TokenizerFast:
    """Build from whole words, plus every printable Latin-1 character for all other text."""
    from transformers import T5TokenizerFast

    letters = [chr(code) for code in (*range(33, 127), *range(161, 256))]
    words = [f"\u2581{word}" for word in words_of(captions)]
    scores = [
        ("<pad>", 0.0),
        ("</s>", 0.0),
        ("<unk>", 0.0),
        ("\u2581", -6.0),
        *((letter, -8.0) for letter in letters),
        *((word, -1.0) for word in words if len(word) > 1),
    ]
    return T5TokenizerFast(vocab=scores, extra_ids=0, model_max_length=TEXT_TOKENS)


def build_clip_tokenizer(captions: list[str]) -> CLIPTokenizer:
    """Build from byte pairs, merged up to whole words of the captions."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    merges = learn_merges([word for word in words_of(captions) if word.islower() and word.isascii()])
    letters = sorted(ByteLevel.alphabet())
    tokens = dict.fromkeys([*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair) for pair in merges)])
    vocabulary = {token: index for index, token in enumerate([*tokens, CLIP_BOS, CLIP_EOS])}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77)


def learn_merges(words: list[str]) -> list[tuple[str, str]]:
    """Return byte-pair merges until every word is one token; ties go to the pair that sorts first.

    The trainer of `tokenizers` breaks ties differently from run to run.
    """
    split = [[*word[:-1], f"{word[-1]}</w>"] for word in words]
    merges = []
    while pairs := Counter(pair for pieces in split for pair in pairwise(pieces)):
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        split = [_merged(pieces, best) for pieces in split]
    return merges


def _merged(pieces: list[str], pair: tuple[str, str]) -> list[str]:
    result: list[str] = []
    for piece in pieces:
        if result and (result[-1], piece) == pair:
            result[-1] += piece
        else:
            result.append(piece)
    return result


def save_tokenizers(folder: Path) -> None:
    """Write `tokenizer/` and `tokenizer_2/` in diffusers layout."""
    captions = captions_for_vocabulary()
    build_clip_tokenizer(captions).save_pretrained(folder / "tokenizer")
    build_t5_tokenizer(captions).save_pretrained(folder / "tokenizer_2")


def build_clip(vocabulary: int, eos: int) -> CLIPTextModel:
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            projection_dim=WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=77,
            bos_token_id=eos - 1,
            eos_token_id=eos,
            pad_token_id=eos,
        )
    )


def build_t5(vocabulary: int) -> T5EncoderModel:
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(
        T5Config(
            vocab_size=vocabulary,
            d_model=WIDTH,
            d_kv=WIDTH // 4,
            d_ff=2 * WIDTH,
            num_layers=3,
            num_heads=4,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
            pad_token_id=0,
            eos_token_id=1,
            decoder_start_token_id=0,
        )
    )


def build_transformer() -> FluxTransformer2DModel:
    from diffusers import FluxTransformer2DModel

    return FluxTransformer2DModel(
        in_channels=4 * LATENT_CHANNELS,
        num_layers=2,
        num_single_layers=4,
        num_attention_heads=5,
        attention_head_dim=32,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        guidance_embeds=True,
        axes_dims_rope=(8, 12, 12),
    )


def build_vae(scaling_factor: float = 1.0, shift_factor: float = 0.0) -> AutoencoderKL:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=VAE_CHANNELS,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=16,
        latent_channels=LATENT_CHANNELS,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
        sample_size=128,
        scaling_factor=scaling_factor,
        shift_factor=shift_factor,
    )
