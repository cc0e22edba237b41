"""Measures a pipeline folder on photographs that the model has never seen (scikit-image's), and draws a sheet.

    python evaluate.py --model FOLDER --sheet sheet.png [--metrics]

With `--metrics` the numbers go into `FOLDER/metrics.json`, with recipe, seed and data list.
"""

from __future__ import annotations

import argparse
import json
import random
from itertools import pairwise
from pathlib import Path

import architecture
import edits
import numpy as np
import torch
from diffusers import FluxKontextPipeline
from images import DeviceRecipes, pairs
from PIL import Image, ImageDraw
from recipes import SCENE, collect
from scene_edits import describe
from sources import licences
from torch import Tensor

from difftrain.steps.noise_levels import SigmoidSampler, shift_sigma
from difftrain_flux.packing import pack, position_ids, unpack

HELD_OUT = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "hubble_deep_field.jpg", "retina.jpg",
            "motorcycle_left.png", "ihc.png")  # fmt: skip
VIEW = 192
"""Shorter edge to which a held-out photograph is reduced before windows are cut."""
STEPS = 12
SHEET_KINDS = ("grey", "negative", "mirror", "flip", "rotate_left", "tint", "darker", "more_contrast", "swap_colours",
               "frame", "add", "recolour", "two", "keep", "scene_recolour", "scene_move", "scene_remove", "scene_add",
               "scene_background", "scene_exchange", "scene_resize", "describe")  # fmt: skip


def held_out(edge: int, each: int, seed: int = 0) -> Tensor:
    """Return windows of the held-out photographs, [8 * each, 3, edge, edge] in [0, 1]."""
    import skimage.data

    folder, rng, windows = Path(skimage.data.__file__).parent, random.Random(seed), []
    for name in HELD_OUT:
        with Image.open(folder / name) as source:
            image = source.convert("RGB")
        scale = VIEW / min(image.size)
        size = (round(image.width * scale), round(image.height * scale))
        image = image.resize(size, Image.Resampling.LANCZOS)
        for _ in range(each):
            left, top = rng.randint(0, size[0] - edge), rng.randint(0, size[1] - edge)
            windows.append(np.asarray(image.crop((left, top, left + edge, top + edge))))
    return torch.from_numpy(np.stack(windows)).permute(0, 3, 1, 2).float() / 255


def psnr(result: Tensor, target: Tensor) -> Tensor:
    """Return the PSNR of each image in dB; images in [0, 1]."""
    return -10 * torch.log10((result - target).square().mean((1, 2, 3)))


