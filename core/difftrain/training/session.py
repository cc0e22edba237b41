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
from difftrain.errors import MachineError
from difftrain.machine.interrupts import Interrupted, Interrupts
from difftrain.machine.processes import start_accelerator
from difftrain.output.console import TrainingBar
from difftrain.output.metrics_file import measured_alike
from difftrain.output.observers import Observers
from difftrain.output.output_dir import (
    METRICS_FILE,
    exported_adapter,
    list_checkpoints,
    newest_sheet,
    remove_leftovers,
    set_aside,
    set_newer_aside,
    step_of,
)
from difftrain.output.output_lock import locked
from difftrain.planning.run_plan import RunPlan
from difftrain.startup.prepare_run import PreparedRun
from difftrain.training.agreement import check_agreement
from difftrain.training.assemble import AssembledRun, assemble
from difftrain.training.loop import train
from difftrain.types import Reporter
from difftrain.validation.closing_words import told_losses, told_psnr
from difftrain.validation.validator import Validations


def train_prepared(plan: RunPlan, prepared: PreparedRun, interrupts: Interrupts, reporter: Reporter) -> int | None:
    """Load, train, save, say where everything is.

    Returns:
        The number of the signal that stopped the run; None when it has all of its steps.
    """
    accelerator = start_accelerator()
    with locked(plan.config.output_dir) if accelerator.is_main_process else nullcontext():
        resumed = _settle_output_dir(plan, accelerator, reporter)
        run = assemble(plan, prepared, resumed, accelerator, reporter)
        trainee = run.trainee
        check_agreement(trainee)
        if trainee.step >= trainee.total_steps:
            _finish_finished_before(run, reporter)
            return None
        if accelerator.is_main_process:
            check_checkpoint_room(trainee, reporter)
        interrupts.defer()
        if accelerator.is_main_process:
            _settle_resumed(run, reporter)
        bar = TrainingBar(reporter)
        observers = Observers(
            [*plan.observers, bar], plan.plugins.registry, reporter, is_main=accelerator.is_main_process
        )
        validations = Validations(validator=run.validator, trainee=trainee, observers=observers, interrupts=interrupts)
        saver = Saver(trainee, observers, interrupts, reporter)
        observers.run_start(_start_of(run))
        status = "failed"
        try:
            if plan.config.validation_on_startup and not run.resumed_from:
                validations.validate()
            with bar:
                stopped_by = train(trainee, iter(run.stream), saver, validations, observers, interrupts)
            if stopped_by is None:
                saver.export()
            status = "finished" if stopped_by is None else "interrupted"
        except Interrupted:
            status = "interrupted"
            raise
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise MachineError(_out_of_memory(run, error)) from error
        finally:
            run.stream.close()
            observers.run_end(trainee.step, status)
        _say_goodbye(run, status, reporter)
        accelerator.end_training()
    return stopped_by


def _settle_output_dir(plan: RunPlan, accelerator: Accelerator, reporter: Reporter) -> Resumed | None:
    """Put away what this run does not go on with; gives the checkpoint that it goes on from.

    Looked up again, since another run may have ended in this folder while the data was prepared.
    """
    output_dir: Path = plan.config.output_dir
    if accelerator.is_main_process:
        resumed = find_state(plan)
        if resumed is None:
            if moved := set_aside(output_dir):
                reporter.say(f"starting anew; the earlier run is kept in {moved}")
        elif resumed[0].resolve().parent != output_dir.resolve() and (moved := set_aside(output_dir)):
            reporter.say(f"going on from another folder; what was in {output_dir} is kept in {moved}")
        remove_leftovers(output_dir)
    accelerator.wait_for_everyone()
    return find_state(plan)


def _start_of(run: AssembledRun) -> RunStart:
    config = run.trainee.plan.config
    return RunStart(
        config=config,
        output_dir=config.output_dir,
        total_steps=run.trainee.total_steps,
        first_step=run.trainee.step,
    )


