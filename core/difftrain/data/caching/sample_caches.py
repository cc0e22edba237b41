"""Fill the caches: encode every text and image that training will read, once.

The encoders are loaded only if something is missing, and freed afterwards.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from difftrain.contracts import ImageEncoder, TextEncoder
from difftrain.data.caching.cache_listing import absent_keys
from difftrain.data.caching.decoded_groups import decoded_groups
from difftrain.data.caching.tensor_cache import TensorCache, cache_key
from difftrain.data.caching.text_views import TextViews
from difftrain.data.entries.data_plan import DataPlan
from difftrain.errors import first_few
from difftrain.types import Phase, PlacedImage, Reporter, Sample, Size, TextEmbeds

if TYPE_CHECKING:
    from PIL import Image

TARGET_LATENTS = ("mean", "std")
"""Names of the tensors in the entry of an image that is drawn from its posterior."""
REFERENCE_LATENTS = ("mean",)
"""Names of the tensors in the entry of an image that only conditions others: half the disk."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TextItem:
    """A caption, with the references that the family's text encoder sees along with it, if it sees any."""

    caption: str
    references: tuple[PlacedImage, ...] = ()
    folder: Path | None = None
    """Where it is cached; None is the run's folder of text embeddings."""


class SampleCaches:
    """The caches of all encoded images and captions of a run."""

    def __init__(
        self, plan: DataPlan, *, image_identity: str, text_identity: str, text_view: Callable[[Size], Size] | None
    ) -> None:
        """Identities are what the family says changes its latents and text embeddings, including the dtype.

        Args:
            text_view: Gives the size of a reference for the text encoder; None if it sees no references.
        """
        self._image_identity = image_identity
        self._text_identity = text_identity
        self._views = TextViews(text_view) if text_view is not None else None
        self._texts: dict[Path | None, TensorCache] = {None: TensorCache(plan.text_folder)}
        self._text_folders = {dataset.id: dataset.text_folder for dataset in plan.datasets}
        for folder in plan.text_folders[1:]:
            self._texts[folder] = TensorCache(folder)
        self._only_references = {dataset.id for dataset in plan.datasets if dataset.is_reference}
        self._unstored, self._on_demand, self._drawn = set[str](), set[str](), set[str]()
        self._latents: dict[str, TensorCache] = {}
        for dataset in plan.datasets:
            cache = TensorCache(dataset.latents_folder)
            self._latents[dataset.id] = cache
            self._latents.update({generator.id: cache for generator in dataset.generators})
            self._only_references.update(generator.id for generator in dataset.generators)
            ids = (dataset.id, *(generator.id for generator in dataset.generators))
            if not dataset.latents_stored:
                self._unstored.update(ids)
            if dataset.draws_each_epoch:
                self._drawn.update((*ids, *dataset.references))
            if dataset.latents_on_demand or not dataset.latents_stored:
                self._on_demand.update(ids)

    def latents(self, image: PlacedImage) -> tuple[TensorCache, str]:
        """Return cache and key of an image's latents."""
        key = cache_key(image.record.content_hash, image.geometry.identity, self._image_identity)
        return self._latents[image.record.dataset_id], key

    def stores(self, image: PlacedImage) -> bool:
        """Whether an image's latents are kept in its cache."""
        return image.record.dataset_id not in self._unstored

    def encodes_on_demand(self, image: PlacedImage) -> bool:
        """Whether an image is encoded when a batch first needs it, not before the first step."""
        return image.record.dataset_id in self._on_demand

    def encodes_in_training(self, image: PlacedImage) -> bool:
        """Whether that is planned of an image: those encoded on demand, and those whose crops are drawn each epoch."""
        return image.record.dataset_id in self._on_demand or image.record.dataset_id in self._drawn

    @property
    def encode_in_training(self) -> bool:
        """Whether that is planned of any image."""
        return bool(self._on_demand or self._drawn)

    def latents_needed(self, image: PlacedImage) -> tuple[str, ...]:
        """Return the names of the tensors that an image's entry has to have; one of an older version has more."""
        return REFERENCE_LATENTS if image.record.dataset_id in self._only_references else TARGET_LATENTS

    def text(self, item: TextItem) -> tuple[TensorCache, str]:
        """Return cache and key of a caption's embeddings."""
        return self._texts[item.folder], cache_key(self._text_identity, item.caption, *self.seen(item))

    def text_cache(self, folder: Path | None = None) -> TensorCache:
        """Return the cache of the text embeddings in a folder; None is the run's."""
        return self._texts[folder]

    def item(self, caption: str, references: tuple[PlacedImage, ...] = (), *, dataset_id: str) -> TextItem:
        """Return a caption of a target set, as it is cached for that set."""
        return TextItem(caption=caption, references=references, folder=self._text_folders[dataset_id])

    def seen(self, item: TextItem) -> list[str]:
        """Return the identities of the references that the text encoder sees with a caption; empty if it sees none."""
        return [self._views.identity(image) for image in item.references] if self._views else []

    def sizes_seen(self, item: TextItem) -> list[Size]:
        """Return the sizes of the references that the text encoder sees with a caption."""
        return [self._views.size(image) for image in item.references] if self._views else []

    def load_seen(self, item: TextItem) -> list[Image.Image]:
        """Return the references that the text encoder sees with a caption, ready to encode."""
        return [self._views.load(image) for image in item.references] if self._views else []

    def text_items(
        self, samples: Iterable[Sample], *, caption_dropout: bool, reference_dropout: bool
    ) -> Iterator[TextItem]:
        """Yield every caption that training may ask for, with every set of references it may come with.

        Args:
            caption_dropout: Whether a visit may lose its caption.
            reference_dropout: Whether a visit may lose its references.
        """
        yield TextItem(caption="")
        for sample in samples:
            for choice in sample.choices:
                captions = sample.captions if choice.captions is None else choice.captions
                beside = choice.references if self._views else ()
                for references in (beside, ()) if beside and reference_dropout else (beside,):
                    for caption in (*captions, "") if caption_dropout else captions:
                        yield self.item(caption, references, dataset_id=sample.dataset_id)

    @property
    def folders(self) -> set[Path]:
        return {cache.folder for cache in (*self._texts.values(), *self._latents.values())}

    @property
    def removed(self) -> list[str]:
        """Keys of corrupt entries that were removed."""
        return [
            key
            for cache in {id(c): c for c in (*self._texts.values(), *self._latents.values())}.values()
            for key in cache.removed
        ]


