"""Shows that every mode trains the same thing as bf16 with exact numerics, on a full-size model with random weights.

usage: python benchmarks/agreement.py [--modes NAME ...] [--steps 200] [--json FILE] [--plot FILE.png]

Each mode trains FLUX.1 Kontext from the same seeds on the same batches, noise levels and noise, in a process of its own
(`agreement_run.py`), some of them at once. Printed for each, against `bf16, exact` (nothing compiled, flash attention):

- the relative difference of the losses, as means of 10 steps: mean, largest, and that of the last means
- what it has learnt as a share of what the reference has: the fall of the loss on fixed noise, from start to end
- the cosine of the adapter's gradients with the exact ones at the same weights: at the start (only B has any there),
  with a random B, and at the end of the reference's training; of all weights together, and of the worst module

A mode whose figures are outside its tolerance is named, and the exit status is then 1. What the weights are, and why
not N(0, 0.02), says `agreement_model.py`; `--outliers 8` makes features 20 times as large as others, as trained
transformers have them. `--small` is a small model, for a test on a CPU.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from agreement_figures import Likeness, differences, draw_curves, likeness, smooth

HERE = Path(__file__).parent
REFERENCE = "bf16, exact"
UNCOMPILED = {"dynamo_backend": "no"}


@dataclass(frozen=True, kw_only=True)
class Mode:
    """Options of a run, and how far it may be from the exact one."""

    options: Mapping[str, str]
    compiled: bool
    cosine: float
    """Lowest cosine of all gradients."""
    loss: float
    """Largest relative difference of the smoothed loss."""
    ratio: float = 0.05
    """How far the norm of all gradients may be from the exact one, as a share of that."""
    learnt: float = 0.05
    """How far what it has learnt may be from what the reference has, as a share of that."""
    usual: bool = True
    """Whether it is measured without being asked for."""


def quantised(precision: str, cosine: float, *, usual: bool = True, **options: str) -> Mode:
    given = {"base_model_precision": precision, **options}
    return Mode(options=given, compiled=True, cosine=cosine, loss=0.02, usual=usual)


MODES = {
    REFERENCE: Mode(
        options={**UNCOMPILED, "attention_mechanism": "flash"}, compiled=False, cosine=1.0, loss=0.0
    ),
    "fp8-matmul": quantised("fp8-matmul", 0.98),
    "int8-matmul": quantised("int8-matmul", 0.99),
    "int8-matmul, rotated": quantised("int8-matmul", 0.99, int8_rotation="true"),
    "bf16, compiled": Mode(options={}, compiled=True, cosine=0.999, loss=0.01),
    "int8-quanto": quantised("int8-quanto", 0.99),
    "int8-torchao": quantised("int8-torchao", 0.99),
    "nf4-bnb": quantised("nf4-bnb", 0.9),
    "fp8-matmul, fused qkv": quantised("fp8-matmul", 0.98, usual=False, fuse_qkv_projections="true"),
    "int8-matmul, fused qkv": quantised("int8-matmul", 0.99, usual=False, fuse_qkv_projections="true"),
    "fp8-torchao": quantised("fp8-torchao", 0.98, usual=False),
    "fp8-quanto": quantised("fp8-quanto", 0.98, usual=False),
    "float32": Mode(
        options={**UNCOMPILED, "mixed_precision": "no"}, compiled=False, cosine=0.999, loss=0.01, usual=False
    ),
}  # fmt: skip


def obstacle(options: Mapping[str, str]) -> str | None:
    """Why this machine or this version of difftrain cannot run a mode."""
    from difftrain.plugins.discovery import load_plugins

    precision = options.get("base_model_precision")
    if precision is None:
        return None
    found = load_plugins(files=(), disabled=()).registry.all("quantizer").get(precision)
    return f"difftrain has no {precision}" if found is None else found().check()


def runnable(modes: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Return the modes, given as options by name, that can run here; say why others cannot."""
    reasons = {name: obstacle(options) for name, options in modes.items()}
    for name, reason in reasons.items():
        if reason:
            print(f"{name} is left out: {reason}", flush=True)
    return [name for name, reason in reasons.items() if reason is None]


