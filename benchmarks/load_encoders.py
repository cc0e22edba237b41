"""Loading the text encoders alone: as a run loads them, with the memory of host and card meanwhile.

usage: python benchmarks/load_encoders.py MODEL_FOLDER PRECISION [EMBEDDINGS]      prints one JSON line

PRECISION is that of the second encoder, T5 (`text_encoder_2_precision`); no_change leaves it in bfloat16. EMBEDDINGS is
a file: no_change writes the embeddings of one prompt into it, other precisions say how far theirs are from them. With
random weights (`make_checkpoint.py`) that tells nothing about trained ones.
"""

from __future__ import annotations

import json
import sys
import time

import torch
from load_model import peak_host_gib

from difftrain.planning.model_plan import plan_model
from difftrain.training.frozen_encoders import Encoders

PROMPT = "make it black and white"


def main(folder: str, precision: str, embeddings: str | None = None) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.zeros(1, device=device)  # CUDA's own memory and time are not part of loading
    flags = {
        "model_family": "flux", "model_flavour": "kontext", "pretrained_model_name_or_path": folder,
        "mixed_precision": "bf16", "text_encoder_2_precision": precision,
    }  # fmt: skip
    plan = plan_model(None, flags)
    encoders = Encoders(plan, plan.family.locate(folder, plan.flavour), device)
    before, started = peak_host_gib(), time.monotonic()
    encoder = encoders.text()
    if device.type == "cuda":
        torch.cuda.synchronize()
    result: dict[str, object] = {
        "precision": precision,
        "seconds": round(time.monotonic() - started, 1),
        "host_gib": round(peak_host_gib(), 2),
        "host_gib_before": round(before, 2),
    }
    if device.type == "cuda":
        result["device_peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
        result["device_gib"] = round(torch.cuda.memory_allocated() / 2**30, 2)
    encoder.encode([PROMPT])  # the first call takes longer
    started = time.monotonic()
    (found,) = encoder.encode([PROMPT])
    result["seconds_per_prompt"] = round(time.monotonic() - started, 3)
    if embeddings is not None and precision == "no_change":
        torch.save(found["prompt_embeds"], embeddings)
    elif embeddings is not None:
        exact = torch.load(embeddings).float()
        result["apart"] = round(((found["prompt_embeds"].float() - exact).norm() / exact.norm()).item(), 4)
    print(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
