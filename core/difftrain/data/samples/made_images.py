"""Makes reference images from target images: at start-up on every core, or on demand with nothing written.

A made image is named by the hash of its recipe's identity (source bytes, generator, options, version, seed),
so changed options never reuse an old one, and both modes share their latents.
"""

from __future__ import annotations

import errno
import hashlib
import io
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from PIL import Image

from difftrain.data.caching.tensor_cache import write_atomically
from difftrain.data.entries.data_plan import GeneratorPlan
from difftrain.data.files.local_image import LocalImage
from difftrain.data.files.pixels import make_image
from difftrain.data.scanning.file_facts import FileFacts
from difftrain.data.scanning.image_index import ImageIndex
from difftrain.errors import DataError, first_few
from difftrain.machine.disk import Need, files_bytes
from difftrain.machine.folders import check_writable
from difftrain.machine.retries import refusal
from difftrain.types import ImageRecord, Phase, Recipe, Reporter, SourceImage

FEWEST_FOR_PROCESSES = 24
"""Below this, starting processes takes longer than the work."""
BYTES_A_PIXEL = 2
"""Approximate size of a photograph as PNG."""
_SAVED_EVERY = 200


@dataclass(frozen=True, kw_only=True)
class MakingResult:
    """The result of :func:`make_missing`."""

    written: int
    """Images made and stored."""
    notes: tuple[str, ...]
    problems: tuple[str, ...]
    """Sources that could not be decoded."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Task:
    source: SourceImage
    recipe: Recipe
    made_hash: str
    path: Path
    width: int
    height: int


def planned_records(plan: GeneratorPlan, sources: Iterable[ImageRecord]) -> list[ImageRecord]:
    """Return the reference that a generator gives for each source, in their order, made already or not."""
    recipe = Recipe(generator=plan.generator, seed=plan.seed)
    records: list[ImageRecord] = []
    for source in sources:
        task = _task(plan, recipe, source)
        records.append(
            ImageRecord(
                dataset_id=plan.id,
                key=source.key,
                image=source.image if plan.on_demand else LocalImage.at(task.path, f"{source.key}.png"),
                width=source.width,
                height=source.height,
                content_hash=task.made_hash,
                captions=plan.captions,
                recipe=recipe if plan.on_demand else None,
                focus=source.focus,
            )
        )
    return records


def make_missing(
    plan: GeneratorPlan, sources: Iterable[ImageRecord], index: ImageIndex, reporter: Reporter
) -> MakingResult:
    """Make and store the images that are missing or damaged.

    If they are made on demand, make only the first, without storing it, so that a broken generator is found now.

    Raises:
        DataError: If an image cannot be stored, or an existing one cannot be opened.
        MachineError: If there is something to store but the folder cannot be written.
        PluginError: If the generator fails, or returns no image or one of another size.
    """
    recipe = Recipe(generator=plan.generator, seed=plan.seed)
    if plan.on_demand:
        first = [_task(plan, recipe, source) for source in islice(sources, 1)]
        failures = [problem for task in first if isinstance(problem := _image_or_problem(task), str)]
        return MakingResult(written=0, notes=(), problems=_named(plan, failures))
    tasks = {task.path: task for task in (_task(plan, recipe, source) for source in sources)}
    missing, notes = _missing(plan, tasks, index, reporter)
    problems: tuple[str, ...] = ()
    if missing:
        check_writable(plan.folder, f"{plan.id}: instance_data_dir")
        with reporter.phase(f"make {plan.id}", len(missing)) as phase:
            problems = _make(plan, missing, index, phase)
    return MakingResult(written=len(missing) - len(problems), notes=notes, problems=problems)


def _task(plan: GeneratorPlan, recipe: Recipe, source: ImageRecord) -> _Task:
    made_hash = hashlib.sha256(recipe.identity(source.content_hash).encode()).hexdigest()
    path = plan.folder / made_hash[:2] / f"{made_hash}.png"
    return _Task(
        source=source.image,
        recipe=recipe,
        made_hash=made_hash,
        path=path,
        width=source.width,
        height=source.height,
    )


def room_needed(plan: GeneratorPlan, sources: Iterable[ImageRecord]) -> Need:
    """Return the files that :func:`make_missing` will write, as far as is known without opening existing ones."""
    recipe = Recipe(generator=plan.generator, seed=plan.seed)
    tasks = {} if plan.on_demand else {task.path: task for task in (_task(plan, recipe, one) for one in sources)}
    missing = [task for path, task in tasks.items() if not _is_there(path)]
    return Need(
        folder=plan.folder,
        what=f"made images of {plan.id}",
        files=len(missing),
        bytes=sum(files_bytes(1, task.width * task.height * BYTES_A_PIXEL) for task in missing),
        option="cache_dir",
    )


def _is_there(path: Path) -> bool:
    """Return whether a made image exists; one that the system does not let us examine does not count as missing.

    Raises:
        DataError: If the system does not say.
    """
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise DataError(refusal(f"made image {path} cannot be examined", error)) from error
    return True


def _missing(
    plan: GeneratorPlan, tasks: Mapping[Path, _Task], index: ImageIndex, reporter: Reporter
) -> tuple[list[_Task], tuple[str, ...]]:
    """Return the images to make, and a note on damaged ones.

    Raises:
        DataError: If the system cannot open existing images, which does not prove damage.
    """
    there = [path for path in tasks if _is_there(path)]
    facts: dict[Path, FileFacts] = {}
    if there:
        with reporter.phase(f"check {plan.id}", len(there)) as phase:
            facts = dict(zip(there, index.examine(list(map(LocalImage.at, there)), phase, decode=True), strict=True))
    if refused := [one for one in facts.items() if one[1].refused not in (0, errno.ENOENT)]:
        names = first_few(f"{path} ({one.error})" for path, one in refused)
        raise DataError(
            f"{plan.id}: {len(refused)} of {len(there)} made images cannot be opened: {names}\n"
            "hint: they are kept; make them readable, or set instance_data_dir to another folder"
        )
    missing: list[_Task] = []
    damaged: list[str] = []
    for path, task in tasks.items():
        if path not in facts or facts[path].refused:  # another run has removed it meanwhile
            missing.append(task)
        elif facts[path].error is not None or (facts[path].width, facts[path].height) != (task.width, task.height):
            missing.append(task)
            damaged.append(path.name)
    if not damaged:
        return missing, ()
    note = f"{plan.id}: {len(damaged)} made images were damaged on disk and are made again: {first_few(damaged)}"
    return missing, (note,)


def _make(plan: GeneratorPlan, tasks: Sequence[_Task], index: ImageIndex, phase: Phase) -> tuple[str, ...]:
    """Make and store images; return messages about sources that cannot be decoded."""
    problems: list[str] = []
    stored: list[tuple[str, FileFacts]] = []
    for task, problem in _run(tasks):
        phase.advance(1, task.source.place)
        if problem is not None:
            problems.append(problem)
            continue
        with suppress(FileNotFoundError):  # removed by another program: the next start makes it again
            made = LocalImage.at(task.path)
            facts = FileFacts(made.stamp(), task.made_hash, task.width, task.height, None, decoded=True)
            stored.append((made.place, facts))
        if len(stored) >= _SAVED_EVERY:
            index.remember(stored)
            stored.clear()
    index.remember(stored)
    return _named(plan, problems)


def _named(plan: GeneratorPlan, problems: Iterable[str]) -> tuple[str, ...]:
    return tuple(f"generator {plan.id!r}: {problem}" for problem in problems)


def _run(tasks: Sequence[_Task]) -> Iterator[tuple[_Task, str | None]]:
    """Yield every task with its problem, in any order."""
    waiting = list(tasks)
    workers = min(os.cpu_count() or 1, len(waiting))
    classes = {type(waiting[0].recipe.generator), *(type(task.source) for task in waiting)}
    if len(waiting) >= FEWEST_FOR_PROCESSES and workers > 1 and all(map(_other_processes_can_import, classes)):
        done: set[Path] = set()
        try:
            for task, problem in _run_in_processes(waiting, workers):
                done.add(task.path)
                yield task, problem
        except BrokenProcessPool:
            # A process died or could not start: continue in this one.
            waiting = [task for task in waiting if task.path not in done]
        else:
            return
    for task in waiting:
        yield task, _make_one(task)


def _other_processes_can_import(used: type) -> bool:
    """Return False for a class from a function, the program's own file, or a plugin loaded as a local file."""
    package = used.__module__.partition(".")[0]
    importable = any(finder.find_spec(package, None) for finder in sys.meta_path)
    return importable and package != "__main__" and "<locals>" not in used.__qualname__


def _run_in_processes(tasks: Sequence[_Task], workers: int) -> Iterator[tuple[_Task, str | None]]:
    pool = ProcessPoolExecutor(
        max_workers=workers,
        # a forked child of a process with threads may hang
        mp_context=multiprocessing.get_context("spawn"),
        # Ctrl-C reaches the children too, but the parent ends them
        initializer=signal.signal,
        initargs=(signal.SIGINT, signal.SIG_IGN),
    )
    try:
        futures: dict[Future[str | None], _Task] = {pool.submit(_make_one, task): task for task in tasks}
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _make_one(task: _Task) -> str | None:
    """Make and store one image; return the problem with the source, if any."""
    image = _image_or_problem(task)
    if isinstance(image, str):
        return image
    stream = io.BytesIO()
    # Level 1 is 3 times as fast as the default, and the files are hardly larger.
    image.save(stream, format="PNG", compress_level=1)
    write_atomically(task.path, stream.getvalue())
    return None


def _image_or_problem(task: _Task) -> Image.Image | str:
    try:
        return make_image(task.source, task.recipe, task.made_hash)
    except DataError as error:
        return str(error)
