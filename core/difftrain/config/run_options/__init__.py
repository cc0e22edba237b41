"""The run options of the core. Plugins add theirs: see :func:`difftrain.config.schema.merge_options`.

One class per group of ``--help``; :class:`RunConfig` has all of them. No option here names a model.

- `model_group`: the model
- `training_groups`: the training and its optimizer
- `data_groups`: the data, and what is drawn and measured of it
- `sharing_group`: the hub, and the model card
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal, TypeVar

from pydantic import Field, field_validator

from difftrain.config.options import Options
from difftrain.config.run_options.data_groups import DataOptions, ValidationOptions
from difftrain.config.run_options.model_group import ModelOptions
from difftrain.config.run_options.sharing_group import SharingOptions
from difftrain.config.run_options.training_groups import SEED_LIMIT, OptimizerOptions, TrainingOptions

__all__ = [
    "GROUPS",
    "SEED_LIMIT",
    "DataOptions",
    "ModelOptions",
    "OptimizerOptions",
    "OptionsT",
    "OutputOptions",
    "PluginOptions",
    "RunConfig",
    "SharingOptions",
    "TrainingOptions",
    "ValidationOptions",
    "pick_options",
]

OptionsT = TypeVar("OptionsT", bound=Options)


class OutputOptions(Options):
    group: ClassVar[str] = "Output"

    output_dir: Path = Path("output")
    """Folder of checkpoints, images and metrics."""
    checkpoint_step_interval: int = Field(500, ge=0)
    """Save every this many steps, and at the end; 0 is only at the end."""
    checkpoints_total_limit: int | None = Field(None, ge=1)
    """Keep only this many of the newest checkpoints."""
    resume_from_checkpoint: str = "latest"
    """latest resumes from the newest checkpoint in the output folder; none starts over; or name a checkpoint folder."""
    report_to: Literal["none"] = "none"
    """Where metrics go in addition to the metrics file."""

    @field_validator("resume_from_checkpoint", mode="before")
    @classmethod
    def _null_is_none(cls, value: object) -> object:
        return value or "none"


class PluginOptions(Options):
    group: ClassVar[str] = "Plugins"

    plugins: tuple[str, ...] = ()
    """Plugins that are Python files, such as ./my_generator.py."""
    disable_plugin: tuple[str, ...] = ()
    """Installed plugins to turn off."""


GROUPS: tuple[type[Options], ...] = (
    ModelOptions,
    TrainingOptions,
    OptimizerOptions,
    DataOptions,
    ValidationOptions,
    OutputOptions,
    SharingOptions,
    PluginOptions,
)
"""The core's groups, in the order of ``--help``."""


class RunConfig(
    ModelOptions,
    TrainingOptions,
    OptimizerOptions,
    DataOptions,
    ValidationOptions,
    OutputOptions,
    SharingOptions,
    PluginOptions,
):
    """Every option of a run, flat, as in the run file."""

    def build(self, cls: type[OptionsT]) -> OptionsT:
        """Return the options object of a plugin's class, built from the keys that the user set.

        Raises:
            pydantic.ValidationError: If the class refuses the combination of values.
        """
        return pick_options(self, cls)


def pick_options(flat: Options, cls: type[OptionsT]) -> OptionsT:
    """Return an object of ``cls`` from the keys that a flat config sets; the rest have the class's defaults."""
    return cls(**{name: getattr(flat, name) for name in cls.model_fields if name in flat.model_fields_set})
