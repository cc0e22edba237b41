"""The tests in `difftrain.testing` for plugin authors pass for good plugins and fail for bad ones."""

import json
import random
import subprocess
import sys
from typing import ClassVar

import pytest
import torch
from PIL import Image, ImageOps

from difftrain import Batch, ConditioningGenerator, CropStyle, FlowMatching, ModelError, NoisyBatch
from difftrain.testing import (
    TinyEditFlavour,
    TinyFamily,
    TinyFlavour,
    check_crop_style,
    check_family,
    check_generator,
    load_denoiser,
    make_dataset,
    run_command,
)
from difftrain.testing.tiny_denoiser import make_denoiser
from difftrain.testing.tiny_family import TEXT_WIDTH, TinyTextEncoder


class Mirror(ConditioningGenerator):
    """A good generator."""

    name: ClassVar[str] = "mirror"
    times: int = 1
    """Number of repetitions."""

    def generate(self, image, rng):
        return ImageOps.mirror(image) if self.times % 2 else image.copy()


class Unseeded(Mirror):
    def generate(self, image, rng):
        return image.rotate(random.SystemRandom().uniform(10, 80))


class GlobalRandom(Mirror):
    def generate(self, image, rng):
        random.random()
        return image.copy()


class Vandal(Mirror):
    def generate(self, image, rng):
        image.putpixel((0, 0), (1, 2, 3))
        return image.copy()


class Shrinking(Mirror):
    def generate(self, image, rng):
        return image.resize((8, 8))


class Grey(Mirror):
    def generate(self, image, rng):
        return image.convert("L")


def test_good_generator_passes_as_object_and_as_class():
    check_generator(Mirror(times=2))
    check_generator(Mirror, times=3)


@pytest.mark.parametrize(
    ("generator", "says"),
    [
        (Unseeded, "other pixels"),
        (GlobalRandom, "global random state"),
        (Vandal, "changes its input"),
        (Shrinking, r"gives \(8, 8\)"),
        (Grey, "mode L"),
    ],
)
def test_bad_generator_fails_with_the_reason(generator, says):
    with pytest.raises(AssertionError, match=says):
        check_generator(generator)


class Corner(CropStyle):
    """A good crop style."""

    name: ClassVar[str] = "corner-of-light"
    share: float = 0.0
    """Of both edges."""

    def focus(self, image):
        return (self.share, self.share) if image.width > 1 else None


class InPixels(Corner):
    def focus(self, image):
        return image.width / 2, image.height / 2


class Unsure(Corner):
    def focus(self, image):
        return random.SystemRandom().random(), 0.5


class Painter(Corner):
    def focus(self, image):
        image.putpixel((0, 0), (1, 2, 3))


def test_good_crop_style_passes_as_object_and_as_class():
    check_crop_style(Corner(share=1))
    check_crop_style(Corner, share=0.25)


@pytest.mark.parametrize(
    ("style", "says"),
    [(InPixels, "not shares of the image's edges"), (Unsure, "for one image"), (Painter, "changes the image")],
)
def test_bad_crop_style_fails_with_the_reason(style, says):
    with pytest.raises(AssertionError, match=says):
        check_crop_style(style)


@pytest.mark.parametrize("flavour", [TinyFlavour(), TinyEditFlavour()])
def test_tiny_family_fulfils_the_contract(flavour):
    check_family(TinyFamily(), flavour)


class WholeSequence(TinyFamily):
    def predict(self, denoiser, model_input):
        prediction = super().predict(denoiser, model_input)
        return torch.cat([prediction, prediction], dim=-1)


class Full(TinyFamily):
    def empty_denoiser(self, location):
        return make_denoiser(TEXT_WIDTH)


class WrongTargets(TinyFamily):
    def adapter_targets(self, denoiser):
        return ["enter", "exit"]


class DeafProcess(FlowMatching):
    def add_noise(self, latents, sigma, noise):
        return super().add_noise(latents, torch.full_like(sigma, 0.5), noise)


class DeafToNoise(TinyFamily):
    def noise_process(self, location):
        return DeafProcess()


class ForeignBlocks(TinyFamily):
    def blocks(self, denoiser):
        return [torch.nn.Linear(1, 1)]


class NoBlocks(TinyFamily):
    def blocks(self, denoiser):
        return []


class BadCheckpointing(TinyFamily):
    def enable_checkpointing(self, denoiser):
        denoiser.middle.forward = lambda hidden: hidden.detach() * 2


class BlindText(TinyFamily):
    text_sees_references = True


class NoView(BlindText):
    def text_view(self, size, flavour):
        return 0, 0


class SeeingText(TinyTextEncoder):
    def encode(self, captions, references=None):
        levels = [sum(image.getpixel((0, 0))[0] for image in seen) for seen in references or [[]] * len(captions)]
        texts = super().encode(captions)
        return [{"words": text["words"] + level} for text, level in zip(texts, levels, strict=True)]


class SeeingFamily(BlindText):
    def load_text_encoder(self, location, flavour, device, dtype):
        return SeeingText()


def test_a_family_whose_text_sees_references_fulfils_the_contract():
    check_family(SeeingFamily(), TinyEditFlavour())


class BlindFlavour(TinyEditFlavour):
    def extend_input(self, family, model_input, batch):
        return model_input


