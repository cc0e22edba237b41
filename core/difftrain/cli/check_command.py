"""``difftrain check``: everything that comes before loading weights."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from difftrain.cli.check_text import print_summary, summary
from difftrain.cli.invocation import Invocation
from difftrain.errors import DataError, DifftrainError, ModelError
from difftrain.types import Finding, ModelLocation, ReferenceChoice, Reporter, Sample

if TYPE_CHECKING:
    from difftrain.data.samples.prepare_samples import PreparedData
    from difftrain.doctor.examine import Examined
    from difftrain.doctor.record_findings import LongCaptions
    from difftrain.planning.run_plan import RunPlan
    from difftrain.startup.prepare_run import PreparedRun

USER_ERROR = 2


def check(invocation: Invocation) -> int:
    """Plan the run, prepare its data, find its model, look at every pair, and print what the run would do.

    ``--json`` prints one object to standard output: ``status``, ``problems``, ``notes``, ``findings`` and the counts.
    Where the data has problems, the page and the JSON show what else is known about it.

    Raises:
        DifftrainError: For anything that the user can fix.
    """
    plan = invocation.plan()
    from difftrain.output.console import make_reporter
    from difftrain.publishing.hub_account import find_repository
    from difftrain.startup.prepare_run import prepare_run

    reporter = make_reporter(quiet=invocation.json)
    find_repository(plan.config)
    if invocation.html is not None:
        from difftrain.doctor.page import check_page_folder

        check_page_folder(invocation.html, _data_folders(plan))
    try:
        prepared = prepare_run(plan, reporter, fast=invocation.fast)
    except (DataError, ModelError) as error:
        if invocation.html is None and not (invocation.json and isinstance(error, DataError)):
            raise
        return _report_problems(invocation, plan, reporter, error)
    # takes torch only for adapters whose options name modules or files
    plan.adapter.check_model(lambda: plan.family.empty_denoiser(prepared.location), plan.family)
    samples = chain(prepared.data.samples, prepared.data.held_out)
    examined = _examine(invocation, plan, reporter, samples, prepared.data.findings, prepared.location)
    found = _found(plan, prepared)
    page = _write_page(invocation, examined, _page_facts(found), reporter)
    if invocation.json:
        print(json.dumps({**found, **examined.as_json(), "page": page}, indent=2, ensure_ascii=False))
    else:
        others = [*plan.notes, *prepared.recognised.notes, *_removed(prepared)]
        print_summary(found, others, examined, page)
    return 0


def _report_problems(invocation: Invocation, plan: RunPlan, reporter: Reporter, error: DifftrainError) -> int:
    """Write the page, and the JSON, of data with problems; they are still an error.

    Raises:
        DifftrainError: The error itself, unless JSON has it.
    """
    from difftrain.data.samples.prepare_samples import audit_samples
    from difftrain.startup.find_model import find_model

    audited = audit_samples(plan.data, reporter=reporter)
    samples = _without_made(plan, audited.samples)
    location = None if isinstance(error, ModelError) else find_model(plan).location
    examined = _examine(invocation, plan, reporter, samples, audited.findings, location)
    page = _write_page(invocation, examined, {"the run does not start": list(error.problems)}, reporter)
    if not invocation.json:
        if page:
            reporter.say(f"page: {page}")
        raise error
    problems = {"status": "error", "problems": list(error.problems)}
    print(json.dumps({**problems, **examined.as_json(), "page": page}, indent=2, ensure_ascii=False))
    return USER_ERROR


def _examine(
    invocation: Invocation,
    plan: RunPlan,
    reporter: Reporter,
    samples: Iterable[Sample],
    findings: Sequence[Finding],
    location: ModelLocation | None,
) -> Examined:
    from difftrain.doctor.examine import Pixels, examine_pairs
    from difftrain.doctor.page import THUMBNAILS

    pixels: Pixels = "all" if invocation.pixels or invocation.html else "none" if invocation.fast else "few"
    return examine_pairs(
        samples,
        findings,
        store_path=plan.data.index_path.with_name("pixels.sqlite"),
        reporter=reporter,
        pixels=pixels,
        long_captions=None if location is None else _long_captions(plan, location),
        thumbnails=invocation.html / THUMBNAILS if invocation.html else None,
    )


def _without_made(plan: RunPlan, samples: Sequence[Sample]) -> list[Sample]:
    """Return samples without the references of generators, which have not run yet."""
    generated = {made.id for dataset in plan.data.datasets for made in dataset.generators if not made.on_demand}
    none = ReferenceChoice(references=())
    return [
        replace(sample, choices=(none,))
        if any(one.record.dataset_id in generated for choice in sample.choices for one in choice.references)
        else sample
        for sample in samples
    ]


def _long_captions(plan: RunPlan, location: ModelLocation) -> LongCaptions | None:
    """Return what finds captions that are cut; None if the family cannot tell before the weights are there."""
    if plan.family.long_captions(location, plan.flavour, []) is None:
        return None
    return lambda captions: plan.family.long_captions(location, plan.flavour, captions) or []


def _data_folders(plan: RunPlan) -> dict[str, Path]:
    folders = {dataset.id: getattr(dataset.source, "instance_data_dir", None) for dataset in plan.data.datasets}
    return {name: Path(folder) for name, folder in folders.items() if folder}


def _write_page(invocation: Invocation, examined: Examined, facts: Mapping[str, Any], reporter: Reporter) -> str | None:
    if invocation.html is None:
        return None
    from difftrain.doctor.page import THUMBNAILS, write_page
    from difftrain.doctor.page_rows import page_data

    data = page_data(examined, invocation.html / THUMBNAILS, facts)
    if data["left_out"]:
        reporter.say(
            f"note: the page shows {len(data['rows'])} of {len(examined.pairs)} pairs, those with findings first; for "
            'the others set "disabled": true in some datasets'
        )
    return str(write_page(invocation.html, data))


def _page_facts(found: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the summary by heading."""
    facts: dict[str, list[str]] = {}
    for line in summary(found).splitlines():
        heading, colon, text = line.partition(": ")
        facts.setdefault(heading if colon else "run", []).append(text if colon else line)
    return facts


