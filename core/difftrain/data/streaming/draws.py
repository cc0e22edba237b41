"""The random draws of visits, for whole epochs at once. Each depends on what is drawn for, not on earlier draws.

Numbers are mixed as the generator SplitMix64 mixes its states: Steele, Lea and Flood, Fast Splittable Pseudorandom
Number Generators, OOPSLA 2014, https://doi.org/10.1145/2714064.2660195.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from difftrain.data.seeding import SEED_BITS, derive_seed

Words = npt.NDArray[np.uint64]

_GAMMA = 0x9E3779B97F4A7C15
_FACTORS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


def visit_numbers(names: Words, *, seed: int, epoch: int, repeat: int) -> Words:
    """Return the number of each sample's visit, in [0, 2**63).

    Args:
        names: [N], hashes of the samples' names.
        seed: The run's.
        repeat: 0 is a sample's first visit of an epoch; ``repeats`` adds more.
    """
    return _mixed(names ^ np.uint64(derive_seed(seed, "visit", epoch, repeat))) >> np.uint64(64 - SEED_BITS)


def uniform(numbers: Words, purpose: str) -> npt.NDArray[np.float64]:
    """Return a draw in [0, 1) for each visit, [N]; draws for different purposes are independent.

    Args:
        numbers: [N], the visits' :func:`visit_numbers`.
    """
    mixed = _mixed(_mixed(numbers ^ np.uint64(derive_seed("draw", purpose))))
    return (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53


def drawn_below(numbers: Words, purpose: str, counts: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Return a whole number for each visit, [N], at least 0 and below its count."""
    drawn: npt.NDArray[np.int64] = (uniform(numbers, purpose) * counts).astype(np.int64)
    return drawn


def _mixed(words: Words) -> Words:
    words = words + np.uint64(_GAMMA)
    words = (words ^ (words >> np.uint64(30))) * _FACTORS[0]
    words = (words ^ (words >> np.uint64(27))) * _FACTORS[1]
    return words ^ (words >> np.uint64(31))
