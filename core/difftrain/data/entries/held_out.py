"""Chooses the target sets that are held out from training, to be measured and drawn instead. No IO."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from difftrain.config.dataset_options import KEYS_OF_TRAINING
from difftrain.config.messages import nearest
from difftrain.config.problems import Problems
from difftrain.config.schema import DatasetConfig, RunConfig


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Target sets that no training batch uses, by id."""

    ids: frozenset[str]
    """Sets that validation measures and draws."""
    unused: frozenset[str]
    """Kept out of training by their ``dataset_type`` but not named for validation: these are not even scanned."""


def choose_held_out(config: RunConfig, images: Sequence[DatasetConfig], problems: Problems) -> HeldOut:
    """Return the sets of ``eval_dataset_id``; if it names none, all with ``dataset_type: eval``.

    Args:
        images: All enabled entries of images.
        problems: Gets unknown names, names of reference sets, and the case that nothing is left to train on.
    """
    by_id = {entry.id: entry for entry in images}
    for name in dict.fromkeys(config.eval_dataset_id):
        _check_name(name, by_id, problems)
    marked = {entry.id for entry in images if entry.dataset_type == "eval"}
    for name in sorted(marked):
        if by_id[name].is_reference:
            problems.add(
                f"dataset {name!r}: dataset_type eval belongs on a target set, but this is a reference set\n"
                "hint: references are held out with the target set that names them; remove dataset_type"
            )
    ids = frozenset(config.eval_dataset_id) & by_id.keys() if config.eval_dataset_id else frozenset(marked)
    held_out = HeldOut(ids=ids, unused=frozenset(marked - ids))
    _check_rest(config, images, held_out, problems)
    _note_what_is_without_effect(config, images, held_out, problems)
    return held_out


def _check_name(name: str, by_id: Mapping[str, DatasetConfig], problems: Problems) -> None:
    target_sets = [other for other, entry in by_id.items() if not entry.is_reference]
    if name not in by_id:
        guess = nearest(name, target_sets)
        advice = f"did you mean {guess!r}?" if guess else f"enabled target sets: {', '.join(target_sets) or 'none'}"
        problems.add(f"eval_dataset_id names {name!r}, but no enabled dataset has that id; {advice}")
    elif by_id[name].is_reference:
        users = [other for other in target_sets if name in by_id[other].conditioning_data]
        problems.add(
            f"eval_dataset_id names {name!r}, which is a reference set\n"
            f"hint: name the target set that it belongs to{': ' + ', '.join(users) if users else ''}; "
            "its references are held out with it"
        )


def _check_rest(config: RunConfig, images: Sequence[DatasetConfig], held_out: HeldOut, problems: Problems) -> None:
    """Check that something is left to train on."""
    target_sets = [entry.id for entry in images if not entry.is_reference]
    if not target_sets:
        problems.add(f"{config.data_backend_config} has no enabled dataset to train on (only references, or nothing)")
    elif not set(target_sets) - held_out.ids - held_out.unused:
        problems.add(
            f"{config.data_backend_config}: every enabled target set is held out, so there is nothing to train on: "
            f"{', '.join(target_sets)}\n"
            "hint: leave the set to train on out of eval_dataset_id and remove its dataset_type eval"
        )


def _note_what_is_without_effect(
    config: RunConfig, images: Sequence[DatasetConfig], held_out: HeldOut, problems: Problems
) -> None:
    for entry in images:
        if entry.id in held_out.unused and not entry.is_reference:
            problems.note(
                f"dataset {entry.id!r}: not used, dataset_type eval keeps it out of training and eval_dataset_id "
                "does not name it"
            )
        for key in KEYS_OF_TRAINING:
            if entry.id in held_out.ids and getattr(entry, key) != type(entry).model_fields[key].default:
                problems.note(f"dataset {entry.id!r}: {key}: no effect on a held-out set, it is not trained on")
    if held_out.ids and not config.validation_steps and not config.validation_on_startup:
        problems.note(f"held out but never validated, since validation_steps is 0: {', '.join(sorted(held_out.ids))}")
