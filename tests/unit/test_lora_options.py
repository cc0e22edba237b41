"""How a LoRA begins, how strong it is, and which modules it adapts, where its options say so."""

import math

import pytest
import torch
from torch import nn

from difftrain.errors import ConfigError
from difftrain.model.low_rank.lora import Lora, linears_named
from difftrain.testing import TinyFamily


class Branch(nn.Module):
    def __init__(self):
        super().__init__()
        self.to_q, self.to_k = nn.Linear(8, 8), nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)

    def forward(self, hidden):
        return hidden + self.to_q(self.norm(hidden)) * self.to_k(hidden)


class Chosen(TinyFamily):
    def adapter_targets(self, denoiser):
        return ["0.to_q", "1.to_q"]


def model():
    torch.manual_seed(0)
    return nn.Sequential(Branch(), Branch(), nn.Linear(8, 4)).requires_grad_(False)


def adapted(lora):
    found = model()
    names = lora.adapt(found, Chosen(), torch.float32)
    return found, list(names)


def randomised(lora):
    found, _ = adapted(lora)
    torch.manual_seed(3)
    for weight in lora.state(found).values():
        nn.init.normal_(weight)
    return found


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ((), ["0.to_q", "1.to_q"]),
        (("to_k",), ["0.to_k", "1.to_k"]),
        (("1.to_q", "2"), ["1.to_q", "2"]),
    ],
)
def test_modules_are_the_familys_or_those_named(wanted, expected):
    assert adapted(Lora(peft_lora_target_modules=wanted))[1] == expected


def test_a_name_is_whole_between_dots():
    assert linears_named(model(), ["to_q"]) == ["0.to_q", "1.to_q"]
    with pytest.raises(ConfigError):
        linears_named(model(), ["o_q"])


def test_names_that_fit_nothing_are_told_together_with_the_nearest():
    lora = Lora(peft_lora_target_modules=("to_kk", "norm", "2"))
    with pytest.raises(ConfigError) as caught:
        lora.check_model(model, Chosen())
    first, second = caught.value.problems
    assert first == "peft_lora_target_modules: 'to_kk' is no linear module of this model; did you mean 'to_k'?"
    assert second.startswith("peft_lora_target_modules: 'norm' is no linear module of this model")


def test_rslora_divides_by_the_root_of_the_rank():
    assert Lora(lora_rank=4, lora_alpha=8, use_rslora=True).scale == 4
    assert Lora(lora_rank=16, use_rslora=True).scale == 4
    assert Lora(lora_rank=16).scale == 1
    found = randomised(Lora(lora_rank=4, lora_alpha=8, use_rslora=True))
    plain = randomised(Lora(lora_rank=4, lora_alpha=16))
    inputs = torch.randn(3, 8)
    torch.testing.assert_close(found(inputs), plain(inputs))


def test_gaussian_draws_a_from_a_normal_distribution_of_deviation_one_by_rank():
    found, _ = adapted(Lora(lora_rank=4096, lora_init_type="gaussian"))
    first = found[0].to_q.lora_A["default"].weight
    assert first.std().item() == pytest.approx(1 / 4096, rel=0.05)
    assert first.abs().max() > 3.5 / 4096  # no even distribution has that
    assert not found[0].to_q.lora_B["default"].weight.any()
    default, _ = adapted(Lora(lora_rank=4096))
    assert default[0].to_q.lora_A["default"].weight.abs().max() <= 1 / math.sqrt(8)


@pytest.mark.parametrize("alpha", [2, 4, 12])
@pytest.mark.parametrize("as_folder", [False, True])
def test_a_run_begins_with_the_effect_of_init_lora_whatever_its_alpha(tmp_path, alpha, as_folder):
    earlier = Lora(lora_rank=4, lora_alpha=alpha)
    trained = randomised(earlier)
    earlier.write(earlier.state(trained), tmp_path, "transformer")
    path = tmp_path if as_folder else tmp_path / "pytorch_lora_weights.safetensors"
    lora = Lora(lora_rank=4, lora_alpha=6, init_lora=path)
    assert lora.check() == ()
    lora.check_model(model, Chosen())
    found, _ = adapted(lora)
    inputs = torch.randn(3, 8)
    torch.testing.assert_close(found(inputs), trained(inputs))
    assert Lora(lora_rank=4).first_effect() == ""
    assert lora.first_effect() != ""


def test_a_missing_init_lora_is_named(tmp_path):
    assert Lora(init_lora=tmp_path / "x.safetensors").check() == [
        f"init_lora: {tmp_path / 'x.safetensors'} does not exist"
    ]
    (text,) = Lora(init_lora=tmp_path).check()
    assert "has no pytorch_lora_weights.safetensors" in text


def test_init_lora_of_another_rank_or_other_modules_is_refused_before_the_weights(tmp_path):
    earlier = Lora(lora_rank=4)
    earlier.write(earlier.state(randomised(earlier)), tmp_path, "transformer")
    with pytest.raises(ConfigError, match="has rank 4, and lora_rank is 8"):
        Lora(lora_rank=8, init_lora=tmp_path).check_model(model, Chosen())
    with pytest.raises(ConfigError, match="without lengths of rows; set use_dora to false"):
        Lora(lora_rank=4, use_dora=True, init_lora=tmp_path).check_model(model, Chosen())
    dora = Lora(lora_rank=4, use_dora=True)
    (tmp_path / "dora").mkdir()
    dora.write(dora.state(randomised(dora)), tmp_path / "dora", "transformer")
    with pytest.raises(ConfigError, match="the file is a DoRA; set use_dora to true"):
        Lora(lora_rank=4, init_lora=tmp_path / "dora").check_model(model, Chosen())
    with pytest.raises(ConfigError, match=r"4 are only in the file, 2 only in the run: 0\.to_q"):
        Lora(lora_rank=4, init_lora=tmp_path, peft_lora_target_modules=("2",)).check_model(model, Chosen())
