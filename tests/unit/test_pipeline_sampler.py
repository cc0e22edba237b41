"""The sampler for stock pipelines: what it passes, and that it leaves the parts as they were."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from difftrain import PipelineSampler, ValidationRequest

CPU = torch.device("cpu")


class Part(nn.Module):
    """A VAE or denoiser that counts its moves."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.dropout = nn.Dropout()
        self.moves = []

    @property
    def dtype(self):
        return self.weight.dtype

    def to(self, *arguments):
        self.moves.append(arguments)
        return super().to(*arguments)


class Pipeline:
    """Keeps its arguments, and whether the denoiser was in training when it was called."""

    def __init__(self, denoiser, vae, error=None):
        self.components = {"denoiser": denoiser, "vae": vae, "tokenizer": None}
        self.error, self.calls = error, []

    @property
    def vae(self):
        return self.components["vae"]

    def register_modules(self, **parts):
        self.components.update(parts)

    def set_progress_bar_config(self, *, disable):
        self.silent = disable

    def __call__(self, **arguments):
        self.calls.append({**arguments, "noise": torch.randn(1, generator=arguments["generator"])})
        self.trained = [part.training for part in self.components["denoiser"].modules()]
        self.grad = torch.is_grad_enabled()
        if self.error:
            raise self.error
        return SimpleNamespace(images=["drawn", "second"])


def request(**changes):
    text = {"words": torch.ones(3, 2), "pooled": torch.ones(2)}
    values = {
        "text": text, "negative_text": None, "references": ("image",), "width": 8, "height": 8, "steps": 5,
        "guidance": 2.0, "guidance_real": 1.0, "seed": 7, **changes,
    }  # fmt: skip
    return ValidationRequest(**values)


def sampler_of(pipeline, **options):
    given = {"arguments": lambda asked: {"width": asked.width}, "device": CPU, "dtype": torch.float32, **options}
    return PipelineSampler(pipeline, **given)


def test_steps_seed_and_text_reach_the_pipeline_with_the_family_s_arguments():
    pipeline = Pipeline(Part(), Part())
    sampler = sampler_of(pipeline)
    assert sampler(request()) == sampler(request()) == "drawn"
    sampler(request(seed=8))
    first, again, other = pipeline.calls
    assert (first["num_inference_steps"], first["width"]) == (5, 8)
    assert (first["words"].shape, first["pooled"].shape) == ((1, 3, 2), (1, 2))
    assert not any(name.startswith("negative_") for name in first)
    assert first["noise"] == again["noise"] != other["noise"]
    assert pipeline.silent
    assert not pipeline.grad


def test_the_negative_prompt_has_names_of_its_own():
    pipeline = Pipeline(Part(), Part())
    sampler_of(pipeline)(request(negative_text={"words": torch.zeros(4, 2)}))
    assert pipeline.calls[0]["negative_words"].shape == (1, 4, 2)
    assert pipeline.calls[0]["words"].shape == (1, 3, 2)


def test_requests_without_references_go_to_the_other_pipeline():
    denoiser, vae = Part(), Part()
    edit, plain = Pipeline(denoiser, vae), Pipeline(denoiser, vae)
    sampler = sampler_of(edit, without_references=plain, dtype=torch.bfloat16)
    sampler(request())
    sampler(request(references=()))
    assert (len(edit.calls), len(plain.calls)) == (1, 1)
    assert edit.vae is plain.vae
    assert (edit.vae.dtype, vae.dtype) == (torch.bfloat16, torch.float32)
    assert edit.calls[0]["words"].dtype is torch.bfloat16


@pytest.mark.parametrize("error", [None, RuntimeError("no image")])
def test_training_modes_and_the_vae_s_device_are_as_before(error):
    denoiser, vae = Part(), Part()
    denoiser.train()
    denoiser.dropout.eval()
    pipeline = Pipeline(denoiser, vae, error)
    sampler = sampler_of(pipeline)
    vae.moves.clear()
    if error:
        with pytest.raises(RuntimeError, match="no image"):
            sampler(request())
    else:
        sampler(request())
    assert pipeline.trained == [False, False]
    assert (denoiser.training, denoiser.dropout.training) == (True, False)
    assert vae.moves == [(CPU,), (CPU,)]
