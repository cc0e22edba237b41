"""Writes the averaged weights as a diffusers pipeline folder in bfloat16.

    python export.py --vae STATE/vae --transformer STATE/transformer --tokenizers STATE/tokenizers --output FOLDER

`FluxKontextPipeline.from_pretrained(FOLDER)` loads it. `evaluate.py` adds `metrics.json`.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import architecture
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxKontextPipeline
from training import load_averaged, read_state
from transformers import CLIPTokenizer, T5TokenizerFast

FOLDER_LIMIT = 24_000_000
"""Limit in bytes for what the model adds to the package."""


def build_pipeline(vae_state: Path, transformer_state: Path, tokenizers: Path) -> FluxKontextPipeline:
    """Return the pipeline with averaged weights in bfloat16."""
    vae_tensors, facts = read_state(vae_state, "vae")
    tensors, _ = read_state(transformer_state, "transformer")
    clip_tokenizer = CLIPTokenizer.from_pretrained(tokenizers / "tokenizer")
    t5_tokenizer = T5TokenizerFast.from_pretrained(tokenizers / "tokenizer_2")
    vae = architecture.build_vae(
        scaling_factor=round(float(facts["scaling_factor"]), 4), shift_factor=round(float(facts["shift_factor"]), 4)
    )
    parts = {
        "transformer": architecture.build_transformer(),
        "text_encoder": architecture.build_clip(len(clip_tokenizer), clip_tokenizer.eos_token_id),
        "text_encoder_2": architecture.build_t5(len(t5_tokenizer)),
    }
    load_averaged(vae_tensors, {"vae": vae})
    load_averaged(tensors, parts)
    for module in (vae, *parts.values()):
        module.to(torch.bfloat16).eval()
    # the scheduler settings of the FLUX.1 pipelines
    scheduler = FlowMatchEulerDiscreteScheduler(
        shift=3.0,
        use_dynamic_shifting=True,
        base_shift=0.5,
        max_shift=1.15,
        base_image_seq_len=256,
        max_image_seq_len=4096,
    )
    return FluxKontextPipeline(
        scheduler=scheduler, vae=vae, tokenizer=clip_tokenizer, tokenizer_2=t5_tokenizer, **parts
    )


def export(vae_state: Path, transformer_state: Path, tokenizers: Path, output: Path) -> int:
    """Write the folder from scratch; return its size in bytes.

    Raises:
        ValueError: If it exceeds the limit.
    """
    pipeline = build_pipeline(vae_state, transformer_state, tokenizers)
    shutil.rmtree(output, ignore_errors=True)
    pipeline.save_pretrained(output)
    for path in output.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    size = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    if size > FOLDER_LIMIT:
        raise ValueError(f"{output} has {size} bytes, more than {FOLDER_LIMIT}")
    return size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vae", type=Path, required=True, help="folder of the VAE's state")
    parser.add_argument("--transformer", type=Path, required=True, help="folder of the transformer's state")
    parser.add_argument("--tokenizers", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    size = export(arguments.vae, arguments.transformer, arguments.tokenizers, arguments.output)
    print(f"{size / 1e6:.1f} MB in {arguments.output}")


if __name__ == "__main__":
    main()
