"""Trains the autoencoder on crops of photographs and procedural scenes.

    python train_vae.py --state STATE --seconds 300 [--decay-from 1.0] [--decoder-only]

Ends by itself when its time is used up, and always saves; run it again to continue. The optimizer then starts fresh,
with a short warm-up. The last call decays the learning rate. With `--decoder-only` the latents do not change,
so that a transformer trained on them still fits.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path

import architecture
import edits
import torch
import torch.nn.functional as functional
from data import load_pool
from images import DeviceRecipes, pairs, random_windows
from recipes import ANY_PHOTOGRAPH, collect
from torch import Tensor, nn
from training import Average, Budget, learning_rate, prepare_device, read_state, restore, save_state

SCENE_SHARE = 6
"""One image in this many is a procedural scene or an edited photograph."""
LOG_VARIANCE_RANGE = (-14.0, 2.0)
TRIAL = 60
"""Steps after which eager and compiled speed are compared."""


class Autoencoder(nn.Module):
    """Training forward: image in [-1, 1] to (reconstruction, KL divergence per latent)."""

    def __init__(self, vae: nn.Module, decoder_only: bool) -> None:
        super().__init__()
        self.vae, self.decoder_only = vae, decoder_only

    def forward(self, image: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        with torch.set_grad_enabled(not self.decoder_only and torch.is_grad_enabled()):
            mean, log_variance = self.vae.encoder(image).float().chunk(2, dim=1)
        log_variance = log_variance.clamp(*LOG_VARIANCE_RANGE)
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        latents = mean + (0.5 * log_variance).exp() * noise
        return self.vae.decoder(latents.to(image.dtype)).float(), divergence


def reconstruction_loss(result: Tensor, image: Tensor) -> Tensor:
    """Return L1 and squared error, L1 of gradients, L1 of the image at a half and a quarter of its size."""
    difference = result - image
    loss = difference.abs().mean() + 3 * difference.square().mean()
    loss = loss + 0.25 * (difference.diff(dim=2).abs().mean() + difference.diff(dim=3).abs().mean())
    for _ in range(2):
        difference = functional.avg_pool2d(difference, 2)
        loss = loss + 0.25 * difference.abs().mean()
    return loss


class Images:
    """Endless batches in [-1, 1]."""

    def __init__(self, pool: Tensor, seed: int, batch: int, edge: int) -> None:
        rng = random.Random(seed)
        subjects = ("a",) * pool.shape[0]
        made = collect([edits.text_to_image(rng, subjects) for _ in range(4000)])
        self.recipes = DeviceRecipes.upload(made, pool.device)
        self.pool, self.batch, self.edge = pool, batch, edge

    def __call__(self) -> Tensor:
        device = self.pool.device
        which = torch.full((self.batch,), ANY_PHOTOGRAPH, device=device)
        image = random_windows(self.pool, which, self.edge, self.edge, vary=True)
        drawn = self.batch // SCENE_SHARE
        index = torch.randint(len(self.recipes.turn), (drawn,), device=device)
        image[:drawn] = pairs(self.recipes.pick(index), image[:drawn])[1]
        return image.mul(2).sub(1).to(memory_format=torch.channels_last)


def latent_statistics(vae: nn.Module, images: Images, batches: int = 16) -> tuple[float, float]:
    """Return shift and scale that give the latents mean 0 and standard deviation 1."""
    with torch.no_grad():
        means = [vae.encoder(images()).chunk(2, dim=1)[0].float() for _ in range(batches)]
    latents = torch.stack(means)
    return latents.mean().item(), 1 / latents.std().item()


def train(arguments: argparse.Namespace) -> None:
    budget, device = Budget(arguments.seconds), prepare_device(arguments.device, one_shape=True)
    torch.manual_seed(arguments.seed)
    vae = architecture.build_vae().to(device, memory_format=torch.channels_last)
    average = Average(vae, arguments.average)
    tensors, facts = read_state(arguments.state, "vae")
    if tensors:
        restore(tensors, {"vae": vae}, average)
    if arguments.decoder_only:
        if not tensors:
            raise SystemExit(f"--decoder-only needs a trained encoder, and {arguments.state} has no state")
        _freeze_averaged_encoder(vae, average)
    parameters = list(vae.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=arguments.rate, betas=(0.9, 0.99), weight_decay=1e-3)
    pool = torch.from_numpy(load_pool(arguments.photos, arguments.crops, arguments.seed, arguments.workers).pixels)
    images = Images(pool.to(device), arguments.seed, arguments.batch, arguments.edge)
    first = int(facts.get("steps", 0))
    torch.manual_seed(arguments.seed + first)
    model = Autoencoder(vae, arguments.decoder_only)
    count = sum(parameter.numel() for parameter in parameters)
    print(f"vae: step {first}, {budget.used:.0f} s to get ready, {count} weights", flush=True)
    step = _loop(arguments, budget, model, optimizer, average, images)
    average.swap()
    shift, scale = latent_statistics(vae, images)
    average.swap()
    seconds = float(facts.get("seconds", 0)) + budget.used
    if arguments.decoder_only:
        shift, scale = facts["shift_factor"], facts["scaling_factor"]
    facts = {"steps": first + step, "seconds": seconds, "shift_factor": shift, "scaling_factor": scale,
             "seed": arguments.seed, "recipe": architecture.RECIPE_VERSION}  # fmt: skip
    save_state(arguments.output or arguments.state, "vae", {"vae": vae}, average, facts)
    print(json.dumps(facts), f"saved after {budget.used:.0f} s", flush=True)


def _freeze_averaged_encoder(vae: nn.Module, average: Average) -> None:
    """Freeze the averaged encoder, which made the latents; from now on it is also the raw one."""
    values = dict(zip((name for name, _ in vae.named_parameters()), average.average, strict=True))
    with torch.no_grad():
        for name, parameter in vae.encoder.named_parameters():
            parameter.copy_(values[f"encoder.{name}"])
    vae.encoder.requires_grad_(False)


class Faster:
    """The model eager, then compiled; after 2.5 trials whichever was faster."""

    def __init__(self, model: nn.Module) -> None:
        self.eager, self.compiled = model, torch.compile(model)
        self.current, self.marks = model, []

    def at(self, step: int) -> nn.Module:
        if step in (TRIAL // 2, TRIAL, TRIAL * 2, TRIAL * 5 // 2):
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.marks.append(time.monotonic())
            if step == TRIAL:
                self.current = self.compiled
            if step == TRIAL * 5 // 2:
                eager, compiled = self.marks[1] - self.marks[0], self.marks[3] - self.marks[2]
                print(f"eager {eager:.2f} s, compiled {compiled:.2f} s for {TRIAL // 2} steps", flush=True)
                self.current = self.compiled if compiled < eager else self.eager
        return self.current


def _loop(arguments: argparse.Namespace, budget: Budget, model: Autoencoder, optimizer: torch.optim.Optimizer,
          average: Average, images: Images) -> int:  # fmt: skip
    device = images.pool.device
    faster = Faster(model) if arguments.compile else None
    shape = (arguments.batch, architecture.LATENT_CHANNELS, arguments.edge // 8, arguments.edge // 8)
    reserve = arguments.reserve
    step, since, errors = 0, time.monotonic(), []
    while budget.used < budget.seconds - reserve and step < arguments.steps:
        fraction = budget.used / (budget.seconds - reserve)
        rate = learning_rate(
            step, fraction, peak=arguments.rate, warmup=arguments.warmup, decay_from=arguments.decay_from
        )
        for group in optimizer.param_groups:
            group["lr"] = rate
        image = images()
        noise = torch.randn(shape, device=device)
        forward = faster.at(step) if faster else model
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            result, divergence = forward(image, noise)
        loss = reconstruction_loss(result, image) + arguments.divergence * divergence
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        average.update()
        errors.append((result.detach() - image).square().mean())
        step += 1
        if step % arguments.log_every == 0:
            psnr = 10 * torch.log10(4 / torch.stack(errors).mean())
            speed = arguments.log_every / (time.monotonic() - since)
            print(f"vae {step} {budget.used:.0f}s loss {loss:.4f} psnr {psnr:.2f} kl {divergence:.2f} lr {rate:.1e} "
                  f"{speed:.1f} it/s", flush=True)  # fmt: skip
            since, errors = time.monotonic(), []
    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--output", type=Path, help="where to save, if not in the state's folder")
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--reserve", type=float, default=4, help="seconds of the budget kept for saving")
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--batch", type=int, default=96)
    parser.add_argument("--edge", type=int, default=128)
    parser.add_argument("--crops", type=int, default=240, help="crops per photograph in the pool")
    parser.add_argument("--rate", type=float, default=1.5e-3)
    parser.add_argument("--warmup", type=int, default=200)
    parser.add_argument("--decay-from", type=float, default=1.0)
    parser.add_argument("--divergence", type=float, default=1e-4)
    parser.add_argument("--average", type=float, default=0.998)
    parser.add_argument("--decoder-only", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--log-every", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device")
    parser.add_argument("--workers", type=int, default=8)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
