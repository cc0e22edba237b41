"""Adapter files of every layout: written, read back onto the model's modules, and the same change."""

import json

import pytest
import torch
from safetensors.torch import save_file

from adapter_layouts import CONFIG, SHAPES, WIDTH, low_rank, modules_of
from difftrain.errors import CheckpointError
from difftrain.model.adapter_files.changes import Factors, LowRank
from difftrain.model.adapter_files.layer_names import LayerNames
from difftrain.model.adapter_files.layouts import FORMATS, tensors_of
from difftrain.model.adapter_files.read_changes import read_changes
from difftrain.testing.tiny_family import TinyFamily
from difftrain_flux.family import FluxFamily
from difftrain_flux.model_files.layouts import diffusers_shapes, original_parts

NAMES = LayerNames(FluxFamily)
TARGETS = ("all", "mmdit", "context", "context+ffs", "all+ffs", "every")


def through_file(changes, layout, path, names=NAMES):
    tensors, header = tensors_of(changes, layout, names)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata=header)
    return read_changes(path, names).changes


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("target", TARGETS)
def test_every_target_set_comes_back_from_every_layout(layout, target, tmp_path):
    changes = low_rank(target)
    found = through_file(changes, layout, tmp_path / "a.safetensors")
    assert found.keys() == changes.keys()
    for module, change in changes.items():
        torch.testing.assert_close(found[module].delta(), change.delta(), rtol=1e-6, atol=1e-6)


def test_a_fused_layer_has_block_matrices_of_three_ranks(tmp_path):
    changes = low_rank("mmdit", rank=2)
    tensors, _ = tensors_of(changes, "bfl", NAMES)
    down, up = (tensors[f"double_blocks.0.img_attn.qkv.lora_{part}.weight"] for part in "AB")
    assert down.shape == (6, WIDTH)
    assert up.shape == (3 * WIDTH, 6)
    parts = [changes[f"transformer_blocks.0.attn.to_{letter}"].delta() for letter in "qkv"]
    torch.testing.assert_close(up @ down, torch.cat(parts), rtol=0, atol=1e-6)
    assert up[:WIDTH, 2:].abs().max() == 0


@pytest.mark.parametrize("layout", ["kohya", "bfl", "comfyui"])
def test_an_attention_only_adapter_has_zeros_for_the_feed_forward_of_single_blocks(layout):
    tensors, _ = tensors_of(low_rank("all"), layout, NAMES)
    up = next(tensor for name, tensor in tensors.items() if "linear1" in name and ("up" in name or "lora_B" in name))
    assert up.shape[0] == 7 * WIDTH
    assert up[3 * WIDTH :].abs().max() == 0


def test_a_fused_file_keeps_its_rank_on_the_way_through_diffusers_names(tmp_path):
    first, _ = tensors_of(low_rank("all+ffs"), "kohya", NAMES)
    save_file(first, tmp_path / "kohya.safetensors")
    split = read_changes(tmp_path / "kohya.safetensors", NAMES).changes
    again, _ = tensors_of(through_file(split, "diffusers", tmp_path / "d.safetensors"), "kohya", NAMES)
    qkv = "lora_unet_double_blocks_1_img_attn_qkv.lora_down.weight"
    assert again[qkv].shape == first[qkv].shape


def test_the_swapped_halves_of_the_last_modulation_are_swapped_in_original_names(tmp_path):
    change = low_rank("every")["norm_out.linear"]
    tensors, _ = tensors_of({"norm_out.linear": change}, "bfl", NAMES)
    up = tensors["final_layer.adaLN_modulation.1.lora_B.weight"]
    torch.testing.assert_close(up, torch.cat([change.up[WIDTH:], change.up[:WIDTH]]))


def test_several_ranks_become_one_in_diffusers_names(tmp_path):
    changes = low_rank("mmdit", rank=2) | low_rank("all", rank=3)
    changes["transformer_blocks.0.attn.to_q"] = low_rank("all", rank=1)["transformer_blocks.0.attn.to_q"]
    tensors, header = tensors_of(changes, "diffusers", NAMES)
    assert {tensor.shape[0] for name, tensor in tensors.items() if "lora_A" in name} == {3}
    assert json.loads(header["lora_adapter_metadata"])["transformer.r"] == 3


