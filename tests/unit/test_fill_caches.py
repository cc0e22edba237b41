"""Each process encodes its share, and none goes on before all have."""

from types import SimpleNamespace

import pytest
from data_plans import SilentReporter, two_folders

from difftrain.data.caching.sample_caches import SampleCaches, every_image, missing_images, missing_texts
from difftrain.data.samples.prepare_samples import prepare_samples
from difftrain.errors import DataError, PluginError, StoppedElsewhere
from difftrain.testing.tiny_family import TinyImageEncoder, TinyTextEncoder
from difftrain.training import fill_caches as module
from difftrain.training.fill_caches import fill_caches


@pytest.fixture
def fill(tmp_path, monkeypatch):
    """Fill the caches of three pairs as one of some processes, while the others report what they are told to."""
    plan = two_folders(tmp_path)
    samples = prepare_samples(plan, reporter=SilentReporter()).samples
    caches = SampleCaches(plan, image_identity="i", text_identity="t", text_view=None)
    texts = missing_texts(caches.text_items(samples, caption_dropout=False, reference_dropout=False), caches)
    images = missing_images(every_image(samples), caches)
    told = []

    def run(process, processes, others=0):
        def greatest(_accelerator, own):
            told.append(own)
            return max(own, others)

        monkeypatch.setattr(module, "greatest", greatest)
        accelerator = SimpleNamespace(process_index=process, num_processes=processes)
        encoders = SimpleNamespace(text=TinyTextEncoder, image=TinyImageEncoder, release=lambda: None)
        return fill_caches(texts, images, caches, encoders, accelerator, SilentReporter(), batch_size=2)

    run.texts, run.images, run.caches, run.told = texts, images, caches, told
    return run


@pytest.mark.parametrize("processes", [1, 2, 3, 20])
def test_together_they_encode_everything_once(fill, processes):
    shares = [fill(process, processes) for process in range(processes)]
    assert sum(shares) == len(fill.texts) + len(fill.images)
    assert max(shares) - min(shares) <= 2
    assert not missing_images(fill.images, fill.caches)
    assert not missing_texts(fill.texts, fill.caches)


def test_a_process_that_failed_stops_the_others(fill):
    with pytest.raises(StoppedElsewhere):
        fill(0, 2, others=1)


def test_a_process_that_fails_tells_the_others(fill, monkeypatch):
    def fails(*_, **__):
        raise OSError("disk")

    monkeypatch.setattr(module, "encode_images", fails)
    with pytest.raises(OSError, match="disk"):
        fill(1, 2)
    assert fill.told == [0, 1]  # it was there at the start


def test_none_writes_before_all_have_looked_for_what_is_missing(fill, monkeypatch):
    seen = []
    monkeypatch.setattr(module, "encode_texts", lambda *_, **__: seen.append(list(fill.told)) or 0)
    fill(0, 2)
    assert seen == [[0]]


def test_a_plugins_error_in_one_share_is_reported_by_the_process_that_has_it(fill, monkeypatch):
    def fails(*_, **__):
        raise PluginError("generator 'strange' failed")

    monkeypatch.setattr(module, "encode_images", fails)
    with pytest.raises(DataError, match="generator 'strange' failed"):  # of plugin errors only the first tells
        fill(1, 2)
