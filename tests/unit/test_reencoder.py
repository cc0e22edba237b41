"""Entries that prove corrupt during training are made again, and the encoders leave the device afterwards."""

import threading
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from data_plans import SilentReporter, two_folders

from difftrain.data.caching.sample_caches import (
    SampleCaches,
    TextItem,
    encode_images,
    encode_texts,
    every_image,
    missing_images,
)
from difftrain.data.samples.prepare_samples import prepare_samples
from difftrain.data.streaming.batch_reader import BatchReader, Reencoder
from difftrain.data.streaming.epoch import draw_visit
from difftrain.data.streaming.set_rules import EpochRules
from difftrain.errors import DataError
from difftrain.testing.tiny_family import TinyFamily, TinyImageEncoder, TinyTextEncoder
from difftrain.training.assemble import _encoded_in_training, _LazySampler
from difftrain.training.frozen_encoders import Encoders

CPU, DEVICE = torch.device("cpu"), torch.device("meta")


class MovedEncoder(TinyImageEncoder):
    """Remembers where it was moved, and refuses to encode anywhere but on the device."""

    def __init__(self, events):
        self.events, self.place = events, CPU

    def encode(self, pixels):
        assert self.place == DEVICE, "encodes on the CPU"
        self.events.append("encode image")
        return super().encode(pixels)

    def move(self, device):
        if device != self.place:
            self.events.append(f"image to {device.type}")
        self.place = device


class CountedText(TinyTextEncoder):
    def __init__(self, events):
        self.events, self.itself = events, self  # real encoders' modules refer to themselves too
        events.append("load text")

    def __del__(self):
        self.events.append("text gone")

    def encode(self, captions, references=None):
        self.events.append("encode text")
        return super().encode(captions, references)


class WatchedFamily(TinyFamily):
    def load_text_encoder(self, location, flavour, device, dtype):
        assert device == DEVICE
        return CountedText(EVENTS)

    def load_image_encoder(self, location, device, dtype, *, tiling, slicing):
        assert device == CPU
        EVENTS.append("load image")
        return MovedEncoder(EVENTS)


EVENTS = []


@pytest.fixture
def project(tmp_path):
    """Return two pairs with complete caches, and a reader over them whose encoders record what they do."""
    EVENTS.clear()
    plan = two_folders(tmp_path, names=("a", "b"))
    samples = prepare_samples(plan, reporter=SilentReporter()).samples
    caches = SampleCaches(plan, image_identity="i", text_identity="t", text_view=None)
    encode_texts(
        caches.text_items(samples, caption_dropout=False, reference_dropout=False),
        caches,
        TinyTextEncoder,
        reporter=SilentReporter(),
    )
    encode_images(every_image(samples), caches, TinyImageEncoder, reporter=SilentReporter())
    config = SimpleNamespace(
        mixed_precision="no", vae_dtype="default", vae_enable_tiling=False, vae_enable_slicing=False
    )
    run_plan = SimpleNamespace(config=config, family=WatchedFamily(), flavour=None, text_quantizers=())
    encoders = Encoders(run_plan, None, DEVICE)
    reencoder = Reencoder(
        image_encoder=encoders.image, text_encoder=encoders.text, release=encoders.release, in_use=encoders.in_use
    )
    reader = BatchReader(caches, run_plan.family, reencoder, seed=0, sample_latents=False)
    visits = [draw_visit(sample, 0, 0, EpochRules(seed=0, batch_size=1)) for sample in samples]
    return SimpleNamespace(
        reader=reader, visits=visits, caches=caches, plan=plan, encoders=encoders, reencoder=reencoder
    )


def spoil(project, visit, *, latents=True, text=True):
    """Cut a visit's entries short; return their files."""
    entries = []
    if latents:
        entries += [project.caches.latents(image) for image in (visit.sample.target, *visit.references)]
    if text:
        entries.append(project.caches.text(TextItem(caption=visit.caption, references=visit.references)))
    paths = [cache.path(key) for cache, key in entries]
    for path in paths:
        path.write_bytes(path.read_bytes()[:-5])
    return paths


