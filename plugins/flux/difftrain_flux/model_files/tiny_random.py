"""The built-in random checkpoint: a FLUX.1 of half a million random weights that every stock class loads.

Its images mean nothing; it exists so that every step can run without network, GPU or licence.
Weights come from numpy's `RandomState`, whose stream is frozen (NEP 19), in exact float32 arithmetic, so that
the bytes are the same on every machine and with every torch version.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from difftrain import ModelError, without_bars
from difftrain_flux.built_in import TINY_RANDOM, TINY_RANDOM_WIDTH
from difftrain_flux.flavours import T5_TOKENS
from difftrain_flux.model_files.quiet import quiet_libraries

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, FluxKontextPipeline, FluxTransformer2DModel
    from torch import nn
    from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5TokenizerFast

WIDTH = TINY_RANDOM_WIDTH
"""Width of both text encoders."""
PARTS = ("transformer", "vae", "text_encoder", "text_encoder_2")
"""Folders with weights."""
CLIP_BOS, CLIP_EOS = "<|startoftext|>", "<|endoftext|>"
LATENT_CHANNELS = 16
LATENT_GAIN = 5.0
"""Brings the normalised latents of photographs to a standard deviation near 1, like the real VAE's."""
LOG_VARIANCE = -8.0
"""Log variance of every latent: a posterior about as narrow as the real VAE's."""


def ensure_tiny_random(folder: Path) -> Path:
    """Return the checkpoint's folder, writing it first if it does not exist; complete or absent at every moment.

    Raises:
        ModelError: If it cannot be written.
    """
    if _is_complete(folder):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            pipeline = build_pipeline()
            for name in ("text_encoder", "text_encoder_2"):
                # transformers saves in the first process of a run only, and others may have a disk of their own
                getattr(pipeline, name).should_save_on_this_rank = lambda _is_main_process: True
            with without_bars():
                pipeline.save_pretrained(unfinished)
            unfinished.chmod(0o755)
            _rename_unless_there(unfinished, folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    except OSError as error:
        raise ModelError(
            f"the built-in model {TINY_RANDOM} cannot be written to {folder}: {error}\n"
            "hint: set XDG_CACHE_HOME to a folder that can be written to"
        ) from error
    return folder


def build_pipeline() -> FluxKontextPipeline:
    """Return the checkpoint in memory; the caller's random state stays unchanged."""
    quiet_libraries()
    import torch
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxKontextPipeline

    # constructors draw initial weights, which are overwritten
    with torch.random.fork_rng(devices=[]):
        clip_tokenizer, t5_tokenizer = _clip_tokenizer(), _t5_tokenizer()
        parts = {
            "transformer": tiny_transformer(),
            "vae": _vae(),
            "text_encoder": _clip(clip_tokenizer),
            "text_encoder_2": _t5(t5_tokenizer),
        }
    for name, module in parts.items():
        _fill(module, name)
    _calibrate_latents(parts["vae"])
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    return FluxKontextPipeline(scheduler=scheduler, tokenizer=clip_tokenizer, tokenizer_2=t5_tokenizer, **parts)


def tiny_transformer() -> FluxTransformer2DModel:
    """Return the transformer with the class's initial weights."""
    from diffusers import FluxTransformer2DModel

    return FluxTransformer2DModel(
        in_channels=4 * LATENT_CHANNELS,
        num_layers=2,
        num_single_layers=2,
        num_attention_heads=2,
        attention_head_dim=32,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        guidance_embeds=True,
        axes_dims_rope=(8, 12, 12),
    )


def _vae() -> AutoencoderKL:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8, 16, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=LATENT_CHANNELS,
        use_quant_conv=False,
        use_post_quant_conv=False,
        scaling_factor=0.3611,
        shift_factor=0.1159,
    )


def _clip_tokenizer() -> CLIPTokenizer:
    """Make every byte a token, with and without the end of a word."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), CLIP_BOS, CLIP_EOS]
    return CLIPTokenizer(vocab={token: index for index, token in enumerate(tokens)}, merges=[], model_max_length=77)


def _t5_tokenizer() -> T5TokenizerFast:
    """Make every printable Latin-1 character a token; others are unknown."""
    from transformers import T5TokenizerFast

    letters = [chr(code) for code in (*range(33, 127), *range(161, 256))]
    scores = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0), *((letter, -3.0) for letter in letters)]
    return T5TokenizerFast(vocab=scores, extra_ids=0, model_max_length=T5_TOKENS)


def _clip(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config).eval()


def _t5(tokenizer: T5TokenizerFast) -> T5EncoderModel:
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=WIDTH,
        d_kv=WIDTH // 2,
        d_ff=2 * WIDTH,
        num_layers=2,
        num_heads=2,
        feed_forward_proj="gated-gelu",
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
    )
    return T5EncoderModel(config).eval()


def _fill(module: nn.Module, name: str) -> None:
    """Draw uniform weights of standard deviation 1 / sqrt(inputs); norms stay 1, biases become 0."""
    import numpy as np
    import torch

    with torch.no_grad():
        for key, parameter in module.named_parameters():
            if key.endswith("bias"):
                parameter.zero_()
            elif parameter.ndim > 1:
                seed = int.from_bytes(hashlib.sha256(f"{name}.{key}".encode()).digest()[:4], "little")
                draws = np.random.RandomState(seed).random_sample(parameter.shape)
                # embeddings are looked up, not summed: their standard deviation is 1
                inputs = 1 if "embed" in key and "embedder" not in key else parameter[0].numel()
                bound = np.sqrt(3.0 / inputs)
                parameter.copy_(torch.from_numpy(((2.0 * draws - 1.0) * bound).astype(np.float32)))


def _calibrate_latents(vae: AutoencoderKL) -> None:
    """Set the encoder's last layer to give means of a usual size and one narrow variance."""
    import torch

    last = vae.encoder.conv_out
    with torch.no_grad():
        last.weight[:LATENT_CHANNELS] *= LATENT_GAIN
        last.weight[LATENT_CHANNELS:] = 0.0
        last.bias[LATENT_CHANNELS:] = LOG_VARIANCE


def _is_complete(folder: Path) -> bool:
    """Return whether every part has its weights."""
    return all(any((folder / part).glob("*.safetensors")) for part in PARTS)


def _rename_unless_there(unfinished: Path, folder: Path) -> None:
    """Rename, unless another process was faster; its checkpoint has the same bytes."""
    try:
        unfinished.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
