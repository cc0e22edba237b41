"""Room is left for the image encoder where images are encoded beside training."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from data_plans import SilentReporter

from difftrain.training.fitting.fit_to_device import _beside_a_step
from difftrain.training.fitting.room_to_encode import room_to_encode


def image(width, height):
    return SimpleNamespace(geometry=SimpleNamespace(bucket=(width, height)))


@pytest.fixture
def encoders(monkeypatch):
    """Encoders on a GPU that counts 5 bytes before, and 7 bytes per pixel at the peak of encoding."""
    seen = SimpleNamespace(shapes=[], released=0, peak=5)

    def encode(pixels):
        seen.shapes.append(tuple(pixels.shape))
        seen.peak += 7 * pixels.shape[-1] * pixels.shape[-2]

    def release():
        seen.released += 1

    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 5)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: seen.peak)
    seen.image = lambda: SimpleNamespace(encode=encode)
    seen.release, seen.in_use = release, nullcontext()
    return seen


def test_the_largest_image_is_measured_and_the_encoder_leaves(encoders):
    images = [image(64, 64), image(64, 192), image(128, 64)]
    assert room_to_encode(images, encoders, torch.device("cuda"), SilentReporter()) == 7 * 64 * 192
    assert encoders.shapes == [(1, 3, 192, 64)]
    assert encoders.released == 1


@pytest.mark.parametrize(("images", "device"), [([], "cuda"), ([image(64, 64)], "cpu")])
def test_nothing_is_tried_where_nothing_is_encoded_on_a_gpu(encoders, images, device):
    assert room_to_encode(images, encoders, torch.device(device), SilentReporter()) == 0
    assert not encoders.shapes


def test_steps_are_fitted_beside_it():
    plan = SimpleNamespace(adapter=SimpleNamespace(trains_base=False))
    state = SimpleNamespace(plan=plan, trained=[torch.nn.Parameter(torch.zeros(3))], room_to_encode=100.0)
    assert _beside_a_step(state) == 100 + 4 * 4 * 3