@pytest.mark.parametrize(
    ("family", "flavour", "says"),
    [
        (WholeSequence(), TinyFlavour(), "prediction is"),
        (Full(), TinyFlavour(), "enter.weight and 8 more are not on the meta device"),
        (WrongTargets(), TinyFlavour(), "'exit' is not the name"),
        (DeafToNoise(), TinyFlavour(), "two noise levels give equal latents"),
        (ForeignBlocks(), TinyFlavour(), r"blocks\(\): number 0 \(Linear\) is not a module"),
        (BadCheckpointing(), TinyFlavour(), r"enable_checkpointing\(\) changes the prediction"),
        (TinyFamily(), BlindFlavour(), "references do not change"),
        (BlindText(), TinyFlavour(), "references do not change the text embeddings"),
        (NoView(), TinyFlavour(), "which is not a size"),
    ],
)
def test_bad_family_fails_with_the_reason(family, flavour, says):
    with pytest.raises(AssertionError, match=says):
        check_family(family, flavour)


def test_a_family_without_blocks_cannot_recompute():
    family = NoBlocks()
    with pytest.raises(ModelError, match=r"names no blocks that could be recomputed\nhint: .*gradient_checkpointing"):
        family.enable_checkpointing(load_denoiser(family, None))


def test_blocks_keep_nothing_but_their_inputs_where_the_model_has_no_way_of_its_own():
    family = TinyFamily()
    denoiser = load_denoiser(family, None).requires_grad_(True)
    family.enable_checkpointing(denoiser)
    calls = []
    weight = denoiser.middle.weight
    linear = torch.nn.functional.linear

    def counted(given, weights, bias=None):
        calls.append(weights is weight)
        return linear(given, weights, bias)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "linear", counted)
        result = denoiser(torch.ones(1, 3, 2, 2), torch.ones(1), torch.ones(1, TEXT_WIDTH), [])
        assert sum(calls) == 1
        result.sum().backward()
    assert sum(calls) == 2
    assert weight.grad is not None


def test_tiny_family_can_learn():
    family, flavour = TinyFamily(), TinyEditFlavour()
    location = family.locate(None, flavour)
    denoiser = load_denoiser(family, location).requires_grad_(True)
    generator = torch.Generator().manual_seed(0)
    latents, noise = torch.randn(2, 4, 3, 8, 8, generator=generator)
    texts = family.load_text_encoder(location, flavour, torch.device("cpu"), torch.float32).encode(["a", "b", "c", ""])
    batch = Batch(latents=latents, references=[latents[..., ::2, ::2]], text=family.collate_text(texts))
    level = torch.full((4,), 0.5)
    noisy = NoisyBatch(noisy=(latents + noise) / 2, sigma=level, timestep=level, target=noise - latents)
    optimizer = torch.optim.Adam(denoiser.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        model_input = flavour.extend_input(family, family.build_input(noisy, batch, denoiser), batch)
        loss = (family.predict(denoiser, model_input) - noisy.target).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_tiny_family_has_the_same_weights_each_time_and_disturbs_no_random_state():
    before = torch.random.get_rng_state()
    first, second = (load_denoiser(TinyFamily(), None).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_dataset_has_pairs_of_one_name_with_captions(tmp_path):
    folders = make_dataset(tmp_path, 3, (40, 24))
    names = [path.name for path in sorted(folders.references.iterdir())]
    assert names == ["000.png", "001.png", "002.png"]
    assert [path.name for path in sorted(folders.edits.glob("*.png"))] == names
    assert len({(folders.edits / name).read_bytes() for name in names}) == 3
    assert Image.open(folders.edits / names[0]).size == (40, 24)
    assert (folders.edits / "000.txt").read_text() == "sharpen image 0\n"


def test_dataset_is_the_same_each_time(tmp_path):
    first, second = (make_dataset(tmp_path / name, 1, extension=".jpg", seed=3) for name in "ab")
    assert (first.edits / "000.jpg").read_bytes() == (second.edits / "000.jpg").read_bytes()


@pytest.mark.parametrize(("sets", "names"), [(0, []), (1, ["references"]), (2, ["references", "references-2"])])
def test_entries_of_a_dataset_pair_its_folders(tmp_path, sets, names):
    folders = make_dataset(tmp_path / "pairs")
    edits, *references = folders.entries(reference_sets=sets, resolution=64)
    assert (edits["instance_data_dir"], edits.get("conditioning_data", [])) == (str(folders.edits), names)
    assert [entry["id"] for entry in references] == names
    assert {entry["instance_data_dir"] for entry in references} <= {str(folders.references)}
    assert {entry["resolution"] for entry in (edits, *references)} == {64}


def test_a_command_runs_in_a_folder_with_options_by_name(tmp_path):
    (tmp_path / "datasets.json").write_text(json.dumps(make_dataset(tmp_path / "pairs").entries(resolution=64)))
    model = {"model": "flux", "flavour": "kontext", "pretrained_model_name_or_path": "tiny-random"}
    options = {**model, "max_train_steps": 3, "validation_steps": 0, "gradient_checkpointing": False}
    ended = run_command(tmp_path, "check", "--json", data_backend_config="datasets.json", **options)
    assert ended.status == 0, ended.err
    assert ended.json["samples"] == 4
    assert "cache/index.sqlite" in ended.files
    assert "datasets.json" not in ended.files, "it was there before"


def test_a_command_that_fails_gives_its_status_and_message(tmp_path):
    ended = run_command(tmp_path, "check", model="flux")
    assert (ended.status, ended.files) == (2, frozenset())
    assert "no run file: config/config.json does not exist" in ended.err


def test_testing_tools_import_no_torch():
    code = "import sys, difftrain.testing; print('torch' in sys.modules, 'numpy' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["False", "False"]
