"""Trains transformer and text encoders together on instruction edits, in the latents of the trained VAE.

    python train_transformer.py --state STATE --photos STATE/photos --tokenizers STATE/tokenizers --seconds 400

Ends by itself when its seconds are used, and always saves; run it again to go on. The last call decays the
learning rate. Rectified flow as FLUX.1 Kontext has it: sequence [target | reference], the reference's ids with
first component 1, text padded to any length up to 512 without a mask, guidance embedding without effect.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from dataclasses import dataclass
from pathlib import Path

import architecture
import edits
import numpy as np
import torch
from data import load_pool
from pictures import DeviceRecipes, pairs, random_windows
from tokenizers import Tokenizer
from torch import Tensor, nn
from training import Average, Budget, learning_rate, load_averaged, prepare_device, read_state, restore, save_state

SIZES = (
    ((128, 128), 9),
    ((96, 96), 3),
    ((160, 160), 1),
    ((64, 64), 1),
    ((112, 144), 1),
    ((144, 112), 1),
    ((96, 128), 1),
)
"""Height and width in pixels, and how often."""
TEXT_LENGTHS = ((32, 12), (48, 2), (64, 2), (77, 1), (128, 2), (256, 1), (512, 4))
"""Tokens that T5's text is padded to, and how often: inference pads to 512, and any length shall work."""
LONG_TEXT = 256
"""From here on a batch is halved, to bound its time."""
CAPTION_TOKENS = 40
CAPTION_DROPOUT = 0.1
TEXT_TO_IMAGE = 0.14
"""Of the steps, those without a reference."""


def pack(latents: Tensor) -> Tensor:
    """[B, C, h, w] to [B, h/2 * w/2, 4C], channel-major within a token."""
    batch, channels, height, width = latents.shape
    cells = latents.reshape(batch, channels, height // 2, 2, width // 2, 2)
    return cells.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, 4 * channels)


