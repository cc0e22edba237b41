"""Our attention of FLUX.1 against the stock one: with text beside it and alone, with LoRA, compiled and not."""

import copy

import pytest
import torch
from diffusers import FluxTransformer2DModel
from diffusers.models.embeddings import apply_rotary_emb
from peft import LoraConfig, inject_adapter_in_model

from difftrain.model.tuned_blocks import TunedBlocks
from difftrain_flux.family import FluxFamily
from difftrain_flux.transformer.attention import FastRotation, rotated, use_fast_rotation
from difftrain_flux_kontext.flavour import Kontext

ATTENTION = r".*(to_q|to_k|to_v|add_q_proj|add_k_proj|add_v_proj|to_out\.0|to_add_out)"


def small_transformer():
    torch.manual_seed(0)
    model = FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=32, guidance_embeds=True, axes_dims_rope=(4, 4, 8),
    ).requires_grad_(False)  # fmt: skip
    config = LoraConfig(r=4, target_modules=ATTENTION, init_lora_weights=False)
    return inject_adapter_in_model(config, model)


def result(model):
    """Return the output, and the gradient of every trained weight."""
    draws = torch.Generator().manual_seed(1)
    (output,) = model(
        hidden_states=torch.randn(2, 24, 16, generator=draws), timestep=torch.rand(2, generator=draws),
        guidance=torch.ones(2), pooled_projections=torch.randn(2, 32, generator=draws),
        encoder_hidden_states=torch.randn(2, 8, 32, generator=draws), txt_ids=torch.zeros(8, 3),
        img_ids=torch.randn(24, 3, generator=draws).round(), return_dict=False,
    )  # fmt: skip
    output.square().mean().backward()
    return [output.detach(), *(part.grad for part in model.parameters() if part.requires_grad)]


def test_it_gives_the_stock_results_bit_for_bit():
    stock = small_transformer()
    ours = copy.deepcopy(stock)
    use_fast_rotation(ours)
    for value, exact in zip(result(ours), result(stock), strict=True):
        assert torch.equal(value, exact)


def test_compiled_it_gives_the_same_up_to_rounding():
    stock = small_transformer()
    ours = copy.deepcopy(stock)
    use_fast_rotation(ours)
    TunedBlocks([*ours.transformer_blocks, *ours.single_transformer_blocks], backend="aot_eager", recompute=False)
    torch.testing.assert_close(result(ours), result(stock), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_rotation_is_diffusers_rotation(dtype):
    heads = torch.randn(2, 7, 3, 16).to(dtype)
    angles = torch.rand(7, 8).mul(6).repeat_interleave(2, dim=1)
    rotation = (angles.cos(), angles.sin())
    compiled = torch.compile(rotated, backend="eager", fullgraph=True)(heads, rotation)
    assert torch.equal(compiled, apply_rotary_emb(heads, rotation, sequence_dim=1))


def test_models_of_the_family_have_it():
    transformer = FluxFamily().empty_denoiser(FluxFamily().locate("tiny", Kontext()))
    assert {type(each) for each in transformer.attn_processors.values()} == {FastRotation}
