"""A ``lycoris_config`` chooses the layers and makes the changes that the library makes of it."""

import json
import logging

import pytest
import torch
from diffusers import FluxTransformer2DModel
from lycoris import LycorisNetwork, create_lycoris, create_lycoris_from_weights

from difftrain.errors import ConfigError
from difftrain.model.lycoris.adapted_linear import adapted_layers, parts_of
from difftrain.model.lycoris.adapter import Lycoris
from difftrain_flux.family import FluxFamily

EVERY_KEY = {
    "enable_conv": True, "target_module": [], "target_name": [], "module_algo_map": {}, "name_algo_map": {},
    "use_fnmatch": False, "exclude_name": [],
}  # fmt: skip
"""The library keeps presets from one network to the next, so each test gives all keys."""
CONFIGS = {
    "whole lokr by class": {
        "algo": "lokr", "linear_dim": 10000, "linear_alpha": 1, "factor": 16, "full_matrix": True,
        "apply_preset": {
            "target_module": ["FluxAttention", "FeedForward"],
            "module_algo_map": {"FluxAttention": {"factor": 8}, "FeedForward": {"factor": 4}},
        },
    },
    "low-rank lokr": {
        "algo": "lokr", "linear_dim": 2, "linear_alpha": 3, "factor": 4, "decompose_both": True,
        "apply_preset": {"target_module": ["FluxTransformerBlock"]},
    },
    "loha with an alpha": {
        "algo": "loha", "linear_dim": 4, "linear_alpha": 2,
        "apply_preset": {"target_module": ["FluxAttention"], "exclude_name": ["single_.*"]},
    },
    "lora": {"algo": "lora", "linear_dim": 4, "linear_alpha": 8, "apply_preset": {"target_module": ["FeedForward"]}},
    "full": {"algo": "full", "apply_preset": {"target_module": ["FeedForward"]}},
    "mixed by class and name": {
        "algo": "lora", "linear_dim": 2, "linear_alpha": 2,
        "apply_preset": {
            "target_module": ["FluxTransformerBlock"],
            "target_name": ["single_transformer_blocks.0.proj_mlp", "single_transformer_blocks\\.1\\.proj_.*"],
            "module_algo_map": {"FeedForward": {"algo": "lokr", "dim": 10000, "factor": 2}},
            "name_algo_map": {"single_transformer_blocks.1.proj_out": {"algo": "loha", "dim": 3, "alpha": 1}},
        },
    },
    "globs": {
        "algo": "lokr", "linear_dim": 10000, "factor": 4,
        "apply_preset": {"use_fnmatch": True, "target_name": ["*.attn.to_q", "*.attn.add_k_proj"]},
    },
}  # fmt: skip


def flux():
    torch.manual_seed(0)
    model = FluxTransformer2DModel(
        in_channels=64, num_layers=2, num_single_layers=2, num_attention_heads=2, attention_head_dim=32,
        joint_attention_dim=32, pooled_projection_dim=32, guidance_embeds=True, axes_dims_rope=(8, 12, 12),
    )  # fmt: skip
    return model.requires_grad_(False).eval()


def predicted(model):
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        return model(
            hidden_states=torch.randn(1, 6, 64, generator=draw),
            encoder_hidden_states=torch.randn(1, 5, 32, generator=draw),
            pooled_projections=torch.randn(1, 32, generator=draw),
            timestep=torch.tensor([0.5]),
            guidance=torch.tensor([2.5]),
            img_ids=torch.zeros(6, 3),
            txt_ids=torch.zeros(5, 3),
            return_dict=False,
        )[0]


def adapted(tmp_path, config, model=None):
    """Return a model with weights that act, and its adapter."""
    path = tmp_path / "lycoris.json"
    path.write_text(json.dumps(config))
    adapter = Lycoris(lycoris_config=path)
    assert adapter.check() == []
    model = flux() if model is None else model
    adapter.adapt(model, FluxFamily(), torch.float32)
    draw = torch.Generator().manual_seed(2)
    for name, weight in adapter.state(model).items():
        if not name.endswith(".alpha"):
            weight.copy_(torch.randn(weight.shape, generator=draw) / 5)
    return model, adapter


