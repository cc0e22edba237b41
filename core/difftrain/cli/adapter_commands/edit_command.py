"""``difftrain edit``: edits images with a trained adapter, over strengths, seeds and checkpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from difftrain.cli.invocation import Invocation
from difftrain.cli.rerun_commands import until_stopped
from difftrain.errors import ConfigError

if TYPE_CHECKING:
    from difftrain.editing.edit_results import Results
    from difftrain.editing.plan_edit import EditPlan
    from difftrain.types import Reporter


def edit(invocation: Invocation) -> int:
    """Draw the grid, and say where the results, the sheet and the metrics are.

    Raises:
        DifftrainError: For anything that the user can fix; problems with flags, files and images together, before
            torch is imported.
    """
    drawing: list[EditPlan] = []

    def kept() -> str:
        from difftrain.editing.edit_results import SHEET_FILE

        some = drawing and (drawing[0].output / SHEET_FILE).exists()
        return f"complete results are kept in {drawing[0].output}" if some else "nothing was drawn"

    return until_stopped(lambda reporter: _edit(invocation, reporter, drawing), kept, invocation.arguments)


def _edit(invocation: Invocation, reporter: Reporter, drawing: list[EditPlan]) -> int:
    """Edit, and add the plan to the list as soon as results may be there."""
    from difftrain.editing.lpips_distance import without_lpips
    from difftrain.editing.measure_edits import WITHOUT_SSIM, measures_ssim
    from difftrain.editing.plan_edit import plan_edit
    from difftrain.machine.folders import check_writable
    from difftrain.machine.processes import processes_started
    from difftrain.startup.find_model import find_model

    if processes_started() > 1:
        raise ConfigError("difftrain edit runs as one process; start it without torchrun or accelerate launch")
    plan = plan_edit(
        invocation.own,
        invocation.flags,
        config=invocation.config,
        plugins=invocation.plugins,
        reporter=reporter,
    )
    check_writable(plan.output, "--output")
    found = find_model(plan.model)
    notes = [*plan.notes, *found.recognised.notes]
    if any(scene.target for scene in plan.scenes):
        notes += [WITHOUT_SSIM] if not measures_ssim() else []
        notes += [text] if (text := without_lpips()) else []
    for note in notes:
        reporter.say(f"note: {note}")
    reporter.say(
        f"edit: {len(plan.scenes)} image{'s' if len(plan.scenes) > 1 else ''} x {len(plan.variants)} columns x "
        f"{plan.asked.seeds} seed{'s' if plan.asked.seeds > 1 else ''} = {plan.count} results"
    )
    # torch only now: every mistake that needs no weights has been found by here, fast
    with reporter.phase("start torch"):
        from difftrain.editing.draw_edits import draw_edits
    drawing.append(plan)
    results = draw_edits(plan, found.location, reporter)
    for line in _closing(results):
        print(line)
    return 0


def _closing(results: Results) -> list[str]:
    from difftrain.editing.edit_results import METRICS_FILE, SHEET_FILE
    from difftrain.editing.measure_edits import described

    folder = results.plan.output
    lines = [f"{name}: {described(found)}" for name, found in results.summary().items()]
    if lines:
        lines.insert(0, "how close to the target, mean of all results (input: the image as it is):")
    return [
        *lines,
        f"results:  {folder}",
        f"sheet:    {folder / SHEET_FILE}",
        f"metrics:  {folder / METRICS_FILE}",
    ]
