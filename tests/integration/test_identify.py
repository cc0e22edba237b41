"""`difftrain identify`: files of many programs, and what is none, each said in one clear line."""

import json
import pickle
import struct

import pytest
import torch
from safetensors.torch import save_file

from adapter_layouts import low_rank
from conftest import run_in
from difftrain.model.adapter_files.layer_names import LayerNames
from difftrain.model.adapter_files.layouts import tensors_of
from difftrain_flux.built_in import TINY_FOLDER
from difftrain_flux.family import FluxFamily

NAMES = LayerNames(FluxFamily)
OWN = "transformer_blocks.0.attn.to_q"
ORIGINAL = "double_blocks.0.img_attn.qkv"
FLAT, FLAT_ORIGINAL = OWN.replace(".", "_"), ORIGINAL.replace(".", "_")
SOFTWARE = json.dumps({"name": "ai-toolkit", "version": "0.5"})


def lora(layer, down="lora_A.weight", up="lora_B.weight", alpha=None, dtype=None):
    names = {f"{layer}.{down}": torch.ones(4, 8), f"{layer}.{up}": torch.ones(24 if "qkv" in layer else 8, 4)}
    return names | ({} if alpha is None else {f"{layer}.alpha": torch.tensor(alpha, dtype=dtype)})


KOHYA = ("lora_down.weight", "lora_up.weight")
ADAPTERS = {
    # tensors, header, and what must be said
    "diffusers": (lora(f"transformer.{OWN}"), {}, "a LoRA of rank 4 on 1 layer, with names of diffusers"),
    "kohya": (
        lora(f"lora_unet_{FLAT_ORIGINAL}", *KOHYA, alpha=2.0),
        {"ss_network_module": "networks.lora_flux", "ss_base_model_version": "flux1"},
        "a LoRA of rank 4, alpha 2, on 1 layer, with names of kohya (sd-scripts), original layers, trained by kohya's",
    ),
    "ai-toolkit": (lora(f"transformer.{OWN}"), {"software": SOFTWARE}, "trained by ai-toolkit 0.5"),
    "ai-toolkit, old names": (lora(f"lora_transformer_{FLAT}", *KOHYA, alpha=4.0), {}, "ai-toolkit's old names"),
    "ComfyUI": (lora(f"diffusion_model.{ORIGINAL}"), {}, "with names of ComfyUI, original layers"),
    "ComfyUI, own layers": (lora(f"diffusion_model.{OWN}"), {}, "with names of ComfyUI and ai-toolkit"),
    "BFL": (lora(ORIGINAL), {}, "with names of BFL"),
    "peft": (lora(f"base_model.model.{OWN}"), {}, "with names of peft, the modules of diffusers"),
    "alpha in bfloat16": (lora(f"transformer.{OWN}", alpha=8.0, dtype=torch.bfloat16), {}, "rank 4, alpha 8,"),
    "SimpleTuner's LoKr": (
        {f"lycoris_{FLAT}.lokr_w1": torch.ones(2, 2), f"lycoris_{FLAT}.lokr_w2": torch.ones(4, 4)}, {},
        "a LoKr on 1 layer, with names of LyCORIS, as SimpleTuner",
    ),
    "LoHa": (
        {f"lycoris_{FLAT}.hada_w{i}_{part}": torch.ones(*((8, 2) if part == "a" else (2, 8))) for i in "12"
         for part in "ab"}, {}, "a LoHa of rank 2",
    ),
    "full": ({f"lycoris_{FLAT}.diff": torch.ones(8, 8)}, {}, "a full change on 1 layer"),
    "DoRA": (
        lora(f"transformer.{OWN}") | {f"transformer.{OWN}.lora_magnitude_vector": torch.ones(8)}, {},
        "a DoRA of rank 4",
    ),
    "with a text encoder": (
        lora(f"lora_unet_{FLAT_ORIGINAL}", *KOHYA) | lora("lora_te1_text_model_encoder_layers_0_mlp_fc1", *KOHYA), {},
        "and 2 tensors of text encoders",
    ),
    "OneTrainer": (lora(f"transformer.{OWN}"), {"ot_branch": "master"}, "trained by OneTrainer"),
}  # fmt: skip
STRANGERS = {
    "SDXL LoRA": (lora("lora_unet_down_blocks_0_attentions_0_proj_in", *KOHYA), "no installed family has its layers"),
    "other transformer's LoRA": (lora("transformer.layers.0.attention.to_q"), "no installed family has its layers"),
    "text encoder": ({"text_model.encoder.layers.0.mlp.fc1.weight": torch.ones(2, 2)}, "a CLIP text encoder"),
    "T5": ({"encoder.block.0.layer.0.SelfAttention.q.weight": torch.ones(2, 2)}, "a T5 text encoder"),
    "VAE": ({"decoder.up_blocks.0.resnets.0.conv1.weight": torch.ones(2, 2)}, "a VAE"),
    "UNet": ({"model.diffusion_model.input_blocks.1.1.proj_in.weight": torch.ones(2, 2)}, "a Stable Diffusion UNet"),
    "language model": ({"model.layers.0.self_attn.q_proj.weight": torch.ones(2, 2)}, "a language model"),
    "FLUX.2": ({"double_stream_modulation_img.lin.weight": torch.ones(2, 2)}, "FLUX.2"),
    "Chroma": ({"distilled_guidance_layer.in_proj.weight": torch.ones(2, 2)}, "Chroma"),
    "Redux": ({"redux_up.weight": torch.ones(2, 2)}, "FLUX.1 Redux"),
    "quantised": ({"double_blocks.0.img_attn.qkv.wscales": torch.ones(2, 2)}, "SVDQuant"),
    "a thing": ({"some.thing": torch.ones(2, 3)}, "1 tensors: some.thing [2, 3]"),
    "empty": ({}, "0 tensors: none"),
    "Z-Image": ({"noise_refiner.0.attention.qkv.weight": torch.ones(2, 2)}, "a Lumina or Z-Image transformer"),
    "Wan": ({"blocks.0.self_attn.q.weight": torch.ones(2, 2)}, "a Wan transformer"),
    "Qwen-Image": ({"transformer_blocks.0.img_mod.1.weight": torch.ones(2, 2)}, "a Qwen-Image transformer"),
    "video VAE": ({"decoder.upsamples.0.residual.0.gamma": torch.ones(2)}, "a VAE"),
    "ControlNet of SD": ({"control_model.input_blocks.0.0.weight": torch.ones(2, 2)}, "a ControlNet"),
    "control LoRA": ({"lora_controlnet": torch.ones(1), "input_blocks.0.0.weight": torch.ones(2)}, "a ControlNet"),
    "IP-Adapter": ({"image_proj.proj.weight": torch.ones(2, 2)}, "an IP-Adapter"),
    "IP-Adapter of FLUX": (
        {"double_blocks.0.processor.ip_adapter_double_stream_k_proj.weight": torch.ones(2, 2)},
        "an IP-Adapter",
    ),
    "T2I-Adapter": ({"adapter.body.0.block1.weight": torch.ones(2, 2)}, "a T2I-Adapter"),
    "embedding": ({"emb_params": torch.ones(2, 2)}, "a textual inversion embedding"),
    "embedding of SDXL": ({"clip_g": torch.ones(2, 2), "clip_l": torch.ones(2, 2)}, "a textual inversion embedding"),
    "image encoder": ({"vision_model.head.probe": torch.ones(2, 2)}, "an image encoder (CLIP vision, SigLIP)"),
    "SDXL checkpoint": (
        {"conditioner.embedders.0.transformer.text_model.encoder.layers.0.mlp.fc1.weight": torch.ones(2, 2)},
        "a Stable Diffusion XL checkpoint",
    ),
    "SD checkpoint": (
        {"cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1.weight": torch.ones(2, 2)},
        "a Stable Diffusion checkpoint",
    ),
    "upscaler": ({"conv_first.weight": torch.ones(2, 2)}, "an upscaler"),
    "OFT": ({f"lycoris_{FLAT}.oft_diag": torch.ones(2, 2, 2)}, "a LyCORIS adapter"),
    "GLoRA": ({f"lora_unet_{FLAT_ORIGINAL}.a1.weight": torch.ones(2, 2)}, "a GLoRA adapter"),
    "IA3": ({f"base_model.model.{OWN}.ia3_l": torch.ones(2, 1)}, "an IA3 adapter"),
    "optimizer": ({"state.0.exp_avg": torch.ones(2)}, "the state of an optimizer"),
}