@dataclass
class Running:
    name: str
    process: subprocess.Popen[str]
    started: float


def start(name: str, folder: Path, arguments: argparse.Namespace) -> Running:
    options = {"mixed_precision": "bf16", "gradient_checkpointing": arguments.recompute, **MODES[name].options}
    if arguments.small and MODES[name].compiled:
        options["dynamo_backend"] = "aot_eager"
    row = {
        "name": name, "folder": str(folder), "steps": arguments.steps, "pixels": arguments.pixels,
        "small": arguments.small, "outliers": arguments.outliers, "learning_rate": arguments.learning_rate,
        "reference": name == REFERENCE, "options": options,
    }  # fmt: skip
    with (folder / f"{name}.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, str(HERE / "agreement_run.py"), json.dumps(row)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=log,
            text=True,
        )
    return Running(name, process, time.monotonic())


def tell(running: Running, text: str) -> None:
    assert running.process.stdin is not None
    with suppress(BrokenPipeError):  # it has failed; its log says why
        running.process.stdin.write(text + "\n")
        running.process.stdin.flush()


def run_all(names: list[str], folder: Path, arguments: argparse.Namespace) -> list[str]:
    """Run the modes, some at once; return those that failed or did not end in time."""
    waiting, running, failed = list(names), [], []
    deadline = time.monotonic() + 60 * arguments.minutes
    place: str | None = None  # of the reference's adapter; empty if it failed
    while (waiting or running) and time.monotonic() < deadline:
        while waiting and len(running) < arguments.at_once:
            running.append(start(waiting.pop(0), folder, arguments))
            if place is not None:
                tell(running[-1], place)
        time.sleep(0.1)
        for one in [each for each in running if each.process.poll() is not None]:
            running.remove(one)
            report(one, folder, failed)
            if one.name == REFERENCE:
                adapter = folder / f"{REFERENCE}.adapter.safetensors"
                place = str(adapter) if adapter.is_file() else ""
                for other in running:
                    tell(other, place)
    for one in running:
        one.process.kill()
    late = [*(one.name for one in running), *waiting]
    if late:
        print(f"not done after {arguments.minutes:g} minutes: {', '.join(late)}", flush=True)
    return failed + late


def report(ended: Running, folder: Path, failed: list[str]) -> None:
    log = (folder / f"{ended.name}.log").read_text()
    print(f"{ended.name}: {time.monotonic() - ended.started:.0f} s", flush=True)
    for line in log.splitlines():
        if line.startswith(("attention:", "the model is not compiled")):
            print(f"    {line}", flush=True)
    if ended.process.returncode:
        failed.append(ended.name)
        print(f"    failed\n{log[-2000:]}", flush=True)


def compare(name: str, folder: Path) -> dict[str, object]:
    """Return the figures of a mode that has ended."""
    from safetensors.torch import load_file

    own, reference = (json.loads((folder / f"{each}.json").read_text()) for each in (name, REFERENCE))
    ours, exact = (load_file(folder / f"{each}.safetensors") for each in (name, REFERENCE))
    apart = differences(own["losses"], reference["losses"])
    found: dict[str, Likeness] = {}
    for where in ("start", "random", "end"):
        of_ours, of_exact = (
            {key: value for key, value in each.items() if key.startswith(f"{where}/")} for each in (ours, exact)
        )
        found[where] = likeness(of_ours, of_exact)
    fall, fall_of_reference = (before - after for before, after in (own["fixed_loss"], reference["fixed_loss"]))
    return {
        **own,
        "learnt": fall / fall_of_reference,
        "last_loss": smooth(own["losses"])[-1],
        "mean_difference": sum(map(abs, apart)) / len(apart),
        "largest_difference": max(map(abs, apart)),
        "last_difference": apart[-1],
        "gradients": {where: asdict(value) for where, value in found.items()},
    }


