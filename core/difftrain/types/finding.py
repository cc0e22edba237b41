"""What the checks of the data find, as one value with its images, fix and message."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

from difftrain.types.source_images import ImageRecord

Level = Literal["problem", "note", "hint"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One kind of finding in one dataset."""

    kind: str
    """Stable name, such as ``unmatched``: one of :data:`difftrain.doctor.kinds.KINDS`."""
    level: Level
    """A problem stops the run; a note is worth a look; a hint is only a guess, such as one about a caption's words."""
    dataset: str
    """Id of the dataset; empty if it concerns none or several."""
    text: str
    """Counts and first names, without the dataset; lower case, no stop."""
    fix: str | None = None
    """What to do."""
    records: Sequence[ImageRecord] = ()
    """The images, as far as they could be read."""
    names: Sequence[str] = ()
    """Names of all images within the dataset, those that cannot be read too."""

    @classmethod
    def of_message(cls, kind: str, level: Level, dataset: str, message: str, names: tuple[str, ...] = ()) -> Self:
        """Return the finding of a message that ends with its hint, if it has one."""
        text, _, fix = message.partition("\nhint: ")
        return cls(kind=kind, level=level, dataset=dataset, text=text, fix=fix or None, names=names)

    @property
    def message(self) -> str:
        """The finding as errors and notes say it."""
        where = f"dataset {self.dataset!r}: " if self.dataset else ""
        return f"{where}{self.text}" + (f"\nhint: {self.fix}" if self.fix else "")

    @property
    def count(self) -> int:
        """Images that it concerns; at least 1."""
        return len(self.names) or len(self.records) or 1
