"""At start-up only one part of the model is on the training device at a time, which is what other trainers' option
``offload_during_startup`` asks for; here it holds always, so the option has no effect."""

import weakref

import pytest
import torch

from difftrain.training import adapted_model
from difftrain.training.frozen_encoders import Encoders
from difftrain_flux.built_in import tiny_random_folder
from difftrain_flux.family import FluxFamily
from difftrain_flux.model_files.tiny_random import ensure_tiny_random

TRAINING_DEVICE = torch.device("cpu", 0)
"""To torch the same memory as ``cpu``, and yet another device."""


class Parts:
    """Parts of the model that a run loads."""

    def __init__(self):
        self.text, self.log = [], []
        self.image_on_device = False

    def on_device(self):
        """Return those that are on the training device."""
        alive = any(reference() is not None for reference in self.text)
        return [*["text encoders"] * alive, *["image encoder"] * self.image_on_device]


@pytest.fixture
def parts(monkeypatch):
    # pytest keeps what libraries log when they are imported, with exceptions and all that their frames refer to
    ensure_tiny_random(tiny_random_folder())
    seen = Parts()
    load_text, load_image = FluxFamily.load_text_encoder, FluxFamily.load_image_encoder
    load_denoiser, begin = adapted_model.load_denoiser, Encoders.__init__

    def watched_text(self, location, flavour, device, dtype):
        seen.log.append(("text encoders", seen.on_device()))
        assert device == TRAINING_DEVICE
        encoder = load_text(self, location, flavour, device, dtype)
        seen.text += [weakref.ref(model) for model in encoder.models()]
        return encoder

    def watched_image(self, location, device, dtype, **options):
        encoder = load_image(self, location, device, dtype, **options)
        assert device.type == "cpu"
        move = encoder.move

        def watched_move(device):
            seen.image_on_device = device == TRAINING_DEVICE
            seen.log.append(("image encoder", seen.on_device()))
            move(device)

        encoder.move = watched_move
        return encoder

    def watched_denoiser(*given, **named):
        seen.log.append(("denoiser", seen.on_device()))
        return load_denoiser(*given, **named)

    def begun(self, plan, location, device):
        begin(self, plan, location, TRAINING_DEVICE)

    monkeypatch.setattr(Encoders, "__init__", begun)
    monkeypatch.setattr(FluxFamily, "load_text_encoder", watched_text)
    monkeypatch.setattr(FluxFamily, "load_image_encoder", watched_image)
    monkeypatch.setattr(adapted_model, "load_denoiser", watched_denoiser)
    return seen


def test_each_part_leaves_the_device_before_the_next_one_comes(command, edit_pairs, parts):
    ended = command(
        *edit_pairs.kontext, "--data_backend_config", edit_pairs(), "--max_train_steps", 1,
        "--offload_during_startup", "true",
    )  # fmt: skip
    assert ended.status == 0, ended.err
    assert "offload_during_startup: no effect, each part of the model is freed before the next is loaded" in ended.err
    assert parts.log[0] == ("text encoders", [])
    assert ("image encoder", ["image encoder"]) in parts.log
    assert parts.log[-1] == ("denoiser", [])
    assert all(len(there) <= 1 for _, there in parts.log)
