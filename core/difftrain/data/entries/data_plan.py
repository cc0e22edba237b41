"""The plan that dataset entries stand for: every name is an object, nothing has been read from disk yet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from difftrain.contracts import CaptionSource, ConditioningGenerator, CropStyle, DataSource, Pairing
from difftrain.data.caption_edits import UNEDITED, CaptionEdits
from difftrain.types import GeometryRules

if TYPE_CHECKING:
    from difftrain.config.options import Options
    from difftrain.config.schema import DatasetConfig


@dataclass(frozen=True, kw_only=True)
class GeneratorPlan:
    """One generator of a target set; it makes one reference for each image."""

    id: str
    """``DATASET/NAME``, with a number if a dataset uses a generator twice."""
    generator: ConditioningGenerator
    pairing: Pairing
    captions: tuple[str, ...] | None
    folder: Path
    """Folder of made images; unused if they are made on demand."""
    on_demand: bool
    seed: int


@dataclass(frozen=True, kw_only=True)
class DatasetPlan:
    """One enabled dataset entry of images."""

    config: DatasetConfig
    source: DataSource
    captions: CaptionSource | None
    """None for ``caption_strategy: null``."""
    caption_edits: CaptionEdits = UNEDITED
    rules: GeometryRules
    crop_style: CropStyle | None = None
    """Finds what the crop of each image is centred on; None if crops need no look at pixels."""
    pairing: Pairing | None
    """Set on reference sets only."""
    row_pairing: Pairing | None = None
    """How references that a target set's images bring follow their target; None if the source brings none."""
    takes_source_captions: bool = False
    """Whether captions from the source come before those of ``captions``."""
    references: tuple[str, ...]
    """Ids of the reference sets of a target set, in listed order."""
    generators: tuple[GeneratorPlan, ...]
    latents_folder: Path
    text_folder: Path | None = None
    """Where the embeddings of a target set's text go; None is the run's."""
    family_options: Options | None = None
    """The run's family's options of a target set, see :attr:`~difftrain.contracts.ModelFamily.dataset_options`."""
    loss_options: Options | None = None
    """The run's loss's options of a target set."""
    latents_on_demand: bool = False
    """Whether images are encoded when a batch first needs them."""
    latents_stored: bool = True
    """Whether latents are kept on disk; if not, they are made on demand."""
    held_out: bool = False
    """Whether the target set is never trained on, only measured and drawn in validations."""

    @property
    def id(self) -> str:
        return self.config.id

    @property
    def asked(self) -> dict[str, Any]:
        """Return the values, by key, of the family's and the loss's options for this dataset."""
        asked = [options for options in (self.family_options, self.loss_options) if options is not None]
        return {key: value for options in asked for key, value in options.model_dump(mode="json").items()}

    @property
    def draws_each_epoch(self) -> bool:
        """Whether each epoch has new crops of the target set's images, and the cache forgets the old ones."""
        return self.config.vae_cache_clear_each_epoch and self.rules.draws and not self.held_out

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
    """Whether the flavour takes references only at their target's size."""
    index_path: Path
    """SQLite file with the results of scans."""
    text_folder: Path
    written_folders: Mapping[str, Path]
    """Every folder that this run writes, by the name that messages use; files there are not data."""
    seed: int

    def by_id(self, dataset_id: str) -> DatasetPlan:
        return next(plan for plan in self.datasets if plan.id == dataset_id)

    def streams(self, dataset: DatasetPlan) -> bool:
        """Return whether the images of a target set or of its references are read in the order they are stored in."""
        return any(one.source.streams for one in (dataset, *map(self.by_id, dataset.references)))

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
    def text_folders(self) -> tuple[Path, ...]:
        """All folders of text embeddings, the run's first."""
        others = (plan.text_folder for plan in self.datasets if plan.text_folder is not None)
        return tuple(dict.fromkeys((self.text_folder, *others)))

    @property
    def target_sets(self) -> tuple[DatasetPlan, ...]:
        return tuple(plan for plan in self.datasets if not plan.is_reference)