def outside(name: str, row: dict[str, object]) -> list[str]:
    """Say what of a mode is outside its tolerance; NaN is."""
    mode, wrong = MODES[name], []
    if not row["largest_difference"] <= mode.loss:
        wrong.append(f"its loss differs by {row['largest_difference']:.2%}, more than {mode.loss:.0%}")
    if not row["fixed_loss"][1] < row["fixed_loss"][0]:
        wrong.append("it has learnt nothing")
    if not abs(row["learnt"] - 1) <= mode.learnt:
        wrong.append(f"it has learnt {row['learnt']:.1%} of what {REFERENCE} has, more than {mode.learnt:.0%} apart")
    for where, found in row["gradients"].items():
        if not found["cosine"] >= mode.cosine - 1e-9:
            wrong.append(f"the cosine of its gradients at {where} is {found['cosine']:.4f}, below {mode.cosine}")
        if not abs(found["ratio"] - 1) <= mode.ratio:
            wrong.append(f"its gradients at {where} are {found['ratio']:.3f} times as large as the exact ones")
    if mode.compiled and not row["compiled"]:
        wrong.append("it was not compiled")
    return wrong


def print_table(rows: Mapping[str, dict[str, object]]) -> None:
    print(
        "\n| mode | fixed loss before, after | learnt | last loss | apart: mean | largest | last "
        "| cosine at start | random B | end | worst module | s/step | GiB |"
    )
    print("|" + "---|" * 13)
    for name, row in rows.items():
        gradients = row["gradients"]
        worst = min(gradients.values(), key=lambda found: found["worst"])
        print(
            f"| {name} | {row['fixed_loss'][0]:.4f}, {row['fixed_loss'][1]:.4f} | {row['learnt']:.1%} "
            f"| {row['last_loss']:.4f} | {row['mean_difference']:.3%} "
            f"| {row['largest_difference']:.3%} | {row['last_difference']:+.3%} "
            + "".join(f"| {gradients[where]['cosine']:.5f} " for where in ("start", "random", "end"))
            + f"| {worst['worst']:.4f} {worst['worst_module'].partition('/')[2]} "
            + f"| {row['s_per_step']} | {row['peak_gib']} |"
        )


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--modes", nargs="+", choices=list(MODES), metavar="NAME", help=f"of {list(MODES)}")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--pixels", type=int, default=512, help="edge of target and reference")
    parser.add_argument("--learning_rate", type=float, default=3e-4)
    parser.add_argument("--outliers", type=int, default=0, help="features that are 20 times as large as others")
    parser.add_argument("--recompute", choices=["true", "false"], default="true", help="gradient_checkpointing")
    parser.add_argument("--at_once", type=int, default=3, help="modes in training at the same time")
    parser.add_argument("--minutes", type=float, default=9.0, help="modes that have not ended by then are stopped")
    parser.add_argument("--small", action="store_true", help="a small model; on a CPU compiled with aot_eager")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    return parser.parse_args(arguments)


def main(given: list[str] | None = None) -> int:
    arguments = parsed(given)
    asked = arguments.modes or [name for name, mode in MODES.items() if mode.usual]
    names = [REFERENCE, *(name for name in asked if name != REFERENCE)]
    names = runnable({name: MODES[name].options for name in names})
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        failed = run_all(names, folder, arguments)
        if REFERENCE in failed:
            return 1
        rows = {name: compare(name, folder) for name in names if name not in failed}
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1))
    title = f"{arguments.steps} steps, {arguments.pixels} px, {arguments.outliers} outliers"
    if arguments.plot:
        draw_curves({name: row["losses"] for name, row in rows.items()}, REFERENCE, title, arguments.plot)
    print_table(rows)
    wrong = {name: found for name, row in rows.items() if (found := outside(name, row))}
    for name, found in wrong.items():
        print(f"{name}: {'; '.join(found)}")
    print("not measured: " + ", ".join(failed) if failed else f"{len(rows)} modes measured, {title}")
    return 1 if failed or wrong else 0


if __name__ == "__main__":
    sys.exit(main())
