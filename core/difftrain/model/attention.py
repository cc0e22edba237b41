"""Chooses the attention kernels that torch may use."""

from __future__ import annotations

from difftrain.errors import MachineError

BACKENDS = ("flash", "efficient", "math")


def choose_attention(mechanism: str, device: str) -> None:
    """Restrict torch's ``scaled_dot_product_attention`` for the whole process.

    cuDNN's kernel is always off: inside stock models its backward reports illegal memory access or
    gives NaN on Hopper (docs/log.md), and torch prefers it there.

    Args:
        mechanism: ``auto`` lets torch choose among flash, memory-efficient and math.
        device: Type of device that the model runs on.

    Raises:
        MachineError: If torch has no such kernel for the device.
    """
    if mechanism == "efficient" and device == "cpu":
        raise MachineError(
            "attention_mechanism efficient: torch has this kernel only for GPUs, and the run is on the CPU\n"
            'hint: set attention_mechanism to "auto"'
        )
    from torch.backends import cuda

    cuda.enable_cudnn_sdp(False)
    allowed = BACKENDS if mechanism == "auto" else (mechanism,)
    cuda.enable_flash_sdp("flash" in allowed)
    cuda.enable_mem_efficient_sdp("efficient" in allowed)
    cuda.enable_math_sdp("math" in allowed)