def _found(plan: RunPlan, prepared: PreparedRun) -> dict[str, Any]:
    return {
        "status": "ok",
        "problems": [],
        "notes": [*plan.notes, *prepared.notes, *_removed(prepared)],
        "model": {
            "family": plan.family.name,
            "flavour": plan.flavour.name,
            "name": prepared.location.name,
            "denoiser": prepared.location.of_denoiser.name,
            "weights_of": list(prepared.recognised.flavours),
        },
        **{key: value for key, value in prepared.data.summary().items() if key != "notes"},
        "to_encode": {"captions": len(prepared.texts), "images": len(prepared.images)},
        "to_encode_on_demand": len(prepared.on_demand),
        "disk": [
            {"what": need.what, "folder": str(need.folder), "files": need.files, "bytes": need.bytes}
            for need in prepared.needs
        ],
        **_lengths(plan, prepared.data),
    }


def _removed(prepared: PreparedRun) -> list[str]:
    count = len(prepared.caches.removed)
    return [f"{count} damaged cache entries were removed; the run makes them again"] if count else []


def _lengths(plan: RunPlan, data: PreparedData) -> dict[str, float]:
    """Return batches and steps on one device; batches vary between epochs where the random draws change shapes."""
    from difftrain.startup.run_length import rounds_of, steps_left, total_steps

    rounds = rounds_of(plan, data.samples)
    batches = rounds.batches_of(0)
    return {
        "batches_per_epoch": len(batches),
        "batches_full": round(batches.fill_share, 4),
        "steps_per_epoch": -(-len(batches) // plan.config.gradient_accumulation_steps),
        "total_steps": total_steps(plan, steps_left(rounds)),
    }
