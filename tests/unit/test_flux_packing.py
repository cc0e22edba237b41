"""Golden values: diffusers 0.42.1, FluxKontextPipeline `_pack_latents` and `calculate_shift`."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from difftrain.steps.noise_levels import shift_sigma
from difftrain_flux.family import FluxFamily, auto_shift
from difftrain_flux.packing import pack, position_ids, unpack


def test_tokens_are_channel_major_2x2_cells():
    latents = torch.arange(32.0).reshape(1, 2, 4, 4)
    tokens = pack(latents)
    assert tokens.shape == (1, 4, 8)
    assert tokens[0, 0].tolist() == [0, 1, 4, 5, 16, 17, 20, 21]
    assert tokens[0, 1].tolist() == [2, 3, 6, 7, 18, 19, 22, 23]


@given(batch=st.integers(1, 3), channels=st.integers(1, 4), rows=st.integers(1, 5), cols=st.integers(1, 5))
def test_unpack_undoes_pack(batch, channels, rows, cols):
    latents = torch.randn(batch, channels, 2 * rows, 2 * cols)
    assert torch.equal(unpack(pack(latents), 2 * rows, 2 * cols), latents)


@given(rows=st.integers(1, 6), cols=st.integers(1, 6))
def test_packing_and_ids_equal_the_stock_pipelines(rows, cols):
    from diffusers import FluxKontextPipeline

    latents = torch.randn(2, 16, 2 * rows, 2 * cols)
    assert torch.equal(pack(latents), FluxKontextPipeline._pack_latents(latents, 2, 16, 2 * rows, 2 * cols))
    ids = FluxKontextPipeline._prepare_latent_image_ids(1, rows, cols, "cpu", torch.float32)
    assert torch.equal(position_ids(rows, cols), ids)


def test_odd_latents_are_refused_with_their_size():
    with pytest.raises(ValueError, match="even height and width, got 3x4"):
        pack(torch.zeros(1, 16, 3, 4))


def test_ids_of_a_reference_start_at_its_corner():
    ids = position_ids(64, 64, index=1)
    assert ids.shape == (4096, 3)
    assert ids[0].tolist() == [1, 0, 0]
    assert ids[-1].tolist() == [1, 63, 63]
    assert position_ids(2, 3, index=2, top=10, left=20)[-1].tolist() == [2, 11, 22]


def test_ids_stay_exact_beyond_what_bfloat16_can_count():
    assert position_ids(1, 1, top=257)[0, 1] == 257


@pytest.mark.parametrize(("tokens", "shift", "middle"), [(4096, 3.158193, 0.759511), (1024, 1.877611, 0.652489)])
def test_auto_shift_follows_the_pipelines_line(tokens, shift, middle):
    assert auto_shift(tokens) == pytest.approx(shift, abs=1e-6)
    assert shift_sigma(torch.tensor(0.5), auto_shift(tokens)).item() == pytest.approx(middle, abs=1e-6)


@given(tokens=st.integers(1, 20000))
def test_auto_shift_equals_the_stock_pipelines(tokens):
    import math

    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    assert auto_shift(tokens) == pytest.approx(math.exp(calculate_shift(tokens)), rel=1e-12)


def test_auto_shift_counts_target_tokens_only():
    family = FluxFamily(flow_schedule_auto_shift=True)
    assert family.sigma_shift(torch.zeros(1, 16, 128, 128)) == pytest.approx(3.158193, abs=1e-6)


def test_static_shift_is_three_by_default_and_can_be_off():
    latents = torch.zeros(1, 16, 8, 8)
    sigma = torch.tensor([0.1, 0.5, 0.9])
    shifted = shift_sigma(sigma, FluxFamily().sigma_shift(latents))
    torch.testing.assert_close(shifted, torch.tensor([0.25, 0.75, 0.964286]), atol=1e-6, rtol=0)
    assert FluxFamily(flow_schedule_shift=None).sigma_shift(latents) == 1.0
    assert FluxFamily(flow_schedule_shift=0).sigma_shift(latents) == 1.0
