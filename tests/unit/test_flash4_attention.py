"""FlashAttention-4, with a package of the same name that computes on the CPU in place of the real one."""

import sys
from importlib.metadata import PackageNotFoundError
from types import ModuleType

import pytest
import torch
from torch.nn import functional

from conftest import run_in
from difftrain.errors import ConfigError, MachineError
from difftrain.model.attention import choose_kernel, flash4_attention, kernel_names, kernel_trial
from difftrain.model.attention.choose_kernel import choose_attention, kernels_in_force
from difftrain.model.attention.own_kernels import is_attention, route_models_to, routed_to, torchs_own_attention
from difftrain.planning.model_plan import plan_model
from difftrain.types import AttentionShape

SHAPE = (1, 2, 16, 64)
CUDA = torch.device("cuda")


@pytest.fixture
def package(monkeypatch):
    """Install exact kernels that note the strides they get; rows of heads, as the package wants them."""
    seen = []

    def forward(query, key, value, *, return_lse):
        assert return_lse
        seen.append([each.is_contiguous() for each in (query, key, value)])
        heads = [each.transpose(1, 2) for each in (query, key, value)]
        scores = heads[0] @ heads[1].mT / query.shape[-1] ** 0.5
        return (scores.softmax(-1) @ heads[2]).transpose(1, 2).contiguous(), scores.logsumexp(-1), None, None, None

    def backward(query, key, value, output, gradient, log_sum, *, deterministic):
        seen.append([gradient.is_contiguous(), deterministic])
        query, key, value, gradient = (each.transpose(1, 2) for each in (query, key, value, gradient))
        strength = query.shape[-1] ** -0.5
        shares = (query @ key.mT * strength - log_sum.unsqueeze(-1)).exp()
        of_shares = gradient @ value.mT
        of_scores = shares * (of_shares - (of_shares * shares).sum(-1, keepdim=True)) * strength
        gradients = (of_scores @ key, of_scores.mT @ query, shares.mT @ gradient)
        return tuple(each.transpose(1, 2).contiguous() for each in gradients)

    interface = ModuleType("flash_attn.cute.interface")
    interface._flash_attn_fwd, interface._flash_attn_bwd = forward, backward
    for name in ("flash_attn", "flash_attn.cute"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, interface.__name__, interface)
    for operation in (flash4_attention._attention, flash4_attention._attention_backward):
        operation.register_kernel("cpu")(operation._init_fn)
    monkeypatch.setattr(flash4_attention, "takes", lambda tensor: True)
    yield seen
    route_models_to(None)


def heads():
    torch.manual_seed(0)
    rows = [torch.randn(SHAPE[0], SHAPE[2], SHAPE[1], SHAPE[3], requires_grad=True) for _ in range(3)]
    return rows, [row.transpose(1, 2) for row in rows]


@pytest.mark.parametrize("exact_order", [False, True])
def test_models_get_the_package_s_kernels_with_dense_rows_and_exact_gradients(package, exact_order):
    rows, given = heads()
    sparse = torch.randn(*SHAPE[:3], 2 * SHAPE[3])[..., ::2]
    exact = torch.autograd.grad(torchs_own_attention(*given), rows, sparse)
    route_models_to("flash-attn-4")
    torch.use_deterministic_algorithms(exact_order)
    try:
        ours = torch.autograd.grad(functional.scaled_dot_product_attention(*given), rows, sparse)
    finally:
        torch.use_deterministic_algorithms(False)
    assert package == [[True] * 3, [True, exact_order]]
    torch.testing.assert_close(ours, exact)
    assert kernels_in_force().startswith("attention: difftrain flash-attn-4, ")


def test_calls_with_a_mask_stay_torch_s(package):
    route_models_to("flash-attn-4")
    _, given = heads()
    mask = torch.ones(SHAPE[2], SHAPE[2], dtype=torch.bool).tril()
    ours = functional.scaled_dot_product_attention(*given, attn_mask=mask)
    torch.testing.assert_close(ours, torchs_own_attention(*given, attn_mask=mask))
    assert not package


def test_its_output_is_kept_where_blocks_recompute(package):
    assert is_attention(torch.ops.difftrain.flash4_attention.default)


def version_of(installed):
    """Return the function that tells a package's version, on a machine that has the package or not."""

    def version(name):
        assert name == "flash-attn-4"
        if not installed:
            raise PackageNotFoundError(name)
        return "4.0.0b36"

    return version


