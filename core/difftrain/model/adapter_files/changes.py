"""What an adapter does to one linear layer, whatever file it came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class LowRank:
    """LoRA: the weight becomes ``W + up @ down``; with lengths (DoRA) its rows then get these."""

    down: Tensor
    """[rank, in]."""
    up: Tensor
    """[out, rank], with alpha / rank folded in."""
    lengths: Tensor | None = None
    """[out]."""

    @property
    def rank(self) -> int:
        return int(self.down.shape[0])

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs of the layer."""
        return len(self.up), int(self.down.shape[1])

    def delta(self) -> Tensor:
        """Return what is added to the weight, [out, in] in float32; without the effect of lengths."""
        return self.up.float() @ self.down.float()

    def rows(self, first: int, end: int) -> LowRank:
        """Return the change of these rows of the layer."""
        lengths = None if self.lengths is None else self.lengths[first:end]
        return replace(self, up=self.up[first:end], lengths=lengths)


@dataclass(frozen=True, kw_only=True, eq=False)
class Factors:
    """LoKr, LoHa or a full change: factors as the LyCORIS library names them, with the strength folded in.

    Source: Yeh et al., LyCORIS, arXiv:2309.14859, section 3.
    """

    tensors: Mapping[str, Tensor]
    scale: float = 1.0
    span: tuple[int, int] | None = None
    """First row and the one after the last, where the layer is only a part of the file's."""

    @property
    def kind(self) -> str:
        names = [*self.tensors]
        return "LoKr" if names[0].startswith("lokr") else "LoHa" if names[0].startswith("hada") else "full"

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs of the layer."""
        rows, columns = self.delta().shape
        return rows, columns

    def delta(self) -> Tensor:
        """Return what is added to the weight, [out, in] in float32."""
        import torch

        part = {name: tensor.float() for name, tensor in self.tensors.items()}
        if "diff" in part:
            found = part["diff"]
        elif "hada_w1_a" in part:
            found = (part["hada_w1_a"] @ part["hada_w1_b"]) * (part["hada_w2_a"] @ part["hada_w2_b"])
        else:
            found = torch.kron(*kronecker_factors(part))
        found = found * self.scale
        return found if self.span is None else found[slice(*self.span)]

    def bias(self) -> Tensor | None:
        """Return what is added to the layer's bias, [out] in float32; None if that is nothing, as without `diff_b`."""
        if "diff_b" not in self.tensors:
            return None
        found = self.tensors["diff_b"].float() * self.scale
        return found if self.span is None else found[slice(*self.span)]

    def rows(self, first: int, end: int) -> Factors:
        """Return the change of these rows of the layer."""
        start = 0 if self.span is None else self.span[0]
        return replace(self, span=(start + first, start + end))


Change = LowRank | Factors


def bias_of(change: Change) -> Tensor | None:
    """Return what a change adds to the layer's bias; None if that is nothing."""
    return change.bias() if isinstance(change, Factors) else None


def kronecker_factors(part: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return both factors of a LoKr in float32, each made of its own low-rank factors if it has some."""
    return _factor(part, "lokr_w1"), _factor(part, "lokr_w2")


def _factor(part: Mapping[str, Tensor], name: str) -> Tensor:
    return part[name].float() if name in part else part[f"{name}_a"].float() @ part[f"{name}_b"].float()