def stored(tensors):
    """Return a file with a header of these formats, shapes and places, and eight bytes at most."""
    names = ("dtype", "shape")
    header = {
        name: dict(zip(names, entry[:2], strict=True)) | {"data_offsets": entry[2:]} for name, entry in tensors.items()
    }
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(max(entry[3] for entry in tensors.values()))


BROKEN = {
    "GGUF": (b"GGUF" + bytes(60), "a GGUF file"),
    "pickle": (b"PK\x03\x04" + bytes(60), "a file of torch.save"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git-lfs has not downloaded"),
    "web page": (b"<!doctype html><html>" + bytes(60), "a web page"),
    "short": (b"\x10", "not a complete safetensors file"),
    "text": (b"hello, this is no file of tensors at all", "not a complete safetensors file"),
    "nothing": (b"", "a.safetensors is empty"),
    "pickle of protocol 4": (pickle.dumps({"a": 1}, protocol=4), "a file of torch.save"),
    "workflow": (b'{"last_node_id": 3, "nodes": []}', "a JSON text, such as a config or a workflow"),
    "image": (b"\x89PNG\r\n\x1a\n" + bytes(60), "an image"),
    "archive": (b"\x1f\x8b\x08\x00" + bytes(60), "a compressed archive"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(60), "an HDF5 file"),
    "error of the hub": (b"Entry not found", "an error message of the hub"),
    "sizes that do not fit": (stored({"a": ("F32", [2], 0, 4)}), "1 of its 1 tensors have other sizes"),
    "negative size": (stored({"a": ("F32", [2, -1], 0, 8)}), "1 of its 1 tensors have other sizes"),
    "list": (struct.pack("<Q", 6) + b"[1, 2]", "cut short or damaged"),
}


def identify(path, *flags):
    return run_in(path.parent, "identify", path.name, *flags)


@pytest.mark.parametrize("case", ADAPTERS)
def test_an_adapter_is_said_with_its_family(case, tmp_path):
    tensors, header, said = ADAPTERS[case]
    save_file(tensors, tmp_path / "a.safetensors", metadata=header or None)
    ended = identify(tmp_path / "a.safetensors")
    assert ended.status == 0, ended.err
    assert said in ended.out
    assert "family     flux" in ended.out


@pytest.mark.parametrize("case", STRANGERS)
def test_what_is_no_adapter_of_a_family_is_said_by_what_it_has(case, tmp_path):
    tensors, said = STRANGERS[case]
    save_file(tensors, tmp_path / "a.safetensors")
    ended = identify(tmp_path / "a.safetensors")
    assert ended.status == 0, ended.err
    assert said in ended.out
    assert "family  " not in ended.out


@pytest.mark.parametrize("case", BROKEN)
def test_a_file_that_cannot_be_read_is_refused_with_what_it_is(case, tmp_path):
    content, said = BROKEN[case]
    (tmp_path / "a.safetensors").write_bytes(content)
    ended = identify(tmp_path / "a.safetensors")
    assert ended.status == 2
    assert said in ended.err
    assert "Traceback" not in ended.err
    assert [line.partition(":")[0] for line in ended.err.splitlines()] == ["error", "hint"]


@pytest.mark.parametrize(("flavour", "said"), [("Kontext", "kontext"), ("schnell", "schnell")])
def test_the_header_tells_the_flavour_where_names_and_shapes_cannot(flavour, said, tmp_path):
    base = {"modelspec.architecture": f"flux.1-{flavour}-dev/lora" if flavour == "Kontext" else f"FLUX.1-{flavour}"}
    save_file(lora(f"transformer.{OWN}"), tmp_path / "a.safetensors", metadata=base)
    found = json.loads(identify(tmp_path / "a.safetensors", "--json").out)
    assert found["flavours"] == [said]
    assert found["step_distilled"] == (said == "schnell")


BASES = {
    # header, and what is said
    "hub id": (
        {"base_model": "me/a-model", "modelspec.architecture": "flux-1-kontext-dev/lora"},
        "base model me/a-model",
    ),
    "sd-scripts": ({"ss_sd_model_name": "flux1-dev.safetensors"}, "base model flux1-dev.safetensors"),
    "architecture": (
        {"modelspec.architecture": "flux-1-kontext-dev/lora"},
        "base model not named; one of family flux, flavour kontext\n  made for   architecture flux-1-kontext-dev/lora",
    ),
    "nothing": ({}, "base model not named; one of family flux\n"),
}


@pytest.mark.parametrize("case", BASES)
def test_an_architecture_is_not_taken_for_the_base_model(case, tmp_path):
    header, said = BASES[case]
    save_file(lora(f"transformer.{OWN}"), tmp_path / "a.safetensors", metadata=header or None)
    assert said in identify(tmp_path / "a.safetensors").out


def test_json_has_ranks_alphas_and_formats(tmp_path):
    tensors, _ = tensors_of(low_rank("all", rank=3, dtype=torch.bfloat16), "kohya", NAMES)
    save_file(tensors, tmp_path / "a.safetensors")
    found = json.loads(identify(tmp_path / "a.safetensors", "--json").out)
    assert found["family"] == "flux"
    assert len(found["flavours"]) > 1
    assert found["adapter"]["kind"] == "LoRA"
    assert found["adapter"]["ranks"] == [3, 9]
    assert found["adapter"]["alphas"] == [3.0, 9.0]
    assert set(found["dtypes"]) == {"BF16", "F32"}


def test_a_model_folder_is_known_with_its_flavour(tmp_path):
    ended = run_in(tmp_path, "identify", TINY_FOLDER)
    assert "a model in diffusers layout" in ended.out
    assert "flavour    kontext" in ended.out


def test_the_denoisers_folder_alone_is_known_by_its_config(tmp_path):
    ended = run_in(tmp_path, "identify", TINY_FOLDER / "transformer")
    assert "a denoiser in diffusers layout, in 1 file" in ended.out
    assert "family     flux" in ended.out


def test_a_folder_of_something_else_says_what_it_has(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").touch()
    ended = run_in(tmp_path, "identify", "photos")
    assert ended.status == 0
    assert "a folder that is not known here" in ended.out
    assert "it has cat.png" in ended.out


def test_what_is_not_there_is_an_error(tmp_path):
    assert "does not exist" in run_in(tmp_path, "identify", "nothing").err
    assert "identify needs a file or folder" in run_in(tmp_path, "identify").err
