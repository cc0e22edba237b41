"""Whether the flavour can take the samples: how many references they have, and how large they are."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from difftrain.data.packed.sample_table import Numbers, SampleTable
from difftrain.errors import DataError, first_few
from difftrain.types import Sample, Size


def check_counts(samples: Sequence[Sample], most: int, *, flavour: str) -> None:
    """Check that no sample has more references at once than the model can take.

    The config tells how many come from reference sets and generators; only the images tell how many come from rows.

    Args:
        samples: All samples to train on or to measure.
        most: :attr:`~difftrain.contracts.ModelFlavour.max_references` of the flavour.
        flavour: Name of the flavour.

    Raises:
        DataError: Naming the images of each dataset.
    """
    totals = SampleTable.of(samples).counts()
    crowded: dict[str, list[str]] = defaultdict(list)
    for sample in _those_with(samples, lambda counts: counts > most):
        count = max(len(choice.references) for choice in sample.choices)
        crowded[sample.dataset_id].append(f"{sample.target.record.name} ({count})")
    problems = [
        f"dataset {dataset_id!r}: {len(names)} of {totals[dataset_id]} images have more references than flavour "
        f"{flavour!r} can take, {most}: {first_few(names)}\n"
        "hint: take references out of their rows, or set another model_flavour"
        for dataset_id, names in crowded.items()
    ]
    if problems:
        raise DataError(*problems)


def check_has_references(samples: Sequence[Sample], *, flavour: str) -> None:
    """Check that every sample has a reference, whichever of its choices is drawn.

    The config tells this of reference sets and generators; only the images tell it of rows.

    Args:
        samples: All samples to train on or to measure.
        flavour: Name of the flavour that needs references.

    Raises:
        DataError: Naming the images of each dataset.
    """
    totals = SampleTable.of(samples).counts()
    plain: dict[str, list[str]] = defaultdict(list)
    for sample in _those_with(samples, lambda counts: counts == 0):
        plain[sample.dataset_id].append(sample.target.record.name)
    problems = [
        f"dataset {dataset_id!r}: {len(names)} of {totals[dataset_id]} images have no reference, but flavour "
        f"{flavour!r} needs one for every image: {first_few(names)}\n"
        "hint: add the references to the data source, or name a reference set in conditioning_data"
        for dataset_id, names in plain.items()
    ]
    if problems:
        raise DataError(*problems)


def check_areas(samples: Iterable[Sample], most: int, *, flavour: str) -> None:
    """Check that no image would be encoded larger than the model can take.

    Args:
        samples: All samples to train on or to measure.
        most: :attr:`~difftrain.contracts.ModelFlavour.max_pixels` of the flavour.
        flavour: Name of the flavour.

    Raises:
        DataError: Naming the images of each dataset.
    """
    images: dict[str, dict[str, Size]] = defaultdict(dict)
    for sample in samples:
        for image in (sample.target, *(image for choice in sample.choices for image in choice.references)):
            images[image.record.dataset_id][image.record.name] = image.geometry.bucket
    problems = []
    for dataset_id, sizes in images.items():
        large = {name: (width, height) for name, (width, height) in sizes.items() if width * height > most}
        if large:
            names = first_few(f"{name} ({width}x{height})" for name, (width, height) in large.items())
            problems.append(
                f"dataset {dataset_id!r}: {len(large)} of {len(sizes)} images would be encoded larger than flavour "
                f"{flavour!r} can take, {most:,} pixels: {names}\n"
                "hint: lower its resolution, or that of the edits where references follow them"
            )
    if problems:
        raise DataError(*problems)


def _those_with(samples: Sequence[Sample], wanted: Callable[[Numbers], npt.NDArray[np.bool_]]) -> Iterator[Sample]:
    """Yield the samples that have a choice with a number of references that is asked for."""
    table = SampleTable.of(samples)
    choices = np.flatnonzero(wanted(table.reference_counts()))
    for place in np.unique(np.searchsorted(table.first, choices, side="right") - 1).tolist():
        yield samples[place]
