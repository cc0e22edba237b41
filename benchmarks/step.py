"""Seconds and memory of one training step in every mode, beside the stock diffusers step of the same call.

usage: python benchmarks/step.py [--rows NAME ...] [--steps 8] [--json FILE]

FLUX.1 Kontext at full size with random weights, LoRA of rank 16; needs one GPU and no model on disk. Each row runs in a
process of its own (`one_step.py`), the stock one first: ratios of one call can be compared, seconds of two calls not.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
TOLD = ("attention:", "gradient_checkpointing auto", "the model is not compiled", "steps are not recorded")
"""Beginnings of the trainer's messages that a row's figures depend on."""
FAST = {"gradient_checkpointing": "false"}
FILLING = {"gradient_checkpointing": "auto"}
ROWS = {
    "stock int8-quanto, recomputing": {"stock": True},
    "int8-quanto, recomputing": {"options": {"base_model_precision": "int8-quanto"}},
    "bf16, exact": {"options": FAST},
    "bf16, exact, fused qkv": {"options": {"fuse_qkv_projections": "true", **FAST}},
    "fp8-matmul": {"options": {"base_model_precision": "fp8-matmul", **FAST}},
    "fp8-matmul, last block cut": {
        "options": {"base_model_precision": "fp8-matmul", "flux_cut_last_block": "true", **FAST}
    },
    "fp8-matmul, weights kept transposed, last block cut": {
        "options": {
            "base_model_precision": "fp8-matmul", "keep_transposed_weights": "true",
            "flux_cut_last_block": "true", **FAST
        }
    },
    "fp8-matmul, fused qkv": {
        "options": {"base_model_precision": "fp8-matmul", "fuse_qkv_projections": "true", **FAST}
    },
    "fp8-matmul, 24 GiB": {"cap_gib": 24, "options": {"base_model_precision": "fp8-matmul", **FILLING}},
    "fp8-matmul, recomputing": {"options": {"base_model_precision": "fp8-matmul"}},
    "fp8-matmul, all linears": {
        "options": {"base_model_precision": "fp8-matmul", "flux_lora_target": "all+ffs", **FAST}
    },
    "int8-matmul": {"options": {"base_model_precision": "int8-matmul", **FAST}},
    "int8-matmul, 24 GiB": {"cap_gib": 24, "options": {"base_model_precision": "int8-matmul", **FILLING}},
    "int8-matmul, 35 GiB": {"cap_gib": 35, "options": {"base_model_precision": "int8-matmul", **FILLING}},
    "int8-matmul, rotated": {
        "options": {"base_model_precision": "int8-matmul", "int8_rotation": "true", **FAST}
    },
    "stock int8-quanto, recomputing, 512 px": {"stock": True, "pixels": 512},
    "fp8-matmul, 512 px": {"pixels": 512, "options": {"base_model_precision": "fp8-matmul", **FAST}},
    "fp8-matmul, two references": {
        "references": 2, "options": {"base_model_precision": "fp8-matmul", **FILLING}
    },
    "fp8-matmul, batch 4": {"batch": 4, "options": {"base_model_precision": "fp8-matmul", **FILLING}},
}  # fmt: skip


def measure(name: str, steps: int) -> dict[str, object] | None:
    """Run one row; None, with what it printed, if it failed."""
    row = json.dumps({**ROWS[name], "steps": steps})
    done = subprocess.run([sys.executable, str(HERE / "one_step.py"), row], capture_output=True, text=True)
    for line in done.stderr.splitlines():
        if line.startswith(TOLD):
            print(f"    {line}", flush=True)
    if done.returncode:
        print(f"{name}: failed\n{done.stderr[-2000:]}", flush=True)
        return None
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS), metavar="NAME")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    results = {}
    for name in arguments.rows:
        result = measure(name, arguments.steps)
        if result is not None:
            results[name] = result
            print(name, result, flush=True)
            if arguments.json:
                arguments.json.write_text(json.dumps(results, indent=1))
    print_table(results)


def print_table(results: dict[str, dict[str, object]]) -> None:
    import torch

    from difftrain.planning.forecast.cards import card_of_device

    about = torch.cuda.get_device_properties(0)
    card = card_of_device(about.name, (about.major, about.minor), about.total_memory)
    first = next(iter(results.values()))["seconds"]
    print(f"\n{about.name}, torch {torch.__version__}, medians of the steps after the first two")
    print("MFU: model FLOP utilisation, TFLOP/s by the card's peak in bfloat16, in the 8-bit modes too")
    ratio = f"times as fast as {next(iter(results))}"
    print(f"| mode | s/step | it/s | {ratio} | GiB | host GiB | TFLOP/s | MFU | ready in s |")
    print("|" + "---|" * 9)
    for name, result in results.items():
        seconds = result["seconds"]
        utilised = f"{result['tflops'] * 1e12 / card.bfloat16:.0%}" if card else ""
        print(
            f"| {name} | {seconds:.3f} | {1 / seconds:.2f} | {first / seconds:.2f} | {result['peak_gib']} "
            f"| {result['host_gib']} | {result['tflops']} | {utilised} | {result['prepared']} |"
        )


if __name__ == "__main__":
    main()
