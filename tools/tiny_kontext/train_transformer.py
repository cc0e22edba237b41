"""Trains transformer and text encoders together on instruction edits, in the latents of the trained VAE.

    python train_transformer.py --state STATE/transformer --vae STATE/vae --photos STATE/photos \
        --tokenizers STATE/tokenizers --seconds 400
    torchrun --nproc-per-node 2 train_transformer.py ...        # on two cards

Ends by itself when its time is used up, and always saves; run it again to continue. The optimizer then starts fresh,
with a short warm-up: its moments would triple the saved size. The last call decays the learning rate.
The forward, the noise and the loss are difftrain's (`student.py`); pairs are drawn on the card, because files cannot
keep up with several thousand samples per second.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from dataclasses import dataclass, field
from pathlib import Path

import architecture
import edits
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from captions import Pool, load_tokenizers
from data import load_pool
from images import pairs, random_windows
from student import SHIFT, LatentEncoder, Student, encoder_of, encoder_of_state, new_student, student_of
from torch import Tensor, nn
from training import Average, Budget, build_optimizers, learning_rate, prepare_device, read_state, restore, save_state

from difftrain import FlowMatching
from difftrain.steps.losses import MeanSquaredError
from difftrain.steps.noise_levels import SigmoidSampler, UniformSampler, shift_sigma
from difftrain.types import Batch

SIZES = (
    ((128, 128), 9),
    ((96, 96), 3),
    ((160, 160), 1),
    ((64, 64), 1),
    ((112, 144), 1),
    ((144, 112), 1),
    ((96, 128), 1),
)
"""Height and width in pixels, and relative frequency."""
TEXT_LENGTHS = ((architecture.TEXT_TOKENS, 20), (32, 2), (128, 1), (512, 1))
"""Tokens that T5's text is padded to, and relative frequency: a stock pipeline pads to 512 by default."""
LONG_TEXT = 256
"""From this length on the batch is halved, to limit its time."""
CAPTION_DROPOUT = 0.1
TEXT_TO_IMAGE = 0.14
"""Share of steps without a reference."""
CLOCK_EVERY = 10
"""Steps between two looks at the clock, which all processes must agree on."""


@dataclass(kw_only=True)
class Teacher:
    """Everything that a batch is drawn from."""

    editing: Pool
    plain: Pool
    """Images with descriptions, for the steps without a reference."""
    pixels: Tensor
    encode: LatentEncoder
    noise: torch.Generator
    """On the CPU, for the noise levels."""
    plan: random.Random
    """The same on every process: sizes, text lengths, whether there is a reference."""

    def batch(self, count: int) -> tuple[Tensor, list[Tensor], Tensor, Tensor, bool]:
        """Return clean latents, references, CLIP ids, T5 ids, and whether it is an edit."""
        is_edit = self.plan.random() >= TEXT_TO_IMAGE
        height, width = self.plan.choices([s for s, _ in SIZES], [w for _, w in SIZES])[0]
        length = self.plan.choices([n for n, _ in TEXT_LENGTHS], [w for _, w in TEXT_LENGTHS])[0]
        count = count // 2 if length >= LONG_TEXT else count
        pool = self.editing if is_edit else self.plain
        index = pool.draw(count, square=height == width)
        recipes = pool.recipes.pick(index)
        with torch.no_grad():
            which = recipes.photo.clamp(max=self.pixels.shape[0] - 1)
            reference, target = pairs(recipes, random_windows(self.pixels, which, height, width, vary=False))
            latents = self.encode(torch.cat([target, reference]) if is_edit else target)
        references = [latents[count:]] if is_edit else []
        return latents[:count], references, *pool.text(index, length, CAPTION_DROPOUT), is_edit

    def noise_levels(self, count: int) -> Tensor:
        """Return logit-normal and shifted levels, one in eight uniform; on the CPU."""
        sigma = shift_sigma(SigmoidSampler(flow_sigmoid_scale=1.1).sample(count, self.noise), SHIFT)
        uniform = UniformSampler().sample(count, self.noise)
        return torch.where(torch.rand(count, generator=self.noise) < 0.125, uniform, sigma)


@dataclass(kw_only=True)
class Losses:
    """Losses since the last report, kept on the device until then."""

    edit: list[Tensor] = field(default_factory=list)
    plain: list[Tensor] = field(default_factory=list)
    since: float = field(default_factory=time.monotonic)

    def report(self, step: int, seconds: float, rate: float) -> None:
        edit, plain = (torch.stack(v).mean().item() if v else float("nan") for v in (self.edit, self.plain))
        speed = (len(self.edit) + len(self.plain)) / (time.monotonic() - self.since)
        line = {"step": step, "seconds": round(seconds), "edit": round(edit, 4), "plain": round(plain, 4),
                "lr": float(f"{rate:.2e}"), "steps_per_second": round(speed, 1)}  # fmt: skip
        print(json.dumps(line), flush=True)


def loss_of_batch(student: nn.Module, teacher: Teacher, accelerator: Accelerator, count: int) -> tuple[Tensor, bool]:
    """Return the mean squared error of the velocity for a fresh batch."""
    clean, references, clip_ids, t5_ids, is_edit = teacher.batch(count)
    sigma = teacher.noise_levels(len(clean)).to(clean.device, non_blocking=True)
    noisy = FlowMatching().add_noise(clean, sigma, torch.randn_like(clean))
    with accelerator.autocast():
        velocity = student(noisy, references, clip_ids, t5_ids)
    return MeanSquaredError().compute(velocity, noisy, Batch(latents=clean, references=[], text={})).mean(), is_edit


