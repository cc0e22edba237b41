"""Lets torch.compile's kernels that reduce rows keep a whole row in registers, where it would read rows twice.

Quantising a row needs its largest value before its first code can be written. By default torch's inductor does so up to
1,024 numbers, and reads longer rows a second time, with all that leads to them computed again. For the rows of a large
transformer (3,072 to 15,360 numbers) one pass is up to twice as fast on an H100 (docs/log.md).
"""

from __future__ import annotations


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

    from difftrain.model.compiled.row_choices import RowsInRegisters

    if hasattr(config, "inductor_choices_class"):
        config.inductor_choices_class = RowsInRegisters
    V.set_choices_handler(RowsInRegisters())
