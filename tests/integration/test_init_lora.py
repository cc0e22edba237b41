"""`init_lora` begins with a LoRA of any layout, and says before a model is loaded what does not fit."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from adapter_layouts import low_rank
from conftest import EditPairs, run_in
from difftrain.model.adapter_files.changes import LowRank
from difftrain.model.adapter_files.layer_names import LayerNames
from difftrain.model.adapter_files.layouts import FORMATS, tensors_of
from difftrain.model.adapter_files.read_changes import read_changes
from difftrain_flux.family import FluxFamily
from difftrain_flux.model_files.layouts import diffusers_shapes
from difftrain_flux.targets import select_targets

NAMES = LayerNames(FluxFamily)
TINY = {
    "num_layers": 2, "num_single_layers": 2, "num_attention_heads": 2, "attention_head_dim": 32, "in_channels": 64,
    "joint_attention_dim": 32, "pooled_projection_dim": 32, "guidance_embeds": True,
}  # fmt: skip
SHAPES = {name.removesuffix(".weight"): shape for name, shape in diffusers_shapes(TINY).items()}


def of_tiny(target, rank):
    return {
        name: LowRank(down=torch.randn(rank, SHAPES[name][1]), up=0.1 * torch.randn(SHAPES[name][0], rank))
        for name in select_targets(SHAPES, target)
    }


@pytest.fixture
def begin(tmp_path):
    """Return a function that trains one step without effect from ``first.safetensors``, and the written changes."""
    pairs = EditPairs(tmp_path)
    listed = pairs()
    fast = [part for part in pairs.kontext if part not in ("--lora_rank", "4", "--learning_rate", "0.001")]

    def run(*flags, rank=4, program=None):
        options = ("--learning_rate", "1e-12", "--max_train_steps", "1", "--lora_rank", rank)
        return run_in(
            tmp_path,
            *([program] if program else []),
            *fast,
            "--data_backend_config",
            listed.name,
            "--init_lora",
            "first.safetensors",
            *options,
            *flags,
        )

    run.file = tmp_path / "first.safetensors"
    run.written = lambda: read_changes(tmp_path / "output" / "pytorch_lora_weights.safetensors", NAMES).changes
    return run


@pytest.mark.parametrize("layout", FORMATS)
def test_a_run_begins_with_the_change_of_a_file_of_any_layout(begin, layout):
    changes = of_tiny("all", 4)
    tensors, header = tensors_of(changes, layout, NAMES)
    save_file(tensors, begin.file, metadata=header)
    ended = begin(rank=4 if layout == "diffusers" else 12)  # q, k and v of one layer have three ranks together
    assert ended.status == 0, ended.err
    found = begin.written()
    assert found.keys() == changes.keys()
    for module, change in changes.items():
        torch.testing.assert_close(found[module].delta(), change.delta(), atol=1e-5, rtol=1e-5)


def test_alpha_of_another_program_is_the_strength_that_it_begins_with(begin):
    changes = of_tiny("all", 4)
    tensors, _ = tensors_of(changes, "kohya", NAMES)
    save_file({name: tensor / 2 if "alpha" in name else tensor for name, tensor in tensors.items()}, begin.file)
    assert begin("--lora_alpha", "3", rank=12).status == 0
    found = begin.written()
    for module, change in changes.items():
        torch.testing.assert_close(found[module].delta(), 0.5 * change.delta(), atol=1e-5, rtol=1e-5)


def refused(begin, *flags, rank=4):
    ended = begin(*flags, rank=rank)
    assert ended.status == 2
    assert "Traceback" not in ended.err
    assert "load model" not in ended.err
    return ended.err


def test_a_lokr_is_refused_with_the_command_that_makes_a_lora_of_it(begin):
    save_file({"lycoris_transformer_blocks_0_attn_to_q.lokr_w1": torch.ones(8, 8),
               "lycoris_transformer_blocks_0_attn_to_q.lokr_w2": torch.ones(8, 8)}, begin.file)  # fmt: skip
    said = refused(begin)
    assert "is no LoRA: it is a LoKr on 1 layer" in said
    assert "--as_lora RANK" in said


def test_a_lora_of_another_model_is_said_by_its_names(begin):
    names = ("lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight",
             "lora_unet_down_blocks_0_attentions_0_proj_in.lora_up.weight")  # fmt: skip
    save_file(dict(zip(names, (torch.ones(4, 8), torch.ones(8, 4)), strict=True)), begin.file)
    assert "is no LoRA of this model: it is a LoRA of rank 4 on 1 layer, with names of kohya" in refused(begin)


def test_a_lora_of_a_larger_model_is_said_by_its_sizes(begin):
    save_file(tensors_of(low_rank("all", 4), "diffusers", NAMES)[0], begin.file)
    assert "is for a model of another size: " in refused(begin)


@pytest.mark.parametrize("content", ["a VAE", "a GGUF file"])
def test_what_is_no_adapter_is_said(begin, content):
    if content == "a VAE":
        save_file({"decoder.up_blocks.0.resnets.0.conv1.weight": torch.ones(2, 2)}, begin.file)
    else:
        begin.file.write_bytes(b"GGUF" + bytes(60))
    assert f" is {content}" in refused(begin)


def one_line(said):
    """Return the error of a refusal, which is one line, followed by a hint at most."""
    assert "error: " in said
    lines = said[said.index("error: ") :].splitlines()  # before it are phases, notes and words of libraries
    assert [line.partition(":")[0] for line in lines] == ["error", "hint"]
    return lines[0]


@pytest.mark.parametrize("program", ["check", None])
def test_a_file_that_was_cut_is_one_fault_in_one_line(begin, program):
    save_file({"transformer.transformer_blocks.0.attn.to_q.lora_A.weight": torch.ones(4, 64)}, begin.file)
    begin.file.write_bytes(begin.file.read_bytes()[:-100])
    ended = begin(program=program)
    assert ended.status == 2
    assert one_line(ended.err) == "error: init_lora first.safetensors is cut short or damaged"


@pytest.mark.parametrize("shapes", [((), ()), ((4, 64), (64, 8)), ((64,), (64,))])
def test_matrices_without_a_common_rank_are_named_by_their_layer(begin, shapes):
    layer = "transformer.transformer_blocks.0.attn.to_q"
    parts = zip("AB", shapes, strict=True)
    save_file({f"{layer}.lora_{part}.weight": torch.ones(shape) for part, shape in parts}, begin.file)
    ended = begin(program="check")
    assert ended.status == 2
    said = one_line(ended.err)
    assert "; layer transformer_blocks.0.attn.to_q has matrices [" in said
    assert "which have no common rank" in said


def test_a_check_tells_what_init_lora_is_before_a_run_does(begin):
    save_file({"encoder.block.0.layer.0.SelfAttention.q.weight": torch.ones(2, 2)}, begin.file)
    ended = begin(program="check")
    assert ended.status == 2
    assert "init_lora first.safetensors is no LoRA of this model: it is a T5 text encoder" in one_line(ended.err)


def test_text_encoders_in_the_file_are_not_silently_left_out(begin, tmp_path):
    tensors, _ = tensors_of(of_tiny("all", 4), "kohya", NAMES)
    save_file(tensors | {"lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": torch.ones(4, 8)}, begin.file)
    said = refused(begin, rank=12)
    assert "also changes text encoders" in said
    ended = run_in(tmp_path, "export", "first.safetensors", "--output", "without-encoders.safetensors")
    assert ended.status == 0
    assert not any("te1" in name for name in load_file(tmp_path / "without-encoders.safetensors"))


def test_a_file_that_does_not_fit_leaves_the_earlier_run_where_it_is(begin):
    tensors, header = tensors_of(of_tiny("all", 4), "diffusers", NAMES)
    save_file(tensors, begin.file, metadata=header)
    assert begin().status == 0
    output = begin.file.parent / "output"
    before = sorted(path.name for path in output.iterdir())
    refused(begin, "--resume_from_checkpoint", "none", rank=8)
    assert sorted(path.name for path in output.iterdir()) == before