def build_teacher(arguments: argparse.Namespace, accelerator: Accelerator, first: int) -> Teacher:
    device, process = accelerator.device, accelerator.process_index
    tokenizers = load_tokenizers(arguments.tokenizers)
    pool = load_pool(arguments.photos, arguments.crops, arguments.seed, arguments.workers)
    rng = random.Random(f"{arguments.seed} {first} {process}")
    editing = Pool([edits.edit(rng) for _ in range(arguments.recipes)], tokenizers, device)
    plain = Pool([edits.text_to_image(rng, pool.subjects) for _ in range(arguments.recipes // 4)], tokenizers, device)
    if arguments.model:
        encode = encoder_of(arguments.model, device)
    else:
        encode = encoder_of_state(read_state(arguments.vae or arguments.state, "vae"), device)
    torch.manual_seed(arguments.seed + 1000 * first + process)
    return Teacher(
        editing=editing,
        plain=plain,
        pixels=torch.from_numpy(pool.pixels).to(device),
        encode=encode,
        noise=torch.Generator().manual_seed(arguments.seed + 1000 * first + process),
        plan=random.Random(f"{arguments.seed} {first}"),
    )


def build_student(arguments: argparse.Namespace) -> tuple[Student, dict, dict]:
    """Return the weights to continue with, and the state that they came from, if any."""
    torch.manual_seed(arguments.seed)
    tensors, facts = read_state(arguments.state, "transformer")
    if arguments.model and not tensors:
        student = student_of(arguments.model)
        training = json.loads((arguments.model / "metrics.json").read_text())["training"]["transformer"]
        return student, {}, {"steps": training["steps"], "seconds": training["seconds"]}
    return new_student(load_tokenizers(arguments.tokenizers)), tensors, facts


def train(arguments: argparse.Namespace) -> None:
    budget = Budget(arguments.seconds)
    accelerator = Accelerator(mixed_precision="bf16" if torch.cuda.is_available() else "no")
    prepare_device(str(accelerator.device), one_shape=False)
    student, tensors, facts = build_student(arguments)
    first = int(facts.get("steps", 0))
    teacher = build_teacher(arguments, accelerator, first)
    student = student.to(accelerator.device)
    average = Average(student, arguments.average)
    if tensors:
        restore(tensors, student.parts, average)
    optimizers = build_optimizers(arguments.optimizer, student, arguments.rate)
    wrapped, *optimizers = accelerator.prepare(student, *optimizers)
    if accelerator.is_main_process:
        print(f"step {first}, {budget.used:.0f} s to get ready, {sum(p.numel() for p in average.parameters)} weights, "
              f"{len(teacher.editing.t5_ids)} captions", flush=True)  # fmt: skip
    steps = _loop(arguments, budget, accelerator, wrapped, teacher, optimizers, average)
    if accelerator.is_main_process:
        facts = {"steps": first + steps, "seconds": round(float(facts.get("seconds", 0)) + budget.used, 1),
                 "seed": arguments.seed, "recipe": architecture.RECIPE_VERSION}  # fmt: skip
        save_state(arguments.output or arguments.state, "transformer", student.parts, average, facts)
        print(json.dumps(facts), f"saved after {budget.used:.0f} s", flush=True)
    accelerator.end_training()


def _loop(arguments: argparse.Namespace, budget: Budget, accelerator: Accelerator, student: nn.Module,
          teacher: Teacher, optimizers: list[torch.optim.Optimizer], average: Average) -> int:  # fmt: skip
    """Train until the time is used up; return the number of steps."""
    step, losses, fraction = 0, Losses(), 0.0
    while fraction < 1 and step < arguments.steps:
        if step % CLOCK_EVERY == 0:
            used = torch.tensor(budget.used / (budget.seconds - arguments.reserve), device=accelerator.device)
            fraction = broadcast(used).item()
        rate = learning_rate(
            step, fraction, peak=arguments.rate, warmup=arguments.warmup, decay_from=arguments.decay_from
        )
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * group["factor"]
        loss, is_edit = loss_of_batch(student, teacher, accelerator, arguments.batch)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(average.parameters, 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        average.update()
        (losses.edit if is_edit else losses.plain).append(loss.detach())
        step += 1
        if step % arguments.log_every == 0 and accelerator.is_main_process:
            losses.report(step, budget.used, rate)
            losses = Losses()
    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--model", type=Path, help="pipeline folder to continue with if there is no state")
    parser.add_argument("--vae", type=Path, help="folder of the VAE's state, if not in the state's folder")
    parser.add_argument("--output", type=Path, help="where to save, if not in the state's folder")
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--tokenizers", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=400)
    parser.add_argument("--reserve", type=float, default=4, help="seconds of the budget kept for saving")
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--batch", type=int, default=256, help="samples per card")
    parser.add_argument("--crops", type=int, default=160, help="crops per photograph in the pool")
    parser.add_argument("--recipes", type=int, default=90_000)
    parser.add_argument("--optimizer", choices=("adamw", "muon"), default="muon")
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--warmup", type=int, default=200)
    parser.add_argument("--decay-from", type=float, default=1.0, help="share of the seconds; 1 is no decay")
    parser.add_argument("--average", type=float, default=0.9995)
    parser.add_argument("--log-every", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=8)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
