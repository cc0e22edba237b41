"""The choices of a family and a flavour for their runs: noise process, noise levels, guidance; by the real command."""

import json

FAMILY = '''
from typing import ClassVar

import torch

from difftrain import NoiseProcess, NoisyBatch, hookimpl
from difftrain.testing import TinyFamily, TinyFlavour


class Epsilon(NoiseProcess):
    """A thousand steps; the target is the noise."""

    def add_noise(self, latents, sigma, noise):
        step = (sigma * 999).round().long()
        kept = torch.cos(step / 1000 * torch.pi / 2).view(-1, 1, 1, 1)
        noisy = kept * latents + (1 - kept**2).sqrt() * noise
        return NoisyBatch(noisy=noisy, sigma=sigma, timestep=step, target=noise)


class EpsilonFamily(TinyFamily):
    name: ClassVar[str] = "epsilon-test"
    usual_timestep_sampler: ClassVar[str] = "uniform"

    def noise_process(self, location):
        print("made the process for", location.name)
        return Epsilon()

    def build_input(self, noisy, batch, denoiser):
        if torch.is_grad_enabled():
            print("told", noisy.timestep.dtype, noisy.timestep.tolist())
        return super().build_input(noisy, batch, denoiser)

    def make_sampler(self, *arguments):
        draw = super().make_sampler(*arguments)

        def sampler(request):
            print("asked for", request.guidance_real, request.negative_text is not None)
            return draw(request)

        return sampler


class EpsilonFlavour(TinyFlavour):
    family: ClassVar[str] = "epsilon-test"
    default_guidance_real: ClassVar[float] = 4.0


@hookimpl
def difftrain_model_families():
    return (EpsilonFamily,)


@hookimpl
def difftrain_model_flavours():
    return (EpsilonFlavour,)
'''


def train(command, edit_pairs, **options):
    (edit_pairs.folder / "epsilon.py").write_text(FAMILY)
    config = {
        "plugins": ["./epsilon.py"], "model_family": "epsilon-test", "data_backend_config": edit_pairs(references=None),
        "max_train_steps": 12, "learning_rate": 0.01, "aspect_bucket_alignment": 8, "validation_resolution": 32,
        "validation_steps": 12, "num_eval_images": 1, "validation_num_inference_steps": 1, "mixed_precision": "no",
        "gradient_checkpointing": False, **options,
    }  # fmt: skip
    (edit_pairs.folder / "config.json").write_text(json.dumps(config, default=str))
    ended = command("--config", edit_pairs.folder / "config.json")
    assert ended.status == 0, ended.err
    return ended.out


def timesteps_in(output):
    return [json.loads(line.split(" ", 2)[2])[0] for line in output.splitlines() if line.startswith("told ")]


def test_the_family_makes_the_noise_once_and_the_model_gets_its_steps(command, edit_pairs):
    output = train(command, edit_pairs)
    assert output.count("made the process") == 1
    seen = timesteps_in(output)
    assert len(seen) >= 12
    assert "told torch.int64" in output
    assert all(step == int(step) and 0 <= step <= 999 for step in seen)
    assert max(seen) > 1


def test_the_family_names_the_usual_noise_levels_and_the_config_wins(command, edit_pairs):
    usual = timesteps_in(train(command, edit_pairs))
    same = timesteps_in(train(command, edit_pairs, timestep_sampler="uniform", output_dir="same"))
    other = timesteps_in(train(command, edit_pairs, timestep_sampler="sigmoid", output_dir="other"))
    assert same == usual != other


def test_the_flavour_names_the_usual_guidance_and_the_config_wins(command, edit_pairs):
    assert "asked for 4.0 True" in train(command, edit_pairs)
    assert "asked for 1.0 False" in train(command, edit_pairs, validation_guidance_real=1, output_dir="plain")
