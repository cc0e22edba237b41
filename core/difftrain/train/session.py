"""The part of a run that needs torch: from prepared data to the closing words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from accelerate import Accelerator

from difftrain.train.assemble import AssembledRun, assemble
from difftrain.train.checkpoint import changes_since, export_adapter, save_checkpoint
from difftrain.train.closing import told_losses, told_psnr
from difftrain.train.interrupt import Interrupted, Interrupts
from difftrain.train.loop import Duties, train
from difftrain.train.metrics import MetricsFile, validations
from difftrain.train.output_dir import (
    ADAPTER_FILE,
    METRICS_FILE,
    find_checkpoint,
    list_checkpoints,
    newest_sheet,
    remove_leftovers,
    set_aside,
    set_newer_aside,
)
from difftrain.train.plan import RunPlan
from difftrain.train.processes import start_accelerator
from difftrain.train.report import TrainingBar
from difftrain.train.startup import PreparedRun
from difftrain.train.step import Trainee
from difftrain.types import Reporter


def train_prepared(plan: RunPlan, ready: PreparedRun, interrupts: Interrupts, reporter: Reporter) -> str:
    """Load, train, save, say where everything is.

    Returns:
        ``finished`` or ``interrupted``.
    """
    accelerator = start_accelerator()
    _make_output_dir(plan, accelerator, reporter)
    run = assemble(plan, ready, accelerator, reporter)
    if run.trainee.step >= run.trainee.total_steps:
        _finish_finished_before(run, reporter)
        return "finished"
    interrupts.defer()
    status = _train(run, interrupts, reporter)
    _say_goodbye(run, status, reporter)
    accelerator.end_training()
    return status


def _make_output_dir(plan: RunPlan, accelerator: Accelerator, reporter: Reporter) -> None:
    output_dir: Path = plan.config.output_dir
    if accelerator.is_main_process:
        resumed = find_checkpoint(output_dir, plan.config.resume_from_checkpoint)
        if resumed is None and (moved := set_aside(output_dir)):
            reporter.say(f"starting anew; the earlier run is kept in {moved}")
        output_dir.mkdir(parents=True, exist_ok=True)
        remove_leftovers(output_dir)
    accelerator.wait_for_everyone()


def _train(run: AssembledRun, interrupts: Interrupts, reporter: Reporter) -> str:
    trainee, plan = run.trainee, run.trainee.plan
    config, observers = plan.config, plan.plugins.hook
    is_main = trainee.accelerator.is_main_process
    metrics = MetricsFile(config.output_dir / METRICS_FILE)
    bar = TrainingBar(reporter, trainee.total_steps, trainee.step)
    if is_main:
        _settle_resumed(run, reporter)
        plan.plugins.manager.register(metrics)
        plan.plugins.manager.register(bar)
    observers.difftrain_run_start(
        config=config, output_dir=config.output_dir, total_steps=trainee.total_steps, first_step=trainee.step
    )

    def save(trainee: Trainee) -> Path:
        path = config.output_dir / f"checkpoint-{trainee.step}"
        if is_main:
            path = save_checkpoint(trainee, config.output_dir, keep=config.checkpoints_total_limit)
            observers.difftrain_checkpoint_saved(step=trainee.step, path=path)
        trainee.accelerator.wait_for_everyone()
        interrupts.saved = True
        return path

    def validate(trainee: Trainee) -> None:
        def measure_and_draw() -> None:
            measured: dict[str, Any] = {
                "fixed_loss": run.validator.fixed_loss(trainee),
                "fixed_loss_on": run.validator.samples_identity(trainee),
            }
            try:
                drawn = run.validator.draw(trainee)
                measured |= drawn.as_metrics()
            finally:  # a signal ends the drawing, but the loss is measured
                metrics.write(step=trainee.step, **measured)
            observers.difftrain_validation_end(step=trainee.step, sheets=drawn.files)

        if is_main:
            interrupts.cut_short(measure_and_draw)
        trainee.accelerator.wait_for_everyone()

    duties = Duties(
        checkpoint_every=config.checkpoint_step_interval,
        validate_every=config.validation_steps,
        save=save,
        validate=validate,
    )
    status = "failed"
    try:
        if config.validation_on_startup and not run.resumed_from:
            validate(trainee)
        with bar:
            status = train(trainee, run.stream, duties, interrupts)
        if status == "finished" and is_main:
            export_adapter(trainee, config.output_dir / ADAPTER_FILE)
    except Interrupted:
        status = "interrupted"
        raise
    finally:
        run.stream.close()
        observers.difftrain_run_end(step=trainee.step, status=status)
    return status


def _settle_resumed(run: AssembledRun, reporter: Reporter) -> None:
    """Say where the run goes on and what is different now; put away what a later resume must not take for its own."""
    if run.resumed_from is None or run.resumed_state is None:
        return
    trainee, state = run.trainee, run.resumed_state
    place = f"epoch {state.position.epoch}, after {state.position.samples} samples of it"
    reporter.say(f"resumed {run.resumed_from} at step {state.step} ({place})")
    if changes := changes_since(state, trainee):
        reporter.say(f"changed since that checkpoint: {', '.join(changes)}")
    if moved := set_newer_aside(trainee.plan.config.output_dir, state.step):
        reporter.say(f"checkpoints beyond step {state.step} are kept in {moved}")


def _finish_finished_before(run: AssembledRun, reporter: Reporter) -> None:
    """A run that has all its steps; a kill may have come before its adapter was written."""
    adapter = run.trainee.plan.config.output_dir / ADAPTER_FILE
    if run.trainee.accelerator.is_main_process:
        export_adapter(run.trainee, adapter)
    steps, total = run.trainee.step, run.trainee.total_steps
    reporter.say(f"{run.resumed_from} has {steps} steps, and the run is to have {total}: it was finished before")
    reporter.say(
        "hint: a larger max_train_steps trains on; --resume_from_checkpoint none starts anew (nothing is deleted)"
    )
    reporter.say(f"adapter: {adapter}")


def _say_goodbye(run: AssembledRun, status: str, reporter: Reporter) -> None:
    output_dir = run.trainee.plan.config.output_dir
    if status == "interrupted":
        saved = "".join(f"; saved {checkpoint}" for checkpoint in list_checkpoints(output_dir)[-1:])
        reporter.say(f"stopped after step {run.trainee.step}{saved}")
        return
    reporter.say(f"finished {run.trainee.total_steps} steps")
    _say_measured(run, output_dir / METRICS_FILE, reporter)
    reporter.say(f"adapter:     {output_dir / ADAPTER_FILE}")
    reporter.say(f"checkpoints: {list_checkpoints(output_dir)[-1]}")
    reporter.say(f"metrics:     {output_dir / METRICS_FILE}")
    if sheet := newest_sheet(output_dir):
        reporter.say(f"pictures:    {sheet}")


def _say_measured(run: AssembledRun, metrics: Path, reporter: Reporter) -> None:
    """What the validations of the run measured, those before a resume included that measured the same."""
    validator = run.validator
    losses = validations(metrics, "fixed_loss", validator.samples_identity(run.trainee))
    if losses:
        by_step = {step: line["fixed_loss"] for step, line in losses.items()}
        reporter.say(told_losses(by_step, count=len(validator.fixed), held_out=validator.held_out))
    scores = validations(metrics, "psnr", validator.pictures_identity(run.trainee))
    if told := told_psnr(scores, held_out=validator.held_out, seeds=validator.seeds):
        reporter.say(told)