def _out_of_memory(run: AssembledRun, error: Exception) -> str:
    config = run.trainee.plan.config
    advice = [
        "" if config.gradient_checkpointing else "set gradient_checkpointing = true",
        "" if config.train_batch_size == 1 else f"lower train_batch_size, {config.train_batch_size} now",
        "" if run.trainee.plan.quantizer else "set base_model_precision, int8-quanto for instance",
        "lower resolution",
        "lower lora_rank",
    ]
    reason = f": {str(error).splitlines()[0]}" if str(error) else ""
    return (
        f"out of memory in step {run.trainee.step + 1}{reason}\nhint: {', or '.join(part for part in advice if part)}"
    )


def _settle_resumed(run: AssembledRun, reporter: Reporter) -> None:
    """Say where the run goes on and what is different now; put away what a later resume must not take for its own."""
    if run.resumed_from is None or run.resumed_state is None:
        return
    trainee, state = run.trainee, run.resumed_state
    place = f"epoch {state.epoch}, after {state.samples} samples of it"
    reporter.say(f"resumed {run.resumed_from} at step {state.step} ({place})")
    if changes := changes_since(state, trainee.plan, trainee.accelerator.num_processes):
        reporter.say(f"changed since that checkpoint, and taken over: {', '.join(changes)}")
    if changes := data_changes(state.data, trainee.data):
        reporter.say(f"the data changed since that checkpoint: dataset {', '.join(changes)}")
    if moved := set_newer_aside(trainee.plan.config.output_dir, state.step):
        reporter.say(f"what was made beyond step {state.step} is kept in {moved}")


def _finish_finished_before(run: AssembledRun, reporter: Reporter) -> None:
    """A run that has all its steps; a kill may have come before its adapter was written."""
    output_dir = run.trainee.plan.config.output_dir
    steps, total = run.trainee.step, run.trainee.total_steps
    epochs = run.trainee.plan.config.num_train_epochs
    length = f"the run is to have {total}" if epochs is None else f"num_train_epochs is {epochs}"
    reporter.say(f"{run.resumed_from} has {steps} steps, and {length}: nothing is left to train")
    newer = [path for path in list_checkpoints(output_dir) if step_of(path) > steps]
    # what is there may be of an earlier step: a kill may have come before this one's was written
    if not newer:
        export_adapter(run.trainee, output_dir)
    reporter.say(
        "hint: a larger max_train_steps or num_train_epochs trains on; --resume_from_checkpoint none starts anew "
        "(nothing is deleted)"
    )
    if newer:
        reporter.say(f"adapter of step {steps}: {run.resumed_from}; the output folder's own is left as it is")
    else:
        reporter.say(f"adapter: {exported_adapter(output_dir)}")


def _say_goodbye(run: AssembledRun, status: str, reporter: Reporter) -> None:
    output_dir = run.trainee.plan.config.output_dir
    if run.trainee.skipped:
        updates = "1 update was" if run.trainee.skipped == 1 else f"{run.trainee.skipped} updates were"
        reporter.say(f"note: {updates} left out, since loss or gradient was not finite")
    if status == "interrupted":
        saved = "".join(f"; saved {checkpoint}" for checkpoint in list_checkpoints(output_dir)[-1:])
        reporter.say(f"stopped after step {run.trainee.step}{saved}")
        return
    reporter.say(f"finished {run.trainee.total_steps} steps")
    _say_measured(run, output_dir / METRICS_FILE, reporter)
    reporter.say(f"adapter:     {exported_adapter(output_dir)}")
    for checkpoint in list_checkpoints(output_dir)[-1:]:
        reporter.say(f"checkpoints: {checkpoint}")
    reporter.say(f"metrics:     {output_dir / METRICS_FILE}")
    if sheet := newest_sheet(output_dir):
        reporter.say(f"pictures:    {sheet}")


def _say_measured(run: AssembledRun, metrics: Path, reporter: Reporter) -> None:
    """What the validations of the run measured, those before a resume included that measured the same."""
    validator = run.validator
    losses = measured_alike(metrics, "fixed_loss", validator.samples_identity(run.trainee))
    if losses:
        by_step = {step: line["fixed_loss"] for step, line in losses.items()}
        reporter.say(told_losses(by_step, count=len(validator.fixed), held_out=validator.held_out))
    scores = measured_alike(metrics, "psnr", validator.pictures_identity(run.trainee))
    if told := told_psnr(scores, held_out=validator.held_out, seeds=validator.seeds):
        reporter.say(told)
