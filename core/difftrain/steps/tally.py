"""Sums over the micro-batches of one step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from difftrain.data.streaming.stream import MicroBatch

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(kw_only=True)
class Tally:
    """Losses and counts of one process's micro-batches; those of weight 0 do not count."""

    losses: list[Tensor] = field(default_factory=list)
    """One tensor per micro-batch, [B] each."""
    keys: list[str] = field(default_factory=list)
    tokens: int = 0

    def add(self, micro: MicroBatch, losses: Tensor, tokens: Mapping[str, int]) -> None:
        """Count a micro-batch.

        Args:
            losses: Loss of each sample, [B].
            tokens: Tokens of one sample, by group.
        """
        if micro.weight == 0:
            self.losses.append(losses[:0])
            return
        self.losses.append(losses)
        self.keys += micro.batch.keys
        self.tokens += sum(tokens.values()) * len(losses)

    def over_processes(self, accelerator: Accelerator) -> tuple[float, int, int]:
        """Return mean loss, samples and tokens over all processes in one exchange; their batches may differ in size."""
        losses = torch.cat(self.losses).float()
        # float32 counts exactly up to 16 million
        counts = torch.tensor([len(losses), self.tokens], dtype=torch.float32).to(losses.device, non_blocking=True)
        total = accelerator.reduce(torch.cat([losses.sum().view(1), counts]), reduction="sum").tolist()
        return total[0] / max(1.0, total[1]), int(total[1]), int(total[2])

    def not_finite(self) -> list[str]:
        """Return the keys of samples whose own loss is NaN or infinite."""
        finite = torch.cat(self.losses).isfinite().tolist()
        return [key for key, fine in zip(self.keys, finite, strict=False) if not fine]
