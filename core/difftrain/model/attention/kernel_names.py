"""The attention kernels that a config may name, and what each needs. No torch."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

TORCHS_KERNELS = ("flash", "efficient", "math")
"""Kernels that torch itself chooses from."""
FLASH4 = "flash-attn-4"
"""The option's value and the package's name."""
OUR_KERNELS = ("cudnn", FLASH4)
"""Kernels behind an op of our own."""
ON_GPUS_ONLY = (*OUR_KERNELS, "efficient")


def missing_package(mechanism: str) -> str | None:
    """Return which package a kernel lacks, and how to get it. Only its name is looked up: importing one may fail."""
    if mechanism != FLASH4:
        return None
    try:
        version(FLASH4)
    except PackageNotFoundError:
        return f"the package {FLASH4} is not installed: pip install 'difftrain[{FLASH4}]'"
    return None
