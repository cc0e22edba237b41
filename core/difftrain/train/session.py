"""The part of a run that needs torch: from prepared data to the closing words."""

from __future__ import annotations

import os
from pathlib import Path

from accelerate import Accelerator

from difftrain.data.prepare import PreparedData
from difftrain.errors import MachineError
from difftrain.train.assemble import AssembledRun, assemble
from difftrain.train.checkpoint import ADAPTER_FILE, export_adapter, list_checkpoints, save_checkpoint, set_aside
from difftrain.train.interrupt import Interrupts
from difftrain.train.loop import Duties, train
from difftrain.train.metrics import MetricsFile, fixed_losses
from difftrain.train.plan import RunPlan
from difftrain.train.report import TrainingBar
from difftrain.train.step import Trainee
from difftrain.types import Reporter


def train_prepared(plan: RunPlan, prepared: PreparedData, interrupts: Interrupts, reporter: Reporter) -> str:
    """Load, train, save, say where everything is.

    Returns:
        ``finished`` or ``interrupted``.
    """
    accelerator = start_accelerator()
    _make_output_dir(plan, accelerator, reporter)
    run = assemble(plan, prepared, accelerator, reporter)
    if run.trainee.step >= run.trainee.total_steps:
        _say_finished_before(run, reporter)
        return "finished"
    status = _train(run, interrupts, reporter)
    _say_goodbye(run, status, reporter)
    return status


def start_accelerator() -> Accelerator:
    """The accelerate object; autocast and accumulation are ours, so that the loop shows them.

    Raises:
        MachineError: If fewer processes came up than were started: each would train alone and overwrite the others.
    """
    accelerator = Accelerator(mixed_precision="no")
    asked = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != asked:
        raise MachineError(
            f"{asked} processes were started but accelerate sees {accelerator.num_processes}\n"
            "hint: start with `torchrun --nproc_per_node N -m difftrain ...`"
        )
    return accelerator


def _make_output_dir(plan: RunPlan, accelerator: Accelerator, reporter: Reporter) -> None:
    output_dir: Path = plan.config.output_dir
    if accelerator.is_main_process:
        if plan.config.resume_from_checkpoint == "none" and (moved := set_aside(output_dir)):
            reporter.say(f"starting anew; the earlier run is kept in {moved}")
        output_dir.mkdir(parents=True, exist_ok=True)
    accelerator.wait_for_everyone()


def _train(run: AssembledRun, interrupts: Interrupts, reporter: Reporter) -> str:
    trainee, plan = run.trainee, run.trainee.plan
    config, observers = plan.config, plan.plugins.hook
    metrics = MetricsFile(config.output_dir / "metrics.jsonl")
    bar = TrainingBar(reporter, trainee.total_steps, trainee.step)
    if trainee.accelerator.is_main_process:
        plan.plugins.manager.register(metrics)
        plan.plugins.manager.register(bar)
    if run.resumed_from:
        reporter.say(f"resumed {run.resumed_from} at step {trainee.step}")
    observers.difftrain_run_start(
        config=config, output_dir=config.output_dir, total_steps=trainee.total_steps, first_step=trainee.step
    )

    def save(trainee: Trainee) -> Path:
        path = config.output_dir / f"checkpoint-{trainee.step}"
        if trainee.accelerator.is_main_process:
            path = save_checkpoint(trainee, config.output_dir, keep=config.checkpoints_total_limit)
            observers.difftrain_checkpoint_saved(step=trainee.step, path=path)
        trainee.accelerator.wait_for_everyone()
        return path

    def validate(trainee: Trainee) -> None:
        if trainee.accelerator.is_main_process:
            fixed = run.validator.fixed_loss(trainee)
            metrics.write(step=trainee.step, fixed_loss=fixed)
            sheets = run.validator.draw(trainee, stop=lambda: interrupts.number is not None)
            observers.difftrain_validation_end(step=trainee.step, sheets=sheets)
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
        if status == "finished" and trainee.accelerator.is_main_process:
            export_adapter(trainee, config.output_dir / ADAPTER_FILE)
    finally:
        observers.difftrain_run_end(step=trainee.step, status=status)
    return status


def _say_finished_before(run: AssembledRun, reporter: Reporter) -> None:
    config = run.trainee.plan.config
    reporter.say(f"{run.resumed_from} has all {run.trainee.total_steps} steps: this run was finished before")
    reporter.say("hint: --max_train_steps N trains on; --resume_from_checkpoint none starts anew (nothing is deleted)")
    reporter.say(f"adapter: {config.output_dir / ADAPTER_FILE}")


def _say_goodbye(run: AssembledRun, status: str, reporter: Reporter) -> None:
    plan = run.trainee.plan
    output_dir = plan.config.output_dir
    if status == "interrupted":
        reporter.say(f"stopped after step {run.trainee.step}; saved {list_checkpoints(output_dir)[-1]}; go on with:")
        reporter.say(f"  {plan.resume_command}")
        return
    reporter.say(f"finished {run.trainee.total_steps} steps")
    measured = fixed_losses(output_dir / "metrics.jsonl")
    if measured:
        listed = ", ".join(f"{loss:.4f} at step {step}" for step, loss in sorted(measured.items()))
        reporter.say(f"loss on the same {len(run.validator.fixed)} samples and noise: {listed}")
    reporter.say(f"adapter:     {output_dir / ADAPTER_FILE}")
    reporter.say(f"checkpoints: {list_checkpoints(output_dir)[-1]}")
    reporter.say(f"metrics:     {output_dir / 'metrics.jsonl'}")
    sheets = sorted((output_dir / "validation").glob("step-*/sheet.png"))
    if sheets:
        reporter.say(f"pictures:    {sheets[-1]}")
