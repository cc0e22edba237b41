"""Writes an adapter for another program under a temporary name, checks the file, and gives it its name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from difftrain.errors import CheckpointError, MachineError, first_few
from difftrain.exporting.adapter_source import AdapterSource
from difftrain.exporting.changed_texts import texts_of_lora
from difftrain.exporting.compare_changes import tolerance_of, worst_difference
from difftrain.exporting.prediction import check_fits, compare_predictions, open_predictor
from difftrain.exporting.trained_model import reduce_whole_model
from difftrain.machine.retries import refusal
from difftrain.model.adapter_files.changes import Change, bias_of
from difftrain.model.adapter_files.layer_names import LayerNames
from difftrain.model.adapter_files.layouts import tensors_of
from difftrain.model.adapter_files.read_changes import AdapterContent, read_changes, texts_to_keep
from difftrain.model.adapter_files.reduce_rank import reduce_all
from difftrain.model.single_files.safetensors_header import read_header
from difftrain.model.tensor_file import write_tensors
from difftrain.publishing.file_metadata import PRECISION_KEY, add_to_header
from difftrain.types import Reporter


@dataclass(frozen=True, kw_only=True)
class Export:
    """What to write."""

    layout: str
    output: Path
    dtype: torch.dtype | None
    """None keeps that of each tensor."""
    verify: bool
    as_lora: int | None = None
    """Turn every change into the nearest LoRA of this rank; None keeps its kind."""


def export_adapter(source: AdapterSource, wanted: Export, reporter: Reporter) -> Mapping[str, float]:
    """Write the file, check it as asked, and say what was compared.

    Returns:
        With ``as_lora`` the relative error of each module, the largest first.

    Raises:
        CheckpointError: If the layout cannot hold the adapter, or the written file does something else; there is then
            no file under the asked name.
        MachineError: If it cannot be written.
    """
    names = LayerNames(source.family, _own_modules(source))
    content, errors = _content(source, wanted, names, reporter)
    changes = content.changes
    tensors, header = tensors_of(changes, wanted.layout, names)
    temporary = wanted.output.with_name(f".{wanted.output.stem}.partial.safetensors")
    try:
        write_tensors(temporary, {name: _as_dtype(tensor, wanted.dtype) for name, tensor in tensors.items()}, header)
        if texts := texts_of_lora(content.texts) if wanted.as_lora is not None else content.texts:
            add_to_header(temporary, texts)
        if wanted.verify:
            _verify(source, changes, temporary, wanted, names, reporter)
        temporary.replace(wanted.output)
    except OSError as error:
        raise MachineError(refusal(f"{wanted.output} cannot be written", error)) from error
    finally:
        temporary.unlink(missing_ok=True)
    reporter.say(f"wrote {wanted.output}: {len(changes)} modules, layout {wanted.layout}")
    precision = content.texts.get(PRECISION_KEY, "no_change")
    if precision != "no_change":
        reporter.say(f"note: it was trained on {precision} weights, and works best on a base model in {precision}")
    return errors


def _content(
    source: AdapterSource, wanted: Export, names: LayerNames, reporter: Reporter
) -> tuple[AdapterContent, Mapping[str, float]]:
    """Return what to write, and with ``as_lora`` the relative errors."""
    if source.whole is not None:
        assert wanted.as_lora is not None, "the command line has been checked"
        reduced = reduce_whole_model(source, wanted.as_lora, reporter)
        content = AdapterContent(changes={}, texts=texts_to_keep(read_header(source.file).texts))
    else:
        content = read_changes(source.file, names)
        if content.encoder_tensors:
            reporter.say(f"note: {len(content.encoder_tensors)} tensors for text encoders are left out")
        check_finite(content.changes, source.file)
        if wanted.as_lora is None:
            return content, {}
        if biases := [module for module, change in content.changes.items() if bias_of(change) is not None]:
            reporter.say(f"note: {len(biases)} trained biases are no part of a LoRA: {first_few(biases)}")
        with reporter.phase("reduce to a LoRA", len(content.changes)) as phase:
            reduced = reduce_all(content.changes, wanted.as_lora, phase)
    errors = {module: one.error for module, one in sorted(reduced.items(), key=lambda item: -item[1].error)}
    return replace(content, changes={module: one.change for module, one in reduced.items()}), errors


def check_finite(changes: Mapping[str, Change], file: Path) -> None:
    """Raise if a change is not made of finite numbers.

    Raises:
        CheckpointError: Names the first module.
    """
    for module, change in changes.items():
        parts = change.__dict__ if not hasattr(change, "tensors") else change.tensors
        broken = [name for name, part in parts.items() if isinstance(part, Tensor) and not part.isfinite().all()]
        if broken:
            raise CheckpointError(
                f"{file}: {module} has numbers that are not finite ({broken[0]})\nhint: export an earlier checkpoint"
            )


def _own_modules(source: AdapterSource) -> list[str]:
    """Return the linear modules of the source's model by its shapes, for a family without original names."""
    if source.family.original_layers is not None or source.plan is None:
        return []
    outline = source.plan.family.outline(source.plan.config.pretrained_model_name_or_path, source.plan.flavour)
    if outline is None:
        return []
    return [name for name, part in outline.denoiser.named_modules() if isinstance(part, torch.nn.Linear)]


def _as_dtype(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    # a single number is an alpha, which bfloat16 may not hold
    return tensor if dtype is None or tensor.ndim == 0 else tensor.to(dtype)


def _verify(
    source: AdapterSource,
    changes: Mapping[str, Change],
    written: Path,
    wanted: Export,
    names: LayerNames,
    reporter: Reporter,
) -> None:
    """Compare the written file with the adapter: layer by layer, and by the model's prediction if the model is here.

    Raises:
        CheckpointError: If it does something else.
    """
    tolerance = tolerance_of(wanted.dtype or torch.float32)
    worst = worst_difference(changes, read_changes(written, names).changes)
    at = f" (at {worst.module})" if worst.module else ""
    reporter.say(f"verify: layer by layer, worst relative difference {worst.difference:.1e}{at}")
    if not worst.difference <= tolerance:  # also of numbers that are not finite
        raise _wrong(wanted, f"the output of {worst.module} differs by {worst.difference:.1e}, relative")
    if source.plan is None:
        reporter.say("verify: no prediction: nothing says which model the file is for (--model, --flavour)")
        return
    # the weights of a whole model need memory beside those of its base
    predictor = open_predictor(source.plan, reporter, models=1 if source.whole is None else 2)
    if isinstance(predictor, str):
        reporter.say(f"verify: no prediction: {predictor}")
        return
    check_fits(changes, predictor.denoiser)
    found = compare_predictions(source, written, wanted.layout, predictor, reporter)
    reporter.say(
        f"verify: prediction with the file through {found.through}: worst difference {found.difference:.1e}, where the "
        f"adapter changes up to {found.effect:.1e}"
    )
    if wanted.as_lora is not None:  # what a lower rank leaves out is no fault; its size has been said
        return
    if not found.difference <= max(tolerance * found.effect, found.rounding, 1e-5):
        raise _wrong(wanted, f"its prediction differs by {found.difference:.1e}")
    if found.rounding > found.effect / 2:
        reporter.say("note: the adapter changes so little that rounding could hide a wrong file from the last check")


def _wrong(wanted: Export, what: str) -> CheckpointError:
    return CheckpointError(
        f"the file that was written for {wanted.output} is wrong and was removed: {what}\n"
        "hint: this is a fault of difftrain, please report it; another --format may work"
    )
