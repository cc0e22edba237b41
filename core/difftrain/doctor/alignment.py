"""Whether the two images of a pair lie on each other: an estimate of shift and zoom, by phase correlation.

An estimate is believed only if undoing it makes the edges of both images fit clearly better, so that an edit, which
changes a part of the image, is not taken for a misalignment. Needs the optional package opencv.
"""

from __future__ import annotations

import importlib.util
import math
import statistics
from typing import Any, NamedTuple

import numpy as np

Plane = np.ndarray[Any, np.dtype[np.float32]]

EXTRA = "pip install 'difftrain[doctor]'"
"""How to install what this module needs."""
LEAST_GAIN = 0.2
"""Share of the difference of edges that undoing a misalignment must remove."""
LEAST_GAIN_OF_QUARTERS = 0.05
"""And of three of the four quarters; an object that an edit has moved changes fewer."""
METHOD = 1
"""Raise it when estimates change."""
REFINEMENTS = 4
LARGEST_ZOOM = 1.35
LEAST_COMMON = 0.4
"""Share of the image that both must show. Beyond these two, too little is common to tell."""


class Misalignment(NamedTuple):
    """Where the target shows what the reference shows."""

    right: float
    """Pixels of the compared planes by which the target lies further right than the reference."""
    down: float
    zoom: float
    """The target's scale over the reference's, around the centre; 1 is none."""


ALIGNED = Misalignment(0.0, 0.0, 1.0)


def can_estimate() -> bool:
    """Return whether opencv is installed."""
    return importlib.util.find_spec("cv2") is not None


def use_one_thread() -> None:
    """Leave the cores to the threads that compare pairs."""
    import cv2

    cv2.setNumThreads(1)


def estimate(reference: Plane, target: Plane) -> Misalignment:
    """Return how a target lies relative to its reference; :data:`ALIGNED` if nothing fits clearly better.

    Args:
        reference: Brightness, shape [H, W], float32, any range.
        target: The same shape.
    """
    first, second = _edges(reference), _edges(target)
    if _difference(first, second) == 0:
        return ALIGNED
    best, most = ALIGNED, LEAST_GAIN
    for zoom in (1.0, *_zooms(first, second)):
        found = _shifted(first, second, zoom)
        for _ in range(REFINEMENTS):
            gain = _gain(first, second, found)
            if gain > most:
                best, most = found, gain
            found = _refined(first, second, found)
    return best


def _edges(plane: Plane) -> Plane:
    """Return the strength of edges, which edits of colour and light leave, scaled to a mean of 1."""
    import cv2

    smooth = cv2.GaussianBlur(plane, (0, 0), 1.0)
    across, down = cv2.Sobel(smooth, cv2.CV_32F, 1, 0), cv2.Sobel(smooth, cv2.CV_32F, 0, 1)
    strength = cv2.magnitude(across, down)
    mean = float(strength.mean())
    return np.asarray(strength / mean if mean > 0 else strength, np.float32)


def _difference(first: Plane, second: Plane) -> float:
    """Return the mean difference of edges; an edge counts at most 3 times the mean, so that a few do not decide."""

    return float(np.abs(np.minimum(first, 3) - np.minimum(second, 3)).mean())


def _shifted(first: Plane, second: Plane, zoom: float) -> Misalignment:
    """Return the shift that remains once the reference is zoomed."""
    import cv2

    zoomed = first if zoom == 1 else _moved(first, Misalignment(0, 0, zoom))
    window = cv2.createHanningWindow((first.shape[1], first.shape[0]), cv2.CV_32F)
    (right, down), _ = cv2.phaseCorrelate(zoomed, second, window)
    return Misalignment(right, down, zoom)


