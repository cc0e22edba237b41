"""The small model is pre-trained by the same forward that difftrain trains and draws with."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from recipe_modules import TOKENIZERS, recipe_modules

from difftrain import Batch, FlowMatching
from difftrain.steps.step import input_of, predict
from difftrain.testing import load_denoiser
from difftrain_flux.built_in import TINY, TINY_FOLDER
from difftrain_flux.family import FluxFamily
from difftrain_flux_kontext.flavour import Kontext

CAPTIONS = ("make the picture grey", "Remove the blue circle.")
LENGTH = 64
"""T5 tokens that the shipped tokenizer allows."""


@pytest.fixture(scope="module")
def recipe():
    return recipe_modules()


@pytest.fixture(scope="module")
def student(recipe):
    return recipe.student.student_of(TINY_FOLDER)


@pytest.fixture(scope="module")
def run():
    """The part of a run that a prediction needs."""
    family = FluxFamily(flux_guidance_mode="random-range", flux_guidance_max=4.0)
    plan = SimpleNamespace(family=family, flavour=Kontext())
    return SimpleNamespace(plan=plan, bare_denoiser=None, autocast=nullcontext)


@pytest.fixture(scope="module")
def location(run):
    return run.plan.family.locate(TINY, run.plan.flavour)


@pytest.fixture(scope="module")
def text(run, location):
    """Encode as in difftrain's cache."""
    family, device = run.plan.family, torch.device("cpu")
    encoder = family.load_text_encoder(location, run.plan.flavour, device, torch.float32)
    return family.collate_text(encoder.encode(list(CAPTIONS)))


@pytest.fixture(scope="module")
def pool(recipe):
    """Tokenize captions as in pre-training."""
    made = [recipe.recipes.Edit(kind="keep", caption=caption) for caption in CAPTIONS]
    return recipe.captions.Pool(made, recipe.captions.load_tokenizers(TOKENIZERS), torch.device("cpu"))


@pytest.mark.parametrize("references", [0, 1])
def test_the_student_predicts_what_difftrains_training_path_predicts(student, run, location, text, pool, references):
    ids = pool.text(torch.arange(2), LENGTH, dropout=0.0)
    torch.manual_seed(0)
    clean, given = torch.randn(2, 16, 8, 12), [torch.randn(2, 16, 8, 12)] * references
    noisy = FlowMatching().add_noise(clean, torch.tensor([0.3, 0.8]), torch.randn_like(clean))
    run.bare_denoiser = denoiser = load_denoiser(run.plan.family, location)
    with torch.no_grad():
        torch.manual_seed(1)  # guidance is drawn at random in both
        ours = student(noisy, given, *ids)
        torch.manual_seed(1)
        batch = Batch(latents=clean, references=given, text=text)
        theirs = predict(run, denoiser, input_of(run, noisy, batch))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_the_empty_caption_is_what_dropped_captions_become(pool):
    _, t5 = pool.text(torch.arange(2), LENGTH, dropout=1.0)
    assert t5[:, 0].tolist() == [1, 1]  # the end of the text
    assert t5[:, 1:].count_nonzero() == 0


def test_latents_are_those_of_difftrains_image_encoder(recipe, run, location):
    device = torch.device("cpu")
    images = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    encoder = run.plan.family.load_image_encoder(location, device, torch.float32, tiling=False, slicing=False)
    ours = recipe.student.encoder_of(TINY_FOLDER, device)(images)
    torch.testing.assert_close(ours, encoder.encode(images * 2 - 1)[0], rtol=1e-4, atol=1e-4)
