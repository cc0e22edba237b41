"""FLUX.1 transformers in one file: names and shapes of both layouts, 8-bit files, and what is refused."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from difftrain import ModelError
from difftrain.model.load_denoiser import load_denoiser
from difftrain_flux.built_in import TINY_FOLDER
from difftrain_flux.family import FluxFamily
from difftrain_flux.model_files.layouts import diffusers_shapes, original_parts, original_shapes
from difftrain_flux_kontext.flavour import Kontext
from flux_single_files import FP8, in_fp8, original, prefixed, save, tiny_state, write_empty

CPU = torch.device("cpu")
CONFIG = json.loads((TINY_FOLDER / "transformer" / "config.json").read_text())
FULL = {
    "num_layers": 19,
    "num_single_layers": 38,
    "num_attention_heads": 24,
    "attention_head_dim": 128,
    "in_channels": 64,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 768,
    "guidance_embeds": True,
}


@pytest.fixture(scope="module")
def state():
    return tiny_state()


def locate(denoiser, model="tiny"):
    return FluxFamily().locate_with_denoiser(str(model), str(denoiser), Kontext())


def load(location, dtype=torch.float32):
    return load_denoiser(FluxFamily(), location, dtype=dtype, device=CPU).state_dict()


def assert_same(loaded, wanted):
    assert loaded.keys() == wanted.keys()
    assert [name for name in wanted if not torch.equal(loaded[name], wanted[name].to(loaded[name].dtype))] == []


# the tables


@pytest.mark.parametrize("config", [CONFIG, FULL, FULL | {"guidance_embeds": False}], ids=["tiny", "dev", "schnell"])
def test_the_shapes_are_those_of_the_stock_class(config):
    from diffusers import FluxTransformer2DModel

    with torch.device("meta"):
        stock = FluxTransformer2DModel.from_config(config)
    assert diffusers_shapes(config) == {name: tuple(tensor.shape) for name, tensor in stock.state_dict().items()}


def test_every_tensor_of_diffusers_is_one_part_of_an_original_one():
    parts = [name for names in original_parts(FULL).values() for name in names]
    assert sorted(parts) == sorted(diffusers_shapes(FULL))
    # tensors of flux1-dev.safetensors, as black-forest-labs/flux 802fb47 builds the model
    assert len(original_shapes(FULL)) == 780
    assert original_shapes(FULL)["single_blocks.37.linear1.weight"] == (21504, 3072)


def test_the_mapping_is_that_of_diffusers_own_converter(tmp_path):
    from diffusers.loaders.single_file_utils import convert_flux_transformer_checkpoint_to_diffusers

    from difftrain import open_weight_file
    from difftrain_flux.model_files.single_file import ORIGINAL, SingleFile, read_single_file

    # their converter splits by the published width, so rows are full and columns few
    config = FULL | {"num_layers": 2, "num_single_layers": 2}
    torch.manual_seed(0)
    given = {name: torch.randn(rows, *(3 for _ in rest)) for name, (rows, *rest) in original_shapes(config).items()}
    path = save(given, tmp_path / "given.safetensors")
    ours = dict(read_single_file(SingleFile(file=open_weight_file(path), layout=ORIGINAL), config))
    assert_same(ours, convert_flux_transformer_checkpoint_to_diffusers(given))


# loading


def test_a_file_in_the_original_layout_loads_as_the_folder_does(state, tmp_path):
    location = locate(save(original(state), tmp_path / "flux1-kontext-dev.safetensors"))
    assert_same(load(location), state)
    assert location.name == "tiny"
    assert location.denoiser.path == (tmp_path / "flux1-kontext-dev.safetensors").resolve()
    assert location.denoiser.facts == {"guidance_embeds": "true"}


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", "diffusion_model.", "transformer."])
def test_prefixes_are_removed_and_other_parts_of_the_file_left_out(state, tmp_path, prefix):
    others = {
        "vae.decoder.up.0.block.0.conv1.weight": torch.ones(2),
        "text_encoders.t5xxl.shared.weight": torch.ones(2),
    }
    path = save(prefixed(original(state), prefix) | others, tmp_path / "all-in-one.safetensors")
    assert_same(load(locate(path)), state)


def test_a_file_in_diffusers_layout_loads_too(state, tmp_path):
    assert_same(load(locate(save(state, tmp_path / "mine.safetensors"))), state)


def test_parts_of_fused_tensors_are_views(state, tmp_path):
    location = locate(save(original(state), tmp_path / "mine.safetensors"))
    parts = {name: part for name, part in FluxFamily().denoiser_weights(location) if ".1.attn.to_" in name}
    for q, k in (("to_q", "to_k"),):
        for block in ("transformer_blocks", "single_transformer_blocks"):
            first, second = (parts[f"{block}.1.attn.{name}.weight"] for name in (q, k))
            assert first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr()


@pytest.mark.parametrize("layout", [original, dict], ids=["original", "diffusers"])
@pytest.mark.parametrize("end", [None, ".scale_weight", ".weight_scale"])
def test_eight_bit_files_give_the_scaled_numbers(state, tmp_path, layout, end):
    given = in_fp8(layout(state), end)
    extra = {}
    if end == ".scale_weight":
        extra = {"scaled_fp8": torch.zeros(0, dtype=FP8), "double_blocks.0.img_attn.qkv.scale_input": torch.ones(())}
    if end == ".weight_scale":
        note = torch.tensor(list(b'{"format": "float8_e4m3fn"}'), dtype=torch.uint8)
        extra = {"double_blocks.0.img_attn.qkv.comfy_quant": note}
    path = save(prefixed(given | extra), tmp_path / "fp8.safetensors")
    wanted = {}
    for name, tensor in given.items():
        if name.endswith((".scale_weight", ".weight_scale")):
            continue
        scale = given.get(name.removesuffix(".weight") + end, torch.tensor(1.0)) if end else torch.tensor(1.0)
        wanted[name] = (tensor.float() * scale).bfloat16()
    loaded = load(locate(path), torch.bfloat16)
    assert_same(original(loaded) if layout is original else loaded, wanted)
    # and these are close to the numbers before they were rounded to 8 bits
    close = [torch.nn.functional.cosine_similarity(loaded[n].float().flatten(), state[n].flatten(), 0) for n in loaded]
    assert min(close) > 0.99


def test_a_scale_may_have_one_dimension(state, tmp_path):
    given = in_fp8(original(state), ".weight_scale")
    flat = {name: tensor.reshape(1) if name.endswith("_scale") else tensor for name, tensor in given.items()}
    scalar = load(locate(save(given, tmp_path / "scalar.safetensors")))
    loaded = load(locate(save(flat, tmp_path / "flat.safetensors")))
    assert all(torch.equal(loaded[name], tensor) for name, tensor in scalar.items())


# the rest of the model


@pytest.fixture
def companion(tmp_path):
    """Copy the built-in model without its transformer's weights."""
    folder = Path(shutil.copytree(TINY_FOLDER, tmp_path / "companion"))
    for path in (folder / "transformer").glob("*.safetensors"):
        path.unlink()
    return folder