def test_whole_entries_need_no_encoder(project):
    project.reader.read(project.visits)
    assert EVENTS == []


def test_remade_entries_equal_the_first_ones(project):
    before = project.reader.read(project.visits)
    paths = spoil(project, project.visits[0])
    after = project.reader.read(project.visits)
    assert torch.equal(after.latents, before.latents)
    assert torch.equal(after.references[0], before.references[0])
    assert torch.equal(after.text["words"], before.text["words"])
    assert all(path.exists() for path in paths)


def test_encoders_leave_the_device_when_the_batch_is_made(project):
    spoil(project, project.visits[0])
    project.reader.read(project.visits)
    assert "encode image" in EVENTS
    assert "encode text" in EVENTS
    assert EVENTS.count("text gone") == 1
    assert EVENTS[-1] == "image to cpu"


def test_several_entries_of_a_batch_load_and_move_each_encoder_once(project):
    for visit in project.visits:
        spoil(project, visit)
    project.reader.read(project.visits)
    assert EVENTS.count("encode image") == 4
    assert EVENTS.count("encode text") == 2
    for once in ("load text", "text gone", "load image", "image to meta", "image to cpu"):
        assert EVENTS.count(once) == 1, once


def on_demand(project):
    """Return a reader of the same samples, whose images are encoded on demand into folders that are still empty."""
    datasets = (
        replace(each, latents_on_demand=True, latents_folder=each.latents_folder / "other")
        for each in project.plan.datasets
    )
    caches = SampleCaches(
        replace(project.plan, datasets=tuple(datasets)), image_identity="i", text_identity="t", text_view=None
    )
    return BatchReader(caches, WatchedFamily(), project.reencoder, seed=0, sample_latents=False)


def test_the_image_encoder_stays_while_batches_need_it_one_after_another(project):
    reader = on_demand(project)
    for visit in project.visits:
        reader.read([visit])
    assert EVENTS.count("encode image") == 4
    assert EVENTS.count("image to meta") == 1
    assert "image to cpu" not in EVENTS
    reader.read(project.visits)  # needs nothing more
    assert EVENTS[-1] == "image to cpu"
    reader.read(project.visits)
    assert EVENTS.count("image to cpu") == 1


def with_sets(project, **changes):
    """Return caches of the same samples, with something changed in every set."""
    datasets = tuple(replace(each, **changes) for each in project.plan.datasets)
    return SampleCaches(replace(project.plan, datasets=datasets), image_identity="i", text_identity="t", text_view=None)


def test_values_that_are_not_finite_are_refused_where_nothing_is_stored_too(project, monkeypatch):
    def broken(encoder, pixels):
        return torch.full((1, 3), torch.nan), torch.ones(1, 3)

    monkeypatch.setattr(MovedEncoder, "encode", broken)
    reader = BatchReader(
        with_sets(project, latents_stored=False), WatchedFamily(), project.reencoder, seed=0, sample_latents=False
    )
    with pytest.raises(DataError, match=r"values that are not finite \(mean\)"):
        reader.read(project.visits)


def test_crops_drawn_each_epoch_are_encoded_in_training_their_references_too(project):
    target, *_ = project.plan.datasets
    drawing = replace(
        target,
        config=target.config.model_copy(update={"vae_cache_clear_each_epoch": True}),
        rules=replace(target.rules, crop=True, crop_style="random"),
    )
    assert drawing.draws_each_epoch
    others = project.plan.datasets[1:]
    caches = SampleCaches(
        replace(project.plan, datasets=(drawing, *others)), image_identity="i", text_identity="t", text_view=None
    )
    images = [project.visits[0].sample.target, *project.visits[0].references]
    assert [caches.encodes_in_training(image) for image in images] == [True, True]
    assert [project.caches.encodes_in_training(image) for image in images] == [False, False]
    assert not any(map(caches.encodes_on_demand, images))
    prepared = SimpleNamespace(
        caches=caches, on_demand=[], trained=[visit.sample for visit in project.visits], measured=[]
    )
    assert len(_encoded_in_training(prepared)) == 4


