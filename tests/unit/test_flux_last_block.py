"""The last block for the target's tokens alone: the same predictions and gradients, and no token too many."""

import copy

import pytest
import torch
from diffusers import FluxTransformer2DModel
from peft import LoraConfig, inject_adapter_in_model

from difftrain.model.tuned_blocks import TunedBlocks
from difftrain.testing import check_family
from difftrain_flux.family import FluxFamily
from difftrain_flux.forward import FluxInput, predict
from difftrain_flux.transformer.attention import use_fast_rotation
from difftrain_flux.transformer.last_block import LastBlock, use_last_block
from difftrain_flux_kontext.flavour import Kontext

LAYERS = r".*(to_q|to_k|to_v|to_out\.0|proj_mlp|proj_out)"
TARGET, REFERENCES, TEXT = 16, 12, 8


def new_transformer(single_blocks=2):
    torch.manual_seed(0)
    model = FluxTransformer2DModel(
        patch_size=1, in_channels=64, num_layers=1, num_single_layers=single_blocks, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=32, pooled_projection_dim=32, guidance_embeds=True,
        axes_dims_rope=(4, 4, 8),
    ).requires_grad_(False)  # fmt: skip
    config = LoraConfig(r=4, target_modules=LAYERS, init_lora_weights=False)
    model = inject_adapter_in_model(config, model)
    use_fast_rotation(model)
    return model


def model_input(references=REFERENCES):
    draws = torch.Generator().manual_seed(1)
    count = TARGET + references
    return FluxInput(
        tokens=torch.randn(2, count, 64, generator=draws), ids=torch.randn(count, 3, generator=draws).round(),
        sigma=torch.rand(2, generator=draws), guidance=torch.ones(2), latent_size=(8, 8),
        prompt_embeds=torch.randn(2, TEXT, 32, generator=draws), pooled=torch.randn(2, 32, generator=draws),
    )  # fmt: skip


def result(model, given):
    """Return the prediction, and the gradient of every trained weight."""
    prediction = predict(model, given)
    prediction.square().mean().backward()
    return [prediction.detach(), *(part.grad for part in model.parameters() if part.requires_grad)]


def with_last_block(model):
    cut = copy.deepcopy(model)
    use_last_block(cut)
    return cut


@pytest.mark.parametrize("blocks", ["as written", "compiled", "recomputing"])
@pytest.mark.parametrize("single_blocks", [1, 2])
def test_predictions_and_gradients_are_those_of_the_whole_block(blocks, single_blocks):
    whole = new_transformer(single_blocks)
    cut = with_last_block(whole)
    if blocks != "as written":
        backend = "aot_eager" if blocks == "compiled" else None
        TunedBlocks(
            [*cut.transformer_blocks, *cut.single_transformer_blocks],
            backend=backend,
            recompute=blocks == "recomputing",
        )
    torch.testing.assert_close(result(cut, model_input()), result(whole, model_input()), atol=1e-5, rtol=1e-4)


def test_only_the_target_reaches_the_wide_layers_of_the_last_block():
    cut = with_last_block(new_transformer())
    seen = {}
    for name in ("attn.to_q", "attn.to_k", "proj_mlp", "proj_out"):
        layer = cut.single_transformer_blocks[-1].get_submodule(name)
        layer.register_forward_pre_hook(lambda _, given, name=name: seen.update({name: given[0].shape[1]}))
    predict(cut, model_input())
    everything = TEXT + TARGET + REFERENCES
    assert seen == {"attn.to_q": TARGET, "attn.to_k": everything, "proj_mlp": TARGET, "proj_out": TARGET}


def test_without_references_and_outside_of_training_it_is_the_stock_block():
    whole = new_transformer()
    cut = with_last_block(whole)
    for value, exact in zip(result(cut, model_input(0)), result(whole, model_input(0)), strict=True):
        assert torch.equal(value, exact)
    predict(cut, model_input())  # leaves nothing behind
    block = cut.single_transformer_blocks[-1]
    assert not block._forward_pre_hooks
    hidden, text = torch.randn(2, 6, 32), torch.randn(2, 4, 32)
    rotation = (torch.ones(10, 16), torch.zeros(10, 16))
    given = {"hidden_states": hidden, "encoder_hidden_states": text, "temb": torch.randn(2, 32)}
    ours, stock = (each.single_transformer_blocks[-1](**given, image_rotary_emb=rotation) for each in (cut, whole))
    assert all(map(torch.equal, ours, stock))
    assert ours[1].shape == hidden.shape


def test_the_option_makes_it_and_the_family_says_what_attends():
    family = FluxFamily(flux_cut_last_block=True)
    location = family.locate("tiny-random", Kontext())
    kinds = [type(block) for block in family.blocks(family.empty_denoiser(location))]
    assert kinds[-1] is LastBlock
    assert LastBlock not in kinds[:-1]
    assert LastBlock not in map(type, FluxFamily().blocks(FluxFamily().empty_denoiser(location)))
    check_family(family, Kontext(), location)
