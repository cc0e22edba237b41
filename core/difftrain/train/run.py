"""One whole run, from its plan to the closing words."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from difftrain.data.prepare import prepare_samples
from difftrain.errors import MachineError
from difftrain.train.assemble import AssembledRun, assemble
from difftrain.train.checkpoint import ADAPTER_FILE, export_adapter, list_checkpoints, save_checkpoint, set_aside
from difftrain.train.interrupt import Interrupted, Interrupts
from difftrain.train.loop import Duties, train
from difftrain.train.metrics import MetricsFile
from difftrain.train.plan import RunPlan
from difftrain.train.report import TrainingBar, make_reporter
from difftrain.train.step import Trainee
from difftrain.types import Reporter

if TYPE_CHECKING:
    from accelerate import Accelerator


def run_training(plan: RunPlan) -> int:
    """Prepare, train, save; gives the exit status: 0, or 130 / 143 after SIGINT / SIGTERM.

    Raises:
        DifftrainError: Whatever a user can mend, before the first step.
    """
    first_process = os.environ.get("RANK", "0") == "0"
    reporter = make_reporter(quiet=not first_process)
    for note in plan.notes:
        reporter.say(f"note: {note}")
    with Interrupts() as interrupts:
        try:
            prepared = prepare_samples(plan.data, reporter=reporter)
            for note in prepared.notes:
                reporter.say(f"note: {note}")
            with reporter.phase("start torch"):
                accelerator = start_accelerator()
            _make_output_dir(plan, accelerator, reporter)
            run = assemble(plan, prepared, accelerator, reporter)
            if run.trainee.step >= run.trainee.total_steps:
                _say_finished_before(run, reporter)
                return 0
            status = _train(run, interrupts, reporter)
        except Interrupted as interrupt:
            reporter.say(f"stopped by {interrupt}; caches and earlier checkpoints are kept, go on with:")
            reporter.say(f"  {plan.resume_command}")
            return interrupt.exit_status
        _say_goodbye(run, status, reporter)
        return interrupts.exit_status if status == "interrupted" else 0


def start_accelerator() -> Accelerator:
    """The accelerate object; autocast and accumulation are ours, so that the loop shows them.

    Raises:
        MachineError: If fewer processes came up than were started: each would train alone and overwrite the others.
    """
    from accelerate import Accelerator

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
            sheets = run.validator.draw(trainee)
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
    reporter.say(f"adapter:     {output_dir / ADAPTER_FILE}")
    reporter.say(f"checkpoints: {list_checkpoints(output_dir)[-1]}")
    reporter.say(f"metrics:     {output_dir / 'metrics.jsonl'}")
    sheets = sorted((output_dir / "validation").glob("step-*/sheet.png"))
    if sheets:
        reporter.say(f"pictures:    {sheets[-1]}")
