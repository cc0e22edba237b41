"""Lets torch.compile's kernels that reduce rows keep a whole row in registers, where it would read rows twice.

Quantising a row needs its largest value before its first code can be written. By default torch's inductor does so up to
1,024 numbers, and reads longer rows a second time, with all that leads to them computed again. For the rows of a large
transformer (3,072 to 15,360 numbers) one pass is up to twice as fast on an H100 (docs/log.md).
"""

from __future__ import annotations

from typing import Any

LONGEST_ROW = 16384
FULL_ENOUGH = 0.7
"""Share of a row's registers that must hold numbers: a kernel has as many as the next power of two."""


def read_rows_once() -> None:
    """Set torch's inductor up for the whole process. Versions of torch that decide elsewhere stay as they are."""
    from torch._inductor import config

    try:
        from torch._inductor.choices import InductorChoices
        from torch._inductor.virtualized import V
    except ImportError:
        return
    if not hasattr(InductorChoices, "should_use_persistent_reduction"):
        return

    class RowsInRegisters(InductorChoices):  # type: ignore[misc, unused-ignore]
        @staticmethod
        def should_use_persistent_reduction(features: Any, cooperative_reduction: bool) -> bool:
            if not cooperative_reduction and _is_row(features):
                return True
            return bool(InductorChoices.should_use_persistent_reduction(features, cooperative_reduction))

        def uuid(self) -> bytes:
            """Name these choices in torch's cache of compiled graphs; to be changed with them."""
            return b"difftrain rows in registers 1"

    if hasattr(config, "inductor_choices_class"):
        config.inductor_choices_class = RowsInRegisters
    V.set_choices_handler(RowsInRegisters())


def _is_row(features: Any) -> bool:
    from torch._inductor import config
    from torch._inductor.runtime.hints import ReductionHint

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