def change_config(folder, **changes):
    path = folder / "transformer" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_the_other_parts_need_no_transformer_weights(state, tmp_path, companion):
    location = locate(save(original(state), tmp_path / "mine.safetensors"), companion)
    assert_same(load(location), state)


def test_another_denoiser_leaves_the_caches_and_changes_the_model(state, tmp_path, companion):
    family, flavour = FluxFamily(), Kontext()
    first = locate(save(original(state), tmp_path / "first.safetensors"), companion)
    other = {name: 2 * tensor for name, tensor in original(state).items()}
    second = locate(save(other, tmp_path / "second.safetensors"), companion)
    assert first.identity == second.identity
    assert family.text_identity(first, flavour) == family.text_identity(second, flavour)
    assert family.image_identity(first) == family.image_identity(second)
    assert first.denoiser.identity != second.denoiser.identity


def test_a_single_file_needs_the_companions_config(state, tmp_path, companion):
    (companion / "transformer" / "config.json").unlink()
    with pytest.raises(ModelError, match=r"companion' has no transformer/config.json"):
        locate(save(original(state), tmp_path / "mine.safetensors"), companion)


@pytest.mark.parametrize("named", ["whole", "transformer", "tiny"])
def test_a_folder_can_be_a_whole_model_or_a_transformer_alone(state, tmp_path, companion, named):
    shutil.rmtree(companion / "transformer")  # then even the companion's config is not needed
    whole = shutil.copytree(TINY_FOLDER, tmp_path / "whole")
    path = {"whole": whole, "transformer": whole / "transformer", "tiny": "tiny"}[named]
    location = locate(path, companion)
    assert_same(load(location), state)
    assert location.denoiser.identity != location.identity


