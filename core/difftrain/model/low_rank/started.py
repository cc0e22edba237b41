"""LoRAs that begin as a part of each weight (PiSSA, OLoRA), and leave the frozen weights as they are.

The papers start with matrices A0 and B0, and subtract their product from the weight. That would need another base model
for each adapter, and rounds quantised weights anew. Here the layer adds ``B A - B0 A0`` to the weight instead, which is
the same. What is trained are the differences ``dA = A - A0`` and ``dB = B - B0``, from zero::

    B A - B0 A0 = dB (A0 + dA) + B0 dA = [dB, B0] [A0 + dA; dA]

The right side is a LoRA of twice the rank, exactly nothing at the start, with the gradients of A and B. No large
numbers are subtracted, so bfloat16 is enough for it. A file holds these two matrices.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from difftrain.errors import ConfigError
from difftrain.model.low_rank.init_names import rounds_of

_MORE = 16
"""Further singular values of the fast way, so that the wanted ones are nearer to the exact ones.

Source: Halko et al., Finding structure with randomness, arXiv:0909.4061, section 4.
"""
_PART = 2048
"""Unit vectors that a layer gets at once."""
_NOTHING, _TINY = 1e-5, 1e-30
"""Root of a singular value that counts as none: relative to the largest, and if all are 0."""


class StartedDown(nn.Linear):
    """``[A0 + dA; dA]``, [2 * rank, in_features]; ``weight`` is dA."""

    def __init__(self, start: Tensor) -> None:
        nn.Module.__init__(self)
        self.out_features, self.in_features = start.shape
        self.weight = nn.Parameter(torch.zeros_like(start))
        self.register_parameter("bias", None)
        self.start = nn.Parameter(start, requires_grad=False)

    def whole(self) -> Tensor:
        """Return the matrix that the layer multiplies by."""
        return whole_down(self.weight, self.start)

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.whole())


class StartedUp(nn.Linear):
    """``[dB, B0]``, [out_features, 2 * rank]; ``weight`` is dB."""

    def __init__(self, start: Tensor) -> None:
        nn.Module.__init__(self)
        self.out_features, self.in_features = start.shape
        self.weight = nn.Parameter(torch.zeros_like(start))
        self.register_parameter("bias", None)
        self.start = nn.Parameter(start, requires_grad=False)

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, whole_up(self.weight, self.start))


def whole_down(change: Tensor, start: Tensor) -> Tensor:
    """Return ``[A0 + dA; dA]``."""
    return torch.cat([start + change, change])


def whole_up(change: Tensor, start: Tensor) -> Tensor:
    """Return ``[dB, B0]``."""
    return torch.cat([change, start], dim=1)


def plain(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return an adapter's weights as those of an ordinary LoRA of twice the rank, with the same effect.

    Args:
        weights: Changes and starts, by the names ``MODULE.lora_A.weight``, ``MODULE.lora_A.start``, and so for B.
    """
    found = {}
    for name, change in weights.items():
        matrix, _, part = name.rpartition(".")
        if part == "weight":
            whole = whole_down if matrix.endswith("lora_A") else whole_up
            found[name] = whole(change, weights[f"{matrix}.start"])
    return found


@dataclass(frozen=True, kw_only=True)
class Start:
    """A0 and B0 of one weight; ``scale * B0 @ A0`` is a part of it."""

    down: Tensor
    """A0, [rank, in_features], float32."""
    up: Tensor
    """B0, [out_features, rank], float32."""


def start_of(weight: Tensor, kind: str, rank: int, scale: float) -> Start:
    """Return where the adapter of a weight begins.

    Args:
        weight: [out_features, in_features].
        kind: ``olora``, ``pissa``, or ``pissa_niter_N`` with singular vectors from N rounds over a random start.
        rank: At most the smaller edge of the weight.
        scale: Factor on the product.

    Source:
        Meng et al., PiSSA, arXiv:2404.02948, section 3; Buyukakyuz, OLoRA, arXiv:2406.01775, section 3. As in peft,
        OLoRA's factors do not depend on the scale.
    """
    weight = weight.float()
    if kind == "olora":
        up = torch.linalg.qr(weight[:, :rank]).Q  # as the first columns of the whole weight's Q
        return Start(down=up.T @ weight, up=up)
    rounds = rounds_of(kind)
    values, right = _principal(weight, rank) if rounds is None else _nearly(weight, rank, rounds)
    roots = (values * scale).sqrt()
    divisors = roots.clamp(min=max(_TINY, _NOTHING * float(roots.max())))  # a weight may have fewer directions
    return Start(down=roots[:, None] * right / scale, up=weight @ right.T / divisors)


