"""What a run decides about its device before the first step, with memory and kernels that a test makes up."""

from types import SimpleNamespace

import pytest
import torch
from config_runs import PLUGINS
from torch import nn

from difftrain.errors import ConfigError, ModelError
from difftrain.model.attention import choose_kernel, cudnn_attention, kernel_trial
from difftrain.model.attention.kernel_trial import Trial
from difftrain.model.attention.own_kernels import OwnKernel
from difftrain.model.precision.eight_bit_matmul import Fp8Matmul
from difftrain.model.precision.quanto import QuantoInt8
from difftrain.training.fitting import fit_to_device
from difftrain.types import AttentionShape
from rounding_plugin import Rounded4, Rounded8

GIB = 2**30
CUDA, CPU = torch.device("cuda"), torch.device("cpu")
SHAPES = (AttentionShape(batch=1, heads=2, queries=64, keys=64, head_dim=8),)


class Said(list):
    """A reporter."""

    say = list.append

    def phase(self, name, total=None):
        from contextlib import nullcontext

        return nullcontext()


def state(*, device=CUDA, quantizer=None, blocks=4, steps=1000, trained=0, **options):
    config = SimpleNamespace(
        dynamo_backend="auto", gradient_checkpointing=True, gradient_checkpointing_interval=None,
        attention_mechanism="auto",
    )  # fmt: skip
    vars(config).update(options)
    family = SimpleNamespace(name="invented", blocks=lambda denoiser: [nn.Identity() for _ in range(blocks)])
    adapter = SimpleNamespace(trains_base=False)
    return SimpleNamespace(
        plan=SimpleNamespace(config=config, family=family, quantizer=quantizer, plugins=PLUGINS, adapter=adapter),
        accelerator=SimpleNamespace(device=device),
        bare_denoiser=nn.Identity(),
        trained=[torch.zeros(trained)],
        room_to_encode=0.0,
        optimizer=SimpleNamespace(zero_grad=lambda: None),
        total_steps=steps,
        step=0,
    )


# compiling


@pytest.mark.parametrize(
    ("options", "backend", "reason"),
    [
        ({}, "inductor", ""),
        ({"device": CPU}, None, ""),
        ({"dynamo_backend": "no"}, None, ""),
        ({"steps": 99}, None, "that takes a minute, and 99 steps are left"),
        ({"blocks": 0}, None, "model family 'invented' names no blocks"),
        ({"quantizer": Rounded8()}, None, "does not take weights of own-8bit; those of int8-quanto, fp8-quanto, fp8uz"),
        ({"quantizer": Rounded4()}, None, "does not take weights of own-4bit; those of int4-quanto, nf4-bnb, fp4-bnb "),
        ({"quantizer": QuantoInt8()}, "inductor", ""),
        ({"quantizer": Fp8Matmul()}, "inductor", ""),
        ({"device": CPU, "dynamo_backend": "aot_eager", "steps": 1}, "aot_eager", ""),
    ],
)
def test_auto_compiles_on_a_gpu_what_can_be_compiled_and_pays(monkeypatch, options, backend, reason):
    monkeypatch.setattr(fit_to_device.importlib.util, "find_spec", lambda name: name)
    said = Said()
    assert fit_to_device._backend(state(**options), 1, said) == backend
    assert reason in "".join(said)
    assert bool(said) == bool(reason)


@pytest.mark.parametrize(("steps", "backend"), [(299, None), (300, "inductor")])
def test_each_image_size_has_to_pay(monkeypatch, steps, backend):
    monkeypatch.setattr(fit_to_device.importlib.util, "find_spec", lambda name: name)
    said = Said()
    assert fit_to_device._backend(state(steps=steps), 3, said) == backend
    if backend is None:
        assert "a minute for each of 3 image sizes, and 299 steps are left" in said[0]