@pytest.mark.parametrize(
    "spelled",
    [
        "transformer.{}.lora_A.weight|transformer.{}.lora_B.weight|transformer.{}.alpha",
        "diffusion_model.{}.lora_A.weight|diffusion_model.{}.lora_B.weight|diffusion_model.{}.alpha",
        "base_model.model.{}.lora_A.weight|base_model.model.{}.lora_B.weight|base_model.model.{}.alpha",
        "transformer.{}.lora.down.weight|transformer.{}.lora.up.weight|transformer.{}.alpha",
        "lora_unet_{_}.lora_down.weight|lora_unet_{_}.lora_up.weight|lora_unet_{_}.alpha",
        "lora_transformer_{_}.lora_down.weight|lora_transformer_{_}.lora_up.weight|lora_transformer_{_}.alpha",
        "lycoris_{_}.lora_down.weight|lycoris_{_}.lora_up.weight|lycoris_{_}.alpha",
    ],
)
@pytest.mark.parametrize("layer", ["transformer_blocks.1.attn.to_out.0", "double_blocks.1.img_attn.proj"])
def test_names_of_other_programs_lead_to_the_module_and_alpha_is_folded_in(spelled, layer, tmp_path):
    change = low_rank("all")["transformer_blocks.1.attn.to_out.0"]
    names = [text.replace("{}", layer).replace("{_}", layer.replace(".", "_")) for text in spelled.split("|")]
    tensors = dict(zip(names, [change.down, change.up, torch.tensor(1.0)], strict=True))
    save_file(tensors, tmp_path / "a.safetensors")
    found = read_changes(tmp_path / "a.safetensors", NAMES).changes
    assert [*found] == ["transformer_blocks.1.attn.to_out.0"]
    torch.testing.assert_close(found["transformer_blocks.1.attn.to_out.0"].delta(), 0.5 * change.delta())


def test_alpha_in_the_header_is_folded_in(tmp_path):
    change = low_rank("all")["transformer_blocks.1.attn.to_q"]
    tensors, header = tensors_of({"transformer_blocks.1.attn.to_q": change}, "diffusers", NAMES)
    settings = json.loads(header["lora_adapter_metadata"]) | {"transformer.lora_alpha": 8}
    save_file(tensors, tmp_path / "a.safetensors", metadata={"lora_adapter_metadata": json.dumps(settings)})
    found = read_changes(tmp_path / "a.safetensors", NAMES).changes
    torch.testing.assert_close(found["transformer_blocks.1.attn.to_q"].delta(), 4 * change.delta())


def test_rslora_and_ranks_of_their_own_in_the_header_count_as_in_peft(tmp_path):
    module = "transformer_blocks.1.attn.to_q"
    change = low_rank("all", rank=4)[module]
    tensors, header = tensors_of({module: change}, "diffusers", NAMES)
    settings = json.loads(header["lora_adapter_metadata"]) | {"transformer.r": 16, "transformer.lora_alpha": 8}
    for rslora, strength in ((False, 2.0), (True, 4.0)):
        said = json.dumps(settings | {"transformer.use_rslora": rslora})
        save_file(tensors, tmp_path / "a.safetensors", metadata={"lora_adapter_metadata": said})
        found = read_changes(tmp_path / "a.safetensors", NAMES).changes[module]
        torch.testing.assert_close(found.delta(), strength * change.delta())


def lokr(alpha=None):
    generator = torch.Generator().manual_seed(1)
    w1, a, b = (torch.randn(*shape, generator=generator) for shape in ((2, 2), (4, 3), (3, 4)))
    return Factors(tensors={"lokr_w1": w1, "lokr_w2_a": a, "lokr_w2_b": b}, scale=1.0 if alpha is None else alpha / 3)


def loha(module="transformer_blocks.0.attn.to_q"):
    generator = torch.Generator().manual_seed(2)
    rows, columns = SHAPES[module]
    a = [torch.randn(rows, 2, generator=generator) for _ in range(2)]
    b = [torch.randn(2, columns, generator=generator) for _ in range(2)]
    return Factors(tensors={"hada_w1_a": a[0], "hada_w1_b": b[0], "hada_w2_a": a[1], "hada_w2_b": b[1]}, scale=0.25)


@pytest.mark.parametrize("change", [lokr(), lokr(6.0), loha(), Factors(tensors={"diff": torch.ones(8, 8)}, scale=2.0)])
def test_factors_come_back_from_comfyui_names(change, tmp_path):
    found = through_file({"transformer_blocks.0.attn.to_q": change}, "comfyui", tmp_path / "a.safetensors")
    torch.testing.assert_close(found["transformer_blocks.0.attn.to_q"].delta(), change.delta())


@pytest.mark.parametrize("layout", ["diffusers", "bfl", "kohya"])
def test_a_layout_that_cannot_hold_lokr_says_what_can(layout):
    with pytest.raises(CheckpointError, match=r"cannot hold LoKr, only LoRA(.|\n)*--as_lora RANK"):
        tensors_of({"transformer_blocks.0.attn.to_q": lokr()}, layout, NAMES)


