"""Flow-matching arithmetic."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from difftrain import FlowMatching
from difftrain.steps.losses import MeanSquaredError
from difftrain.steps.noise_levels import BetaSampler, SigmoidSampler, UniformSampler, shift_sigma


def test_static_shift_matches_reference_values():
    # Values of shared Kontext notes, section 3 (s = 3), recomputed with 3 * sigma / (1 + 2 * sigma).
    shifted = shift_sigma(torch.tensor([0.1, 0.5, 0.9]), 3.0)
    torch.testing.assert_close(shifted, torch.tensor([0.25, 0.75, 0.964286]), atol=1e-6, rtol=0)


def test_auto_shift_at_4096_tokens_matches_reference_value():
    # exp(1.15) is the shift at 4096 tokens; sigma .5 -> .759511 as time_shift(1.15, 1.0, .5) of black-forest-labs/flux.
    shifted = shift_sigma(torch.tensor([0.5]), 3.158193)
    torch.testing.assert_close(shifted, torch.tensor([0.759511]), atol=1e-6, rtol=0)


@given(st.floats(0.001, 0.999), st.floats(0.1, 10))
def test_shift_and_its_inverse_cancel(sigma, shift):
    there = shift_sigma(torch.tensor([sigma], dtype=torch.float64), shift)
    assert shift_sigma(there, 1 / shift).item() == pytest.approx(sigma, abs=1e-9)


def test_velocity_leads_from_noisy_back_to_clean():
    latents, noise = torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2)
    noisy = FlowMatching().add_noise(latents, torch.tensor([0.2, 0.5, 0.9]), noise)
    back = noisy.noisy - noisy.sigma.view(-1, 1, 1, 1) * noisy.target
    torch.testing.assert_close(back, latents)


def test_noise_is_added_in_float32_whatever_the_latents_are():
    noisy = FlowMatching().add_noise(
        torch.ones(1, 1, 1, 1, dtype=torch.bfloat16), torch.tensor([0.3]), torch.zeros(1, 1, 1, 1)
    )
    assert noisy.noisy.dtype == torch.float32
    assert noisy.noisy.item() == pytest.approx(0.7)


@pytest.mark.parametrize("sampler", [SigmoidSampler(), UniformSampler(), BetaSampler()])
def test_samplers_stay_inside_the_open_interval_and_repeat_for_a_seed(sampler):
    first = sampler.sample(2000, torch.Generator().manual_seed(3))
    again = sampler.sample(2000, torch.Generator().manual_seed(3))
    assert torch.equal(first, again)
    assert 0 <= first.min() < 0.1 < 0.9 < first.max() <= 1


def test_beta_sampler_has_the_mean_of_its_distribution():
    drawn = BetaSampler(flow_beta_schedule_alpha=4, flow_beta_schedule_beta=2).sample(
        20000, torch.Generator().manual_seed(1)
    )
    assert drawn.mean().item() == pytest.approx(4 / 6, abs=0.01)


def test_mse_is_a_mean_for_each_sample():
    noisy = FlowMatching().add_noise(torch.zeros(2, 1, 2, 2), torch.tensor([0.5, 0.5]), torch.zeros(2, 1, 2, 2))
    prediction = torch.stack([torch.full((1, 2, 2), 2.0), torch.zeros(1, 2, 2)])
    assert MeanSquaredError().compute(prediction, noisy, None).tolist() == [4.0, 0.0]