def test_a_missing_package_is_an_error_of_the_config(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    flags = {"model_family": "flux", "attention_mechanism": "flash-attn-4"}
    monkeypatch.setattr(kernel_names, "version", version_of(True))
    assert plan_model(None, flags).config.attention_mechanism == "flash-attn-4"
    monkeypatch.setattr(kernel_names, "version", version_of(False))
    missing = r"attention_mechanism 'flash-attn-4': the package .* is not installed"
    with pytest.raises(ConfigError, match=missing):
        plan_model(None, flags)
    ended = run_in(tmp_path, "--demo", "--model=flux", "--flavour=kontext", "--attention_mechanism=flash-attn-4")
    assert ended.status == 2
    assert "flash-attn-4 is not installed" in ended.err
    assert "scan" not in ended.err


def test_an_older_package_that_breaks_on_import_is_not_imported(monkeypatch, tmp_path):
    (tmp_path / "flash_attn").mkdir()
    (tmp_path / "flash_attn" / "__init__.py").write_text("raise ImportError('undefined symbol')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert flash4_attention.obstacle(CUDA) == kernel_names.missing_package("flash-attn-4")


@pytest.mark.parametrize(
    ("capability", "installed", "problem"),
    [
        ((8, 6), True, "it is made for cards like the H100 and later, and this is a Card"),
        ((9, 0), False, "the package flash-attn-4 is not installed: pip install 'difftrain[flash-attn-4]'"),
        ((9, 0), True, None),
    ],
)
def test_what_is_in_the_way_is_named(monkeypatch, capability, installed, problem):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Card")
    monkeypatch.setattr(kernel_names, "version", version_of(installed))
    assert flash4_attention.obstacle(CUDA) == problem
    if problem is None:
        choose_kernel.check_attention("flash-attn-4", CUDA)
        return
    with pytest.raises(MachineError) as raised:
        choose_kernel.check_attention("flash-attn-4", CUDA)
    assert str(raised.value).startswith(f"attention_mechanism flash-attn-4: {problem}\nhint: ")


@pytest.mark.parametrize(
    ("mechanism", "kernel"), [("flash-attn-4", "flash-attn-4"), ("cudnn", "cudnn"), ("flash", None)]
)
def test_the_kernel_that_the_config_names_is_the_one_that_models_get(monkeypatch, mechanism, kernel):
    monkeypatch.setattr(flash4_attention, "obstacle", lambda device: None)
    try:
        choose_attention(mechanism, CUDA)
        assert routed_to() == kernel
    finally:
        choose_attention("auto", CUDA)
    assert routed_to() is None


def test_it_is_refused_on_a_cpu():
    with pytest.raises(MachineError, match="attention_mechanism flash-attn-4: this kernel exists only for GPUs"):
        choose_attention("flash-attn-4", torch.device("cpu"))


@pytest.mark.parametrize(
    ("problem", "masked", "tried"), [(None, False, True), ("no", False, False), (None, True, False)]
)
def test_auto_tries_it_where_nothing_is_in_the_way(monkeypatch, problem, masked, tried):
    asked = []
    monkeypatch.setattr(flash4_attention, "obstacle", lambda device: problem)
    monkeypatch.setattr(kernel_trial, "_try", lambda kernel, *_: asked.append(kernel))
    shape = AttentionShape(batch=1, heads=2, queries=16, keys=16, head_dim=64, masked=masked)
    kernel_trial.try_kernels(shape, torch.device("cpu"), torch.float32)
    assert ("flash-attn-4" in asked) == tried


def test_whatever_the_package_raises_is_a_fault_of_the_kernel_and_not_the_end_of_the_run(package, monkeypatch):
    class CompilerError(Exception):
        pass

    def fails(*_, **__):
        raise CompilerError("no such architecture\nmore")

    monkeypatch.setattr(sys.modules["flash_attn.cute.interface"], "_flash_attn_fwd", fails)
    tensors = tuple(torch.randn(SHAPE) for _ in range(3))
    gradient = torch.randn(SHAPE)
    trial = kernel_trial._try("flash-attn-4", tensors, gradient, kernel_trial._exact(tensors, gradient))
    assert trial.fault == "no such architecture"
