"""The choices of torch's inductor with whole rows in registers. Importing it imports the inductor.

A module of its own, as torch writes the class into the keys of its cache by name: of a class that it finds under no
name it says so, and keeps no compiled code at all (torch 2.11).
"""

from __future__ import annotations

from typing import Any

from torch._inductor import config
from torch._inductor.choices import InductorChoices
from torch._inductor.runtime.hints import ReductionHint

LONGEST_ROW = 16384
FULL_ENOUGH = 0.7
"""Share of a row's registers that must hold numbers: a kernel has as many as the next power of two."""


class RowsInRegisters(InductorChoices):  # type: ignore[misc, unused-ignore]
    """Keeps rows in registers that fill them."""

    @staticmethod
    def should_use_persistent_reduction(features: Any, cooperative_reduction: bool) -> bool:
        if not cooperative_reduction and _is_row(features):
            return True
        return bool(InductorChoices.should_use_persistent_reduction(features, cooperative_reduction))

    def uuid(self) -> bytes:
        """Name these choices in torch's cache of compiled graphs; to be changed with them."""
        return b"difftrain rows in registers 1"


def _is_row(features: Any) -> bool:
    length = features.reduction_numel
    return (
        bool(config.triton.persistent_reductions)
        and features.get_reduction_hint() == ReductionHint.INNER
        and bool(length.is_Integer)
        and fits_registers(int(length))
    )


def fits_registers(length: int) -> bool:
    """Whether a row of so many numbers is to be kept whole."""
    return 0 < length <= LONGEST_ROW and length >= FULL_ENOUGH * (1 << (length - 1).bit_length())