def test_latents_on_demand_equal_those_made_before(project):
    before, after = project.reader.read(project.visits), on_demand(project).read(project.visits)
    assert torch.equal(after.latents, before.latents)
    assert torch.equal(after.references[0], before.references[0])


def test_text_that_a_validation_asks_for_leaves_no_encoder_either(project):
    spoil(project, project.visits[0], latents=False)
    project.reader.text(TextItem(caption=project.visits[0].caption))
    assert EVENTS == ["load text", "encode text", "text gone"]


def test_entry_that_another_program_removed_is_made_again(project):
    (path,) = spoil(project, project.visits[0], latents=False)
    path.unlink()
    project.reader.read(project.visits)
    assert path.exists()


def test_latents_without_a_deviation_are_made_again(project):
    cache, key = project.caches.latents(project.visits[0].sample.target)
    cache.write(key, {"mean": torch.zeros(3)})
    project.reader.read(project.visits)
    assert set(cache.read(key)) == {"mean", "std"}


def test_references_are_stored_without_a_deviation(project):
    visit = project.visits[0]
    for image, names in ((visit.sample.target, {"mean", "std"}), (visit.references[0], {"mean"})):
        cache, key = project.caches.latents(image)
        assert set(cache.read(key)) == names
        cache.path(key).unlink()
    project.reader.read(project.visits)  # makes them again
    for image, names in ((visit.sample.target, {"mean", "std"}), (visit.references[0], {"mean"})):
        cache, key = project.caches.latents(image)
        assert set(cache.read(key)) == names


def test_references_of_earlier_versions_with_a_deviation_are_read(project):
    cache, key = project.caches.latents(project.visits[0].references[0])
    mean = cache.read(key)["mean"]
    cache.write(key, {"mean": mean, "std": torch.ones_like(mean)})
    assert missing_images([project.visits[0].references[0]], project.caches) == []
    batch = project.reader.read(project.visits[:1])
    assert torch.equal(batch.references[0][0], mean)
    assert EVENTS == []


def test_an_entry_of_a_reference_is_not_enough_for_a_target(project):
    target = project.visits[0].sample.target
    cache, key = project.caches.latents(target)
    cache.write(key, {"mean": torch.zeros(3)})
    assert missing_images([target], project.caches) == [target]
    assert cache.path(key).exists()


def test_images_are_drawn_while_no_other_thread_may_move_the_image_encoder(project):
    def draw(request):
        free = []
        thread = threading.Thread(target=lambda: free.append(project.encoders.in_use.acquire(blocking=False)))
        thread.start()
        thread.join()
        return free

    family = SimpleNamespace(make_sampler=lambda *parts: draw)
    state = SimpleNamespace(
        bare_denoiser=None, accelerator=SimpleNamespace(device=CPU), compute_dtype=None, autocast=nullcontext
    )
    sampler = _LazySampler(SimpleNamespace(family=family, flavour=None), None, state, project.encoders)
    assert sampler(None) == [False]


def test_encoders_leave_the_device_when_an_image_cannot_be_encoded_again(project):
    spoil(project, project.visits[0], text=False)
    project.visits[0].sample.target.record.image.path.unlink()
    with pytest.raises(DataError, match=r"a\.png"):
        project.reader.read(project.visits)
    project.reader.read(project.visits[1:])
    assert project.encoders.idle_image_encoder().place == CPU


def test_an_encoder_is_not_moved_while_another_thread_draws_with_it(project):
    spoil(project, project.visits[0])
    moved = threading.Event()
    with project.encoders.in_use:
        encoder = project.encoders.image()
        thread = threading.Thread(target=lambda: (project.reader.read(project.visits), moved.set()), daemon=True)
        thread.start()
        assert not moved.wait(0.3)
        assert encoder.place == DEVICE
    assert moved.wait(30)
    assert encoder.place == CPU


def test_a_batch_of_whole_entries_does_not_wait_for_whoever_draws(project):
    done = threading.Event()
    with project.encoders.in_use:
        threading.Thread(target=lambda: (project.reader.read(project.visits), done.set()), daemon=True).start()
        assert done.wait(30)