@pytest.fixture(autouse=True)
def _quiet_library():
    logging.getLogger("LyCORIS").setLevel(logging.ERROR)
    yield
    LycorisNetwork.apply_preset(EVERY_KEY)


@pytest.mark.parametrize("case", CONFIGS)
def test_layers_and_shapes_are_those_that_the_library_makes_of_the_file(tmp_path, case):
    config = json.loads(json.dumps(CONFIGS[case]))
    preset = config.pop("apply_preset")
    LycorisNetwork.apply_preset({**EVERY_KEY, **preset})
    config["preset"] = str(tmp_path / "preset.toml")
    # the function always reads a preset: one with the same keys
    import toml

    (tmp_path / "preset.toml").write_text(toml.dumps({**EVERY_KEY, **preset}))
    network = create_lycoris(flux(), 1.0, **config)
    expected = {
        f"{part.lora_name}.{key}": tuple(tensor.shape)
        for part in network.loras
        for key, tensor in part.custom_state_dict().items()
    }
    model, adapter = adapted(tmp_path, CONFIGS[case])
    assert {name: tuple(tensor.shape) for name, tensor in adapter.state(model).items()} == expected


@pytest.mark.parametrize("multiplier", [1.0, 0.5])
@pytest.mark.parametrize("case", CONFIGS)
def test_the_library_loads_the_file_and_predicts_the_same(tmp_path, case, multiplier):
    model, adapter = adapted(tmp_path, {**CONFIGS[case], "multiplier": multiplier})
    ours, plain = predicted(model), predicted(flux())
    adapter.write(adapter.state(model), tmp_path, "transformer")
    other = flux()
    network, _ = create_lycoris_from_weights(1.0, str(tmp_path / "pytorch_lora_weights.safetensors"), other)
    network.apply_to()
    assert len(network.loras) == len(adapted_layers(model))
    assert (ours - plain).abs().max() > 1e-3
    torch.testing.assert_close(predicted(other), ours, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("case", ["low-rank lokr", "loha with an alpha", "mixed by class and name"])
def test_the_library_merges_the_file_to_the_same_prediction(tmp_path, case):
    """With alpha unlike the rank it would apply alpha / rank twice; the file has them equal."""
    model, adapter = adapted(tmp_path, CONFIGS[case])
    adapter.write(adapter.state(model), tmp_path, "transformer")
    other = flux()
    network, _ = create_lycoris_from_weights(1.0, str(tmp_path / "pytorch_lora_weights.safetensors"), other)
    network.merge_to()
    torch.testing.assert_close(predicted(other), predicted(model), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("case", CONFIGS)
def test_what_was_written_has_the_same_effect_when_it_is_read(tmp_path, case):
    config = {**CONFIGS[case], "multiplier": 0.5}
    model, adapter = adapted(tmp_path, config)
    adapter.write(adapter.state(model), tmp_path, "transformer")
    other, _ = adapted(tmp_path, config)
    with torch.no_grad():
        for weight in other.parameters():
            if weight.requires_grad:
                weight.add_(1.0)
    adapter.load_state(other, adapter.read(tmp_path, "transformer"))
    torch.testing.assert_close(predicted(other), predicted(model))


def test_the_old_class_name_of_attention_is_that_of_today(tmp_path):
    old = json.loads(json.dumps(CONFIGS["whole lokr by class"]).replace("FluxAttention", "Attention"))
    model, adapter = adapted(tmp_path, CONFIGS["whole lokr by class"])
    renamed, other = adapted(tmp_path, old)
    assert {k: v.shape for k, v in other.state(renamed).items()} == {
        k: v.shape for k, v in adapter.state(model).items()
    }
    fresh = flux()
    counts = list(other.adapt(fresh, FluxFamily(), torch.float32).values())
    assert {kind: counts.count(kind) for kind in counts} == {"FluxAttention (lokr)": 22, "FeedForward (lokr)": 8}


def test_without_a_file_whole_lokr_adapts_attention_and_feed_forward():
    model, adapter = flux(), Lycoris()
    kinds = list(adapter.adapt(model, FluxFamily(), torch.float32).values())
    assert {kind: kinds.count(kind) for kind in kinds} == {"FluxAttention (lokr)": 22, "FeedForward (lokr)": 8}
    assert all(layer.change.use_w1 and layer.change.use_w2 for layer in adapted_layers(model).values())


def test_names_and_classes_that_fit_nothing_are_named_together_with_the_nearest(tmp_path):
    config = {"algo": "lokr", "apply_preset": {
        "target_module": ["FluxAtention", "FeedForward"], "target_name": ["transformer_blocks.7.attn.to_q"],
    }}  # fmt: skip
    with pytest.raises(ConfigError) as caught:
        adapted(tmp_path, config)
    first, second = caught.value.problems
    assert "target_module: no linear layer of this model is in a module of class 'FluxAtention'" in first
    assert "did you mean 'FluxAttention'?" in first
    assert "target_name: no linear layer of this model has a name that fits" in second
    assert "did you mean 'transformer_blocks." in second


def test_a_strength_is_a_factor_and_zero_is_exactly_the_model_without(tmp_path):
    model, adapter = adapted(tmp_path, {**CONFIGS["mixed by class and name"], "multiplier": 0.5})
    plain, whole = predicted(flux()), predicted(model)
    with adapter.at_strength(model, 0):
        assert torch.equal(predicted(model), plain)
    with adapter.at_strength(model, 2):
        assert {layer.strength for layer in adapted_layers(model).values()} == {1.0}
    assert torch.equal(predicted(model), whole)


def test_norm_begins_lokr_as_noise_with_a_share_of_the_layers_spread(tmp_path):
    (tmp_path / "lycoris.json").write_text(json.dumps(CONFIGS["whole lokr by class"]))
    model = flux()
    Lycoris(lycoris_config=tmp_path / "lycoris.json", init_lokr_norm=0.01).adapt(model, FluxFamily(), torch.float32)
    for layer in adapted_layers(model).values():
        spread = (layer.change.lokr_w2.std() / layer.base_layer.weight.std()).item()
        assert spread == pytest.approx(0.01, rel=0.2)
        assert torch.equal(layer.change.lokr_w1, torch.ones_like(layer.change.lokr_w1))


def test_norm_needs_whole_factors(tmp_path):
    (tmp_path / "lycoris.json").write_text(json.dumps(CONFIGS["low-rank lokr"]))
    adapter = Lycoris(lycoris_config=tmp_path / "lycoris.json", init_lokr_norm=0.01)
    with pytest.raises(ConfigError, match="init_lokr_norm: transformer_blocks"):
        adapter.adapt(flux(), FluxFamily(), torch.float32)


def test_parts_name_quantised_layers_linear_and_leave_fused_ones_out():
    from difftrain.model.fused.fuse_linears import fuse_linears
    from difftrain.model.precision.eight_bit_linear import Int8Linear

    model = flux()
    before = {part.name for part in parts_of(model) if part.is_linear}
    fuse_linears(model, FluxFamily().shared_input_linears(model))
    model.proj_out = Int8Linear(model.proj_out)
    parts = parts_of(model)
    assert {part.name for part in parts if part.is_linear} == before
    assert {part.kind for part in parts if part.is_linear} == {"Linear"}


def test_a_product_that_is_known_is_not_computed_again(tmp_path):
    model, _ = adapted(tmp_path, CONFIGS["whole lokr by class"])
    layer = model.transformer_blocks[0].attn.to_q
    given = []

    def forward(input, **named):
        given.append(named)
        return named["product"]

    layer.base_layer.forward = forward
    product = torch.randn(1, 6, 64)
    assert not torch.equal(layer(torch.randn(1, 6, 64), product=product), product)
    assert given == [{"product": product}]
