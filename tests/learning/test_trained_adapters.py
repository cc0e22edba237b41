"""Adapters that the real command trained on the built-in `tiny`, loaded in diffusers: did they learn what they should?

The edit is deblurring, which the checkpoint was never taught. Every training is made once and shared by the tests.
"""

import json
import random
from functools import cache
from pathlib import Path

import pytest
from PIL import ImageFilter
from small_model import HELD_OUT, SIZE, TRAINED_ON, SmallModel, windows

from conftest import run_in

pytestmark = pytest.mark.learning

CAPTION = "remove the blur"
BLUR = ImageFilter.GaussianBlur(3)
MARGIN = 16
"""Pixels around a window, so that a reference can be shifted without inventing any."""
STEPS = 200
OPTIONS = {
    "model": "flux", "flavour": "kontext", "pretrained_model_name_or_path": "tiny", "mixed_precision": "no",
    "gradient_checkpointing": "false", "aspect_bucket_alignment": 16, "data_backend_config": "datasets.json",
    "output_dir": "output", "learning_rate": 2e-3, "lr_scheduler": "cosine", "lr_warmup_steps": 5,
    "train_batch_size": 4, "max_train_steps": STEPS, "checkpoint_step_interval": STEPS, "validation_steps": 0,
}  # fmt: skip


def cut(image, left=0, top=0):
    """Return the middle of a window with margin, or a region beside the middle."""
    left, top = MARGIN + left, MARGIN + top
    return image.crop((left, top, left + SIZE, top + SIZE))


def write_pairs(folder: Path, *, misaligned: bool) -> None:
    """Write forty pairs (blurred, sharp) and their dataset list; misaligned references are 8 to 16 pixels off."""
    rng = random.Random(0)
    for name in ("edits", "references"):
        (folder / name).mkdir()
    for index, image in enumerate(windows(TRAINED_ON, 10, size=SIZE + 2 * MARGIN)):
        shift = [rng.choice((-1, 1)) * rng.randint(8, MARGIN) if misaligned else 0 for _ in range(2)]
        cut(image).save(folder / "edits" / f"{index:02}.png")
        cut(image.filter(BLUR), *shift).save(folder / "references" / f"{index:02}.png")
    common = {"type": "local", "resolution": SIZE, "resolution_type": "pixel"}
    edits = {"id": "edits", "instance_data_dir": "edits", "conditioning_data": "references", **common}
    edits |= {"caption_strategy": "instanceprompt", "instance_prompt": CAPTION}
    references = {"id": "references", "instance_data_dir": "references", "caption_strategy": None, **common}
    references["conditioning_type"] = "reference_strict"
    (folder / "datasets.json").write_text(json.dumps([edits, references]))


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    """Return the output folder of a run, done when it is first asked for."""

    @cache
    def trained(*, misaligned: bool = False, reference_dropout: float = 0.0) -> Path:
        folder = tmp_path_factory.mktemp("training")
        write_pairs(folder, misaligned=misaligned)
        options = {**OPTIONS, "reference_dropout_probability": reference_dropout}
        ended = run_in(folder, *(f"--{key}={value}" for key, value in options.items()))
        assert ended.status == 0, ended.err
        return folder / "output"

    return trained


class Measure:
    """Return losses of held-out pairs with or without an adapter."""

    def __init__(self) -> None:
        self.model = SmallModel()
        sharp = [cut(image) for image in windows(HELD_OUT, 4, size=SIZE + 2 * MARGIN, seed=1)]
        blurred = [cut(image.filter(BLUR)) for image in windows(HELD_OUT, 4, size=SIZE + 2 * MARGIN, seed=1)]
        self.sharp, self.blurred = self.model.latents(sharp), self.model.latents(blurred)

    def loss(self, adapter: Path | None = None, *, scale: float = 1.0, references: bool = True) -> float:
        """Return the velocity loss of the sharp images given the blurred ones, or nothing."""
        pipeline = self.model.pipeline
        if adapter:
            pipeline.load_lora_weights(adapter, adapter_name="trained")
            pipeline.set_adapters("trained", scale)
        try:
            return self.model.loss(self.sharp, self.blurred if references else None, CAPTION)
        finally:
            if adapter:
                pipeline.unload_lora_weights()


@pytest.fixture(scope="module")
def measure():
    return Measure()


def test_an_adapter_lowers_the_loss_of_pairs_that_it_never_saw(measure, train):
    base, adapted = measure.loss(), measure.loss(train())
    assert adapted < 0.75 * base, f"base {base:.3f}, adapted {adapted:.3f}"


def test_the_scale_of_an_adapter_goes_from_the_base_model_to_the_full_effect(measure, train):
    base = measure.loss()
    off, half, full = (measure.loss(train(), scale=scale) for scale in (0.0, 0.5, 1.0))
    assert off == pytest.approx(base, rel=1e-5)
    assert full < 0.97 * half < 0.97 * 0.9 * base, f"base {base:.3f}, half {half:.3f}, full {full:.3f}"


def test_aligned_pairs_teach_more_than_misaligned_ones(measure, train):
    aligned, misaligned = measure.loss(train()), measure.loss(train(misaligned=True))
    assert aligned < 0.8 * misaligned, f"aligned {aligned:.3f}, misaligned {misaligned:.3f}"


def test_reference_dropout_keeps_text_to_image(measure, train):
    base = measure.loss(references=False)
    without = measure.loss(train(), references=False)
    kept = measure.loss(train(reference_dropout=0.4), references=False)
    said = f"loss without references: base {base:.3f}, trained with dropout {kept:.3f}, without {without:.3f}"
    assert kept < 1.02 * base, said
    assert kept < 0.95 * without, said


def test_reference_dropout_still_learns_the_edit(measure, train):
    base, adapted = measure.loss(), measure.loss(train(reference_dropout=0.4))
    assert adapted < 0.8 * base, f"base {base:.3f}, adapted {adapted:.3f}"
