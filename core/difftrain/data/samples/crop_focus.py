"""Gives images of a dataset what its crop style finds in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from difftrain.data.entries.data_plan import DatasetPlan
from difftrain.data.samples.findings import Findings
from difftrain.data.scanning.focus_points import find_focus_points
from difftrain.data.scanning.image_index import ImageIndex
from difftrain.types import ImageRecord, Reporter

Images = ImageRecord | tuple[ImageRecord, ...]


@dataclass(frozen=True, kw_only=True)
class CropFocus:
    """Asks crop styles; images that cannot be decoded become problems."""

    index: ImageIndex
    reporter: Reporter
    findings: Findings

    def on(self, dataset: DatasetPlan, records: Sequence[ImageRecord]) -> list[ImageRecord]:
        """Return records with what the dataset's style finds, or as they are without such a style.

        Raises:
            PluginError: If the style fails or returns no point.
        """
        if dataset.crop_style is None or not records:
            return list(records)
        found = find_focus_points(dataset.crop_style, records, self.index, self.reporter, dataset=dataset.id)
        for problem in found.unreadable.values():
            self.findings.problem("unreadable", dataset.id, problem)
        return list(map(found.on, records))

    def on_references(self, dataset: DatasetPlan, by_target: Mapping[str, Images]) -> Mapping[str, Images]:
        """Do the same for the references of each target; raises the same."""
        if dataset.crop_style is None:
            return by_target
        several = {key: found if isinstance(found, tuple) else (found,) for key, found in by_target.items()}
        focused = iter(self.on(dataset, [image for images in several.values() for image in images]))
        return {key: tuple(next(focused) for _ in images) for key, images in several.items()}
