"""The demo in every mode: how far its PSNR on held-out photographs is from that of float32.

usage: python benchmarks/demo_modes.py [--modes NAME ...] [--seeds 42 ...] [--minutes 30] [--json FILE]

Runs `difftrain --model flux --flavour kontext --demo` for each mode, some at once, and reads what the validation of the
last step measured; each is told as it ends. All runs draw the same samples, noise levels and noise. Also says how many
of the model's layers are large enough for 8-bit products: an agreement of layers that stayed as they were would mean
nothing. `--small` stops after a few steps on one image, for a test on a CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import fmean

from agreement import runnable

REFERENCE = "float32"
TOLERANCE = 0.1
"""dB."""
COMPILED, UNCOMPILED = {"dynamo_backend": "inductor"}, {"dynamo_backend": "no"}
BF16 = {"mixed_precision": "bf16"}
MODES: Mapping[str, Mapping[str, str]] = {
    REFERENCE: {"mixed_precision": "no", **UNCOMPILED},
    "bf16": {**BF16, **UNCOMPILED},
    "bf16, compiled": {**BF16, **COMPILED},
    "fp8-matmul": {**BF16, **UNCOMPILED, "base_model_precision": "fp8-matmul"},
    "fp8-matmul, compiled": {**BF16, **COMPILED, "base_model_precision": "fp8-matmul"},
    "int8-matmul": {**BF16, **UNCOMPILED, "base_model_precision": "int8-matmul"},
    "int8-matmul, compiled": {**BF16, **COMPILED, "base_model_precision": "int8-matmul"},
    "int8-matmul, rotated, compiled": {
        **BF16, **COMPILED, "base_model_precision": "int8-matmul", "int8_rotation": "true"
    },
    "int8-torchao, compiled": {**BF16, **COMPILED, "base_model_precision": "int8-torchao"},
    "nf4-bnb, compiled": {**BF16, **COMPILED, "base_model_precision": "nf4-bnb"},
    "int8-quanto": {**BF16, **UNCOMPILED, "base_model_precision": "int8-quanto"},
}  # fmt: skip
SMALL = {
    "pretrained_model_name_or_path": "tiny-random", "max_train_steps": "4", "validation_steps": "4",
    "num_eval_images": "1", "validation_num_seeds": "1", "validation_num_inference_steps": "1", "train_batch_size": "1",
    "validation_resolution": "64x64", "lr_warmup_steps": "0",
}  # fmt: skip


def run(name: str, seed: int, work: Path, options: Mapping[str, str], *, until: float) -> dict[str, object]:
    """Run the demo in one mode and tell how it ended; return its figures, or why there are none.

    Args:
        until: When it is stopped, in seconds of the monotonic clock.
    """
    started = time.monotonic()
    if started >= until:
        return {"failed": "not begun in time"}
    try:
        found = measure(name, seed, work, options, until - started)
    except subprocess.TimeoutExpired as stopped:
        found = {"failed": f"not done after {stopped.timeout:.0f} s"}
    figure = "failed" if "failed" in found else f"{found['psnr']:.3f} dB"
    print(f"{name}, seed {seed}: {figure}, {time.monotonic() - started:.0f} s", flush=True)
    return found


def measure(name: str, seed: int, work: Path, options: Mapping[str, str], seconds: float) -> dict[str, object]:
    """Return what the metrics of a run say, or what it printed if it failed."""
    output = work / f"{name}-{seed}"
    given = {"output_dir": str(output), "cache_dir": str(output / "cache"), "seed": str(seed), **options}
    command = [sys.executable, "-m", "difftrain", "--model", "flux", "--flavour", "kontext", "--demo"]
    command += [f"--{key}={value}" for key, value in given.items()]
    environment = {"HF_HUB_OFFLINE": "1", **os.environ}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=seconds)
    if done.returncode:
        return {"failed": done.stderr[-2000:]}
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    validations = [line for line in lines if "psnr" in line]
    return {
        "psnr": validations[-1]["psnr"],
        "psnr_before": validations[0]["psnr"],
        "psnr_reference": validations[-1].get("psnr_reference"),
        "fixed_loss": [line["fixed_loss"] for line in validations],
        "compiled": "compile 1 of" in done.stderr,
        "said": [line for line in done.stderr.splitlines() if line.startswith(("attention:", "the model is not comp"))],
    }


def large_enough(model: str) -> str:
    """Say how many of the linear layers 8-bit products take, and with how many rows."""
    import torch
    from torch import nn

    from difftrain.model.precision.eight_bit_linear import FEWEST_ROWS, EightBitLinear
    from difftrain.model.precision.eight_bit_matmul import Int8Matmul
    from difftrain.testing import load_denoiser
    from difftrain_flux.family import FluxFamily
    from difftrain_flux_kontext.flavour import Kontext

    family = FluxFamily()
    place, cpu = family.locate(model, Kontext()), torch.device("cpu")
    denoiser = load_denoiser(family, place, dtype=torch.bfloat16, device=cpu, quantizer=Int8Matmul())
    blocks = [part for block in family.blocks(denoiser) for part in block.modules() if isinstance(part, nn.Linear)]
    taken = [part for part in blocks if isinstance(part, EightBitLinear)]
    smallest = min(min(part.in_features, part.out_features) for part in taken)
    return (
        f"model {model}: {len(taken)} of {len(blocks)} linear layers of its blocks have 8-bit weights, the smallest "
        f"with {smallest} features; products of fewer than {FEWEST_ROWS} rows (modulations) are not made in 8 bits"
    )


def summary(runs: Sequence[Mapping[str, object]]) -> dict[str, object]:
    """Return the means over the seeds, or what the first run that failed printed."""
    failed = [run["failed"] for run in runs if "failed" in run]
    if failed:
        return {"failed": failed[0]}
    means = {name: fmean(run[name] for run in runs) for name in ("psnr", "psnr_before", "psnr_reference")}
    return {**means, "by_seed": [run["psnr"] for run in runs], "compiled": runs[0]["compiled"], "said": runs[0]["said"]}


def print_rows(rows: Mapping[str, Mapping[str, object]], seeds: int) -> int:
    """Print the table; return the exit status: 1 if a mode failed or is too far from float32."""
    failed = {name: row["failed"] for name, row in rows.items() if "failed" in row}
    for name, text in failed.items():
        print(f"{name}: failed\n{text}")
    if REFERENCE in failed:
        return 1
    print(f"\n| mode | compiled | blurred, dB | before training | after, mean of {seeds} runs | after - float32 |")
    print("|---|---|---|---|---|---|")
    measured = {name: row for name, row in rows.items() if name not in failed}
    far = []
    for name, row in measured.items():
        apart = row["psnr"] - rows[REFERENCE]["psnr"]
        if not abs(apart) <= TOLERANCE:
            far.append(name)
        print(
            f"| {name} | {'yes' if row['compiled'] else 'no'} | {row['psnr_reference']:.2f} | {row['psnr_before']:.2f} "
            f"| {row['psnr']:.3f} | {apart:+.3f} |"
        )
    print(f"more than {TOLERANCE} dB from float32: {', '.join(far) or 'none'}")
    return 1 if far or failed else 0


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--modes", nargs="+", choices=list(MODES), default=list(MODES), metavar="NAME")
    parser.add_argument("--seeds", nargs="+", type=int, default=[42], help="of the runs; the PSNR is their mean")
    parser.add_argument("--at_once", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=30.0, help="runs that have not ended by then are stopped")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args(given)
    asked = [REFERENCE, *(name for name in arguments.modes if name != REFERENCE)]
    names = runnable({name: MODES[name] for name in asked})
    small = SMALL if arguments.small else {}
    print(large_enough(small.get("pretrained_model_name_or_path", "tiny")), flush=True)
    until = time.monotonic() + 60 * arguments.minutes
    with tempfile.TemporaryDirectory() as text, ThreadPoolExecutor(arguments.at_once) as pool:
        futures = {
            (name, seed): pool.submit(run, name, seed, Path(text), {**MODES[name], **small}, until=until)
            for name in names
            for seed in arguments.seeds
        }
        results = {key: future.result() for key, future in futures.items()}
    rows = {name: summary([results[name, seed] for seed in arguments.seeds]) for name in names}
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1))
    return print_rows(rows, len(arguments.seeds))


if __name__ == "__main__":
    sys.exit(main())
