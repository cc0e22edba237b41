"""From an image's size to the size it is encoded at: one resize, then one crop. Pure.

Every rule treats the two axes alike, so the transposed image gets the transposed numbers. Start with
:func:`assign_bucket`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from difftrain.errors import ConfigError
from difftrain.types import Geometry, GeometryRules, Point, Size

USUAL_ASPECTS = (9 / 16, 2 / 3, 3 / 4, 1.0, 4 / 3, 3 / 2, 16 / 9)
"""Aspects (width over height) for ``crop_aspect: random`` if the entry names none."""


def assign_bucket(size: Size, rules: GeometryRules, *, draw: random.Random | None = None) -> Geometry:
    """Return how an image of this size is resized and cropped.

    The bucket's edges are positive multiples of ``rules.alignment``, the resized image covers the bucket and
    keeps the aspect within a pixel. Without ``rules.crop`` only the few overhanging pixels are cut, at the centre.

    Args:
        size: Upright size in pixels.
        rules: The dataset entry's.
        draw: Needed only if :attr:`GeometryRules.draws`; without it, ``crop_aspect: random`` takes the closest aspect.

    Raises:
        ConfigError: If there are no crop aspects to choose from, or a name is unknown.
    """
    if not rules.crop:
        return cover_bucket(size, _own_aspect_bucket(size, rules))
    bucket = _crop_bucket(size, rules, draw)
    resize = _covering_size(size, _size_before_crop(size, bucket, rules))
    return Geometry(resize=resize, crop=_crop_corner(resize, bucket, rules, draw), bucket=bucket)


def focused(rules: GeometryRules, focus: Point | None) -> GeometryRules:
    """Return the rules for one image, whose crop is centred on its focus if that is their style."""
    return replace(rules, focus=focus) if rules.crop_style == "focus" else rules


def cover_bucket(size: Size, bucket: Size) -> Geometry:
    """Return the smallest resize that keeps the aspect and covers the bucket, cut at the centre."""
    resize = _covering_size(size, bucket)
    return Geometry(resize=resize, crop=_centred(resize, bucket), bucket=bucket)


def edge_in_pixels(value: float, resolution_type: str) -> float:
    """Return the edge that a resolution stands for: of a square image, or (``pixel``) the shorter one.

    Raises:
        ConfigError: If the resolution type is unknown.
    """
    if resolution_type == "area":
        return math.sqrt(value * 1e6)
    if resolution_type in ("pixel", "pixel_area"):
        return value
    raise ConfigError(f"resolution_type must be pixel, area or pixel_area, got {resolution_type!r}")


@dataclass(frozen=True, kw_only=True, slots=True)
class SizeLimits:
    """Limits that decide which images of a dataset are used at all."""

    resolution_type: str
    minimum_image_size: float | None = None
    """In the unit of ``resolution_type``."""
    minimum_aspect_ratio: float | None = None
    """Width divided by height."""
    maximum_aspect_ratio: float | None = None
    max_upscale: float | None = None
    """Largest enlargement of an edge, 0.2 is by a fifth; needs :attr:`rules`."""
    rules: GeometryRules | None = None


def broken_limit(size: Size, limits: SizeLimits) -> str | None:
    """Return the first option that leaves out an image of this size; None if it is used."""
    minimum = limits.minimum_image_size
    if minimum is not None and _measure(size, limits.resolution_type) < edge_in_pixels(minimum, limits.resolution_type):
        return "minimum_image_size"
    aspect = size[0] / size[1]
    if limits.minimum_aspect_ratio is not None and aspect < limits.minimum_aspect_ratio:
        return "minimum_aspect_ratio"
    if limits.maximum_aspect_ratio is not None and aspect > limits.maximum_aspect_ratio:
        return "maximum_aspect_ratio"
    if limits.max_upscale is not None and limits.rules is not None:
        # a pixel more or less is rounding
        allowed = (1 + limits.max_upscale) * min(size) + 1
        if min(_largest_resize(size, limits.rules)) > allowed:
            return "max_upscale_threshold"
    return None


def _largest_resize(size: Size, rules: GeometryRules) -> Size:
    """Return the largest size that an image may be resized to, whatever is drawn."""
    fixed = replace(rules, crop_style="center")
    if not (rules.crop and rules.crop_aspect == "random"):
        return assign_bucket(size, fixed).resize
    aspects = rules.crop_aspect_buckets or USUAL_ASPECTS
    each = [replace(fixed, crop_aspect="closest", crop_aspect_buckets=(aspect,)) for aspect in aspects]
    return max((assign_bucket(size, one).resize for one in each), key=min)


def _measure(size: Size, resolution_type: str) -> float:
    """Return an image's own edge, comparable with :func:`edge_in_pixels`."""
    return float(min(size)) if resolution_type == "pixel" else math.sqrt(size[0] * size[1])


