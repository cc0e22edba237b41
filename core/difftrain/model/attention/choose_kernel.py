"""Sets the attention kernel of a run, for all models that call torch's ``scaled_dot_product_attention``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from difftrain.errors import MachineError
from difftrain.model.attention.kernel_names import FLASH4, ON_GPUS_ONLY, OUR_KERNELS, TORCHS_KERNELS
from difftrain.types import AttentionShape

if TYPE_CHECKING:
    import torch


def check_attention(mechanism: str, device: torch.device) -> None:
    """Refuse a kernel that the device does not have.

    Raises:
        MachineError: With the reason.
    """
    if mechanism in ON_GPUS_ONLY and device.type != "cuda":
        raise MachineError(
            f"attention_mechanism {mechanism}: this kernel exists only for GPUs, and the run is on the "
            f'{device.type.upper()}\nhint: set attention_mechanism to "auto"'
        )
    if mechanism != FLASH4:
        return
    from difftrain.model.attention.flash4_attention import obstacle

    if problem := obstacle(device):
        raise MachineError(f'attention_mechanism {mechanism}: {problem}\nhint: or set attention_mechanism to "auto"')


def choose_attention(mechanism: str, device: torch.device) -> None:
    """Set the kernel for the whole process; ``auto`` leaves torch the choice until :func:`fastest_attention`.

    torch's own use of cuDNN's kernel is always off: inside stock models its backward crashes or gives NaN on Hopper,
    and torch prefers it there.

    Raises:
        MachineError: If the device has no such kernel.
    """
    check_attention(mechanism, device)
    from torch.backends import cuda

    cuda.enable_cudnn_sdp(False)
    allowed = (mechanism,) if mechanism in TORCHS_KERNELS else TORCHS_KERNELS
    cuda.enable_flash_sdp("flash" in allowed)
    cuda.enable_mem_efficient_sdp("efficient" in allowed)
    cuda.enable_math_sdp("math" in allowed)
    if device.type == "cuda":
        from difftrain.model.attention.own_kernels import route_models_to

        route_models_to(mechanism if mechanism in OUR_KERNELS else None)


def fastest_attention(shapes: Sequence[AttentionShape], device: torch.device, dtype: torch.dtype) -> str:
    """Time the kernels on the largest of the shapes and set the fastest that is right; return what to tell the user.

    Args:
        shapes: Calls of one forward over the run's largest batch; none leaves torch the choice.
        dtype: Number format of queries, keys and values.
    """
    import torch

    if device.type != "cuda" or not shapes:
        return "attention: torch chooses the kernel"
    if dtype == torch.float32:
        return "attention: torch chooses the kernel; the fast ones need mixed_precision bf16"
    from difftrain.model.attention.kernel_trial import try_kernels

    shape = max(shapes, key=lambda each: each.batch * each.heads * each.queries * each.keys)
    trials = try_kernels(shape, device, dtype)
    right = [trial for trial in trials if trial.fault is None]
    faults = "".join(f"; {trial.kernel} is not used: {trial.fault}" for trial in trials if trial.fault)
    if not right:
        return f"attention: torch chooses the kernel{faults}"
    best = min(right, key=lambda trial: trial.seconds)
    _prefer(best.kernel, device)
    times = ", ".join(f"{trial.kernel} {trial.seconds * 1e3:.2f} ms" for trial in right)
    return f"attention: {best.kernel}, the fastest for {shape.queries} tokens, forward and backward ({times}){faults}"


def kernels_in_force() -> str:
    """Return a text that tells apart what attention calls of models may get in this process."""
    from torch.backends import cuda

    from difftrain.model.attention.own_kernels import routed_to

    ours = f"difftrain {kernel}, " if (kernel := routed_to()) else ""
    torchs = ("cudnn", "flash", "mem_efficient", "math")
    allowed = [name for name in torchs if getattr(cuda, f"{name}_sdp_enabled")()]
    return f"attention: {ours}{', '.join(allowed)}"


def _prefer(kernel: str, device: torch.device) -> None:
    """Set a kernel without forbidding the others: the encoders' shapes and masks may need them."""
    if kernel in OUR_KERNELS:
        choose_attention(kernel, device)
        return
    choose_attention("auto", device)
    if kernel == "efficient":  # torch takes flash first, where both take a shape
        from torch.backends import cuda

        cuda.enable_flash_sdp(False)
