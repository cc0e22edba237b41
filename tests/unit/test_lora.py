"""The LoRA adapter: what is trained, saved and restored."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from difftrain.errors import CheckpointError, ConfigError
from difftrain.model.low_rank.lora import Lora
from difftrain.model.low_rank.lora_file import ADAPTER_FILE


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.GELU(), nn.Linear(5, 4)).requires_grad_(False)


def adapted(lora, seed=1):
    adapted = model()
    lora.attach(adapted, ["0", "2"], torch.float32)
    torch.manual_seed(seed)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter)
    return adapted


def written(lora, wrapped, folder):
    """Return tensors and header of the file that other programs load."""
    lora.write(lora.state(wrapped), folder, "transformer")
    with safe_open(folder / ADAPTER_FILE, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


def test_only_the_adapter_is_trained_and_it_starts_without_effect():
    plain, wrapped = model(), model()
    Lora(lora_rank=2).attach(wrapped, ["0", "2"], torch.float32)
    trained = [name for name, parameter in wrapped.named_parameters() if parameter.requires_grad]
    assert trained
    assert all(".lora_" in name for name in trained)
    x = torch.randn(3, 6)
    torch.testing.assert_close(wrapped(x), plain(x))


def test_trained_weights_have_the_asked_dtype():
    wrapped = model().to(torch.bfloat16)
    Lora(lora_rank=2).attach(wrapped, ["0"], torch.float32)
    assert {p.dtype for p in wrapped.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in wrapped.parameters() if not p.requires_grad} == {torch.bfloat16}


@pytest.mark.parametrize("alpha", [1.0, 8.0, None])
def test_exported_file_applies_the_true_delta_without_alpha(alpha, tmp_path):
    lora = Lora(lora_rank=4, lora_alpha=alpha)
    wrapped = adapted(lora)
    tensors, _ = written(lora, wrapped, tmp_path)
    merged = model()
    for index in (0, 2):
        delta = tensors[f"transformer.{index}.lora_B.weight"] @ tensors[f"transformer.{index}.lora_A.weight"]
        merged[index].weight.data += delta
    x = torch.randn(3, 6)
    torch.testing.assert_close(merged(x), wrapped(x), atol=1e-5, rtol=1e-5)


def test_exported_delta_is_exact_for_bfloat16_weights_too(tmp_path):
    # alpha / rank = 1.5 times a bfloat16 weight is not a bfloat16 number: folding in that dtype was off by 2e-3
    lora = Lora(lora_rank=4, lora_alpha=6)
    wrapped = adapted(lora)
    for parameter in wrapped.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    tensors, _ = written(lora, wrapped, tmp_path)
    raw = lora.state(wrapped)
    for index in (0, 2):
        wanted = raw[f"{index}.lora_B.weight"].double() * 1.5
        torch.testing.assert_close(tensors[f"transformer.{index}.lora_B.weight"].double(), wanted, rtol=1e-7, atol=0)


def test_header_says_alpha_equals_rank(tmp_path):
    lora = Lora(lora_rank=4, lora_alpha=16)
    _, header = written(lora, adapted(lora), tmp_path)
    settings = json.loads(header["lora_adapter_metadata"])
    assert settings["transformer.r"] == settings["transformer.lora_alpha"] == 4
    assert settings["transformer.target_modules"] == ["0", "2"]


@pytest.mark.parametrize("place", ["file", "folder"])
@pytest.mark.parametrize("alpha", [6.0, 4.0])
def test_what_was_written_is_read_by_the_names_of_the_state_with_alpha_folded_in(alpha, place, tmp_path):
    lora = Lora(lora_rank=4, lora_alpha=alpha)
    wrapped = adapted(lora)
    written(lora, wrapped, tmp_path)
    found = lora.read(tmp_path / ADAPTER_FILE if place == "file" else tmp_path, "transformer")
    state = lora.state(wrapped)
    assert found.keys() == state.keys()
    for name, tensor in state.items():
        assert torch.equal(found[name], tensor * (alpha / 4 if "lora_B" in name else 1)), name
    plain = Lora(lora_rank=4)
    again = adapted(plain, seed=3)
    plain.load_state(again, found)
    x = torch.randn(3, 6)
    torch.testing.assert_close(again(x), wrapped(x), atol=1e-5, rtol=1e-5)


def test_an_alpha_that_a_file_keeps_beside_its_weights_is_folded_in_on_reading(tmp_path):
    lora = Lora(lora_rank=4)
    tensors, _ = written(lora, adapted(lora), tmp_path)
    settings = json.dumps({"transformer.r": 4, "transformer.lora_alpha": 2})
    save_file(tensors, tmp_path / "of-another-program.safetensors", {"lora_adapter_metadata": settings})
    found = lora.read(tmp_path / "of-another-program.safetensors", "transformer")
    assert torch.equal(found["0.lora_B.weight"], tensors["transformer.0.lora_B.weight"] / 2)
    assert torch.equal(found["0.lora_A.weight"], tensors["transformer.0.lora_A.weight"])


@pytest.mark.parametrize("content", ["another prefix", "no lora", "damaged", "empty"])
def test_a_file_that_holds_no_such_adapter_is_refused_by_name(content, tmp_path):
    lora, path = Lora(lora_rank=4), tmp_path / ADAPTER_FILE
    written(lora, adapted(lora), tmp_path)
    if content == "another prefix":
        lora.write(lora.state(adapted(lora)), tmp_path, "unet")
    elif content == "no lora":
        save_file({**load_file(path), "transformer.0.weight": torch.ones(2)}, path)
    elif content == "empty":
        save_file({}, path)
    else:
        path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(CheckpointError, match=ADAPTER_FILE):
        lora.read(tmp_path, "transformer")


def test_raw_state_comes_back_bit_equal():
    lora = Lora(lora_rank=3, lora_alpha=5)
    first, second = adapted(lora, seed=1), adapted(lora, seed=2)
    saved = {name: tensor.clone() for name, tensor in lora.state(first).items()}
    lora.load_state(second, saved)
    assert all(torch.equal(tensor, saved[name]) for name, tensor in lora.state(second).items())


def test_state_of_another_rank_is_refused_by_name():
    state = Lora(lora_rank=2).state(adapted(Lora(lora_rank=2)))
    with pytest.raises(CheckpointError, match=r"4 adapter weights .* do not fit.*\n.*rank"):
        Lora(lora_rank=3).load_state(adapted(Lora(lora_rank=3)), state)


def test_target_that_names_no_module_is_refused():
    with pytest.raises(ConfigError, match=r"1 of 2 adapter targets are not modules.*: nine"):
        Lora().attach(model(), ["0", "nine"], torch.float32)