def _scaled_to(size: Size, edge: float, resolution_type: str) -> tuple[float, float]:
    """Return the image's aspect at a resolution, not rounded."""
    width, height = size
    if resolution_type == "pixel":
        shorter = min(size)
        return edge * width / shorter, edge * height / shorter
    return edge * math.sqrt(width / height), edge * math.sqrt(height / width)


def _aligned(edge: float, alignment: int) -> int:
    return max(1, _round_half_up(edge / alignment)) * alignment


def _round_half_up(value: float) -> int:
    return math.floor(value + 0.5)


def _own_aspect_bucket(size: Size, rules: GeometryRules) -> Size:
    edge = edge_in_pixels(rules.resolution, rules.resolution_type)
    width, height = _scaled_to(size, edge, rules.resolution_type)
    return _aligned(width, rules.alignment), _aligned(height, rules.alignment)


def _covering_size(size: Size, box: Size) -> Size:
    """Return the smallest size of this aspect that covers the box; in integers only, so that it is exact."""
    width, height = size
    if box[0] * height >= box[1] * width:
        return box[0], _divide_rounded(box[0] * height, width)
    return _divide_rounded(box[1] * width, height), box[1]


def _divide_rounded(dividend: int, divisor: int) -> int:
    return (2 * dividend + divisor) // (2 * divisor)


def _crop_bucket(size: Size, rules: GeometryRules, draw: random.Random | None) -> Size:
    if rules.crop_aspect == "preserve":
        return _own_aspect_bucket(size, rules)
    edge = edge_in_pixels(rules.resolution, rules.resolution_type)
    if rules.crop_aspect == "square":
        side = _aligned(edge, rules.alignment)
        return side, side
    aspect = _chosen_aspect(size, rules, draw)
    if rules.resolution_type == "pixel":
        width, height = edge * max(1.0, aspect), edge * max(1.0, 1 / aspect)
    else:
        width, height = edge * math.sqrt(aspect), edge / math.sqrt(aspect)
    return _aligned(width, rules.alignment), _aligned(height, rules.alignment)


def _chosen_aspect(size: Size, rules: GeometryRules, draw: random.Random | None) -> float:
    if rules.crop_aspect not in ("closest", "random"):
        raise ConfigError(f"crop_aspect must be square, preserve, closest or random, got {rules.crop_aspect!r}")
    if rules.crop_aspect == "random":
        aspects = rules.crop_aspect_buckets or USUAL_ASPECTS
        return draw.choice(aspects) if draw is not None else _closest_aspect(size, aspects)
    if not rules.crop_aspect_buckets:
        raise ConfigError(
            "crop_aspect closest needs crop_aspect_buckets, a list of width / height\n"
            'hint: for example "crop_aspect_buckets": [0.75, 1.0, 1.33]'
        )
    return _closest_aspect(size, rules.crop_aspect_buckets)


def _closest_aspect(size: Size, aspects: Sequence[float]) -> float:
    own = math.log(size[0] / size[1])
    return min(aspects, key=lambda aspect: abs(math.log(aspect) - own))


def _size_before_crop(size: Size, bucket: Size, rules: GeometryRules) -> Size:
    """Return what the resized image must cover: the bucket, or more of it if a large image is only reduced."""
    if rules.maximum_image_size is None or rules.target_downsample_size is None:
        return bucket
    unit = rules.resolution_type
    if _measure(size, unit) <= edge_in_pixels(rules.maximum_image_size, unit):
        return bucket
    reduced = _scaled_to(size, edge_in_pixels(rules.target_downsample_size, unit), unit)
    return max(bucket[0], _round_half_up(reduced[0])), max(bucket[1], _round_half_up(reduced[1]))


def _crop_corner(resize: Size, bucket: Size, rules: GeometryRules, draw: random.Random | None) -> tuple[int, int]:
    """Return (left, top). ``corner`` is the lower right one, as in other trainers."""
    style = rules.crop_style
    overhang = resize[0] - bucket[0], resize[1] - bucket[1]
    if style == "center" or (style == "focus" and rules.focus is None):
        return _centred(resize, bucket)
    if style == "focus":
        assert rules.focus is not None
        left, top = (_start_around(rules.focus[axis] * resize[axis], bucket[axis], overhang[axis]) for axis in (0, 1))
        return left, top
    if style == "corner":
        return overhang
    if style == "random":
        assert draw is not None, "crop_style random needs a source of randomness"
        return draw.randint(0, overhang[0]), draw.randint(0, overhang[1])
    raise ConfigError(f"crop_style must be center, corner, random or focus, got {style!r}")


def _centred(resize: Size, bucket: Size) -> tuple[int, int]:
    return (resize[0] - bucket[0]) // 2, (resize[1] - bucket[1]) // 2


def _start_around(point: float, length: int, overhang: int) -> int:
    """Return where a box begins whose centre is as near to a point as the edges allow; of two equal ones, the first."""
    return min(max(math.ceil(point - length / 2 - 0.5), 0), overhang)
