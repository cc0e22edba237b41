"""Captions of the small model's pre-training: seeded, in the shipped vocabulary, and nothing about restoration."""

import hashlib
import random
import re
import sys

import numpy as np
import pytest
import torch
from recipe_modules import NAMES, TOKENIZERS, recipe_modules, words_of

RESTORATION = re.compile(
    r"sharp|blur|focus|crisp|nois|grain|restor|repair|clean|clear|enhanc|quality|resolution|upscal|jpe?g|art[ei]fact"
    r"|compress|scratch|defect"
)
HALF = 10_000
# sha256 of the captions of the first 3000 `edits.edit` and 3000 `edits.text_to_image` of one Random(0), a line each,
# taken where make_tokenizers.py gave the shipped tokenizer.json files byte for byte
GOLDEN = "06138ebe8ae1cdbd9a7ec92485f95c2e5f72a174dca2595650ba9ad0013b7eeb"


@pytest.fixture(scope="module")
def recipe():
    return recipe_modules()


@pytest.fixture(scope="module")
def subjects(recipe):
    sources = recipe.sources
    return (*(photograph.subject for photograph in sources.PHOTOGRAPHS), *sources.STAMP_SUBJECTS.values())


def captions(recipe, subjects, count, seed):
    rng = random.Random(seed)
    made = [recipe.edits.edit(rng) for _ in range(count)]
    return [item.caption for item in made + [recipe.edits.text_to_image(rng, subjects) for _ in range(count)]]


@pytest.fixture(scope="module")
def many(recipe, subjects):
    """Return 20 000 captions: edits, and images with descriptions."""
    return captions(recipe, subjects, HALF, 1)


def test_the_recipes_modules_do_not_stay_importable(recipe):
    leaked = [name for name in NAMES if vars(recipe)[name] is sys.modules.get(name)]
    assert leaked == []


def test_the_same_seed_draws_the_same_captions_and_numbers(recipe, subjects):
    first, second = (
        recipe.recipes.collect([recipe.edits.text_to_image(random.Random(seed), subjects) for seed in range(300)])
        for _ in range(2)
    )
    assert first.captions == second.captions
    for name in ("turn", "matrix", "bias", "gamma", "photo", "backgrounds", "shapes", "overlay"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


def test_another_seed_draws_other_captions(recipe, subjects):
    assert captions(recipe, subjects, 50, 0) != captions(recipe, subjects, 50, 1)


def test_captions_are_those_that_the_shipped_tokenizers_were_made_of(recipe, subjects):
    digest = hashlib.sha256("\n".join(captions(recipe, subjects, 3000, 0)).encode()).hexdigest()
    assert digest == GOLDEN


def test_restoration_is_never_spoken_of(many):
    assert [caption for caption in many if RESTORATION.search(caption.lower())][:5] == []
    assert len(many) == 2 * HALF


def test_words_of_restoration_are_known_though_never_said(recipe):
    _, t5 = recipe.captions.load_tokenizers(TOKENIZERS)
    words = [word for word in recipe.architecture.MORE_WORDS.split() if RESTORATION.search(word)]
    assert {"sharpen", "deblur", "denoise", "restore"} <= set(words)
    assert [word for word in words if t5.token_to_id(f"\u2581{word}") is None] == []


def test_every_word_that_is_said_is_one_token_of_both_shipped_tokenizers(recipe, many):
    clip, t5 = recipe.captions.load_tokenizers(TOKENIZERS)
    # CLIP splits numbers into their digits
    words = sorted({word for caption in many for word in words_of(caption) if word.isalpha()})
    assert [word for word in words if clip.token_to_id(f"{word}</w>") is None] == []
    assert [word for word in words if t5.token_to_id(f"\u2581{word}") is None] == []


def test_a_vowel_has_its_article(many):
    assert [caption for caption in many if re.search(r"\ba [aeio]", caption.lower())][:5] == []


def test_every_kind_of_edit_is_drawn(recipe, subjects):
    rng = random.Random(2)
    kinds = {recipe.edits.edit(rng).kind for _ in range(3000)}
    assert kinds >= set(recipe.evaluate.SHEET_KINDS) - {"describe"}
    assert kinds >= {f"scene_{name}" for name in recipe.scene_edits.SCENE_EDITS}


def test_quarter_turns_are_drawn_for_square_images_only(recipe):
    rng = random.Random(3)
    made = [recipe.image_edits.rotate(rng) for _ in range(60)]
    pool = recipe.captions.Pool(made, recipe.captions.load_tokenizers(TOKENIZERS), torch.device("cpu"))
    torch.manual_seed(0)
    kinds = {square: {made[index].kind for index in pool.draw(500, square).tolist()} for square in (True, False)}
    assert kinds[True] == {"rotate_half", "rotate_left", "rotate_right"}
    assert kinds[False] == {"rotate_half"}
