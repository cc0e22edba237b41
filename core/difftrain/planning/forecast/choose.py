"""The setting that suits a card best, and what it will take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from difftrain.planning.forecast.cards import Card
from difftrain.planning.forecast.memory import TrainedBytes, fits, most_kept, peak_bytes
from difftrain.planning.forecast.modes import NO_QUANTIZER, Mode
from difftrain.planning.forecast.seconds import step_seconds
from difftrain.types import ModelWork

WORTH_ROUNDING = 1.05
"""How many times slower the exact weights may be before rounded ones are chosen."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Forecast:
    """A mode on a card."""

    card: Card
    mode: Mode
    peak: float
    """Bytes that torch has allocated at the peak of a step."""
    seconds: float
    """Of one forward and backward of one batch."""
    fits: bool


def forecast(work: ModelWork, mode: Mode, trained: TrainedBytes, card: Card) -> Forecast | None:
    """Return what a mode takes on a card; None if the card lacks its products."""
    if card.rate(mode.products) is None:
        return None
    peak = peak_bytes(work, mode, trained)
    return Forecast(card=card, mode=mode, peak=peak, seconds=step_seconds(work, mode, card), fits=fits(peak, card))


def best(work: ModelWork, modes: Sequence[Mode], trained: TrainedBytes, card: Card) -> Forecast:
    """Return the fastest mode that fits, with as many blocks kept as fit; the smallest one if none fits.

    Exact weights are preferred as long as rounded ones are hardly faster.

    Args:
        modes: Those that the card can run; at least one.
    """
    found = [one for mode in modes if (one := _filled(work, mode, trained, card)) is not None]
    fitting = [one for one in found if one.fits]
    if not fitting:
        return min(found, key=lambda one: one.peak)
    fastest = min(fitting, key=lambda one: one.seconds)
    exact = [one for one in fitting if one.mode.precision == NO_QUANTIZER]
    return next((one for one in exact if one.seconds <= WORTH_ROUNDING * fastest.seconds), fastest)


@dataclass(frozen=True, kw_only=True, slots=True)
class CardForecast:
    """What a run takes on one card."""

    card: Card
    best: Forecast
    as_written: Forecast | None
    """The config as it is; None if the card lacks its products, or they are not known."""


def forecast_card(
    work: ModelWork, modes: Sequence[Mode], written: Mode | None, trained: TrainedBytes, card: Card, *, fills: bool
) -> CardForecast:
    """Return the best of some modes and the config's own on a card.

    Args:
        modes: Those that the card can run.
        written: The config's own mode.
        fills: Whether the config lets as many blocks keep their activations as fit.
    """
    as_written = None
    if written is not None:
        as_written = _filled(work, written, trained, card) if fills else forecast(work, written, trained, card)
    return CardForecast(card=card, best=best(work, modes, trained, card), as_written=as_written)


def _filled(work: ModelWork, mode: Mode, trained: TrainedBytes, card: Card) -> Forecast | None:
    return forecast(work, mode.keeping(most_kept(work, mode, trained, card) or 0), trained, card)
