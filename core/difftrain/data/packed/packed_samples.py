"""A sequence of samples that holds them as text and arrays, and makes each one when it is asked for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, overload

import numpy.typing as npt

from difftrain.data.packed.packed_images import ImageRows, JsonRows, Row, captions_text
from difftrain.data.packed.sample_table import SampleTable
from difftrain.types import ReferenceChoice, Sample

_NO_REFERENCES = (ReferenceChoice(references=()),)


class PackedSamples(Sequence[Sample]):
    """Samples, each made when asked for: equal each time, but not the same object."""

    def __init__(self, rows: ImageRows, samples: JsonRows, table: SampleTable) -> None:
        self._rows, self._samples = rows, samples
        self.table = table
        """What the plan of an epoch needs."""

    @classmethod
    def of(cls, samples: Iterable[Sample]) -> PackedSamples:
        """Return samples as a packed sequence."""
        if isinstance(samples, cls):
            return samples
        rows, table = ImageRows(), SampleTable()

        def text(sample: Sample) -> str:
            table.add(sample)
            return _text(rows, sample)

        return cls(rows, JsonRows.of_texts(map(text, samples)), table)

    def __len__(self) -> int:
        return len(self._samples)

    @overload
    def __getitem__(self, place: int) -> Sample: ...

    @overload
    def __getitem__(self, place: slice) -> Sequence[Sample]: ...

    def __getitem__(self, place: int | slice) -> Sample | Sequence[Sample]:
        if isinstance(place, slice):
            return [_sample(self._rows, row) for row in self._samples[place]]
        return _sample(self._rows, self._samples[place])

    def __iter__(self) -> Iterator[Sample]:
        rows = self._rows
        for row in self._samples:
            yield _sample(rows, row)

    def state(self) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]] | None:
        """Return plain JSON values and arrays that :meth:`restored` makes equal samples from.

        None if some of their images are more than files.
        """
        if not self._rows.are_plain:
            return None
        shared = {"rows": self._rows.shared(), "datasets": self.table.datasets, "shapes": self.table.shapes}
        return shared, {**self._samples.arrays(), **self.table.arrays()}

    @classmethod
    def restored(cls, shared: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> PackedSamples:
        """Return the samples of a :meth:`state`."""
        table_arrays = {name: values for name, values in arrays.items() if name not in ("text", "ends")}
        table = SampleTable.restored(shared["datasets"], shared["shapes"], table_arrays)
        return cls(ImageRows.restored(shared["rows"]), JsonRows.restored(arrays), table)


def _text(rows: ImageRows, sample: Sample) -> str:
    """Return the row of a sample as JSON."""
    own = None if sample.captions == sample.target.record.captions else sample.captions
    choices = "null"
    first = sample.choices[0]
    if len(sample.choices) > 1 or first.references or first.captions is not None:
        choices = f"[{','.join([_choice_text(rows, choice) for choice in sample.choices])}]"
    dataset = rows.place(rows.datasets, sample.dataset_id)
    return f"[{dataset},{rows.text(sample.target)},{captions_text(own)},{choices}]"


def _choice_text(rows: ImageRows, choice: ReferenceChoice) -> str:
    references = choice.references
    images = ",".join(map(rows.text, references)) if len(references) != 1 else rows.text(references[0])
    return f"[[{images}],{captions_text(choice.captions)}]"


def _sample(rows: ImageRows, row: Row) -> Sample:
    dataset, target_row, captions, choices = row
    target = rows.image(target_row)
    own = target.record.captions if captions is None else tuple(captions)
    assert own is not None, "a sample without captions of its own has its target's"
    return Sample(
        dataset_id=rows.datasets[dataset],
        target=target,
        captions=own,
        choices=_NO_REFERENCES if choices is None else tuple(_choice(rows, *choice) for choice in choices),
    )


def _choice(rows: ImageRows, images: Sequence[Row], captions: Sequence[str] | None) -> ReferenceChoice:
    return ReferenceChoice(
        references=tuple(map(rows.image, images)), captions=None if captions is None else tuple(captions)
    )
