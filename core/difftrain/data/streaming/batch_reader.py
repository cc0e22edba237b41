"""Turns planned visits into a batch of cached tensors; corrupt entries are encoded again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from difftrain.contracts import ImageEncoder, ModelFamily, TextEncoder
from difftrain.data.caching.decoded_groups import load_pixels
from difftrain.data.caching.sample_caches import SampleCaches, TextItem, embed_texts
from difftrain.data.caching.tensor_cache import AbsentEntry, check_finite
from difftrain.data.seeding import derive_seed
from difftrain.data.streaming.epoch_plan import Visit
from difftrain.data.streaming.sample_extras import SampleExtras, stack_extras
from difftrain.types import Batch, PlacedImage

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Reencoder:
    """Encodes corrupt entries again during training; encoders are loaded when first needed."""

    image_encoder: Callable[[], ImageEncoder]
    text_encoder: Callable[[], TextEncoder]
    release: Callable[[], None]
    """Moves the encoders off the device again, if the model in training needs the room."""
    in_use: AbstractContextManager[object]
    """Hold it while using an encoder, so that nobody else moves it. Reentrant."""


class BatchReader:
    """Turns visits into a batch of cached tensors."""

    def __init__(
        self,
        caches: SampleCaches,
        family: ModelFamily,
        reencoder: Reencoder,
        *,
        seed: int,
        sample_latents: bool,
        extras: SampleExtras | None = None,
    ) -> None:
        """With ``sample_latents`` a target is drawn from its posterior at each visit; references use the mean."""
        self._caches = caches
        self._family = family
        self._reencoder = reencoder
        self._seed = seed
        self._sample_latents = sample_latents
        self._extras = extras
        self._remade_texts = False
        self._remade_images = False
        self._burst = False
        """Whether images are being encoded as planned, and the encoder stays for the next batch."""
        self._pool = ThreadPoolExecutor(max_workers=8, thread_name_prefix="read-cache")

    def read(self, visits: Sequence[Visit]) -> Batch:
        """Return the batch of some visits; a visit gives the same tensors in every batch.

        Absent or corrupt entries are made again, for all of a batch with the encoders loaded once. Where that is
        planned of images, the image encoder stays on the device until a batch needs it no more.

        Raises:
            DataError: If an existing entry cannot be read, or an image to encode again cannot.
            PluginError: If the family or the loss does not provide its extras of the samples.
        """
        try:
            return self._read(visits)
        finally:
            self._release()

    def text(self, item: TextItem) -> dict[str, Tensor]:
        """Return the embeddings of one caption, from the cache."""
        try:
            return self._text(item)
        finally:
            self._release()

    def extras_identity(self, visit: Visit) -> str:
        """Return a text that identifies a visit's extras for family and loss; empty if there are none."""
        return self._extras.identity(visit.sample) if self._extras else ""

    def _read(self, visits: Sequence[Visit]) -> Batch:
        import torch

        targets = [visit.sample.target for visit in visits]
        slots = range(len(visits[0].references))
        texts = [
            self._caches.item(visit.caption, visit.references, dataset_id=visit.sample.dataset_id) for visit in visits
        ]
        moments = self._pool.map(self._latents, targets)
        references = [self._pool.map(self._latents, [visit.references[slot] for visit in visits]) for slot in slots]
        embeds = self._pool.map(self._text, texts)
        extras = self._pool.map(self._extras.of, [visit.sample for visit in visits]) if self._extras else ()
        keys = tuple(visit.name for visit in visits)
        return Batch(
            latents=torch.stack([self._draw(entry, visit) for entry, visit in zip(moments, visits, strict=True)]),
            references=[torch.stack([entry["mean"] for entry in slot]) for slot in references],
            text=self._family.collate_text(list(embeds)),
            keys=keys,
            extras=stack_extras(list(extras), keys) if self._extras else {},
            noise_offsets=torch.tensor(offsets) if any(offsets := [visit.noise_offset for visit in visits]) else None,
            regularises=visits[0].regularises,
            strength=visits[0].strength,
        )

    def _draw(self, moments: dict[str, Tensor], visit: Visit) -> Tensor:
        import torch

        mean, std = moments["mean"], moments["std"]
        if not self._sample_latents:
            return mean.float()
        generator = torch.Generator().manual_seed(derive_seed(self._seed, "posterior", visit.number))
        return mean.float() + std.float() * torch.randn(mean.shape, generator=generator)

    def _latents(self, image: PlacedImage) -> dict[str, Tensor]:
        cache, key = self._caches.latents(image)
        needed = self._caches.latents_needed(image)
        if not self._caches.stores(image):
            encoded = self._encoded(image, needed)
            check_finite(encoded)
            return encoded
        try:
            return cache.read(key, needed=needed)
        except AbsentEntry:
            cache.write(key, self._encoded(image, needed))
            return cache.read(key, needed=needed)

    def _encoded(self, image: PlacedImage, needed: Sequence[str]) -> dict[str, Tensor]:
        pixels = load_pixels([image])
        with self._reencoder.in_use:
            self._remade_images = True
            self._burst |= self._caches.encodes_in_training(image)
            mean, std = self._reencoder.image_encoder().encode(pixels)
        made = {"mean": mean[0], "std": std[0]}
        return {name: made[name] for name in needed}

    def _text(self, item: TextItem) -> dict[str, Tensor]:
        cache, key = self._caches.text(item)
        try:
            return cache.read(key)
        except AbsentEntry:
            with self._reencoder.in_use:
                self._remade_texts = True
                embeds = embed_texts([item], self._caches, self._reencoder.text_encoder())[0]
            cache.write(key, embeds)
            return cache.read(key)

    def _release(self) -> None:
        """Let the encoders leave the device, unless the next batch will probably need the image encoder again."""
        remade, self._remade_images = self._remade_images, False
        if self._remade_texts or (not remade and self._burst) or (remade and not self._burst):
            with self._reencoder.in_use:
                self._remade_texts = self._burst = False
                self._reencoder.release()
