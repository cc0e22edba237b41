"""What the micro-batches of one step add up to."""

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
    """One a sample, [B] each."""
    keys: list[str] = field(default_factory=list)
    tokens: int = 0

    def add(self, micro: MicroBatch, losses: Tensor, tokens: Mapping[str, int]) -> None:
        """Count a micro-batch.

        Args:
            losses: Of each sample, [B].
            tokens: Of one sample, by group.
        """
        if micro.weight == 0:
            self.losses.append(losses[:0])
            return
        self.losses.append(losses)
        self.keys += micro.batch.keys
        self.tokens += sum(tokens.values()) * len(losses)

    def over_processes(self, accelerator: Accelerator) -> tuple[float, int, int]:
        """Mean loss, samples and tokens over all processes, whose batches may differ in size; in one exchange."""
        losses = torch.cat(self.losses).float()
        # float32 counts exactly up to 16 million
        counts = torch.tensor([len(losses), self.tokens], dtype=torch.float32, device=losses.device)
        total = accelerator.reduce(torch.cat([losses.sum().view(1), counts]), reduction="sum").tolist()
        return total[0] / max(1.0, total[1]), int(total[1]), int(total[2])

    def not_finite(self) -> list[str]:
        """Keys of the samples whose own loss is NaN or infinite."""
        finite = torch.cat(self.losses).isfinite().tolist()
        return [key for key, fine in zip(self.keys, finite, strict=False) if not fine]
