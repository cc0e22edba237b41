"""The baseline: stock diffusers and peft in the plainest loop, on random tensors of one target and one reference.

usage: python benchmarks/bare_step.py MODEL_FOLDER no_change|int8-quanto [STEPS]      prints one JSON line
"""

from __future__ import annotations

import json
import statistics
import sys
import time

import torch
from diffusers import FluxTransformer2DModel
from peft import LoraConfig

TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]
TEXT_TOKENS = 512


def ids(first: int, side: int) -> torch.Tensor:
    """[side * side, 3], of an image of side * side tokens."""
    grid = torch.stack(torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij"), -1).view(-1, 2)
    return torch.cat([torch.full((side**2, 1), first), grid], 1).float()


def stock_model(folder: str | None) -> FluxTransformer2DModel:
    """The bf16 model on the card: from a folder, or with random weights."""
    if folder is not None:
        model = FluxTransformer2DModel.from_pretrained(folder, subfolder="transformer", torch_dtype=torch.bfloat16)
        return model.requires_grad_(False).to("cuda")
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = FluxTransformer2DModel(guidance_embeds=True)
    torch.set_default_dtype(torch.float32)
    return model.requires_grad_(False)


def stock_step(
    steps: int, folder: str | None = None, precision: str = "int8-quanto", pixels: int = 1024
) -> dict[str, object]:
    """Train some steps; gives the seconds of each, their losses, and the number of tokens."""
    side = pixels // 16
    count = side**2
    started = time.monotonic()
    torch.backends.cuda.enable_cudnn_sdp(False)
    model = stock_model(folder)
    if precision == "int8-quanto":
        from optimum.quanto import freeze, qint8, quantize

        quantize(model, weights=qint8)
        freeze(model)
        model.requires_grad_(False)
    model.enable_gradient_checkpointing()
    model.add_adapter(LoraConfig(r=16, lora_alpha=16, target_modules=TARGETS))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    latents, reference, noise = (torch.randn(1, count, 64, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    text = torch.randn(1, TEXT_TOKENS, 4096, device="cuda", dtype=torch.bfloat16)
    pooled = torch.randn(1, 768, device="cuda", dtype=torch.bfloat16)
    image_ids = torch.cat([ids(0, side), ids(1, side)]).cuda()
    text_ids = torch.zeros(TEXT_TOKENS, 3, device="cuda")
    seconds, losses = [], []
    model.train()
    prepared = time.monotonic() - started
    torch.cuda.reset_peak_memory_stats()
    for _ in range(steps):
        torch.cuda.synchronize()
        started = time.perf_counter()
        sigma = torch.rand(1, device="cuda")
        noisy = (1 - sigma) * latents + sigma * noise
        with torch.autocast("cuda", torch.bfloat16):
            predicted = model(
                hidden_states=torch.cat([noisy.bfloat16(), reference], 1),
                encoder_hidden_states=text,
                pooled_projections=pooled,
                timestep=sigma,
                guidance=torch.ones(1, device="cuda"),
                img_ids=image_ids,
                txt_ids=text_ids,
                return_dict=False,
            )[0][:, :count]
        loss = (predicted.float() - (noise - latents).float()).square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
        losses.append(round(loss.item(), 4))
    return {"seconds": seconds, "prepared": prepared, "losses": losses, "tokens": 2 * count + TEXT_TOKENS}


def main(folder: str, precision: str, steps: int) -> None:
    seconds = stock_step(steps, folder, precision)["seconds"]
    peak = torch.cuda.max_memory_allocated() / 2**30
    print(json.dumps({"seconds": statistics.median(seconds[2:]), "peak_gib": round(peak, 1)}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 8)
