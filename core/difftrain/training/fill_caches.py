"""Encodes what caches lack before training, each process its share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from difftrain.data.caching.sample_caches import SampleCaches, TextItem, encode_images, encode_texts
from difftrain.errors import DataError, PluginError, StoppedElsewhere
from difftrain.machine.processes import greatest
from difftrain.training.frozen_encoders import Encoders
from difftrain.types import PlacedImage, Reporter

if TYPE_CHECKING:
    from accelerate import Accelerator

Item = TypeVar("Item")


def fill_caches(
    texts: Sequence[TextItem],
    images: Sequence[PlacedImage],
    caches: SampleCaches,
    encoders: Encoders,
    accelerator: Accelerator,
    reporter: Reporter,
    *,
    batch_size: int,
) -> int:
    """Encode captions, then images; the encoders leave the device in between and afterwards.

    Args:
        texts: Equal in all processes, as are the images.
        batch_size: Images encoded at once.

    Returns:
        How many this process encoded.

    Raises:
        StoppedElsewhere: If another process failed; it has reported why.
    """
    with _all_together(accelerator):
        count = encode_texts(_share(texts, accelerator), caches, encoders.text, reporter=reporter)
        encoders.release()
        own = _share(images, accelerator)
        count += encode_images(own, caches, encoders.image, reporter=reporter, batch_size=batch_size)
        encoders.release()
    if caches.removed:
        reporter.say(f"{len(caches.removed)} damaged cache entries were removed and made again")
    return count


def _share(items: Sequence[Item], accelerator: Accelerator) -> Sequence[Item]:
    return items[accelerator.process_index :: accelerator.num_processes]


@contextmanager
def _all_together(accelerator: Accelerator) -> Iterator[None]:
    """Enter the body when all processes are there, and leave it when all have completed it.

    All must have looked for what is missing before the first writes: their shares are parts of one list.
    """
    greatest(accelerator, 0)
    completed = False
    try:
        yield
        completed = True
    except PluginError as error:  # which only the first process prints, as all find it; but shares are different
        raise DataError(*error.problems) from error
    finally:
        stopped = greatest(accelerator, 0 if completed else 1)
    if stopped:
        raise StoppedElsewhere