def test_without_triton_nothing_is_compiled(monkeypatch):
    monkeypatch.setattr(fit_to_device.importlib.util, "find_spec", lambda name: None)
    said = Said()
    assert fit_to_device._backend(state(), 1, said) is None
    assert said == ["the model is not compiled: the package triton is not installed"]


def test_what_cannot_be_compiled_is_an_error_where_the_config_asks_for_it():
    with pytest.raises(ConfigError, match=r"dynamo_backend inductor: .* own-8bit; those of int8-quanto, "):
        fit_to_device._backend(state(dynamo_backend="inductor", quantizer=Rounded8()), 1, Said())


def test_an_interval_needs_blocks_to_choose_from():
    asked = state(device=CPU, blocks=0, gradient_checkpointing_interval=2)
    with pytest.raises(ConfigError, match="gradient_checkpointing_interval 2: model family 'invented' names no blocks"):
        fit_to_device.fit_to_device(asked, None, Said())


def test_wrong_gradients_end_the_compiling_or_the_run():
    blocks = SimpleNamespace(fault=lambda *, keeping_too: "the gradients are off", compiled=True)
    auto, said = state(), Said()
    fit_to_device._check_compiled(auto, blocks, said)
    assert not blocks.compiled
    assert not auto.compiled
    assert said == ["the model is not compiled: the gradients are off"]
    with pytest.raises(ModelError, match=r'dynamo_backend inductor: the gradients are off\nhint: .*"no"'):
        fit_to_device._check_compiled(state(dynamo_backend="inductor"), blocks, said)


# memory


@pytest.mark.parametrize(
    ("available", "least", "each", "kept"),
    [
        (24, 10, 1, 12),  # 24 * 0.92 - 10 = 12.08
        (24, 10, 0.1, 57),
        (24, 23, 1, 0),
        (24, 10, 3, 4),
    ],
)
def test_auto_keeps_as_many_activations_as_fit(monkeypatch, available, least, each, kept):
    blocks = SimpleNamespace(count=57, kept=0)
    monkeypatch.setattr(fit_to_device, "available", lambda device: available * GIB)
    monkeypatch.setattr(fit_to_device, "_peak", lambda state, batch: (least + each * blocks.kept) * GIB)
    said = Said()
    fit_to_device._keep_what_fits(state(), blocks, None, said)
    assert blocks.kept == kept
    assert f"{kept} of 57 blocks keep their activations" in said[0]
    assert f"{least + each * kept:.1f} of 24.0 GiB in use" in said[0]


def test_running_out_of_memory_while_measuring_keeps_fewer(monkeypatch):
    blocks = SimpleNamespace(count=57, kept=0)

    def peak(_state, _batch):
        if blocks.kept > 10:
            raise torch.OutOfMemoryError
        return (10 + 0.1 * blocks.kept) * GIB

    monkeypatch.setattr(fit_to_device, "available", lambda device: 24 * GIB)
    monkeypatch.setattr(fit_to_device, "_peak", peak)
    fit_to_device._keep_what_fits(state(), blocks, None, Said())
    assert 7 <= blocks.kept <= 10