def position_ids(height: int, width: int, first: int, device: torch.device) -> Tensor:
    """[N, 3]: (first, row, column) of every token."""
    ids = torch.zeros(height // 2, width // 2, 3, device=device)
    ids[..., 0] = first
    ids[..., 1] = torch.arange(height // 2, device=device)[:, None]
    ids[..., 2] = torch.arange(width // 2, device=device)[None, :]
    return ids.reshape(-1, 3)


@dataclass(frozen=True, kw_only=True)
class Model:
    """The trained parts and the frozen VAE."""

    transformer: nn.Module
    clip: nn.Module
    t5: nn.Module
    vae: nn.Module
    shift: float
    scale: float

    @property
    def trained(self) -> dict[str, nn.Module]:
        return {"transformer": self.transformer, "text_encoder": self.clip, "text_encoder_2": self.t5}

    def latents(self, pictures: Tensor) -> Tensor:
        """Normalised posterior means of pictures in [0, 1]."""
        with torch.no_grad():
            channels_last = pictures.mul(2).sub(1).to(memory_format=torch.channels_last)
            mean = self.vae.encoder(channels_last).chunk(2, dim=1)[0].float()
        return (mean - self.shift) * self.scale

    def velocity(self, noisy: Tensor, reference: Tensor | None, sigma: Tensor, guidance: Tensor,
                 clip_ids: Tensor, t5_ids: Tensor) -> Tensor:  # fmt: skip
        """Predicted velocity of the target's tokens, [B, N, 64] float32.

        Args:
            noisy: [B, 16, h, w].
            reference: As ``noisy``, or None.
            sigma: [B].
            guidance: [B].
            clip_ids: [B, 77] or shorter.
            t5_ids: [B, T], padded.
        """
        pooled = self.clip(clip_ids).pooler_output
        text = self.t5(t5_ids)[0]
        height, width = noisy.shape[-2:]
        tokens, ids = pack(noisy), position_ids(height, width, 0, noisy.device)
        count = tokens.shape[1]
        if reference is not None:
            tokens = torch.cat([tokens, pack(reference)], dim=1)
            ids = torch.cat([ids, position_ids(*reference.shape[-2:], 1, noisy.device)])
        prediction = self.transformer(
            hidden_states=tokens,
            encoder_hidden_states=text,
            pooled_projections=pooled,
            timestep=sigma,
            guidance=guidance,
            img_ids=ids,
            txt_ids=torch.zeros(text.shape[1], 3, device=noisy.device),
            return_dict=False,
        )[0]
        return prediction[:, :count].float()


class Pool:
    """Recipes on the device with their captions as token ids; the last caption is the empty one."""

    def __init__(self, made: list[edits.Edit], tokenizers: tuple[Tokenizer, Tokenizer], device: torch.device) -> None:
        recipes = edits.collect(made)
        captions = [*sorted(set(recipes.captions)), ""]
        place = {caption: index for index, caption in enumerate(captions)}
        self.caption = torch.tensor([place[caption] for caption in recipes.captions], device=device)
        clip, t5 = tokenizers
        self.clip_ids = _token_ids(clip, captions, clip.token_to_id(architecture.CLIP_EOS)).to(device)
        self.t5_ids = _token_ids(t5, captions, 0).to(device)
        self.recipes = DeviceRecipes.upload(recipes, device)
        self.kinds = recipes.kinds
        quarter = np.isin(recipes.turn, [edits.TURNS.index("left"), edits.TURNS.index("right")])
        self.any_size = torch.from_numpy(np.flatnonzero(~quarter)).to(device)
        self.every = torch.arange(len(recipes.turn), device=device)

    def draw(self, count: int, square: bool) -> Tensor:
        candidates = self.every if square else self.any_size
        return candidates[torch.randint(len(candidates), (count,), device=candidates.device)]

    def text(self, index: Tensor, length: int, dropout: float) -> tuple[Tensor, Tensor]:
        """CLIP and T5 ids of the recipes' captions, T5's padded to ``length``."""
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


def load_tokenizers(folder: Path) -> tuple[Tokenizer, Tokenizer]:
    """CLIP's and T5's, without a library's defaults of padding and cutting."""
    loaded = []
    for name in ("tokenizer", "tokenizer_2"):
        tokenizer = Tokenizer.from_file(str(folder / name / "tokenizer.json"))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        loaded.append(tokenizer)
    return loaded[0], loaded[1]


def build(tokenizers: tuple[Tokenizer, Tokenizer], vae_state: tuple[dict, dict], device: torch.device) -> Model:
    """All parts, the VAE with its averaged weights; the others at random."""
    tensors, facts = vae_state
    vae = architecture.build_vae()
    load_averaged(tensors, {"vae": vae})
    clip, t5 = tokenizers
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    vae = vae.to(device, dtype, memory_format=torch.channels_last).requires_grad_(False).eval()
    # the random weights come from the CPU's generator: the same wherever they are trained
    transformer = _start_as_identity(architecture.build_transformer())
    text = architecture.build_clip(clip.get_vocab_size(), clip.token_to_id(architecture.CLIP_EOS))
    text_2 = architecture.build_t5(t5.get_vocab_size())
    return Model(
        transformer=transformer.to(device),
        clip=text.to(device),
        t5=text_2.to(device),
        vae=vae,
        shift=float(facts["shift_factor"]),
        scale=float(facts["scaling_factor"]),
    )


def _start_as_identity(transformer: nn.Module) -> nn.Module:
    """No modulation, no gate, no prediction at first (arXiv:2212.09748, adaLN-Zero)."""
    for name, module in transformer.named_modules():
        if isinstance(module, nn.Linear) and (name == "proj_out" or (".linear" in name and "norm" in name)):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
    return transformer


def encode_pictures(model: Model, pictures: Tensor) -> Tensor:
    """Latents, with the VAE in its own dtype."""
    dtype = next(model.vae.parameters()).dtype
    return model.latents(pictures.to(dtype) if dtype != torch.float32 else pictures)


def train(arguments: argparse.Namespace) -> None:
    budget, device = Budget(arguments.seconds), prepare_device(arguments.device, one_shape=False)
    torch.manual_seed(arguments.seed)
    tokenizers = load_tokenizers(arguments.tokenizers)
    model = build(tokenizers, read_state(arguments.vae or arguments.state, "vae"), device)
    parameters = [parameter for part in model.trained.values() for parameter in part.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=arguments.rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    average = Average(nn.ModuleList(model.trained.values()), arguments.average)
    tensors, facts = read_state(arguments.state, "transformer")
    if tensors:
        restore(tensors, model.trained, optimizer, average)
    first = int(facts.get("steps", 0))
    pool = load_pool(arguments.photos, arguments.crops, arguments.seed, arguments.workers)
    rng = random.Random(f"{arguments.seed} {first}")
    editing = Pool([edits.edit(rng) for _ in range(arguments.recipes)], tokenizers, device)
    plain = Pool([edits.text_to_image(rng, pool.subjects) for _ in range(arguments.recipes // 4)], tokenizers, device)
    torch.manual_seed(arguments.seed + first)
    pixels = torch.from_numpy(pool.pixels).to(device)
    print(f"transformer: step {first}, {budget.used:.0f} s to get ready, {sum(p.numel() for p in parameters)} weights, "
          f"{len(editing.t5_ids)} captions", flush=True)  # fmt: skip
    steps = _loop(arguments, budget, model, optimizer, average, (editing, plain), pixels, random.Random(first))
    seconds = float(facts.get("seconds", 0)) + budget.used
    facts = {"steps": first + steps, "seconds": seconds, "seed": arguments.seed, "recipe": architecture.RECIPE_VERSION}
    save_state(arguments.output or arguments.state, "transformer", model.trained, optimizer, average, facts)
    print(json.dumps(facts), f"saved after {budget.used:.0f} s", flush=True)


def noise_levels(count: int, device: torch.device) -> Tensor:
    """Logit-normal, shifted to noise by 1.6 (what the pipelines use at these sizes), one in eight uniform."""
    sigma = torch.sigmoid(1.1 * torch.randn(count, device=device))
    sigma = 1.6 * sigma / (1 + 0.6 * sigma)
    return torch.where(torch.rand(count, device=device) < 0.125, torch.rand(count, device=device), sigma)


def loss_of_batch(model: Model, pool: Pool, pixels: Tensor, *, size: tuple[int, int], length: int, batch: int,
                  with_reference: bool) -> Tensor:  # fmt: skip
    """Mean squared error of the velocity for a fresh batch."""
    device = pixels.device
    index = pool.draw(batch, size[0] == size[1])
    recipes = pool.recipes.pick(index)
    with torch.no_grad():
        photographs = random_windows(pixels, recipes.photo.clamp(max=pixels.shape[0] - 1), *size, vary=False)
        reference, target = pairs(recipes, photographs)
        latents = encode_pictures(model, torch.cat([target, reference]) if with_reference else target)
    clean, given = (latents[:batch], latents[batch:]) if with_reference else (latents, None)
    noise, sigma = torch.randn_like(clean), noise_levels(batch, device)
    level = sigma[:, None, None, None]
    noisy = (1 - level) * clean + level * noise
    guidance = torch.where(torch.rand(batch, device=device) < 0.5, 1.0, 1 + 4 * torch.rand(batch, device=device))
    clip_ids, t5_ids = pool.text(index, length, CAPTION_DROPOUT)
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        velocity = model.velocity(noisy, given, sigma, guidance, clip_ids, t5_ids)
    return (velocity - pack(noise - clean)).square().mean()


def _loop(arguments: argparse.Namespace, budget: Budget, model: Model, optimizer: torch.optim.Optimizer,
          average: Average, pools: tuple[Pool, Pool], pixels: Tensor, rng: random.Random) -> int:  # fmt: skip
    step, since, losses = 0, time.monotonic(), {True: [], False: []}
    parameters = average.parameters
    good = [parameter.detach().clone() for parameter in parameters]
    while budget.used < budget.seconds - arguments.reserve and step < arguments.steps:
        fraction = budget.used / (budget.seconds - arguments.reserve)
        rate = learning_rate(
            step, fraction, peak=arguments.rate, warmup=arguments.warmup, decay_from=arguments.decay_from
        )
        for group in optimizer.param_groups:
            group["lr"] = rate
        with_reference = rng.random() >= TEXT_TO_IMAGE
        size = rng.choices([s for s, _ in SIZES], [w for _, w in SIZES])[0]
        length = rng.choices([n for n, _ in TEXT_LENGTHS], [w for _, w in TEXT_LENGTHS])[0]
        batch = arguments.batch // 2 if length >= LONG_TEXT else arguments.batch
        loss = loss_of_batch(model, pools[0 if with_reference else 1], pixels, size=size, length=length, batch=batch,
                             with_reference=with_reference)  # fmt: skip
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        average.update()
        losses[with_reference].append(loss.detach())
        step += 1
        if step % arguments.log_every == 0:
            means = (torch.stack(values).mean().item() if values else float("nan") for values in losses.values())
            edit_loss, plain_loss = means
            speed = arguments.log_every / (time.monotonic() - since)
            print(f"transformer {step} {budget.used:.0f}s edit {edit_loss:.4f} plain {plain_loss:.4f} lr {rate:.1e} "
                  f"{speed:.1f} it/s", flush=True)  # fmt: skip
            since, losses = time.monotonic(), {True: [], False: []}
            good = _go_back_if_broken(parameters, optimizer, average, good)
    return step


@torch.no_grad()
def _go_back_if_broken(parameters: list[Tensor], optimizer: torch.optim.Optimizer, average: Average,
                       good: list[Tensor]) -> list[Tensor]:  # fmt: skip
    """Weights that are no numbers any more are those of the last report again; returns the weights to keep."""
    if all(bool(norm.isfinite()) for norm in torch._foreach_norm(parameters)):
        return [parameter.detach().clone() for parameter in parameters]
    print("weights are not finite: back to the last report", flush=True)
    optimizer.state.clear()
    for parameter, mean, kept in zip(parameters, average.average, good, strict=True):
        parameter.copy_(kept)
        mean.copy_(kept)
    return good


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--vae", type=Path, help="folder of the VAE's state, when not in the state's folder")
    parser.add_argument("--output", type=Path, help="where to save, when not in the state's folder")
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--tokenizers", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=400)
    parser.add_argument("--reserve", type=float, default=4, help="seconds of the budget kept for saving")
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--crops", type=int, default=240, help="crops of each photograph in the pool")
    parser.add_argument("--recipes", type=int, default=120_000)
    parser.add_argument("--rate", type=float, default=1.5e-3)
    parser.add_argument("--warmup", type=int, default=300)
    parser.add_argument("--decay-from", type=float, default=1.0)
    parser.add_argument("--average", type=float, default=0.999)
    parser.add_argument("--log-every", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device")
    parser.add_argument("--workers", type=int, default=8)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
