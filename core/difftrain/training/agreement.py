"""Checks that all processes of a run see the same data, options and step; describes the data, to see it change."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING

from difftrain.data.streaming.set_rules import USUAL, EpochRules, SetRules
from difftrain.errors import MachineError, StoppedElsewhere
from difftrain.types import PlacedImage, Sample

if TYPE_CHECKING:
    from difftrain.steps.training_state import TrainingState


def data_facts(
    samples: Iterable[Sample], rules: EpochRules, asked: Mapping[str, Mapping[str, object]] | None = None
) -> dict[str, str]:
    """Return what each dataset shows, by id: ``100 samples, repeats 0, probability 1 (3f2a...)``.

    The hash covers everything that training reads of the samples.

    Args:
        asked: By dataset id, values of the family's and the loss's options; they follow the probability.
    """
    more = {
        name: "".join(f", {key} {json.dumps(value)}" for key, value in own.items())
        for name, own in (asked or {}).items()
    }
    counts: dict[str, int] = {}
    digests: dict[str, hashlib._Hash] = {}
    for sample in samples:
        counts[sample.dataset_id] = counts.get(sample.dataset_id, 0) + 1
        digests.setdefault(sample.dataset_id, hashlib.sha256()).update(repr(_facts(sample)).encode())
    return {
        name: f"{count} samples, {_taking_part(rules.of(name))}{more.get(name, '')} ({digests[name].hexdigest()[:16]})"
        for name, count in counts.items()
    }


def _taking_part(own: SetRules) -> str:
    """Return repeats and probability, and every other rule that is not the usual one."""
    others = [
        f", {field.name.replace('_', ' ')} {getattr(own, field.name)}"
        for field in fields(own)
        if field.name not in ("repeats", "probability") and getattr(own, field.name) != getattr(USUAL, field.name)
    ]
    return f"repeats {own.repeats}, probability {own.probability:g}{''.join(others)}"


def _facts(sample: Sample) -> tuple[object, ...]:
    choices = [(tuple(map(_image, choice.references)), choice.captions) for choice in sample.choices]
    return sample.target.record.key, _image(sample.target), sample.captions, choices


def _image(image: PlacedImage) -> tuple[str, str]:
    return image.record.content_hash, image.geometry.identity


def check_agreement(state: TrainingState) -> None:
    """Compare what every process is about to train, before the first step.

    Raises:
        MachineError: In the first process; names what differs.
        StoppedElsewhere: In the others.
    """
    if state.accelerator.num_processes == 1:
        return
    from accelerate.utils import gather_object

    every: list[dict[str, str]] = gather_object([_own_facts(state)])
    differing = differences(every)
    if differing and state.accelerator.is_main_process:
        raise MachineError(
            f"the {len(every)} processes of this run do not see the same: {'; '.join(differing)}\n"
            "hint: give all of them the same files and options, and change no file while a run starts"
        )
    if differing:
        raise StoppedElsewhere


def differences(every: list[dict[str, str]]) -> list[str]:
    """Return what differs: ``dataset 'edits': 100 samples (3f2a) in process 0, 101 samples (77b0) in process 1``."""
    differing = []
    for name in dict.fromkeys(key for facts in every for key in facts):
        values = [facts.get(name, "nothing") for facts in every]
        other = next((number for number, value in enumerate(values) if value != values[0]), None)
        if other is not None:
            differing.append(f"{name}: {values[0]} in process 0, {values[other]} in process {other}")
    return differing


def _own_facts(state: TrainingState) -> dict[str, str]:
    options = state.plan.config.model_dump(mode="json")
    data: Mapping[str, str] = {f"dataset {name!r}": facts for name, facts in state.data.items()}
    facts = {
        "step": str(state.step),
        "total steps": str(state.total_steps),
        "samples taken": str(state.position.samples),
    }
    return {
        **data,
        **facts,
        **{key: json.dumps(value) for key, value in options.items()},
        **{f"plugin {name}": version for name, version in state.plan.plugins.versions().items()},
    }
