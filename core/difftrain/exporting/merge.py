"""A model with an adapter's changes in its own weights, or trained as a whole, as a folder in diffusers layout."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from difftrain.errors import CheckpointError, ConfigError, MachineError
from difftrain.exporting.adapter_source import AdapterSource
from difftrain.exporting.changed_texts import texts_of_merged
from difftrain.exporting.check_merged import check_merged
from difftrain.exporting.compare_changes import tolerance_of
from difftrain.exporting.prediction import (
    Predictor,
    changed_weight,
    check_fits,
    linear_names,
    open_predictor,
    predict_expected,
)
from difftrain.exporting.trained_model import check_same_model, trained_weights
from difftrain.exporting.write_export import Export, check_finite
from difftrain.machine.retries import refusal
from difftrain.model.adapter_files.changes import Change, bias_of
from difftrain.model.adapter_files.layer_names import LayerNames
from difftrain.model.adapter_files.read_changes import read_changes, texts_to_keep
from difftrain.model.diffusers_folder import read_json
from difftrain.model.shards import read_weights
from difftrain.model.single_files.safetensors_header import read_header
from difftrain.model.whole_model.write_model import write_model_config, write_shards
from difftrain.planning.model_plan import ModelPlan
from difftrain.startup.find_model import find_model
from difftrain.types import ModelLocation, Phase, Reporter


def merge(source: AdapterSource, wanted: Export, reporter: Reporter) -> None:
    """Write the merged model, compare its prediction with the adapter's, and give the folder its name.

    Raises:
        ConfigError: If nothing says which model it is.
        CheckpointError: If the adapter does not fit the model, or the merged one predicts something else.
        MachineError: If it cannot be written.
    """
    plan = source.plan
    if plan is None:
        raise ConfigError(
            f"--merge: {source.file} does not say which model it was trained on\n"
            "hint: name it: --model FAMILY --flavour NAME --pretrained_model_name_or_path MODEL"
        )
    location = find_model(plan).location
    empty = plan.family.empty_denoiser(location)
    if source.whole is not None:
        check_same_model(source, empty, location)
        changes: Mapping[str, Change] = {}
        weights, what = trained_weights(source, wanted.dtype), "the model as it was trained"
        texts = texts_to_keep(read_header(source.file).texts)
    else:
        content = read_changes(source.file, LayerNames(plan.family, linear_names(empty)))
        changes, texts = content.changes, texts_of_merged(content.texts)
        check_finite(changes, source.file)
        check_fits(changes, empty)
        weights, what = _merged(plan, location, changes, wanted.dtype), f"{len(changes)} modules merged"
    temporary = wanted.output.with_name(f".{wanted.output.name}.partial")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        folder = temporary / plan.family.lora_prefix
        folder.mkdir(parents=True)
        count = len(empty.state_dict())
        with reporter.phase("merge", count) as phase:
            write_shards(_counted(weights, phase), folder, texts)
        if not write_model_config(empty, folder):
            raise ConfigError("--merge: the models of this family are not diffusers' and have no config to write")
        parts = _copy_other_parts(location, temporary, plan.family.lora_prefix)
        if wanted.verify:
            _verify_weights(source, folder, wanted, changes, count, reporter)
            _verify_prediction(source, folder, wanted, reporter)
        temporary.rename(wanted.output)
    except OSError as error:
        raise MachineError(refusal(f"{wanted.output} cannot be written", error)) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    there = "with the other parts of the model" if parts else "without the other parts, which are on the hub"
    reporter.say(f"wrote {wanted.output}: {what}, {there}")


def _merged(
    plan: ModelPlan,
    location: ModelLocation,
    changes: Mapping[str, Change],
    dtype: torch.dtype | None,
) -> Iterator[tuple[str, Tensor]]:
    """Yield every weight, changed in float32 and rounded once."""
    for name, tensor in plan.family.denoiser_weights(location):
        module, _, part = name.rpartition(".")
        change_of = changes.get(module)
        made = tensor
        if change_of is not None and part == "weight":
            made = changed_weight(tensor.float(), change_of)
        elif change_of is not None and part == "bias" and (added := bias_of(change_of)) is not None:
            made = tensor.float() + added
        yield name, made.to(dtype or tensor.dtype)


def _copy_other_parts(location: ModelLocation, output: Path, denoiser: str) -> bool:
    """Copy the parts beside the denoiser if they are in a local folder; return whether they are."""
    whole = location.path
    if whole is None or not (whole / "model_index.json").is_file():
        return False
    for name in read_json(whole / "model_index.json"):
        if name != denoiser and (whole / name).is_dir():
            shutil.copytree(whole / name, output / name)
    shutil.copy(whole / "model_index.json", output)
    return True


def _counted(weights: Iterator[tuple[str, Tensor]], phase: Phase) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in weights:
        yield name, tensor
        phase.advance(item=name)


def _verify_weights(
    source: AdapterSource,
    folder: Path,
    wanted: Export,
    changes: Mapping[str, Change],
    count: int,
    reporter: Reporter,
) -> None:
    """Compare every written tensor with the model's own and its change; two are in memory at a time.

    Raises:
        CheckpointError: If one is wrong.
    """
    plan = source.plan
    assert plan is not None, "checked before"
    whole = source.whole is not None
    before = trained_weights(source, None) if whole else plan.family.denoiser_weights(find_model(plan).location)
    with reporter.phase("verify: read every weight back", count) as phase:
        try:
            checked = check_merged(folder, before, changes, wanted.dtype, phase)
        except CheckpointError as error:
            raise CheckpointError(_wrong(wanted, str(error))) from error
    as_trained = "the trained model's" if whole else "the base model's"
    changed = (
        f"{checked.changed} are base + change (worst difference {checked.worst:.1e} of a tensor's largest number), "
        if changes
        else ""
    )
    reporter.say(f"verify: weights read back: {changed}{checked.same} are {as_trained}, byte for byte")


def _verify_prediction(source: AdapterSource, folder: Path, wanted: Export, reporter: Reporter) -> None:
    """Load the written weights into the model and compare its prediction with the adapter's, where there is room.

    Raises:
        CheckpointError: If it predicts something else.
    """
    assert source.plan is not None, "checked before"
    predictor = open_predictor(source.plan, reporter, models=1 if source.whole is None else 2)
    if not isinstance(predictor, Predictor):
        reporter.say(f"verify: no prediction: {predictor}")
        return
    base, expected = predictor.predict(), predict_expected(source, predictor)
    tolerance = _put_into(predictor.denoiser, folder) * float(expected.abs().max())
    difference = float((predictor.predict() - expected).abs().max())
    effect = float((expected - base).abs().max())
    reporter.say(
        f"verify: prediction of the merged model: worst difference {difference:.1e}, where training changed up to "
        f"{effect:.1e}"
    )
    # the whole weight is rounded, not only the change, so the tolerance is that of the whole prediction
    if not difference <= max(tolerance, predictor.rounding(expected), 1e-5):
        raise CheckpointError(_wrong(wanted, f"its prediction differs by {difference:.1e}"))
    if difference > max(effect / 2, 1e-5):
        reporter.say("note: the weights' number format rounds away much of the change; --dtype fp32 keeps it")


def _put_into(denoiser: nn.Module, folder: Path) -> float:
    """Give a model the weights of a folder, one at a time; return the relative difference of their rounding."""
    own, tolerance = denoiser.state_dict(), 0.0
    for name, tensor in read_weights(folder):
        own[name].copy_(tensor)
        if tensor.is_floating_point():
            tolerance = max(tolerance, tolerance_of(tensor.dtype))
    return tolerance


def _wrong(wanted: Export, problem: str) -> str:
    return (
        f"the merged model that was written for {wanted.output} is wrong and was removed: {problem}\n"
        "hint: this is a fault of difftrain, please report it"
    )
