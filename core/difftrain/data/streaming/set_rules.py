"""What shapes an epoch besides the samples: the rules of the run and of each dataset. Pure."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field

from difftrain.types import Sample


@dataclass(frozen=True, kw_only=True, slots=True)
class SetRules:
    """How the samples of one dataset take part."""

    repeats: int = 0
    """Extra visits per epoch; 0 shows each sample once."""
    probability: float = 1.0
    """Share of the visits that an epoch takes."""
    batch_size: int | None = None
    """None takes the run's."""
    regularises: bool = False
    """Whether the samples are trained towards the prediction of the model without its adapter."""
    noise_offset: float = 0.0
    """Added to the logit of each noise level before the shift."""
    strength: float = 1.0
    """Factor on the adapter's effect while the samples are trained on."""
    start_step: int = 1
    """First optimizer step that uses the set; steps count from 1."""
    end_step: int | None = None
    """Last one; None is the last of the run."""
    start_epoch: int = 1
    """First epoch that uses the set; here epochs count from 1."""
    end_epoch: int | None = None
    """Last one; None is the last of the run."""
    ignores_epochs: bool = False
    """Whether an epoch ends without waiting for this set."""
    by_shelf: bool = False
    """Whether images that are stored together are shown in one part of the epoch."""

    def in_steps(self, step: int) -> bool:
        """Return whether the set takes part in an optimizer step, which counts from 1."""
        return self.start_step <= step and (self.end_step is None or step <= self.end_step)

    def in_epochs(self, epoch: int) -> bool:
        """Return whether the set takes part in an epoch, which counts from 0."""
        return self.start_epoch <= epoch + 1 and not self.ends_before(epoch)

    def ends_before(self, epoch: int) -> bool:
        """Return whether no epoch from this one on uses the set; counts from 0."""
        return self.end_epoch is not None and self.end_epoch < epoch + 1

    @property
    def is_scheduled(self) -> bool:
        """Whether some steps or epochs may not use the set."""
        return (self.start_step, self.end_step, self.start_epoch, self.end_epoch) != (1, None, 1, None)


USUAL = SetRules()


@dataclass(frozen=True, kw_only=True)
class EpochRules:
    """Everything that shapes an epoch besides the samples; all of it comes from the config."""

    seed: int
    batch_size: int
    sets: Mapping[str, SetRules] = field(default_factory=dict)
    """By dataset id; a dataset not named has :data:`USUAL` ones."""
    evenly: bool = False
    """Whether the sets come equally often, times their probability, until the smaller ones are through; else each is
    spread over the whole epoch."""
    caption_dropout: float = 0.0
    reference_dropout: float = 0.0
    placed: Callable[[Sample, int], Sample] | None = None
    """Gives a sample the crops of an epoch; None if each keeps its own."""
    batch_key: Callable[[Sample], Hashable] | None = None
    """The family's batch key; None lets all samples of one shape share batches."""

    def of(self, dataset_id: str) -> SetRules:
        """Return the rules of one dataset."""
        return self.sets.get(dataset_id, USUAL)

    def batch_size_of(self, dataset_id: str) -> int:
        """Return how many samples of a dataset a batch takes at most."""
        return self.of(dataset_id).batch_size or self.batch_size

    def active(self, dataset_ids: Iterable[str], *, step: int, epoch: int) -> frozenset[str]:
        """Return the datasets that an optimizer step of an epoch uses.

        Args:
            step: Counts from 1.
            epoch: Counts from 0.
        """
        return frozenset(
            name for name in dataset_ids if self.of(name).in_steps(step) and self.of(name).in_epochs(epoch)
        )

    def go_on(self, dataset_ids: Iterable[str], *, step: int, epoch: int) -> bool:
        """Return whether a step can find samples in this epoch or in a later one."""
        return any(self.of(name).in_steps(step) and not self.of(name).ends_before(epoch) for name in dataset_ids)
