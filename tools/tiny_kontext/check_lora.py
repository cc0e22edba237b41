"""Does a rank-16 LoRA teach the model to deblur, which its training left out? Runs on two CPU cores in minutes.

    python check_lora.py --model FOLDER --sheet lora.png --steps 300 --blur 3

Trains on windows of some held-out photographs and measures on windows of the others.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import FluxKontextPipeline
from evaluate import HELD_OUT, Editor, held_out, psnr
from peft import LoraConfig
from PIL import Image
from torch import Tensor
from torch.nn import functional
from train_transformer import noise_levels, pack

CAPTION = "make the picture sharp"
TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]
TESTED = ("astronaut.png", "chelsea.png", "coffee.png")


def blurred(pictures: Tensor, sigma: float) -> Tensor:
    """Gaussian blur with reflected borders, sigma in pixels."""
    radius = round(3 * sigma)
    kernel = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma).square())
    kernel = (kernel / kernel.sum()).repeat(3, 1)
    padded = functional.pad(pictures, (radius,) * 4, mode="reflect")
    padded = functional.conv2d(padded, kernel[:, None, None, :], groups=3)
    return functional.conv2d(padded, kernel[:, None, :, None], groups=3)


def windows(edge: int, each: int, tested: bool, seed: int) -> Tensor:
    """Windows of the tested or of the other photographs."""
    every = held_out(edge, each, seed).reshape(len(HELD_OUT), each, 3, edge, edge)
    return every[[(name in TESTED) == tested for name in HELD_OUT]].flatten(0, 1)


def train(editor: Editor, arguments: argparse.Namespace, reference: Tensor, clean: Tensor) -> None:
    """Plain rectified flow on the LoRA's weights."""
    transformer = editor.pipeline.transformer.requires_grad_(False)
    transformer.add_adapter(LoraConfig(r=16, lora_alpha=16, target_modules=TARGETS))
    parameters = [parameter for parameter in transformer.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=arguments.rate, weight_decay=0.0)
    text = editor.text([CAPTION] * arguments.batch)
    start, losses = time.monotonic(), []
    for step in range(arguments.steps):
        for group in optimizer.param_groups:
            group["lr"] = arguments.rate * min(1, (step + 1) / 20) * max(0.05, 1 - step / arguments.steps)
        index = torch.randint(len(clean), (arguments.batch,))
        target, given = clean[index], reference[index]
        noise, sigma = torch.randn_like(target), noise_levels(arguments.batch, target.device)
        level = sigma[:, None, None, None]
        with torch.enable_grad():
            flat = Editor.velocity.__wrapped__(editor, (1 - level) * target + level * noise, given, sigma, text)
            loss = (flat - pack(noise - target)).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if step % 25 == 24:
            print(f"step {step + 1} loss {np.mean(losses[-25:]):.4f} {time.monotonic() - start:.0f} s", flush=True)


def report(editor: Editor, name: str, references: Tensor, pictures: Tensor, steps: int) -> Tensor:
    """Draw with three seeds, print the mean PSNR, return the first drawing."""
    size = pictures.shape[-2:]
    drawn = [editor.edit(references, [CAPTION] * len(pictures), size, seed, 2.5, steps) for seed in range(3)]
    values = torch.stack([psnr(result, pictures) for result in drawn])
    print(f"{name}: {values.mean():.2f} dB, by seed {[round(v, 2) for v in values.mean(1).tolist()]}", flush=True)
    return drawn[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--sheet", type=Path)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rate", type=float, default=4e-3)
    parser.add_argument("--blur", type=float, default=3.0)
    parser.add_argument("--sampling-steps", type=int, default=2, help="few: nearer to the mean picture, higher PSNR")
    parser.add_argument("--edge", type=int, default=128)
    parser.add_argument("--text-length", type=int, default=64)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    pipeline = FluxKontextPipeline.from_pretrained(arguments.model, torch_dtype=torch.float32)
    editor = Editor(pipeline, arguments.text_length)
    tested = windows(arguments.edge, 4, True, 7)
    soft = blurred(tested, arguments.blur)
    print(f"blurred input: {psnr(soft, tested).mean():.2f} dB; "
          f"VAE of the clean picture: {psnr(editor.decode(editor.encode(tested)), tested).mean():.2f} dB; "
          f"VAE of the blurred one: {psnr(editor.decode(editor.encode(soft)), tested).mean():.2f} dB")  # fmt: skip
    before = report(editor, "base", soft, tested, arguments.sampling_steps)
    learned = windows(arguments.edge, 24, False, 9)
    learned = torch.cat([learned, learned.flip(3)])
    train(editor, arguments, editor.encode(blurred(learned, arguments.blur)), editor.encode(learned))
    after = report(editor, "lora", soft, tested, arguments.sampling_steps)
    if arguments.sheet:
        rows = [torch.cat(list(row), dim=2) for row in zip(soft, before, after, tested, strict=True)]
        pixels = torch.cat(rows, dim=1).permute(1, 2, 0)
        Image.fromarray((pixels.numpy() * 255).round().astype(np.uint8)).save(arguments.sheet)


if __name__ == "__main__":
    main()