def test_a_transformer_on_the_hub_may_be_alone_in_its_repository(state, tmp_path, monkeypatch):
    import huggingface_hub

    snapshot = shutil.copytree(TINY_FOLDER / "transformer", tmp_path / "snapshots" / "0123abc")
    asked = []

    def snapshot_download(hub_id, *, revision=None, allow_patterns, ignore_patterns=()):
        asked.append((hub_id, revision, allow_patterns))
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    location = locate("someone/transformer")
    assert (location.path, location.denoiser.identity) == (TINY_FOLDER, "someone/transformer@0123abc")
    assert not any("diffusion_pytorch_model*" in patterns for _, _, patterns in asked)
    assert_same(load(location), state)
    assert asked[-1][:2] == ("someone/transformer", "0123abc")


def test_of_a_hub_companion_only_the_config_is_downloaded(state, tmp_path, monkeypatch):
    import huggingface_hub

    asked = []

    def snapshot_download(hub_id, *, revision=None, allow_patterns, ignore_patterns=()):
        asked.extend(allow_patterns)
        return str(TINY_FOLDER)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert_same(load(locate(save(original(state), tmp_path / "mine.safetensors"), "someone/model")), state)
    assert "transformer/config.json" in asked
    assert not any("*" in pattern for pattern in asked)


# what is refused


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"num_layers": 3}, "it has 2 double blocks, and num_layers is 3"),
        ({"num_single_layers": 1}, "single blocks, and num_single_layers is 1"),
        ({"guidance_embeds": False}, "it has a guidance embedding, and guidance_embeds is false"),
        ({"joint_attention_dim": 48}, r"txt_in.weight is \[\d+, \d+\], not \[\d+, 48\]"),
        ({"num_attention_heads": 1}, r"img_in.weight is \[\d+, 64\], not \[\d+, 64\]"),
    ],
)
def test_sizes_that_differ_are_told_with_file_tensor_and_shapes(state, tmp_path, companion, changes, told):
    path = save(original(state), tmp_path / "mine.safetensors")
    count = len({name.split(".")[1] for name in state if name.startswith("transformer_blocks")})
    told = told.replace("it has 2 double", f"it has {count} double")
    change_config(companion, **changes | ({"num_layers": count + 1} if "num_layers" in changes else {}))
    with pytest.raises(ModelError, match=told.replace("num_layers is 3", f"num_layers is {count + 1}")) as caught:
        locate(path, companion)
    assert str(caught.value).startswith(f"{path} does not fit transformer/config.json of {companion}: ")


def test_missing_and_unexpected_tensors_are_named(state, tmp_path):
    given = original(state) | {"double_blocks.0.extra.weight": torch.ones(1)}
    del given["single_blocks.0.linear2.bias"]
    with pytest.raises(ModelError) as caught:
        locate(save(given, tmp_path / "mine.safetensors"))
    assert "single_blocks.0.linear2.bias missing; double_blocks.0.extra.weight unexpected" in str(caught.value)