def _zooms(first: Plane, second: Plane) -> list[float]:
    """Return zooms worth a try, from the spectra: a zoom is a shift of the logarithm of the frequency."""
    import cv2

    height, width = first.shape
    side = cv2.getOptimalDFTSize(max(height, width))
    window = cv2.createHanningWindow((width, height), cv2.CV_32F)
    spectra = []
    for plane in (first, second):
        padded = np.zeros((side, side), np.float32)
        padded[:height, :width] = (plane - plane.mean()) * window
        spectrum = np.log1p(np.abs(np.fft.fftshift(np.fft.fft2(padded)))).astype(np.float32)
        spectra.append(cv2.warpPolar(spectrum, (side, side), (side / 2, side / 2), side / 2, cv2.WARP_POLAR_LOG))
    # half of the angles: the spectrum of a real image is symmetric
    half = [spectrum[: side // 2] for spectrum in spectra]
    (across, _), _ = cv2.phaseCorrelate(half[0], half[1], cv2.createHanningWindow((side, side // 2), cv2.CV_32F))
    zoom = math.exp(-across * math.log(side / 2) / side)
    if not 1 / LARGEST_ZOOM <= zoom <= LARGEST_ZOOM:
        return []
    return [zoom]


def _moved(plane: Plane, by: Misalignment) -> Plane:
    """Return the reference as the target would show it; what lies outside is 0."""
    import cv2

    height, width = plane.shape
    middle = (width - 1) / 2, (height - 1) / 2
    matrix = np.array(
        [
            [by.zoom, 0, middle[0] * (1 - by.zoom) + by.right],
            [0, by.zoom, middle[1] * (1 - by.zoom) + by.down],
        ],
        np.float32,
    )
    moved = cv2.warpAffine(plane, matrix, (width, height), flags=cv2.INTER_LINEAR)
    return np.asarray(moved, np.float32)


def _refined(first: Plane, second: Plane, rough: Misalignment) -> Misalignment:
    """Return an estimate corrected by the shifts that remain in each quarter: a zoom moves them apart.

    Medians, because an edit may fill a quarter.
    """
    import cv2

    moved = _moved(first, rough)
    height, width = first.shape[0] // 2, first.shape[1] // 2
    window = cv2.createHanningWindow((width, height), cv2.CV_32F)
    left = []
    for part in _quarters(first.shape):
        pieces = np.ascontiguousarray(moved[part]), np.ascontiguousarray(second[part])
        left.append(cv2.phaseCorrelate(*pieces, window)[0])
    apart = [(left[one][0] - left[other][0]) / width for one, other in ((1, 0), (3, 2))]
    apart += [(left[one][1] - left[other][1]) / height for one, other in ((2, 0), (3, 1))]
    more = 1 + statistics.median(apart)
    if not 1 / LARGEST_ZOOM <= more * rough.zoom <= LARGEST_ZOOM:
        return rough
    return Misalignment(
        more * rough.right + statistics.median(right for right, _ in left),
        more * rough.down + statistics.median(down for _, down in left),
        more * rough.zoom,
    )


def _gain(first: Plane, second: Plane, by: Misalignment) -> float:
    """Return the share of the difference that moving the reference removes, in the part that both then show."""
    height, width = first.shape
    spans = []
    for length, shift in ((height, by.down), (width, by.right)):
        start = (length - 1) / 2 * (1 - by.zoom) + shift
        end = start + by.zoom * (length - 1)
        spans.append(slice(max(0, math.ceil(start) + 2), max(0, min(length, math.floor(end) - 1))))
    common = spans[0], spans[1]
    if first[common].size < first.size * LEAST_COMMON:
        return 0.0
    here, there = first[common], second[common]
    moved = _moved(first, by)[common]
    quarters = [_less(here[part], moved[part], there[part]) for part in _quarters(here.shape)]
    if sorted(quarters)[1] < LEAST_GAIN_OF_QUARTERS:
        return 0.0
    return _less(here, moved, there)


def _less(before: Plane, after: Plane, other: Plane) -> float:
    """Return the share of a difference that is gone."""
    difference = _difference(before, other)
    return 1 - _difference(after, other) / difference if difference > 0 else 0.0


def _quarters(shape: tuple[int, ...]) -> list[tuple[slice, slice]]:
    height, width = shape[0] // 2, shape[1] // 2
    rows, columns = (slice(0, height), slice(height, 2 * height)), (slice(0, width), slice(width, 2 * width))
    return [(row, column) for row in rows for column in columns]