def test_room_is_left_for_gradients_and_the_optimizer(monkeypatch):
    blocks = SimpleNamespace(count=57, kept=0)
    monkeypatch.setattr(fit_to_device, "available", lambda device: GIB)
    monkeypatch.setattr(fit_to_device, "_peak", lambda state, batch: 0.01 * GIB * blocks.kept)
    fit_to_device._keep_what_fits(state(trained=GIB // 32), blocks, None, Said())
    # 0.92 GiB less four numbers of 4 bytes for each of the 32 M weights
    assert blocks.kept == 42


# attention


def trials(**seconds):
    return [Trial(kernel=name, seconds=time) for name, time in seconds.items()]


@pytest.fixture
def chosen(monkeypatch):
    """Return a function that chooses among made-up trials, and gives what was set and what was said."""

    def choose(found, shapes=SHAPES, dtype=torch.bfloat16):
        tried, was_set = [], []
        monkeypatch.setattr(kernel_trial, "try_kernels", lambda shape, *_: tried.append(shape) or found)
        monkeypatch.setattr(choose_kernel, "choose_attention", lambda name, device: was_set.append(name))
        monkeypatch.setattr(torch.backends.cuda, "enable_flash_sdp", lambda on: was_set.append(f"flash {on}"))
        return choose_kernel.fastest_attention(shapes, CUDA, dtype), was_set, tried

    return choose


def test_the_fastest_kernel_that_is_right_is_set(chosen):
    wrong = Trial(kernel="cudnn", seconds=0.001, fault="its result is off by nan")
    text, was_set, _ = chosen([wrong, *trials(flash=0.003, efficient=0.002)])
    assert was_set == ["auto", "flash False"]  # torch takes flash first, and the encoders may need math
    assert text.startswith("attention: efficient, the fastest for 64 tokens, forward and backward (flash 3.00 ms, ")
    assert text.endswith("cudnn is not used: its result is off by nan")


@pytest.mark.parametrize(("fastest", "sets"), [("cudnn", ["cudnn"]), ("flash", ["auto"])])
def test_a_kernel_that_auto_takes_forbids_no_other(chosen, fastest, sets):
    assert chosen(trials(**{"cudnn": 0.2, "flash": 0.2, fastest: 0.1}))[1] == sets


def test_the_largest_shape_is_tried(chosen):
    small, large = (AttentionShape(batch=1, heads=2, queries=count, keys=count, head_dim=8) for count in (32, 64))
    assert chosen(trials(flash=0.1), [small, large])[2] == [large]


@pytest.mark.parametrize("options", [{"shapes": ()}, {"dtype": torch.float32}])
def test_torch_chooses_where_nothing_can_be_tried(chosen, options):
    text, was_set, tried = chosen([], **options)
    assert text.startswith("attention: torch chooses the kernel")
    assert not was_set
    assert not tried


def test_a_kernel_with_a_wrong_result_has_a_fault(monkeypatch):
    tensors = tuple(torch.randn(1, 2, 16, 8) for _ in range(3))
    gradient = torch.randn(1, 2, 16, 8)
    exact = kernel_trial._exact(tensors, gradient)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    attention = kernel_trial.torchs_own_attention
    monkeypatch.setattr(cudnn_attention, "takes", lambda tensor: True)
    monkeypatch.setattr(cudnn_attention, "cudnn_attention", attention)
    assert kernel_trial._try("cudnn", tensors, gradient, exact).fault is None
    monkeypatch.setattr(cudnn_attention, "cudnn_attention", lambda *given: 1.1 * attention(*given))
    assert kernel_trial._try("cudnn", tensors, gradient, exact).fault.startswith("its result is off by 0.1")
    monkeypatch.setattr(cudnn_attention, "cudnn_attention", lambda *given: attention(*given) * torch.nan)
    assert kernel_trial._try("cudnn", tensors, gradient, exact).fault == "its result is off by nan"


@pytest.mark.parametrize("kernel", ["cudnn", "flash-attn-4"])
def test_kernels_are_timed_with_inputs_as_a_compiled_block_writes_them(monkeypatch, kernel):
    seen = []

    def attention(query, key, value):
        seen.append([each.is_contiguous() for each in (query, key, value)])
        return kernel_trial.torchs_own_attention(query, key, value)

    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    own = OwnKernel(run=attention, takes=lambda tensor: True, dense_heads=kernel_trial.OWN_KERNELS[kernel].dense_heads)
    monkeypatch.setattr(kernel_trial, "OWN_KERNELS", {kernel: own})
    tensors = tuple(torch.randn(1, 16, 2, 8).transpose(1, 2) for _ in range(3))
    gradient = torch.randn(1, 2, 16, 8)
    assert kernel_trial._try(kernel, tensors, gradient, kernel_trial._exact(tensors, gradient)).fault is None
    assert seen == [[kernel == "cudnn"] * 3] * (1 + kernel_trial.REPEATS)