LORA = {"transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight": torch.ones(2, 2)}
OTHER_FILES = {
    "lora": (LORA, "is a LoRA adapter"),
    "kohya": ({"lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": torch.ones(2, 2)}, "is a LoRA adapter"),
    "lokr": ({"lycoris_transformer_blocks_0_attn_to_q.lokr_w1": torch.ones(2, 2)}, "is a LyCORIS adapter"),
    "t5": ({"encoder.block.0.layer.0.SelfAttention.q.weight": torch.ones(2)}, "is a T5 text encoder"),
    "clip": ({"text_model.encoder.layers.0.mlp.fc1.weight": torch.ones(2)}, "is a CLIP text encoder"),
    "vae": ({"decoder.up.0.block.0.conv1.weight": torch.ones(2)}, "is a VAE"),
    "sdxl": ({"model.diffusion_model.input_blocks.0.0.weight": torch.ones(2)}, "is a Stable Diffusion UNet"),
    "redux": ({"redux_up.weight": torch.ones(2)}, "is FLUX.1 Redux"),
    "flux2": ({"double_stream_modulation_img.lin.weight": torch.ones(2)}, "is FLUX.2"),
    "other": ({"blocks.0.attn.weight": torch.ones(2)}, "is not a FLUX.1 transformer: .* it has blocks.0.attn.weight"),
    "empty": ({}, "is not a FLUX.1 transformer: .* it has no tensors"),
}


@pytest.mark.parametrize("kind", OTHER_FILES)
def test_another_file_is_told_what_it_is(tmp_path, kind):
    tensors, told = OTHER_FILES[kind]
    with pytest.raises(ModelError, match=told) as caught:
        locate(save(tensors, tmp_path / "given.safetensors"))
    assert str(caught.value).startswith(str(tmp_path / "given.safetensors"))


@pytest.mark.parametrize(
    ("channels", "told"), [(384, "is FLUX.1 Fill"), (128, "is FLUX.1 Depth or Canny"), (96, "is another model")]
)
def test_siblings_with_more_channels_are_told_what_they_are(state, tmp_path, channels, told):
    given = original(state)
    given["img_in.weight"] = torch.ones(len(given["img_in.weight"]), channels)
    with pytest.raises(ModelError, match=rf"{told} \(img_in.weight takes {channels} channels, not 64\)"):
        locate(save(given, tmp_path / "given.safetensors"))


QUANTISED = {
    "nf4": ({"double_blocks.0.img_mlp.0.weight.absmax": torch.ones(2)}, "bitsandbytes 4-bit"),
    "bnb8": ({"double_blocks.0.img_mlp.0.SCB": torch.ones(2)}, "bitsandbytes int8"),
    "nvfp4": ({"double_blocks.0.img_mlp.0.weight_scale_2": torch.ones(1)}, "nvfp4"),
    "svdquant": ({"transformer_blocks.0.qkv_proj.wscales": torch.ones(2)}, "SVDQuant"),
    "int8": ({"double_blocks.0.img_mlp.0.weight": torch.ones(2, 2, dtype=torch.int8)}, r"not known.*\(I8\)"),
    "rows": ({"double_blocks.0.img_mlp.0.weight_scale": torch.ones(8, 1)}, r"more than one factor.*\[8, 1\]"),
    "note": (
        {"double_blocks.0.img_mlp.0.comfy_quant": torch.tensor(list(b'{"format": "mxfp8"}'), dtype=torch.uint8)},
        "quantised as mxfp8",
    ),
    "rotated": (
        {
            "double_blocks.0.img_mlp.0.comfy_quant": torch.tensor(
                list(b'{"format": "float8_e4m3fn", "convrot": true}'), dtype=torch.uint8
            )
        },
        "quantised as float8_e4m3fn with rotated inputs",
    ),
    "no note": (
        {"double_blocks.0.img_mlp.0.comfy_quant": torch.tensor([1, 2], dtype=torch.uint8)},
        "quantised as unknown",
    ),
}


@pytest.mark.parametrize("layout", QUANTISED)
def test_other_quantised_layouts_are_refused_by_name(state, tmp_path, layout):
    tensors, told = QUANTISED[layout]
    with pytest.raises(ModelError, match=f"its weights are quantised as .*{told.removeprefix('quantised as ')}"):
        locate(save(original(state) | tensors, tmp_path / "given.safetensors"))


