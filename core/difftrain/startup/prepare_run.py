"""The start-up that a run and ``difftrain check`` share: everything before loading weights, without torch.

Start with :func:`prepare_run`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from difftrain.checkpoints.resume_state import find_state
from difftrain.contracts import ModelFlavour
from difftrain.data.caching.sample_caches import SampleCaches, TextItem, every_image, missing_images, missing_texts
from difftrain.data.entries.data_plan import DataPlan
from difftrain.data.files.pixels import load_placed
from difftrain.data.packed.packed_samples import PackedSamples
from difftrain.data.samples.flavour_limits import check_areas, check_counts, check_has_references
from difftrain.data.samples.new_crops import NewCrops
from difftrain.data.samples.prepare_samples import PairedData, PreparedData, prepare_samples
from difftrain.data.scanning.file_facts import FileFacts
from difftrain.data.scanning.image_index import ImageIndex
from difftrain.data.scanning.scan_notes import unreadable_advice
from difftrain.errors import DataError, MachineError, first_few
from difftrain.machine.disk import Need, check_room
from difftrain.machine.folders import check_writable
from difftrain.machine.processes import first_process_first
from difftrain.model.flavour_match import Recognised
from difftrain.planning.run_plan import RunPlan
from difftrain.startup.encoded_form import open_caches, room_needed
from difftrain.startup.find_model import find_model
from difftrain.startup.run_length import check_schedule
from difftrain.startup.validated import texts_of_run, validated
from difftrain.types import ModelLocation, PlacedImage, Reporter, Sample
from difftrain.validation.scenes import Scene


@dataclass(frozen=True, kw_only=True)
class PreparedRun:
    """Everything known about a run before its first weight is loaded."""

    location: ModelLocation
    recognised: Recognised
    """Flavours that the weights may belong to."""
    data: PreparedData
    scenes: Sequence[Scene]
    """Images that validations draw."""
    measured: Sequence[Sample]
    """Samples for the loss that validations measure."""
    caches: SampleCaches
    texts: Sequence[TextItem]
    """Captions still to encode."""
    images: Sequence[PlacedImage]
    """Images still to encode before the first step."""
    on_demand: Sequence[PlacedImage]
    """Images that are encoded when a batch first needs them."""
    needs: Sequence[Need]
    """Disk space that the run needs in addition to what exists."""
    trained: Sequence[Sample]
    """Samples as the coming epoch shows them: with its crops, where they are drawn again each epoch."""

    @property
    def notes(self) -> Sequence[str]:
        """Oddities that do not stop the run."""
        return [*self.recognised.notes, *self.data.notes]


@dataclass(frozen=True, kw_only=True)
class _RemainingWork:
    """What validations use, and what is still to encode."""

    scenes: Sequence[Scene]
    measured: Sequence[Sample]
    texts: Sequence[TextItem]
    images: Sequence[PlacedImage]
    on_demand: Sequence[PlacedImage]
    needs: Sequence[Need]
    trained: Sequence[Sample]


def prepare_run(plan: RunPlan, reporter: Reporter, *, fast: bool = False) -> PreparedRun:
    """Find the model, prepare the samples, and check everything that would stop the run later.

    With several processes the first runs alone before the others, which then find what it made.

    Args:
        fast: Do not fully decode new images; a damaged one then stops the run when it is encoded.

    Raises:
        DifftrainError: For anything that the user can fix.
    """
    check_writable(plan.config.output_dir, "output_dir")
    resumed = find_state(plan)  # report a checkpoint that cannot be resumed before reading the data
    epoch = resumed[1].epoch if resumed else 0
    model = find_model(plan)
    location = model.location
    caches = open_caches(plan, plan.data, location)
    ahead: list[_RemainingWork] = []

    def note_remaining_work(paired: PairedData) -> None:
        ahead.append(_remaining_work(plan, location, caches, paired, epoch, reporter))
        _check_disk(ahead[0].needs)

    with first_process_first():
        data = prepare_samples(plan.data, reporter=reporter, before_making=note_remaining_work)
        (found,) = ahead
        problems = [] if fast else _undecodable(plan.data, [*found.images, *found.on_demand], data, reporter)
        problems += _unusable(found.scenes, reporter)
        if problems:
            raise DataError(*problems)
    return PreparedRun(
        location=location,
        recognised=model.recognised,
        data=data,
        scenes=found.scenes,
        measured=found.measured,
        caches=caches,
        texts=found.texts,
        images=found.images,
        on_demand=found.on_demand,
        needs=found.needs,
        trained=found.trained,
    )


def every_text(plan: RunPlan, prepared: PreparedRun) -> Iterator[TextItem]:
    """Yield every caption that training and validations ask for, with repetitions."""
    yield from texts_of_run(plan, prepared.caches, prepared.trained, prepared.measured, prepared.scenes)


def every_placed_image(prepared: PreparedRun) -> Iterator[PlacedImage]:
    """Yield every image whose latents the coming epoch and validations ask for, with repetitions."""
    yield from every_image(chain(prepared.trained, prepared.measured))


def _remaining_work(
    plan: RunPlan, location: ModelLocation, caches: SampleCaches, paired: PairedData, epoch: int, reporter: Reporter
) -> _RemainingWork:
    """Return what validations use, and what the samples need that the coming epoch shows; it counts from 0."""
    crops, used = NewCrops(plan.data), validated(plan, paired)
    measured, scenes = used.measured, used.scenes
    trained = PackedSamples.of(crops(sample, epoch) for sample in paired.samples) if crops and epoch else paired.samples
    check_schedule(plan, paired.samples)
    _check_references(plan.flavour, paired)
    if plan.flavour.max_pixels is not None:
        check_areas(chain(trained, measured), plan.flavour.max_pixels, flavour=plan.flavour.name)
    with reporter.phase("check caches") as phase:
        texts = missing_texts(texts_of_run(plan, caches, trained, measured, scenes), caches, phase)
        missing = missing_images(every_image(chain(trained, measured)), caches, phase)
    stored = [image for image in missing if caches.stores(image)]
    needs = [*room_needed(plan, plan.data, location, caches, texts=texts, images=stored)]
    needs += [need for need in paired.made if need.files]
    return _RemainingWork(
        scenes=scenes,
        measured=measured,
        texts=texts,
        images=[image for image in missing if not caches.encodes_on_demand(image)],
        on_demand=[image for image in missing if caches.encodes_on_demand(image)],
        needs=needs,
        trained=trained,
    )


def _check_references(flavour: ModelFlavour, paired: PairedData) -> None:
    """Raise a DataError with all samples that have too many references, or too few."""
    problems: list[str] = []
    for samples in (paired.samples, paired.held_out):
        try:
            check_counts(samples, flavour.max_references, flavour=flavour.name)
            if flavour.needs_reference:
                check_has_references(samples, flavour=flavour.name)
        except DataError as error:
            problems += error.problems
    if problems:
        raise DataError(*problems)


def _check_disk(needs: Sequence[Need]) -> None:
    """Check that folders to write into are writable and have room.

    Raises:
        MachineError: With every folder that is not, or has not.
    """
    problems = []
    for need in needs:
        if need.files:
            try:
                check_writable(need.folder, f"{need.what} ({need.files} to be written):")
            except MachineError as error:
                problems.append(str(error))
    if problems:
        problems[-1] += "\nhint: make these folders writable, or set cache_dir to another one"
        raise MachineError(*problems)
    check_room(needs)


def _undecodable(plan: DataPlan, images: Sequence[PlacedImage], data: PreparedData, reporter: Reporter) -> list[str]:
    """Return messages about images that will be encoded but cannot be decoded.

    An image with cached latents was decoded then: the same bytes have the same key. The index remembers the others.
    Damage that a decoder fills in silently, as in a JPEG's pixels, cannot be detected.
    """
    owners = {placed.record.image.place: placed.record for placed in images}
    if not owners:
        return []
    with reporter.phase("check images", len(owners)) as phase, ImageIndex(plan.index_path) as index:
        every = [record.image for record in owners.values()]
        facts = dict(zip(owners, index.examine(every, phase, decode=True), strict=True))
    broken: dict[str, dict[str, FileFacts]] = defaultdict(dict)
    for place, one in facts.items():
        if one.error is not None:
            broken[owners[place].dataset_id][place] = one
    return [
        _describe_broken(
            dataset_id,
            unreadable,
            data.images.get(dataset_id),
            plan.place_of(dataset_id),
        )
        for dataset_id, unreadable in broken.items()
    ]


def _describe_broken(dataset_id: str, broken: Mapping[str, FileFacts], total: int | None, place: str) -> str:
    of_all = f" of {total}" if total else ""
    names = first_few(f"{image} ({one.error})" for image, one in broken.items())
    advice = unreadable_advice(list(broken.values()), place)
    return f"dataset {dataset_id!r}: {len(broken)}{of_all} images cannot be decoded: {names}\nhint: {advice}"


def _unusable(scenes: Sequence[Scene], reporter: Reporter) -> list[str]:
    """Return messages about validation images, each opened or made once: a damaged one must not end a run later."""
    images = {
        (placed.record.image.place, placed.record.recipe): placed
        for scene in scenes
        for placed in (*scene.references, *([scene.target] if scene.target else []))
    }
    problems: list[str] = []
    if not images:
        return problems
    with reporter.phase("check images to draw", len(images)) as phase:
        for placed in images.values():
            try:
                load_placed(placed)
            except DataError as error:
                problems.append(str(error))
            phase.advance(item=placed.record.key)
    return problems
