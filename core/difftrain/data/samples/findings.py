"""Collects what is found about the data, so that everything is reported together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from difftrain.data.packed.packed_images import JsonRows, NamesOf, PackedRecords
from difftrain.errors import DataError
from difftrain.types import Finding, ImageRecord

MANY = 1000
"""Images of a finding from which on it is held as text."""


@dataclass
class Findings:
    """Collected over all datasets."""

    found: list[Finding] = field(default_factory=list)
    unused_references: dict[str, dict[str, ImageRecord]] = field(default_factory=dict)
    """By reference set: images that no target set matched so far has a target image for."""

    stops: bool = True
    """Whether problems stop the run; `difftrain check` also looks at what is left."""

    @property
    def problems(self) -> list[str]:
        """Messages of what stops the run."""
        return [finding.message for finding in self.found if finding.level == "problem"]

    @property
    def notes(self) -> list[str]:
        """Messages of all else."""
        return [finding.message for finding in self.found if finding.level != "problem"]

    def problem(
        self, kind: str, dataset: str, text: str, *, fix: str | None = None, records: Iterable[ImageRecord] = ()
    ) -> None:
        """Add what stops the run; see :class:`~difftrain.types.Finding`."""
        self._add(Finding(kind=kind, level="problem", dataset=dataset, text=text, fix=fix, records=tuple(records)))

    def note(
        self, kind: str, dataset: str, text: str, *, fix: str | None = None, records: Iterable[ImageRecord] = ()
    ) -> None:
        """Add what does not stop the run; see :class:`~difftrain.types.Finding`."""
        self._add(Finding(kind=kind, level="note", dataset=dataset, text=text, fix=fix, records=tuple(records)))

    def _add(self, finding: Finding) -> None:
        names = NamesOf(finding.records)
        self.found.append(replace(finding, names=names if len(names) >= MANY else tuple(names)))

    def pack(self) -> None:
        """Hold images and names of large findings as text: a note may concern every image of a dataset."""
        for place, finding in enumerate(self.found):
            if len(finding.names) >= MANY:
                records = PackedRecords.of(finding.records)
                names = NamesOf(records) if isinstance(finding.names, NamesOf) else JsonRows.of(finding.names)
                self.found[place] = replace(finding, records=records, names=names)

    def raise_problems(self) -> None:
        """Stop with everything that was found, if anything.

        Raises:
            DataError: With all problems.
        """
        if self.problems and self.stops:
            raise DataError(*self.problems)
