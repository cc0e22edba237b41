"""The built-in `tiny` really edits, which random weights cannot show."""

from itertools import combinations

import pytest
from PIL import Image, ImageOps
from small_model import HELD_OUT, SIGMAS, TRAINED_ON, SmallModel, psnr, windows

GREY, INVERT, NOTHING = "make it black and white", "invert the colours", ""
EDITS = {
    GREY: lambda image: ImageOps.grayscale(image).convert("RGB"),
    INVERT: ImageOps.invert,
    NOTHING: Image.Image.copy,
}


@pytest.fixture(scope="module")
def model():
    return SmallModel()


@pytest.fixture(scope="module")
def photographs():
    """Return one window of every photograph; all were held out when the model was made."""
    return windows((*HELD_OUT, *TRAINED_ON), 1)


def edited(photographs, caption):
    return [EDITS[caption](image) for image in photographs]


@pytest.mark.parametrize("caption", [GREY, INVERT])
def test_the_true_reference_beats_a_wrong_one_and_none_at_every_noise_level(model, photographs, caption):
    references = model.latents(photographs)
    targets = model.latents(edited(photographs, caption))
    true = model.losses(targets, references, caption)
    for name, others in {"shuffled": references.roll(1, 0), "none": None}.items():
        measured = model.losses(targets, others, caption)
        assert all(true[sigma] < 0.6 * measured[sigma] for sigma in SIGMAS), f"true {true}, {name} {measured}"


def test_the_caption_of_the_edit_beats_every_other(model, photographs):
    references = model.latents(photographs)
    targets = model.latents(edited(photographs, GREY))
    losses = {caption: model.loss(targets, references, caption) for caption in EDITS}
    assert losses[GREY] < 0.6 * min(losses[INVERT], losses[NOTHING]), losses


@pytest.fixture(scope="module")
def drawn(model, photographs):
    """Return drawings of two references by caption, from the same noise."""
    return [{caption: model.draw(image, caption) for caption in EDITS} for image in photographs[:2]]


def test_each_instruction_draws_its_own_edit_of_the_same_reference(photographs, drawn):
    for image, drawings in zip(photographs, drawn, strict=False):
        for caption, other in ((GREY, INVERT), (INVERT, GREY)):
            own, others = (psnr(drawings[caption], EDITS[name](image)) for name in (caption, other))
            assert own > others + 5, f"{caption!r}: {own:.1f} dB to its own target, {others:.1f} dB to the other's"


def test_three_captions_draw_three_images(drawn):
    for drawings in drawn:
        for one, other in combinations(EDITS, 2):
            likeness = psnr(drawings[one], drawings[other])
            assert likeness < 22, f"{one!r} and {other!r} draw nearly the same, {likeness:.1f} dB"


def test_the_drawn_edit_is_nearer_to_its_target_than_the_reference_is(photographs, drawn):
    for image, drawings in zip(photographs, drawn, strict=False):
        target = EDITS[GREY](image)
        reached, untouched = psnr(drawings[GREY], target), psnr(image, target)
        assert reached > untouched + 2, f"drawn {reached:.1f} dB, reference {untouched:.1f} dB"
