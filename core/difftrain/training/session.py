"""The part of a run that needs torch: from prepared data to the closing words."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import torch
from accelerate import Accelerator

from difftrain.checkpoints.checkpoint_files import export_adapter
from difftrain.checkpoints.checkpoint_room import check_checkpoint_room
from difftrain.checkpoints.resume_state import Resumed, changes_since, data_changes, find_state
from difftrain.checkpoints.saver import Saver
from difftrain.contracts import RunStart
from difftrain.data.caching.old_crops import OldCrops
from difftrain.data.samples.new_crops import NewCrops
from difftrain.errors import MachineError
from difftrain.machine.interrupts import Interrupted, Interrupts
from difftrain.machine.processes import start_accelerator
from difftrain.output.console import TrainingBar
from difftrain.output.observers import Observers
from difftrain.output.output_dir import (
    CARD_FILE,
    METRICS_FILE,
    exported_adapter,
    is_own_card,
    list_checkpoints,
    newest_sheet,
    remove_leftovers,
    set_aside,
    set_newer_aside,
    step_of,
)
from difftrain.output.output_lock import locked
from difftrain.planning.run_plan import RunPlan
from difftrain.publishing.hub_account import HubRepository
from difftrain.publishing.hub_uploads import HubUploads
from difftrain.startup.prepare_run import PreparedRun
from difftrain.training.agreement import check_agreement
from difftrain.training.assemble import AssembledRun, assemble
from difftrain.training.fitting.fit_to_device import fit_to_device
from difftrain.training.fitting.record_steps import record_steps
from difftrain.training.fitting.warm_up import compile_when_new
from difftrain.training.loop import train
from difftrain.training.out_of_memory import out_of_memory
from difftrain.training.publish_run import finish_uploads, measured, publish_card, start_uploads
from difftrain.training.settle_precision import settle_precision
from difftrain.training.tell_data import clear_old_crops, say_changes
from difftrain.types import Reporter
from difftrain.validation.validator import Validations


def train_prepared(
    plan: RunPlan,
    prepared: PreparedRun,
    interrupts: Interrupts,
    reporter: Reporter,
    *,
    repository: HubRepository | None = None,
    push_command: str = "difftrain push",
) -> int | None:
    """Load, train, save, upload, and say where everything is.

    Args:
        repository: Where the main process uploads to; None uploads nothing.
        push_command: Uploads later what this run could not, for messages.

    Returns:
        The number of the signal that stopped the run; None if it has completed all of its steps.
    """
    accelerator = start_accelerator()
    # before an earlier run is set aside
    plan.adapter.check_model(lambda: plan.family.empty_denoiser(prepared.location), plan.family)
    with locked(plan.config.output_dir) if accelerator.is_main_process else nullcontext():
        resumed = _make_output_dir(plan, accelerator, reporter)
        plan = settle_precision(plan, prepared.location, accelerator, resumed and resumed[1], reporter)
        assembled = assemble(plan, prepared, resumed, accelerator, reporter)
        state = assembled.state
        check_agreement(state)
        if state.step >= state.total_steps:
            if _finish_finished_before(assembled, prepared, repository, reporter):
                _upload_all(start_uploads(plan, repository, push_command, reporter), plan, interrupts)
            return None
        if accelerator.is_main_process:
            check_checkpoint_room(state, reporter)
        uploads = start_uploads(plan, repository, push_command, reporter)
        stopped_by = _train(assembled, prepared, repository, uploads, interrupts, reporter)
        _say_results(assembled, "finished" if stopped_by is None else "interrupted", reporter)
        accelerator.end_training()
        if stopped_by is None:
            _upload_all(uploads, plan, interrupts)
    return stopped_by


def _train(
    assembled: AssembledRun,
    prepared: PreparedRun,
    repository: HubRepository | None,
    uploads: HubUploads | None,
    interrupts: Interrupts,
    reporter: Reporter,
) -> int | None:
    """Fit the run to the device, train it, and write its adapter and card.

    Returns:
        The number of the signal that stopped it; None if it has completed all of its steps.
    """
    state, plan, accelerator = assembled.state, assembled.state.plan, assembled.state.accelerator
    interrupts.defer()
    if accelerator.is_main_process:
        _announce_resume(assembled, reporter)
    bar = TrainingBar(reporter)
    watching = [*plan.observers, bar, *([uploads] if uploads else [])]
    observers = Observers(watching, plan.plugins.registry, reporter, is_main=accelerator.is_main_process)
    validations = Validations(validator=assembled.validator, state=state, observers=observers, interrupts=interrupts)
    saver = Saver(state, observers, interrupts, reporter)
    observers.run_start(_start_of(assembled))
    status = "failed"
    try:
        compiled = None
        with interrupts.cut_short():
            compiled = fit_to_device(state, assembled.coming, reporter)
            record_steps(state, reporter)
        if plan.config.validation_on_startup and not assembled.resumed_from:
            validations.validate()
        told = say_changes(iter(assembled.stream), state.step, reporter)
        if accelerator.is_main_process:
            told = clear_old_crops(told, _old_crops(plan, prepared), state.position.epoch, reporter)
        micro_batches = compile_when_new(state, told, compiled, reporter)
        with bar:
            stopped_by = train(state, micro_batches, saver, validations, observers, interrupts)
        if stopped_by is None:
            saver.export()
            if accelerator.is_main_process:
                publish_card(assembled, prepared, repository, reporter)
        status = "finished" if stopped_by is None else "interrupted"
    except Interrupted:
        status = "interrupted"
        raise
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise MachineError(out_of_memory(plan, state.step + 1, error)) from error
    finally:
        assembled.stream.close()
        observers.run_end(state.step, status)
        if uploads and status != "finished":
            uploads.close()
    return stopped_by


def _upload_all(uploads: HubUploads | None, plan: RunPlan, interrupts: Interrupts) -> None:
    """Upload what is left, and wait for it. A signal ends the waiting: the run itself is complete."""
    if uploads is None:
        return
    try:
        with interrupts.cut_short():
            finish_uploads(uploads, plan)
    finally:
        uploads.close()


def _make_output_dir(plan: RunPlan, accelerator: Accelerator, reporter: Reporter) -> Resumed | None:
    """Set aside what this run does not continue; return the checkpoint that it continues from.

    Looked up again, because another run may have ended in this folder while the data was prepared.
    """
    output_dir: Path = plan.config.output_dir
    if accelerator.is_main_process:
        resumed = find_state(plan)
        if resumed is None:
            if moved := set_aside(output_dir):
                reporter.say(f"starting over; the earlier run is kept in {moved}")
        elif resumed[0].resolve().parent != output_dir.resolve() and (moved := set_aside(output_dir)):
            reporter.say(f"resuming from another folder; what was in {output_dir} is kept in {moved}")
        remove_leftovers(output_dir)
    accelerator.wait_for_everyone()
    return find_state(plan)


def _old_crops(plan: RunPlan, prepared: PreparedRun) -> OldCrops:
    crops = NewCrops(plan.data)
    concerned = [sample for sample in prepared.data.samples if crops.concern(sample)]
    return OldCrops(concerned, crops, prepared.caches, kept=prepared.measured)


def _start_of(assembled: AssembledRun) -> RunStart:
    config = assembled.state.plan.config
    return RunStart(
        config=config,
        output_dir=config.output_dir,
        total_steps=assembled.state.total_steps,
        first_step=assembled.state.step,
    )


def _announce_resume(assembled: AssembledRun, reporter: Reporter) -> None:
    """Say where the run resumes and what has changed; set aside what a later resume could mistake for its own."""
    if assembled.resumed_from is None or assembled.resumed_state is None:
        return
    state, saved = assembled.state, assembled.resumed_state
    place = f"epoch {saved.epoch}, after {saved.samples} of its samples"
    reporter.say(f"resumed {assembled.resumed_from} at step {saved.step} ({place})")
    if changes := changes_since(saved, state.plan, state.accelerator.num_processes):
        reporter.say(f"changed since that checkpoint, and taken over: {', '.join(changes)}")
    if changes := data_changes(saved.data, state.data):
        reporter.say(f"the data has changed since that checkpoint: dataset {', '.join(changes)}")
    if moved := set_newer_aside(state.plan.config.output_dir, saved.step):
        reporter.say(f"results beyond step {saved.step} are kept in {moved}")


def _finish_finished_before(
    assembled: AssembledRun, prepared: PreparedRun, repository: HubRepository | None, reporter: Reporter
) -> bool:
    """End a run that already has all its steps; a kill may have come before its adapter was written.

    Returns:
        Whether the output folder has the adapter of this step.
    """
    output_dir = assembled.state.plan.config.output_dir
    steps, total = assembled.state.step, assembled.state.total_steps
    epochs = assembled.state.plan.config.num_train_epochs
    word = _result_of(assembled)
    length = f"the run needs {total}" if epochs is None else f"num_train_epochs is {epochs}"
    reporter.say(f"{assembled.resumed_from} has {steps} steps, and {length}: nothing is left to train")
    newer = [path for path in list_checkpoints(output_dir) if step_of(path) > steps]
    # the existing adapter may belong to an earlier step: a kill may have come before this one's was written
    if not newer:
        export_adapter(assembled.state, output_dir)
        if assembled.state.accelerator.is_main_process:
            publish_card(assembled, prepared, repository, reporter)
    reporter.say(
        "hint: to train longer, raise max_train_steps or num_train_epochs; --resume_from_checkpoint none starts over "
        "(nothing is deleted)"
    )
    if newer:
        reporter.say(f"{word} of step {steps}: {assembled.resumed_from}; the one in the output folder is unchanged")
    else:
        reporter.say(f"{word}: {exported_adapter(output_dir)}")
    return not newer


def _result_of(assembled: AssembledRun) -> str:
    """Return the word for what the run makes."""
    return "model" if assembled.state.plan.adapter.trains_base else "adapter"


def _say_results(assembled: AssembledRun, status: str, reporter: Reporter) -> None:
    output_dir = assembled.state.plan.config.output_dir
    if assembled.state.skipped:
        updates = "1 update was" if assembled.state.skipped == 1 else f"{assembled.state.skipped} updates were"
        reporter.say(f"note: {updates} skipped because loss or gradient was not finite")
    if status == "interrupted":
        saved = "".join(f"; saved {checkpoint}" for checkpoint in list_checkpoints(output_dir)[-1:])
        reporter.say(f"stopped after step {assembled.state.step}{saved}")
        return
    reporter.say(f"finished {assembled.state.total_steps} steps")
    for sentence in measured(assembled):
        reporter.say(sentence)
    reporter.say(f"{_result_of(assembled) + ':':<13}{exported_adapter(output_dir)}")
    if is_own_card(output_dir / CARD_FILE):
        reporter.say(f"model card:  {output_dir / CARD_FILE}")
    for checkpoint in list_checkpoints(output_dir)[-1:]:
        reporter.say(f"checkpoints: {checkpoint}")
    reporter.say(f"metrics:     {output_dir / METRICS_FILE}")
    if sheet := newest_sheet(output_dir):
        reporter.say(f"images:      {sheet}")