def _principal(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return the largest singular values, [rank], and their right vectors, [rank, in_features].

    From the eigenvectors of the smaller product of the weight with itself, in float64: some times faster than all
    singular values of the weight.
    """
    exact = weight.double()
    wide = exact.shape[0] < exact.shape[1]
    squares, vectors = torch.linalg.eigh(exact @ exact.T if wide else exact.T @ exact)
    values = squares[-rank:].flip(0).clamp(min=0).sqrt()
    kept = vectors[:, -rank:].flip(1).T
    right = nn.functional.normalize(kept @ exact, dim=1) if wide else kept
    return values.float(), right.float()


def _nearly(weight: Tensor, rank: int, rounds: int) -> tuple[Tensor, Tensor]:
    """Return nearly the same, in a small part of the time."""
    _, values, right = torch.svd_lowrank(weight, q=min(rank + _MORE, *weight.shape), niter=rounds)
    return values[:rank], right[:, :rank].T


def add_started(denoiser: nn.Module, targets: Sequence[str], kind: str, rank: int, dtype: torch.dtype) -> None:
    """Give LoRA layers of peft room for a start; :func:`begin_started` or a checkpoint fills it.

    Until then it holds NaN, so that a start that is forgotten cannot train unnoticed.

    Args:
        targets: Full names of the layers.
        dtype: Number format of all their matrices.

    Raises:
        ConfigError: If a weight has no such rank.
    """
    check_rank(denoiser, targets, kind, rank)
    for target in targets:
        layer: Any = denoiser.get_submodule(target)
        (name,) = layer.active_adapters
        for matrices, started in ((layer.lora_A, StartedDown), (layer.lora_B, StartedUp)):
            matrices[name] = started(torch.full_like(matrices[name].weight, torch.nan, dtype=dtype))


@torch.no_grad()
def begin_started(denoiser: nn.Module, targets: Sequence[str], kind: str, rank: int) -> Iterator[str]:
    """Let the layers of :func:`add_started` begin as a part of the weights that they are beside; yield each name."""
    device = next((part.device for part in denoiser.parameters() if part.is_cuda), None)
    for target in targets:
        layer: Any = denoiser.get_submodule(target)
        (name,) = layer.active_adapters
        weight = weight_of(layer.base_layer)
        start = start_of(weight.to(device or weight.device), kind, rank, layer.scaling[name])
        layer.lora_A[name].start.copy_(start.down)
        layer.lora_B[name].start.copy_(start.up)
        yield target


def check_rank(denoiser: nn.Module, targets: Sequence[str], kind: str, rank: int) -> None:
    """Check that all weights have so many singular values.

    Raises:
        ConfigError: Names the smallest.
    """
    layers: dict[str, Any] = {name: denoiser.get_submodule(name) for name in targets}
    edges: dict[str, int] = {name: min(layer.in_features, layer.out_features) for name, layer in layers.items()}
    smallest = min(edges, key=lambda name: edges[name])
    if edges[smallest] < rank:
        raise ConfigError(
            f"lora_init_type {kind}: the weight of {smallest} has rank {edges[smallest]}, and lora_rank is {rank}\n"
            f"hint: set lora_rank to at most {edges[smallest]}, or lora_init_type to default"
        )


def weight_of(layer: nn.Linear) -> Tensor:
    """Return the weight that a frozen layer stands for, [out_features, in_features], however it is stored."""
    weight = layer.weight
    if type(weight) in (Tensor, nn.Parameter) and weight.is_floating_point():
        return weight.detach()
    kept = (part for part in (layer.bias, weight) if part is not None)
    dtype = next((part.dtype for part in kept if part.is_floating_point()), torch.float32)
    nothing = layer(torch.zeros(1, layer.in_features, dtype=dtype, device=weight.device)).float()
    columns = []
    for first in range(0, layer.in_features, _PART):
        count = min(_PART, layer.in_features - first)
        units = torch.zeros(count, layer.in_features, dtype=dtype, device=weight.device)
        units[:, first : first + count].fill_diagonal_(1)
        columns.append(layer(units).float() - nothing)
    return torch.cat(columns).T