def encode_texts(
    items: Iterable[TextItem],
    caches: SampleCaches,
    load: Callable[[], TextEncoder],
    *,
    reporter: Reporter,
    batch_size: int = 8,
) -> int:
    """Encode the captions that are not cached; return their number."""
    waiting = missing_texts(items, caches)
    if not waiting:
        return 0
    with reporter.phase("load text encoders"):
        encoder = load()
    _note_cut_captions([item.caption for item in waiting], encoder, reporter)
    with reporter.phase("encode captions", len(waiting)) as phase:
        for group in _alike(waiting, caches, batch_size):
            for item, embeds in zip(group, embed_texts(group, caches, encoder), strict=True):
                cache, key = caches.text(item)
                cache.write(key, embeds)
                phase.advance(item=item.caption[:60])
    return len(waiting)


def _alike(items: Sequence[TextItem], caches: SampleCaches, batch_size: int) -> Iterator[list[TextItem]]:
    """Yield groups of captions that come with equally many references."""
    by_count: dict[int, list[TextItem]] = defaultdict(list)
    for item in items:
        by_count[len(caches.seen(item))].append(item)
    for group in by_count.values():
        yield from (group[start : start + batch_size] for start in range(0, len(group), batch_size))


def _note_cut_captions(captions: Sequence[str], encoder: TextEncoder, reporter: Reporter) -> None:
    cut = encoder.cut_captions(captions)
    if cut:
        length = "what" if encoder.max_tokens is None else f"the {encoder.max_tokens} tokens that"
        names = first_few(f'"{caption[:30]}..."' for caption in cut)
        reporter.say(
            f"note: {len(cut)} of {len(captions)} captions are longer than {length} the text encoder reads, and are "
            f"cut: {names}"
        )


