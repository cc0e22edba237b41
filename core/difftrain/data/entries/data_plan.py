"""What the dataset entries mean: every name resolved to an object, nothing read from disk yet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from difftrain.contracts import CaptionSource, ConditioningGenerator, DataSource, Pairing
from difftrain.types import GeometryRules

if TYPE_CHECKING:
    from difftrain.config.options import Options
    from difftrain.config.schema import DatasetConfig


@dataclass(frozen=True, kw_only=True)
class GeneratorPlan:
    """One generator of a target set; it makes one reference of each image."""

    id: str
    """``DATASET/NAME``, with a number when one dataset uses a generator twice."""
    generator: ConditioningGenerator
    pairing: Pairing
    captions: tuple[str, ...] | None
    folder: Path
    """Where made images are stored; unused when they are made on demand."""
    on_demand: bool
    seed: int


@dataclass(frozen=True, kw_only=True)
class DatasetPlan:
    """One enabled dataset entry of images."""

    config: DatasetConfig
    source: DataSource
    captions: CaptionSource | None
    """None for ``caption_strategy: null``."""
    rules: GeometryRules
    pairing: Pairing | None
    """Set on reference sets only."""
    row_pairing: Pairing | None = None
    """How references follow that a target set's images bring; None where the source brings none."""
    takes_source_captions: bool = False
    """Whether captions that the source gives come before those of ``captions``."""
    references: tuple[str, ...]
    """Ids of the reference sets of a target set, in listed order."""
    generators: tuple[GeneratorPlan, ...]
    latents_folder: Path
    family_options: Options | None = None
    """What the run's family asks of a target set, see :attr:`~difftrain.contracts.ModelFamily.dataset_options`."""
    loss_options: Options | None = None
    """What the run's loss asks of a target set."""
    held_out: bool = False
    """A target set that is never trained on, only measured and drawn in validations."""

    @property
    def id(self) -> str:
        return self.config.id

    @property
    def asked(self) -> dict[str, Any]:
        """Values, by key, of what the family and the loss ask of this dataset."""
        asked = [options for options in (self.family_options, self.loss_options) if options is not None]
        return {key: value for options in asked for key, value in options.model_dump(mode="json").items()}

    @property
    def is_reference(self) -> bool:
        return self.pairing is not None


@dataclass(frozen=True, kw_only=True)
class DataPlan:
    """All datasets of a run."""

    datasets: tuple[DatasetPlan, ...]
    combined: bool
    """``conditioning_multidataset_sampling: combined``: all references at once; else one drawn per sample and epoch."""
    references_fit_target: bool
    """Whether the flavour takes references at their target's size only."""
    index_path: Path
    """SQLite file of what scans found."""
    text_folder: Path
    written_folders: Mapping[str, Path]
    """Every folder that this run writes, by the name that a message calls it: what lies there is no data."""
    seed: int

    def by_id(self, dataset_id: str) -> DatasetPlan:
        return next(plan for plan in self.datasets if plan.id == dataset_id)

    def place_of(self, dataset_id: str) -> str:
        """Where the images of a dataset or of a generator are, as hints name it."""
        for dataset in self.datasets:
            for generator in dataset.generators:
                if generator.id == dataset_id and not generator.on_demand:
                    return f"folder {generator.folder}"
            if dataset_id in (dataset.id, *(generator.id for generator in dataset.generators)):
                return dataset.source.place
        raise KeyError(dataset_id)

    @property
    def target_sets(self) -> tuple[DatasetPlan, ...]:
        return tuple(plan for plan in self.datasets if not plan.is_reference)
