"""Clears the cache of crops that no epoch shows any more: ``vae_cache_clear_each_epoch``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from difftrain.data.caching.sample_caches import SampleCaches, every_image
from difftrain.types import PlacedImage, Reporter, Sample


class OldCrops:
    """Entries of the last epoch's crops, to be removed when the next epoch has begun."""

    def __init__(
        self,
        samples: Sequence[Sample],
        placed: Callable[[Sample, int], Sample],
        caches: SampleCaches,
        *,
        kept: Iterable[Sample],
    ) -> None:
        """Know the samples with new crops.

        Args:
            samples: Those that have new crops, as the first epoch shows them.
            placed: Gives a sample the crops of an epoch.
            kept: Samples whose entries stay, because validations read them.
        """
        self._samples = samples
        self._placed = placed
        self._caches = caches
        self._kept = set(map(self._place, every_image(kept)))

    def clear(self, epoch: int, reporter: Reporter) -> int:
        """Remove what the epoch before this one showed and this one does not; return the number of entries.

        Raises:
            DataError: If an entry cannot be removed.
        """
        if epoch == 0 or not self._samples:
            return 0
        now = set(map(self._place, every_image(self._placed(sample, epoch) for sample in self._samples)))
        before = dict.fromkeys(every_image(self._placed(sample, epoch - 1) for sample in self._samples))
        removed = 0
        with reporter.phase(f"clear crops of epoch {epoch}", len(before)) as phase:
            for image in before:
                cache, key = self._caches.latents(image)
                if self._place(image) not in now and self._place(image) not in self._kept:
                    removed += cache.discard(key)
                phase.advance(item=image.record.key)
        return removed

    def _place(self, image: PlacedImage) -> tuple[str, str]:
        cache, key = self._caches.latents(image)
        return str(cache.folder), key
