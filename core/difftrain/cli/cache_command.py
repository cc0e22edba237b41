"""``difftrain cache``: encodes all that a run will read, before the run; checks and cleans its caches."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING

from difftrain.cli.invocation import Invocation

if TYPE_CHECKING:
    from difftrain.data.caching.sample_caches import TextItem
    from difftrain.data.caching.tensor_cache import TensorCache
    from difftrain.planning.run_plan import RunPlan
    from difftrain.startup.prepare_run import PreparedRun
    from difftrain.types import PlacedImage, Reporter


def cache(invocation: Invocation) -> int:
    """Fill the caches; with ``--verify`` read every entry first, with ``--prune`` remove those that are not needed.

    Raises:
        DifftrainError: For anything that the user can fix.
    """
    plan = invocation.plan()
    from difftrain.machine.disk import describe_bytes, describe_needs
    from difftrain.machine.processes import is_first_process
    from difftrain.output.console import make_reporter
    from difftrain.startup.prepare_run import prepare_run

    reporter = make_reporter(quiet=not is_first_process())
    prepared = prepare_run(plan, reporter, fast=invocation.fast)
    for note in (*plan.notes, *prepared.notes):
        reporter.say(f"note: {note}")
    caches = prepared.caches
    texts, images = list(prepared.texts), [*prepared.images, *filter(caches.stores, prepared.on_demand)]
    if invocation.verify or invocation.prune:
        texts, images = _tended(plan, prepared, invocation, reporter)
    if not texts and not images:
        reporter.say("caches: complete, nothing to encode")
        return 0
    if summary := describe_needs(prepared.needs):
        reporter.say(summary)
    with reporter.phase("start torch"):
        from difftrain.machine.processes import start_accelerator
        from difftrain.training.fill_caches import fill_caches
        from difftrain.training.frozen_encoders import Encoders

        accelerator = start_accelerator()
    encoders = Encoders(plan, prepared.location, accelerator.device)
    fill_caches(texts, images, caches, encoders, accelerator, reporter, batch_size=plan.config.vae_batch_size)
    paths = (cache.path(key) for cache, key in _entries(plan, prepared))
    written = sum(path.stat().st_size for path in paths if path.exists())
    reporter.say(f"caches: complete, {describe_bytes(written)} for this run")
    return 0


def _tended(
    plan: RunPlan, prepared: PreparedRun, invocation: Invocation, reporter: Reporter
) -> tuple[list[TextItem], list[PlacedImage]]:
    """Verify and prune, in the first process; return what is missing afterwards."""
    from difftrain.data.caching.keep_caches import prune, verify
    from difftrain.data.caching.sample_caches import missing_images, missing_texts
    from difftrain.machine.disk import describe_bytes
    from difftrain.machine.processes import first_process_first, is_first_process
    from difftrain.startup.prepare_run import every_placed_image, every_text

    caches, entries = prepared.caches, _entries(plan, prepared)
    with first_process_first():
        if invocation.verify and is_first_process():
            with reporter.phase("verify caches", len(entries)) as phase:
                damaged = verify(entries, phase)
            reporter.say(f"{damaged} of {len(entries)} cache entries were damaged and removed")
        if invocation.prune and is_first_process():
            with reporter.phase("prune caches") as phase:
                pruned = prune(entries, caches.folders, phase)
            size = describe_bytes(pruned.bytes)
            reporter.say(f"{pruned.files} files that this run does not need were removed: {size}")
    texts = missing_texts(every_text(plan, prepared), caches)
    return texts, [image for image in missing_images(every_placed_image(prepared), caches) if caches.stores(image)]


def _entries(plan: RunPlan, prepared: PreparedRun) -> list[tuple[TensorCache, str]]:
    """Return caches and keys of all entries that the run reads, each once."""
    from difftrain.startup.prepare_run import every_placed_image, every_text

    caches = prepared.caches
    texts = (caches.text(item) for item in every_text(plan, prepared))
    latents = (caches.latents(image) for image in every_placed_image(prepared) if caches.stores(image))
    return list({(cache.name, key): (cache, key) for cache, key in chain(texts, latents)}.values())
