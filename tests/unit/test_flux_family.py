"""Options of the flux family and which modules an adapter wraps."""

import pytest
import torch

from difftrain import Batch, ConfigError, NoisyBatch
from difftrain_flux.family import FluxFamily
from difftrain_flux.flavours import Dev, Krea, Schnell
from difftrain_flux.model_files.tiny_random import build_pipeline
from difftrain_flux.targets import select_targets


@pytest.fixture(scope="module")
def transformer():
    return build_pipeline().transformer


@pytest.mark.parametrize(
    ("target", "double", "single"),
    [("all", 8, 3), ("mmdit", 8, 0), ("context", 4, 0), ("context+ffs", 6, 0), ("all+ffs", 12, 5)],
)
def test_target_sets_have_their_modules_in_every_block(transformer, target, double, single):
    names = FluxFamily(flux_lora_target=target).adapter_targets(transformer)
    assert len([name for name in names if name.startswith("transformer_blocks.")]) == 2 * double
    assert len([name for name in names if name.startswith("single_transformer_blocks.")]) == 2 * single
    assert all(isinstance(transformer.get_submodule(name), torch.nn.Linear) for name in names)


def test_the_models_output_layer_is_no_target(transformer):
    names = FluxFamily(flux_lora_target="all+ffs").adapter_targets(transformer)
    assert "single_transformer_blocks.0.proj_out" in names
    assert "proj_out" not in names


def test_small_sets_name_single_blocks_seven_and_twenty():
    names = [f"single_transformer_blocks.{index}.proj_out" for index in range(38)]
    assert select_targets(names, "nano") == [names[7]]
    assert select_targets(names, "tiny") == [names[7], names[20]]


def test_target_set_that_the_model_lacks_is_refused(transformer):
    with pytest.raises(ConfigError, match="flux_lora_target 'nano' matches no module"):
        FluxFamily(flux_lora_target="nano").adapter_targets(transformer)


def guidance(family, transformer, count=64):
    latents = torch.zeros(count, 16, 2, 2)
    text = {"prompt_embeds": torch.zeros(count, 1, 32), "pooled_prompt_embeds": torch.zeros(count, 32)}
    level = torch.full((count,), 0.5)
    noisy = NoisyBatch(noisy=latents, sigma=level, timestep=level, target=latents)
    return family.build_input(noisy, Batch(latents=latents, references=[], text=text), transformer).guidance


def test_guidance_is_one_by_default(transformer):
    assert guidance(FluxFamily(), transformer).unique().tolist() == [1.0]


def test_random_guidance_stays_in_its_range(transformer):
    family = FluxFamily(flux_guidance_mode="random-range", flux_guidance_min=1.5, flux_guidance_max=2.5)
    drawn = guidance(family, transformer)
    assert len(drawn.unique()) > 32
    assert drawn.min() >= 1.5
    assert drawn.max() <= 2.5


def test_model_without_guidance_embedding_is_fed_none():
    from diffusers import FluxTransformer2DModel

    schnell_like = FluxTransformer2DModel(
        num_layers=0, num_single_layers=0, num_attention_heads=1, attention_head_dim=8, joint_attention_dim=32,
        pooled_projection_dim=32, guidance_embeds=False, axes_dims_rope=(2, 2, 4),
    )  # fmt: skip
    assert guidance(FluxFamily(), schnell_like) is None


def test_empty_guidance_range_is_refused():
    with pytest.raises(ValueError, match=r"flux_guidance_min 5.0 is above flux_guidance_max 4.0"):
        FluxFamily(flux_guidance_min=5)


def test_tokens_are_counted_by_group():
    batch = Batch(
        latents=torch.zeros(2, 16, 8, 8),
        references=[torch.zeros(2, 16, 4, 8), torch.zeros(2, 16, 4, 4)],
        text={"prompt_embeds": torch.zeros(2, 512, 32), "pooled_prompt_embeds": torch.zeros(2, 32)},
    )
    assert FluxFamily().tokens(batch) == {"target": 16, "references": 12, "text": 512}


def test_schnell_names_the_model_to_train_instead():
    assert Schnell.distilled_from == Dev.hub_id
    assert Dev.distilled_from is None


def test_flavours_have_their_own_hub_ids():
    assert len({flavour.hub_id for flavour in (Dev, Krea, Schnell)}) == 3
