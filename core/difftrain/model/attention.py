"""Which attention kernel torch may use."""

from __future__ import annotations

BACKENDS = ("flash", "efficient", "math")


def choose_attention(mechanism: str) -> None:
    """Restrict torch's ``scaled_dot_product_attention`` for the whole process.

    cuDNN's kernel is off in every choice: inside stock models its backward reports illegal memory access or
    gives NaN on Hopper (docs/log.md), and torch prefers it there.

    Args:
        mechanism: ``auto`` leaves torch the choice among flash, memory-efficient and math.
    """
    from torch.backends import cuda

    cuda.enable_cudnn_sdp(False)
    allowed = BACKENDS if mechanism == "auto" else (mechanism,)
    cuda.enable_flash_sdp("flash" in allowed)
    cuda.enable_mem_efficient_sdp("efficient" in allowed)
    cuda.enable_math_sdp("math" in allowed)
