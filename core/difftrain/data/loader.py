"""The endless stream of batches: resumable by position, read ahead, pinned for the GPU."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from difftrain.contracts import ImageEncoder, ModelFamily, TextEncoder
from difftrain.data.cache import AbsentEntry
from difftrain.data.encode import LATENTS, SampleCaches, TextItem, embed_texts, load_pixels
from difftrain.data.epoch import EpochRules, Visit, plan_epoch
from difftrain.data.seeding import derive_seed
from difftrain.types import Batch, PlacedImage, Sample

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Position:
    """How far a stream has come, counted in samples so that another batch size or process count can go on."""

    epoch: int = 0
    samples: int = 0
    """Samples of this epoch that all processes together have taken."""


@dataclass(frozen=True, kw_only=True)
class Remake:
    """How to encode again what turns out to be corrupt while training; encoders load when first needed."""

    image_encoder: Callable[[], ImageEncoder]
    text_encoder: Callable[[], TextEncoder]
    let_go: Callable[[], None]
    """Takes the encoders off the device again, where the model in training needs the room."""
    in_use: AbstractContextManager[object]
    """Held by whoever works with an encoder: nobody else moves it meanwhile. May be entered again."""


class BatchReader:
    """Turns visits into a batch of cached tensors."""

    def __init__(
        self, caches: SampleCaches, family: ModelFamily, remake: Remake, *, seed: int, sample_latents: bool
    ) -> None:
        """With ``sample_latents`` a target is drawn from its posterior each visit; references use the mean."""
        self._caches = caches
        self._family = family
        self._remake = remake
        self._seed = seed
        self._sample_latents = sample_latents
        self._remade = False
        self._pool = ThreadPoolExecutor(max_workers=8, thread_name_prefix="read-cache")

    def read(self, visits: Sequence[Visit], *, epoch: int, index: int) -> Batch:
        """The batch at a place in an epoch; equal places give equal tensors.

        Entries that are absent or corrupt are made again, all of a batch with the encoders loaded once.

        Raises:
            DataError: If an entry is there but cannot be read, or a picture that is to be encoded again cannot.
        """
        try:
            return self._read(visits, epoch=epoch, index=index)
        finally:
            self._let_go()

    def text(self, item: TextItem) -> dict[str, Tensor]:
        """Embeddings of one caption, from the cache."""
        try:
            return self._text(item)
        finally:
            self._let_go()

    def _read(self, visits: Sequence[Visit], *, epoch: int, index: int) -> Batch:
        import torch

        generator = torch.Generator().manual_seed(derive_seed(self._seed, "posterior", epoch, index))
        targets = [visit.sample.target for visit in visits]
        slots = range(len(visits[0].references))
        texts = [TextItem(caption=visit.caption, references=visit.references) for visit in visits]
        moments = self._pool.map(self._latents, targets)
        references = [self._pool.map(self._latents, [visit.references[slot] for visit in visits]) for slot in slots]
        embeds = self._pool.map(self._text, texts)
        return Batch(
            latents=torch.stack([self._draw(entry, generator) for entry in moments]),
            references=[torch.stack([entry["mean"] for entry in slot]) for slot in references],
            text=self._family.collate_text(list(embeds)),
            keys=tuple(visit.name for visit in visits),
        )

    def _draw(self, moments: dict[str, Tensor], generator: torch.Generator) -> Tensor:
        import torch

        mean, std = moments["mean"], moments["std"]
        if not self._sample_latents:
            return mean.float()
        return mean.float() + std.float() * torch.randn(mean.shape, generator=generator)

    def _latents(self, image: PlacedImage) -> dict[str, Tensor]:
        cache, key = self._caches.latents(image)
        try:
            return cache.read(key, needed=LATENTS)
        except AbsentEntry:
            pixels = load_pixels([image])
            with self._remake.in_use:
                self._remade = True
                mean, std = self._remake.image_encoder().encode(pixels)
            cache.write(key, {"mean": mean[0], "std": std[0]})
            return cache.read(key, needed=LATENTS)

    def _text(self, item: TextItem) -> dict[str, Tensor]:
        cache, key = self._caches.text(item)
        try:
            return cache.read(key)
        except AbsentEntry:
            with self._remake.in_use:
                self._remade = True
                embeds = embed_texts([item], self._remake.text_encoder())[0]
            cache.write(key, embeds)
            return cache.read(key)

    def _let_go(self) -> None:
        if self._remade:  # else nothing is to be waited for
            with self._remake.in_use:
                self._remade = False
                self._remake.let_go()


class BatchStream:
    """Batches without end, from a position, for one of several processes."""

    def __init__(
        self,
        samples: Sequence[Sample],
        rules: EpochRules,
        reader: BatchReader,
        *,
        start: Position,
        process: int = 0,
        processes: int = 1,
        pin_memory: bool = False,
        ahead: int = 3,
    ) -> None:
        self._samples = samples
        self._rules = rules
        self._reader = reader
        self._start = start
        self._process = process
        self._processes = processes
        self._pin_memory = pin_memory
        self._ahead = ahead
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="read-batch")

    def __iter__(self) -> Iterator[tuple[Batch, Position]]:
        """Yields a batch and the position after it; the next ones are read meanwhile."""
        waiting: deque[tuple[Future[Batch], Position]] = deque()
        for visits, index, position in self._places():
            waiting.append((self._pool.submit(self._read, visits, position.epoch, index), position))
            if len(waiting) > self._ahead:
                batch, reached = waiting.popleft()
                yield batch.result(), reached

    def close(self) -> None:
        """Stop reading ahead."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def batches_per_epoch(self) -> int:
        """Rounds of the first epoch: batches a process; other epochs may differ when draws change shapes."""
        return -(-len(plan_epoch(self._samples, 0, self._rules)) // self._processes)

    def _read(self, visits: Sequence[Visit], epoch: int, index: int) -> Batch:
        batch = self._reader.read(visits, epoch=epoch, index=index)
        return _pinned(batch) if self._pin_memory else batch

    def _places(self) -> Iterator[tuple[tuple[Visit, ...], int, Position]]:
        """This process's batches with their index in the epoch and the position after the round they are in."""
        epoch, skip = self._start.epoch, self._start.samples
        while True:
            batches = plan_epoch(self._samples, epoch, self._rules)
            seen = 0
            for first in range(0, len(batches), self._processes):
                # a short last round starts over, so that every process has a batch
                taken = [(first + offset) % len(batches) for offset in range(self._processes)]
                seen += sum(len(batches[index]) for index in taken)
                if seen > skip:
                    mine = taken[self._process]
                    yield batches[mine], mine, Position(epoch=epoch, samples=seen)
            epoch, skip = epoch + 1, 0


def _pinned(batch: Batch) -> Batch:
    return Batch(
        latents=batch.latents.pin_memory(),
        references=[reference.pin_memory() for reference in batch.references],
        text={name: tensor.pin_memory() for name, tensor in batch.text.items()},
        keys=batch.keys,
    )