def missing_texts(items: Iterable[TextItem], caches: SampleCaches, phase: Phase | None = None) -> list[TextItem]:
    """Return the captions that are not cached, each once; ``phase`` counts all that were looked up."""
    by_place: dict[tuple[Path | None, str], TextItem] = {}
    for item in items:
        by_place.setdefault((item.folder, caches.text(item)[1]), item)
    missing: set[tuple[Path | None, str]] = set()
    for folder in dict.fromkeys(folder for folder, _ in by_place):
        keys = [key for of, key in by_place if of == folder]
        missing |= {(folder, key) for key in absent_keys(caches.text_cache(folder), keys, phase)}
    return [item for place, item in by_place.items() if place in missing] if missing else []


def embed_texts(items: Sequence[TextItem], caches: SampleCaches, encoder: TextEncoder) -> list[TextEmbeds]:
    """Return the embeddings of captions that come with equally many references, which are loaded here."""
    images = [caches.load_seen(item) for item in items]
    return encoder.encode([item.caption for item in items], images if any(images) else None)


def encode_images(
    images: Iterable[PlacedImage],
    caches: SampleCaches,
    load: Callable[[], ImageEncoder],
    *,
    reporter: Reporter,
    batch_size: int = 1,
) -> int:
    """Encode the images that are not cached; return their number."""
    missing = missing_images(images, caches)
    if not missing:
        return 0
    with reporter.phase("load image encoder"):
        encoder = load()
    with reporter.phase("encode images", len(missing)) as phase:
        for group, pixels in decoded_groups(missing, batch_size):
            mean, std = encoder.encode(pixels)
            for index, image in enumerate(group):
                cache, key = caches.latents(image)
                made = {"mean": mean[index].clone(), "std": std[index].clone()}
                cache.write(key, {name: made[name] for name in caches.latents_needed(image)})
            phase.advance(len(group), item=group[-1].record.image.place)
    return len(missing)


def missing_images(
    images: Iterable[PlacedImage], caches: SampleCaches, phase: Phase | None = None
) -> list[PlacedImage]:
    """Return the images that are not cached, each once; ``phase`` counts all that were looked up.

    Those of sets whose latents are not stored are always among them.
    """
    first: dict[tuple[str, str], PlacedImage] = {}
    asked: dict[tuple[str, tuple[str, ...]], tuple[TensorCache, list[str]]] = {}
    asked_of: dict[str, list[str]] = {}
    unstored: set[tuple[str, str]] = set()
    for image in images:
        cache, key = caches.latents(image)
        place = cache.name, key
        if place in first:
            continue
        first[place] = image
        keys = asked_of.get(image.record.dataset_id)  # there may be very many images of a dataset
        if keys is not None:
            keys.append(key)
        elif caches.stores(image):
            _, keys = asked.setdefault((cache.name, caches.latents_needed(image)), (cache, []))
            keys.append(key)
            asked_of[image.record.dataset_id] = keys
        else:
            unstored.add(place)
    absent = {
        (name, key)
        for (name, needed), (cache, keys) in asked.items()
        for key in absent_keys(cache, keys, phase, needed=needed)
    }
    if not absent and not unstored:
        return []
    return [image for place, image in first.items() if place in absent or place in unstored]


def every_image(samples: Iterable[Sample]) -> Iterator[PlacedImage]:
    """Yield targets and all references that any choice names, with repetitions."""
    for sample in samples:
        yield sample.target
        for choice in sample.choices:
            yield from choice.references
