"""How a run encodes its images and captions: number formats, cache keys, bytes. No torch.

The encoders themselves are in `frozen_encoders.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

from difftrain.config.options import Options
from difftrain.config.schema import RunConfig
from difftrain.data.caching.sample_caches import SampleCaches, TextItem
from difftrain.data.entries.data_plan import DataPlan
from difftrain.machine.disk import Need, files_bytes
from difftrain.planning.model_plan import ModelPlan
from difftrain.types import ModelLocation, PlacedImage, Size

_IMAGE_DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
_HEADER = 256
"""Approximate bytes of a safetensors file in addition to its tensors."""


def compute_dtype(config: RunConfig) -> str:
    """Return torch's name of the number format for the model and the text encoders."""
    return "bfloat16" if config.mixed_precision == "bf16" else "float32"


def image_dtype(config: RunConfig) -> str:
    """Return torch's name of the number format for the image encoder."""
    return _IMAGE_DTYPES.get(config.vae_dtype, compute_dtype(config))


def image_identity(plan: ModelPlan, location: ModelLocation) -> str:
    """Return what changes latents: the family's identity, the number format, and tiling, whose seams show."""
    tiling = "|tiled" if plan.config.vae_enable_tiling else ""
    return f"{plan.family.image_identity(location)}|torch.{image_dtype(plan.config)}{tiling}"


def text_identity(plan: ModelPlan, location: ModelLocation) -> str:
    """Return what changes text embeddings: the family's identity, the number format, and the encoders' precisions."""
    quantised = "".join(
        f"|{number}:{quantizer.name}{''.join(_not_default(quantizer))}"
        for number, quantizer in enumerate(plan.text_quantizers, 1)
        if quantizer is not None
    )
    return f"{plan.family.text_identity(location, plan.flavour)}|torch.{compute_dtype(plan.config)}{quantised}"


def model_identity(plan: ModelPlan, location: ModelLocation) -> str:
    """Return content and formats of the frozen model, which tell measurements of different models apart."""
    parts = (
        location.identity,
        *([location.denoiser.identity] if location.denoiser else []),
        plan.flavour.name,
        *_not_default(plan.flavour),
        plan.config.base_model_precision,
        *_not_default(plan.quantizer),
        compute_dtype(plan.config),
        image_identity(plan, location),
        text_identity(plan, location),
    )
    return "|".join(parts)


def _not_default(options: Options | None) -> list[str]:
    """Return the values that differ from their defaults, so that a new option left out changes no identity."""
    return [] if options is None else [*map(str, options.model_dump(mode="json", exclude_defaults=True).items())]


def open_caches(plan: ModelPlan, data: DataPlan, location: ModelLocation) -> SampleCaches:
    """Return the run's caches; their keys depend on everything that changes the encoders' results."""
    return SampleCaches(
        data,
        image_identity=image_identity(plan, location),
        text_identity=text_identity(plan, location),
        text_view=partial(plan.family.text_view, flavour=plan.flavour) if plan.family.text_sees_references else None,
    )


def room_needed(
    plan: ModelPlan,
    data: DataPlan,
    location: ModelLocation,
    caches: SampleCaches,
    *,
    texts: Sequence[TextItem],
    images: Iterable[PlacedImage],
) -> list[Need]:
    """Return the room that the entries of these captions and images will take."""
    config, family = plan.config, plan.family
    seen = {folder: Counter[tuple[Size, ...]]() for folder in data.text_folders}
    for item in texts:
        seen[item.folder or data.text_folder][tuple(caches.sizes_seen(item))] += 1
    text_bytes = partial(family.text_bytes, location, plan.flavour, _value_bytes(compute_dtype(config)))
    needs = [
        _need(
            "text embeddings",
            folder,
            sum(counts.values()),
            sum(_entries_bytes(count, text_bytes(views)) for views, count in counts.items()),
        )
        for folder, counts in seen.items()
    ]
    owners = {dataset.latents_folder: dataset.id for dataset in data.datasets}
    files: Counter[Path] = Counter()
    sizes: Counter[Path] = Counter()
    for image in images:
        folder = caches.latents(image)[0].folder
        size = family.latents_bytes(location, image.geometry.bucket, _value_bytes(image_dtype(config)))
        if "std" not in caches.latents_needed(image):  # as large as the mean
            size //= 2
        files[folder] += 1
        sizes[folder] += _entries_bytes(1, size)
    latents = (_need(f"latents of {owners[folder]!r}", folder, count, sizes[folder]) for folder, count in files.items())
    return [need for need in (*needs, *latents) if need.files]


def _need(what: str, folder: Path, files: int, size: int) -> Need:
    return Need(folder=folder, what=what, files=files, bytes=size, option="cache_dir")


def _entries_bytes(count: int, each: int) -> int:
    return files_bytes(count, each + _HEADER) if each else 0


def _value_bytes(dtype: str) -> int:
    return 4 if dtype == "float32" else 2