def test_a_lokr_of_a_fused_layer_is_divided_by_rows(tmp_path):
    w1, w2 = torch.randn(3, 2), torch.randn(8, 4)
    save_file({"lycoris_double_blocks_0_img_attn_qkv.lokr_w1": w1, "lycoris_double_blocks_0_img_attn_qkv.lokr_w2": w2},
              tmp_path / "a.safetensors")  # fmt: skip
    found = read_changes(tmp_path / "a.safetensors", NAMES).changes
    whole = torch.kron(w1, w2)
    for index, letter in enumerate("qkv"):
        part = found[f"transformer_blocks.0.attn.to_{letter}"].delta()
        torch.testing.assert_close(part, whole[8 * index : 8 * index + 8])


def test_dora_is_refused_by_layouts_that_have_no_place_for_its_lengths():
    module = "transformer_blocks.0.attn.to_q"
    plain = low_rank("all")[module]
    dora = LowRank(down=plain.down, up=plain.up, lengths=torch.ones(8))
    with pytest.raises(CheckpointError, match="lengths of a DoRA"):
        tensors_of({module: dora}, "comfyui", NAMES)
    assert f"transformer.{module}.lora_magnitude_vector" in tensors_of({module: dora}, "diffusers", NAMES)[0]


def test_tensors_of_text_encoders_are_listed_apart(tmp_path):
    tensors, _ = tensors_of(low_rank("mmdit"), "kohya", NAMES)
    extra = {"lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": torch.ones(2, 8)}
    save_file(tensors | extra, tmp_path / "a.safetensors")
    content = read_changes(tmp_path / "a.safetensors", NAMES)
    assert content.encoder_tensors == tuple(extra)
    assert len(content.changes) == len(modules_of("mmdit"))


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"model.layers.0.self_attn.q_proj.weight": 1}, "is not an adapter that is known here"),
        (
            {"lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight": 1},
            "1 layers that this model does not have",
        ),
        ({"transformer.transformer_blocks.0.attn.to_q.lora_A.weight": 1}, "has only down"),
    ],
)
def test_a_file_of_another_kind_is_refused_by_name(tensors, said, tmp_path):
    save_file({name: torch.ones(2, 8) for name in tensors}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=said):
        read_changes(tmp_path / "a.safetensors", NAMES)


def test_a_family_without_original_names_writes_its_own(tmp_path):
    names = LayerNames(TinyFamily, ["enter", "middle"])
    changes = {"middle": LowRank(down=torch.randn(2, 8), up=torch.randn(8, 2))}
    for layout in ("diffusers", "comfyui", "kohya"):
        found = through_file(changes, layout, tmp_path / f"{layout}.safetensors", names)
        torch.testing.assert_close(found["middle"].delta(), changes["middle"].delta())
    with pytest.raises(CheckpointError, match="has no original names"):
        tensors_of(changes, "bfl", names)


def test_diffusers_own_converter_reads_a_kohya_file_as_the_same_change(tmp_path):
    # an independent reader, at the width of the published models, which it takes for granted
    from diffusers import FluxPipeline

    one_block = {
        **CONFIG,
        "num_layers": 1,
        "num_single_layers": 1,
        "num_attention_heads": 24,
        "attention_head_dim": 128,
    }
    shapes = {name.removesuffix(".weight"): shape for name, shape in diffusers_shapes(one_block).items()}
    changes = {
        name: LowRank(down=torch.randn(1, shapes[name][1]), up=torch.randn(shapes[name][0], 1))
        for name in modules_of("all+ffs")
        if ".0." in name and "blocks.1." not in name
    }
    tensors, _ = tensors_of(changes, "kohya", NAMES)
    save_file(tensors, tmp_path / "a.safetensors")
    theirs = FluxPipeline.lora_state_dict(tmp_path / "a.safetensors")
    assert {name.partition(".lora_")[0] for name in theirs} == {f"transformer.{name}" for name in changes}
    for module, change in changes.items():
        down, up = (theirs[f"transformer.{module}.lora_{part}.weight"].float() for part in "AB")
        inputs = torch.randn(change.down.shape[1], 2)
        torch.testing.assert_close(up @ (down @ inputs), change.up @ (change.down @ inputs), atol=1e-3, rtol=1e-4)


def test_every_layer_of_the_published_sizes_has_an_original_name():
    published = {**CONFIG, "num_layers": 19, "num_single_layers": 38}
    parts = {
        original.removesuffix(".weight"): tuple(name.removesuffix(".weight") for name in names)
        for original, names in original_parts(published).items()
        if original.endswith(".weight")
    }
    assert len(parts) > 19 * 10 + 38 * 3
    for original, modules in parts.items():
        assert NAMES.find(original).modules == modules
        assert NAMES.find(original.replace(".", "_")).modules == modules
        for module in modules:
            assert NAMES.find(module.replace(".", "_")).modules == (module,)
            assert NAMES.original_of(module).name == original