def test_formats_of_layers_may_stand_in_the_header(state, tmp_path):
    def saved(form):
        notes = json.dumps({"layers": {"double_blocks.0.img_mlp.0": {"format": form}}})
        return save(
            in_fp8(original(state), ".weight_scale"), tmp_path / f"{form}.safetensors", _quantization_metadata=notes
        )

    locate(saved("float8_e4m3fn"))
    with pytest.raises(ModelError, match=r"quantised as int4_rows: double_blocks\.0\.img_mlp\.0"):
        locate(saved("int4_rows"))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"GGUF\x03\x00\x00\x00" + bytes(40), "is a GGUF file"),
        (b"PK\x03\x04" + bytes(60), r"is a file of torch.save"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "git-lfs has not downloaded"),
        (b"<!doctype html><html></html>" + bytes(20), "is a web page"),
        (b"", "given.safetensors is empty"),
        (b"\x08" + bytes(7) + b"not json", "is cut short or damaged"),
        (b"\x0f" + bytes(7) + b'{"a": {"b": 1}}', "is cut short or damaged"),
    ],
)
def test_what_is_not_a_safetensors_file_is_told_what_it_is(tmp_path, content, told):
    (tmp_path / "given.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match=told):
        locate(tmp_path / "given.safetensors")


def test_a_file_cut_short_is_reported_before_anything_is_loaded(state, tmp_path):
    path = save(original(state), tmp_path / "mine.safetensors")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelError, match="is cut short or damaged"):
        locate(path)


def test_what_is_nothing_is_refused_with_what_can_be_named():
    with pytest.raises(ModelError, match=r"'nowhere.safetensors' is not a file, not a folder, not a hub id"):
        locate("nowhere.safetensors")


def test_what_a_file_is_can_be_told_without_torch(state, tmp_path):
    path = save(original(state), tmp_path / "mine.safetensors")
    program = (
        "import sys; from difftrain_flux.family import FluxFamily; from difftrain_flux_kontext.flavour import Kontext\n"
        f"FluxFamily().locate_with_denoiser('tiny', {str(path)!r}, Kontext()); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


LARGE = """
import sys
from pathlib import Path
import torch
from difftrain import ModelLocation
from difftrain.model.load_denoiser import load_denoiser
from difftrain_flux.family import FluxFamily

class Reading(FluxFamily):
    def denoiser_weights(self, location):
        for name, tensor in super().denoiser_weights(location):
            tensor.flatten()[::1024].sum()  # a GPU reads every page, a device that keeps nothing would not
            yield name, tensor

def peak():
    # not ru_maxrss, which starts at the parent process's value
    (line,) = (line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024

folder, file = map(Path, sys.argv[1:])
one = ModelLocation(name="one", identity="x", path=file)
place = ModelLocation(name="large", identity="x", path=folder, denoiser=one)
Reading().empty_denoiser(place)  # imports the libraries
before = peak()
load_denoiser(Reading(), place, dtype=torch.bfloat16, device=torch.device("meta"))
print(peak() - before)
"""
LINEAR1 = 21504 * 3072 * 2
"""Bytes of the largest tensor."""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux to tell the peak")
@pytest.mark.parametrize(("scaled", "tensors"), [(False, 1.5), (True, 2.5)], ids=["bf16", "fp8"])
def test_the_host_holds_about_one_tensor_of_a_full_size_file(tmp_path, scaled, tensors):
    config = FULL | {"num_layers": 1, "num_single_layers": 3}
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer" / "config.json").write_text(json.dumps(config))
    path = write_empty(tmp_path / "large.safetensors", original_shapes(config), scaled=scaled)
    command = [sys.executable, "-c", LARGE, tmp_path, path]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    grown = int(done.stdout)
    assert path.stat().st_size > (0.8e9 if scaled else 1.6e9)
    print(f"the host held {grown / 1e6:.0f} MB of {path.stat().st_size / 1e6:.0f} MB")
    assert grown < tensors * LINEAR1, f"the host held {grown / 1e6:.0f} MB of {path.stat().st_size / 1e6:.0f} MB"
