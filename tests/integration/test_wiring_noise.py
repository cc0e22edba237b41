"""Options of a run change the model's inputs: noise levels, noise, latents, guidance, number formats."""

import math

import pytest
import torch
from wiring import Trials

from conftest import EditPairs
from difftrain.data.seeding import derive_seed
from difftrain.steps.noise_levels import UniformSampler
from difftrain_flux.packing import pack

SEED = 42


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    """Train eight steps on four pairs."""
    folder = tmp_path_factory.mktemp("noise")
    pairs = EditPairs(folder)
    return Trials(folder, (*pairs.kontext, "--data_backend_config", pairs(count=4), "--max_train_steps", 8))


def shifted(sigma, shift):
    return shift * sigma / (1 + (shift - 1) * sigma)


def test_the_model_is_fed_the_noisy_latents_at_their_noise_level(train):
    for fed in train().fed:
        level = fed.input.sigma.view(-1, 1, 1, 1)
        noisy = (1 - level) * fed.batch.latents + level * fed.noise
        torch.testing.assert_close(fed.input.tokens[:, : fed.input.target_tokens], pack(noisy))
        torch.testing.assert_close(fed.noisy.target, fed.noise - fed.batch.latents)


def test_flow_schedule_shift_moves_noise_levels_by_three_unless_said_otherwise(train):
    plain = train(flow_schedule_shift=0).sigmas
    assert len(set(plain.tolist())) == 8
    torch.testing.assert_close(train().sigmas, shifted(plain, 3.0))
    torch.testing.assert_close(train(flow_schedule_shift=1.5).sigmas, shifted(plain, 1.5))


def test_flow_schedule_auto_shift_follows_the_targets_tokens(train):
    # 64x64 pixels are 16 tokens, on the line of black-forest-labs/flux 802fb47, src/flux/sampling.py
    shift = math.exp(0.5 + (1.15 - 0.5) / (4096 - 256) * (16 - 256))
    plain = train(flow_schedule_shift=0).sigmas
    torch.testing.assert_close(train(flow_schedule_auto_shift="true").sigmas, shifted(plain, shift))


@pytest.mark.parametrize("option", [{"timestep_sampler": "uniform"}, {"flow_use_uniform_schedule": "true"}])
def test_uniform_noise_levels_reach_the_model(train, option):
    generators = [torch.Generator().manual_seed(derive_seed(SEED, "step", number, 0, 0)) for number in range(8)]
    expected = torch.cat([UniformSampler().sample(1, generator) for generator in generators])
    torch.testing.assert_close(train(flow_schedule_shift=0, **option).sigmas, expected)


@pytest.mark.parametrize(
    ("options", "lowest", "highest"),
    [
        ({"flow_sigmoid_scale": 0.01}, 0.48, 0.52),
        ({"timestep_sampler": "beta", "flow_beta_schedule_alpha": 400}, 0.9, 1.0),
        ({"timestep_sampler": "beta", "flow_beta_schedule_beta": 400}, 0.0, 0.1),
    ],
)
def test_options_of_a_timestep_sampler_reach_it(train, options, lowest, highest):
    sigmas = train(flow_schedule_shift=0, max_train_steps=3, **options).sigmas
    assert ((sigmas >= lowest) & (sigmas <= highest)).all()


def test_guidance_is_the_value_of_the_config(train):
    assert {fed.input.guidance.item() for fed in train().fed} == {1.0}
    assert {fed.input.guidance.item() for fed in train(flux_guidance_value=3.5, max_train_steps=3).fed} == {3.5}


def test_random_guidance_is_drawn_anew_within_its_range(train):
    options = {"flux_guidance_mode": "random-range", "flux_guidance_min": 2, "flux_guidance_max": 2.5}
    drawn = {fed.input.guidance.item() for fed in train(max_train_steps=3, **options).fed}
    assert len(drawn) == 3
    assert all(2 <= value <= 2.5 for value in drawn)


def test_a_target_is_drawn_from_its_posterior_at_each_visit(train):
    means = {fed.batch.keys: fed.batch.latents for fed in train(vae_cache_sample="mean").fed}
    visits = [(fed.batch.latents - means[fed.batch.keys], fed.batch.keys) for fed in train().fed]
    offsets = torch.stack([offset for offset, _ in visits])
    std = float(torch.exp(torch.tensor(-8.0) / 2)) * 0.3611  # log variance of the checkpoint, its scaling factor
    assert offsets.std().item() == pytest.approx(std, rel=0.05)
    assert abs(offsets.mean().item()) < 0.1 * std
    for key in means:
        first, second = (offset for offset, own in visits if own == key)  # two epochs
        assert not torch.equal(first, second)


def test_vae_cache_sample_mean_shows_the_same_latents_at_each_visit(train):
    by_key = {}
    for fed in train(vae_cache_sample="mean").fed:
        by_key.setdefault(fed.batch.keys, []).append(fed.batch.latents)
    assert all(torch.equal(first, second) for first, second in by_key.values())


def test_a_reference_is_the_same_at_each_visit(train):
    by_key = {}
    for fed in train().fed:
        by_key.setdefault(fed.batch.keys, []).append(fed.batch.references[0])
    assert all(torch.equal(first, second) for first, second in by_key.values())


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_noise_is_added_to_latents_that_nothing_has_rounded(train, precision):
    for fed in train(mixed_precision=precision).fed:
        assert fed.batch.latents.dtype == fed.noisy.noisy.dtype == fed.noisy.target.dtype == torch.float32
        assert not torch.equal(fed.batch.latents.bfloat16().float(), fed.batch.latents)
        level = fed.noisy.sigma.view(-1, 1, 1, 1)
        torch.testing.assert_close(fed.noisy.noisy, (1 - level) * fed.batch.latents + level * fed.noise)
        torch.testing.assert_close(fed.noisy.target, fed.noise - fed.batch.latents)


def test_mixed_precision_is_what_the_forward_runs_in(train):
    for precision, dtype in (("no", torch.float32), ("bf16", torch.bfloat16)):
        for fed in train(mixed_precision=precision).fed:
            assert {fed.input.tokens.dtype, fed.input.prompt_embeds.dtype, fed.prediction.dtype} == {dtype}
            assert fed.input.ids.dtype == torch.float32


def test_noise_and_noise_levels_follow_the_seed_and_the_step(train):
    other = train(seed=7)
    assert not torch.isin(other.sigmas, train().sigmas).any()
    noises = [fed.noise for fed in (*other.fed, *train().fed)]
    assert len({noise.sum().item() for noise in noises}) == 16
    again = train(output_dir="again")
    torch.testing.assert_close(again.sigmas, train().sigmas, rtol=0, atol=0)
    assert torch.equal(again.weights[-1], train().weights[-1])
