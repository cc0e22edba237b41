"""Cards: memory and rates from the makers' data sheets, and what a training step reaches of them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from difftrain.config.messages import nearest
from difftrain.errors import ConfigError

GIB = 2**30


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """One kind of card. Rates are those of dense products, with sums in float32, in FLOP per second."""

    name: str
    capability: tuple[int, int]
    memory: float
    """Bytes that torch reports as the card's total."""
    bandwidth: float
    """Bytes per second."""
    float32: float
    """Without tensor cores: torch's default for float32."""
    bfloat16: float
    int8: float
    fp8: float | None
    """None if the card has no such products."""

    def rate(self, products: str) -> float | None:
        """Return the peak rate of products in ``float32``, ``bfloat16``, ``int8`` or ``fp8``."""
        rate: float | None = getattr(self, products)
        return rate


def _card(
    name: str, capability: tuple[int, int], gib: float, gb_per_s: float, *tera: float, fp8: float | None = None
) -> Card:
    float32, bfloat16, int8 = (rate * 1e12 for rate in tera)
    return Card(
        name=name,
        capability=capability,
        memory=gib * GIB,
        bandwidth=gb_per_s * 1e9,
        float32=float32,
        bfloat16=bfloat16,
        int8=int8,
        fp8=None if fp8 is None else fp8 * 1e12,
    )


CARDS: tuple[Card, ...] = (
    _card("RTX 3090", (8, 6), 23.68, 936, 35.6, 71, 284),
    _card("RTX 4090", (8, 9), 23.64, 1008, 82.6, 165.2, 660.6, fp8=330.3),
    _card("RTX 5090", (12, 0), 31.36, 1792, 104.8, 209.5, 838, fp8=419),
    _card("A100 40GB", (8, 0), 39.49, 1555, 19.5, 312, 624),
    _card("A100 80GB", (8, 0), 79.25, 2039, 19.5, 312, 624),
    _card("H100", (9, 0), 79.18, 3352, 66.9, 989.4, 1978.9, fp8=1978.9),
    _card("H200", (9, 0), 139.8, 4800, 66.9, 989.4, 1978.9, fp8=1978.9),
)
"""Memory in GiB as torch reports it, GB/s, then TFLOP/s in float32, bfloat16, int8 and fp8.

Source: NVIDIA's architecture white papers, tables of peak rates with FP32 accumulation, without sparsity: GA102 (RTX
3090), Ada (RTX 4090), RTX Blackwell (RTX 5090); data sheets of A100 (SXM), H100 (SXM) and H200 (SXM).
"""

ASKED = "--card"


def find_card(name: str) -> Card:
    """Return the card of the table with this name, in any spelling: ``rtx4090``, ``4090``, ``H100``.

    Raises:
        ConfigError: Names the nearest card.
    """
    asked = _plain(name)
    fitting = [card for card in CARDS if asked and asked in _plain(card.name)]
    exact = [card for card in CARDS if asked in (_plain(card.name), _plain(card.name).removeprefix("rtx"))]
    if len(exact) == 1 or len(fitting) == 1:
        return (exact or fitting)[0]
    short = {_plain(card.name).removeprefix("rtx"): card.name for card in CARDS}
    guess = nearest(asked.removeprefix("rtx"), short)
    known = fitting[0].name if fitting else short.get(guess or "")
    advice = f'did you mean "{known}"?' if known else "name one of them"
    names = ", ".join(card.name for card in CARDS)
    raise ConfigError(f"{ASKED} {name!r} is not in the table of cards: {names}; {advice}")


def card_of_device(name: str, capability: tuple[int, int], memory: int) -> Card | None:
    """Return the card of a machine, with its own memory; None if the table has no rates for it.

    Args:
        name: As the driver says it, such as ``NVIDIA H100 80GB HBM3``.
    """
    plain = _plain(name)
    fitting = [card for card in CARDS if _plain(card.name.partition(" ")[0]) in plain and capability == card.capability]
    fitting = [card for card in fitting if not card.name.startswith("RTX") or _plain(card.name) in plain]
    if not fitting:
        return None
    closest = min(fitting, key=lambda card: abs(card.memory - memory))
    return Card(**{**{key: getattr(closest, key) for key in Card.__slots__}, "memory": float(memory)})


def _plain(name: str) -> str:
    return re.sub(r"nvidia|geforce|[^a-z0-9]", "", name.lower())