class Editor:
    """The pipeline's parts with the sampling loop written out, so that batches are fast and seeded."""

    def __init__(self, pipeline: FluxKontextPipeline, text_length: int = architecture.TEXT_TOKENS) -> None:
        self.pipeline, self.text_length = pipeline, text_length
        config = pipeline.vae.config
        self.shift, self.scale = config.shift_factor, config.scaling_factor

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        mean = self.pipeline.vae.encode(images * 2 - 1).latent_dist.mode()
        return (mean - self.shift) * self.scale

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        return (self.pipeline.vae.decode(latents / self.scale + self.shift).sample / 2 + 0.5).clamp(0, 1)

    @torch.no_grad()
    def text(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        embeds, pooled, _ = self.pipeline.encode_prompt(captions, None, max_sequence_length=self.text_length)
        return embeds, pooled

    @torch.no_grad()
    def velocity(self, noisy: Tensor, reference: Tensor | None, sigma: Tensor, text: tuple[Tensor, Tensor],
                 guidance: float = 1.0) -> Tensor:  # fmt: skip
        rows, columns = noisy.shape[-2] // 2, noisy.shape[-1] // 2
        tokens, ids = pack(noisy), position_ids(rows, columns)
        count = tokens.shape[1]
        if reference is not None:
            tokens = torch.cat([tokens, pack(reference)], dim=1)
            ids = torch.cat([ids, position_ids(rows, columns, index=1)])
        return self.pipeline.transformer(
            hidden_states=tokens, encoder_hidden_states=text[0], pooled_projections=text[1], timestep=sigma,
            guidance=torch.full_like(sigma, guidance), img_ids=ids, txt_ids=torch.zeros(text[0].shape[1], 3),
            return_dict=False,
        )[0][:, :count]  # fmt: skip

    def edit(self, references: Tensor | None, captions: list[str], size: tuple[int, int], seed: int = 0,
             guidance: float = 1.0, steps: int = STEPS) -> Tensor:  # fmt: skip
        """Return images in [0, 1] after ``steps`` Euler steps with shift 1.6."""
        generator = torch.Generator().manual_seed(seed)
        latents = torch.randn(len(captions), 16, size[0] // 8, size[1] // 8, generator=generator)
        given = None if references is None else self.encode(references)
        text = self.text(captions)
        levels = torch.linspace(1, 0, steps + 1)
        levels = 1.6 * levels / (1 + 0.6 * levels)
        for now, after in pairwise(levels):
            flat = self.velocity(latents, given, now.expand(len(captions)), text, guidance)
            latents = latents + (after - now) * unpack(flat, *latents.shape[-2:])
        return self.decode(latents)


def make_pairs(kind: str, photographs: Tensor, seed: int) -> tuple[Tensor, Tensor, list[str]]:
    """Return references, targets and captions of one kind of edit on the given photographs (or on scenes)."""
    rng, made = random.Random(f"{kind} {seed}"), []
    while len(made) < len(photographs):
        item = describe(rng) if kind == "describe" else edits.edit(rng)
        if item.kind == kind and (kind.startswith("scene") or kind == "describe" or item.photo != SCENE):
            made.append(item)
    recipes = collect(made)
    references, targets = pairs(DeviceRecipes.upload(recipes, photographs.device), photographs)
    return references, targets, recipes.captions


def vae_quality(editor: Editor) -> dict[str, float]:
    """Return the PSNR of reconstructions at several sizes."""
    quality = {}
    for edge in (64, 96, 128, 160):
        images = held_out(edge, 4)
        values = psnr(editor.decode(editor.encode(images)), images)
        quality[f"{edge}px"] = round(values.mean().item(), 2)
        if edge == 128:
            quality |= {name: round(values[4 * i : 4 * i + 4].mean().item(), 2) for i, name in enumerate(HELD_OUT)}
    return quality


def edit_quality(editor: Editor, kinds: tuple[str, ...], count: int) -> dict[str, dict[str, float]]:
    """Return the PSNR of each edit's result against its target, with the VAE's own bound and the unedited reference."""
    photographs = held_out(128, (count + 7) // 8, seed=1)[:count]
    quality = {}
    for kind in kinds:
        references, targets, captions = make_pairs(kind, photographs, 0)
        results = editor.edit(references, captions, (128, 128))
        quality[kind] = {
            "psnr": round(psnr(results, targets).mean().item(), 2),
            "vae_bound": round(psnr(editor.decode(editor.encode(targets)), targets).mean().item(), 2),
            "reference": round(psnr(references.clamp(0, 1) * 0.998 + 0.001, targets).mean().item(), 2),
        }
        print(kind, quality[kind], flush=True)
    return quality


def reference_use(editor: Editor, count: int = 64) -> dict[str, float]:
    """Return the velocity loss with the true, a shuffled and no reference, and with the wrong caption."""
    photographs = held_out(128, count // 8, seed=2)
    rng = random.Random(5)
    made = [item for item in (edits.edit(rng) for _ in range(4 * count)) if item.photo != SCENE][:count]
    recipes = collect(made)
    references, targets = pairs(DeviceRecipes.upload(recipes, photographs.device), photographs)
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    clean, given = editor.encode(targets), editor.encode(references)
    noise = torch.randn(clean.shape, generator=generator)
    sigma = shift_sigma(SigmoidSampler(flow_sigmoid_scale=1.1).sample(count, generator), 1.6)
    noisy = (1 - sigma)[:, None, None, None] * clean + sigma[:, None, None, None] * noise
    wanted, text = pack(noise - clean), editor.text(recipes.captions)
    wrong = (text[0].roll(1, 0), text[1].roll(1, 0))
    cases = {"true": (given, text), "shuffled": (given.roll(9, 0), text), "none": (None, text)}
    cases["wrong_caption"] = (given, wrong)
    return {
        name: round((editor.velocity(noisy, reference, sigma, words) - wanted).square().mean().item(), 4)
        for name, (reference, words) in cases.items()
    }


def draw_sheet(editor: Editor, path: Path, columns: int = 4) -> None:
    """Draw rows of (reference | result | target), one kind of edit per row."""
    photographs = held_out(128, 1, seed=3)[:columns]
    sheet = Image.new("RGB", (columns * 400, len(SHEET_KINDS) * 146), "white")
    pen = ImageDraw.Draw(sheet)
    for row, kind in enumerate(SHEET_KINDS):
        references, targets, captions = make_pairs(kind, photographs.roll(row, 0), 3)
        results = editor.edit(None if kind == "describe" else references, captions, (128, 128))
        for column in range(columns):
            left, top = column * 400, row * 146
            for place, image in enumerate((references, results, targets)):
                pixels = (image[column].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
                sheet.paste(Image.fromarray(pixels), (left + 130 * place, top))
            pen.text((left, top + 130), captions[column][:62], fill="black")
    sheet.save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--sheet", type=Path)
    parser.add_argument("--metrics", action="store_true")
    parser.add_argument("--vae", type=Path, help="folder of its state, for steps and seconds in metrics.json")
    parser.add_argument("--transformer", type=Path, help="folder of its state, likewise")
    parser.add_argument("--count", type=int, default=16, help="images per edit")
    parser.add_argument("--text-length", type=int, default=architecture.TEXT_TOKENS)
    arguments = parser.parse_args()
    pipeline = FluxKontextPipeline.from_pretrained(arguments.model, torch_dtype=torch.float32)
    editor = Editor(pipeline, arguments.text_length)
    metrics = {
        "recipe": architecture.RECIPE_VERSION,
        "seed": 0,
        "data": licences(),
        "held_out": f"{len(HELD_OUT)} photographs of scikit-image, shorter edge {VIEW}",
        "vae_psnr": vae_quality(editor),
        "velocity_loss": reference_use(editor),
    }
    print(json.dumps(metrics["vae_psnr"]), json.dumps(metrics["velocity_loss"]), flush=True)
    if arguments.sheet:
        draw_sheet(editor, arguments.sheet)
    metrics["edits"] = edit_quality(editor, tuple(k for k in SHEET_KINDS if k != "describe"), arguments.count)
    states = {"vae": arguments.vae, "transformer": arguments.transformer}
    metrics["training"] = {
        name: json.loads((folder / f"{name}.json").read_text()) for name, folder in states.items() if folder
    }
    if arguments.metrics:
        (arguments.model / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n")


if __name__ == "__main__":
    main()
