"""Loading alone: the denoiser of a full-size model as a run loads it, and the host's peak memory meanwhile.

usage: python benchmarks/load_model.py MODEL_FOLDER no_change|int8-quanto [DENOISER]      prints one JSON line

DENOISER is one safetensors file, or another folder; `make_checkpoint.py FOLDER --single-file` writes files.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch

from difftrain.model.load_denoiser import load_denoiser
from difftrain.model.precision.quanto import QuantoInt8
from difftrain_flux.family import FluxFamily
from difftrain_flux_kontext.flavour import Kontext


def peak_host_gib() -> float:
    """Return the peak resident memory of this process. Not ru_maxrss, which starts at the parent process's value."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 2**20


def main(folder: str, precision: str, denoiser_path: str | None = None) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.zeros(1, device=device)  # CUDA's own memory and time are not part of loading
    if precision == "int8-quanto":
        QuantoInt8().convert("first", torch.nn.Linear(8, 8), device)
    before = peak_host_gib()
    family, flavour = FluxFamily(), Kontext()
    started = time.monotonic()
    location = (
        family.locate(folder, flavour)
        if denoiser_path is None
        else family.locate_with_denoiser(folder, denoiser_path, flavour)
    )
    located = time.monotonic() - started
    started = time.monotonic()
    quantizer = QuantoInt8() if precision == "int8-quanto" else None
    denoiser = load_denoiser(family, location, dtype=torch.bfloat16, device=device, quantizer=quantizer)
    if device.type == "cuda":
        torch.cuda.synchronize()
    result = {
        "seconds": round(time.monotonic() - started, 1),
        "seconds_to_locate": round(located, 2),
        "host_gib": round(peak_host_gib(), 2),
        "host_gib_before": round(before, 2),
        "parameters": sum(parameter.numel() for parameter in denoiser.parameters()),
    }
    if device.type == "cuda":
        result["device_peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 1)
        result["device_gib"] = round(torch.cuda.memory_allocated() / 2**30, 1)
    print(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
