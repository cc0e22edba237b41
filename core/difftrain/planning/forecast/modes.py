"""How a run computes its steps: in which precision, compiled or not, and which blocks keep their activations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from difftrain.contracts import Quantizer

ROOM = 0.92
"""Share of the memory that a step may fill: torch's allocator cannot use every gap."""
STEPS_WORTH_COMPILING = 100
"""For each shape of batches: compiling for one takes about a minute, and saves half a second or more of a step."""
NO_QUANTIZER = "no_change"
FEWEST_BYTES = 0.4
"""Of a weight in a mode that is recommended: two bits change a layer's outputs by a third."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Mode:
    """What memory and time of a step depend on, beside the model and the card."""

    precision: str
    """Value of ``base_model_precision``."""
    weight_bytes: float
    """Of one converted weight."""
    compute: str
    """Number format of the forward: ``bfloat16`` or ``float32``."""
    products: str
    """Number format of the products with the frozen weights: that of the forward, ``fp8`` or ``int8``."""
    unpacks: bool
    """Whether the weights are turned into the forward's number format for each product."""
    compiled: bool
    recorded: bool
    """Whether steps are recorded as CUDA graphs: the host then starts one operation."""
    kept: int
    """How many blocks keep their activations; the others recompute them."""
    attention: str
    """``cudnn`` or ``flash``."""

    def keeping(self, count: int) -> Mode:
        """Return the mode with that many blocks that keep their activations."""
        return Mode(**{**{key: getattr(self, key) for key in Mode.__slots__}, "kept": count})


def mode_of(
    quantizer: type[Quantizer] | None,
    *,
    compute: str,
    compiled: bool,
    kept: int,
    attention: str = "cudnn",
    recorded: bool = True,
    weight_bytes: float | None = None,
) -> Mode | None:
    """Return the mode of a quantizer; None if it does not say what its weights take.

    Args:
        compiled: Whether blocks are compiled if the quantizer's layers can be.
        recorded: Whether steps are recorded as CUDA graphs if blocks are compiled.
        weight_bytes: Of one converted weight; None takes the quantizer's own.
    """
    full = 2.0 if compute == "bfloat16" else 4.0
    stored = full if quantizer is None else weight_bytes or quantizer.weight_bytes
    if stored is None:
        return None
    compiled = compiled and (quantizer is None or quantizer.can_compile)
    eight_bits = quantizer is not None and quantizer.products != "full"
    return Mode(
        precision=quantizer.name if quantizer else NO_QUANTIZER,
        weight_bytes=stored,
        compute=compute,
        products=quantizer.products if quantizer is not None and eight_bits else compute,
        unpacks=quantizer is not None and not eight_bits,
        compiled=compiled,
        recorded=recorded and compiled,
        kept=kept,
        attention=attention,
    )


def modes_for(
    quantizers: Sequence[type[Quantizer]], capability: tuple[int, int], *, compute: str, compiled: bool
) -> list[Mode]:
    """Return the modes that a card can run and that may be recommended, the most exact first, with nothing kept."""
    usable = [
        one for one in quantizers
        if capability >= one.needs_capability and (one.weight_bytes or FEWEST_BYTES) >= FEWEST_BYTES
    ]  # fmt: skip
    found = [mode_of(one, compute=compute, compiled=compiled, kept=0) for one in (None, *usable)]
    return [mode for mode in found if mode is not None]
