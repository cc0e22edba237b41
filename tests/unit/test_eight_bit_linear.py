"""Layers that multiply in 8 bits: how near they are to the exact layer, forward and backward."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from difftrain.model.precision.eight_bit_linear import (
    FEWEST_ROWS,
    Fp8Linear,
    Int8Linear,
    RotatedInt8Linear,
    ScaledRows,
    hadamard,
)
from difftrain.model.precision.eight_bit_matmul import Fp8Matmul, Int8Matmul

CPU = torch.device("cpu")
RotatedInt8Matmul = partial(Int8Matmul, int8_rotation=True)
ERRORS = {Fp8Linear: 0.045, Int8Linear: 0.012, RotatedInt8Linear: 0.015}
"""Relative error of one product of normal numbers: two roundings of 2^-4 (e4m3) or of 1/127 of the largest of a row.
Measured on an H100, docs/log.md: fp8 3.8e-2, int8 1.2e-2."""


def relative(value, exact):
    return ((value.float() - exact.float()).norm() / exact.float().norm()).item()


def linear(inputs=256, outputs=384):
    torch.manual_seed(0)
    return nn.Linear(inputs, outputs).requires_grad_(False)


class IdleConversions(TorchFunctionMode):
    """Counts conversions that return the tensor itself."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_function__(self, function, types, given=(), named=None):
        result = function(*given, **(named or {}))
        self.count += function is Tensor.to and result is given[0]
        return result


@pytest.mark.parametrize("form", ["fp8", "int8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_product_is_not_converted_to_the_format_that_it_has(form, dtype):
    # in a compiled autograd function that loses the gradient, with torch 2.11; tests/gpu/test_fast_modes.py sees it
    rows = ScaledRows.of(torch.randn(32, 64), form)
    with IdleConversions() as idle:
        assert rows.product(rows, dtype).dtype == dtype
    assert idle.count == 0


@pytest.mark.parametrize("kind", ERRORS)
@pytest.mark.parametrize("shape", [(FEWEST_ROWS, 256), (2, 50, 256)])
def test_outputs_and_gradients_are_near_the_exact_ones(kind, shape):
    exact = linear()
    layer = kind(exact)
    inputs = torch.randn(shape, requires_grad=True)
    output, true = layer(inputs), exact(inputs)
    gradient = torch.randn_like(true)
    (ours,) = torch.autograd.grad(output, inputs, gradient)
    (theirs,) = torch.autograd.grad(true, inputs, gradient)
    assert output.shape == true.shape
    assert 1e-4 < relative(output, true) < ERRORS[kind]
    assert 1e-4 < relative(ours, theirs) < ERRORS[kind]


@pytest.mark.parametrize("quantizer", [Fp8Matmul, Int8Matmul, RotatedInt8Matmul])
@pytest.mark.parametrize("backend", [None, "aot_eager"])
def test_weights_kept_transposed_change_nothing_but_where_the_backward_pass_finds_them(quantizer, backend):
    inputs, found = torch.randn(64, 256, requires_grad=True), []
    for kept in (False, True):
        layer = quantizer(keep_transposed_weights=kept).convert("layer", linear(), CPU)
        quantizer(keep_transposed_weights=kept).before_training(nn.Sequential(layer), CPU)
        output = (torch.compile(layer, backend=backend) if backend else layer)(inputs)
        found.append([output, *torch.autograd.grad(output.sum(), inputs)])
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))
    layer.transposed.zero_()
    (gradient,) = torch.autograd.grad(layer(inputs).sum(), inputs)
    assert not gradient.any()


def test_weights_of_blocks_that_wait_in_the_hosts_memory_are_not_kept_transposed():
    layer = Fp8Matmul().convert("layer", linear(), CPU)
    Fp8Matmul(keep_transposed_weights=True).before_training(nn.Sequential(layer), torch.device("cuda"))
    assert layer.transposed is None


@pytest.mark.parametrize("kind", ERRORS)
@pytest.mark.parametrize("rows", [1, 3])
def test_few_rows_are_multiplied_exactly_with_the_stored_weights(kind, rows):
    exact = linear()
    inputs = torch.randn(rows, 256)
    # only the weights are rounded then: less error than with rounded inputs as well
    assert relative(kind(exact)(inputs), exact(inputs)) < 0.75 * ERRORS[kind]


def test_each_output_channel_has_its_own_scale():
    exact = linear()
    exact.weight[0] *= 1000
    inputs = torch.randn(64, 256)
    assert relative(Int8Linear(exact)(inputs)[:, 1:], exact(inputs)[:, 1:]) < ERRORS[Int8Linear]


def test_each_row_has_its_own_scale():
    matrix = torch.randn(8, 64)
    matrix[3] *= 1e-4
    rows = ScaledRows.of(matrix, "int8")
    assert relative(rows.codes[3].float() * rows.scale[3], matrix[3]) < 0.02
    assert rows.codes.abs().amax(dim=1).tolist() == [127] * 8


def test_a_row_of_zeros_stays_zero():
    layer = Fp8Linear(linear())
    layer.bias = None
    assert layer(torch.zeros(FEWEST_ROWS, 256)).abs().max() == 0


def test_a_rotation_spreads_outliers_over_the_features():
    exact = linear()
    inputs = torch.randn(64, 256)
    inputs[:, 5] *= 300
    plain, rotated = (relative(kind(exact)(inputs), exact(inputs)) for kind in (Int8Linear, RotatedInt8Linear))
    assert rotated < 0.5 * plain


@pytest.mark.parametrize("size", [2, 16, 128])
def test_hadamard_is_orthogonal_and_symmetric(size):
    matrix = hadamard(size, torch.zeros(1))
    torch.testing.assert_close(matrix @ matrix, torch.eye(size))
    torch.testing.assert_close(matrix, matrix.T)
    torch.testing.assert_close(matrix.abs(), torch.full((size, size), size**-0.5))


def test_codes_are_no_floating_point_weights_that_a_cast_would_change():
    # peft gives an adapter the dtype of a floating point weight, and .to(dtype) casts it
    layer = Fp8Linear(linear())
    before = layer.weight.clone()
    layer.to(torch.bfloat16)
    assert layer.weight.dtype == torch.int8
    assert torch.equal(layer.weight, before)


def test_outputs_have_the_dtype_of_autocast():
    layer, inputs = Int8Linear(linear()), torch.randn(64, 256)
    assert layer(inputs).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(inputs).dtype == torch.bfloat16
        assert layer(inputs[:1]).dtype == torch.bfloat16


def test_layers_that_no_kernel_takes_stay_as_they_are():
    odd = linear(100, 64)
    assert Fp8Matmul().convert("odd", odd, CPU) is odd
    assert type(Fp8Matmul().convert("even", linear(), CPU)) is Fp8Linear
    assert type(Int8Matmul(int8_rotation=True).convert("even", linear(), CPU)) is RotatedInt8Linear


def test_features_are_rotated_in_groups_that_divide_them():
    groups = {features: RotatedInt8Linear(linear(features, 64)).group for features in (96, 256, 3072)}
    assert groups == {96: 32, 256: 128, 3072: 128}


def test_an_old_card_is_told_the_nearest_that_works(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "RTX 3090")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 6))
    message = Fp8Matmul().check()
    assert "8.9" in message
    assert "RTX 3090 has 8.6" in message
    assert message.endswith("use int8-matmul")
    assert Int8Matmul().check() is None


@pytest.mark.parametrize("kind", ERRORS)
def test_the_weight_is_given_back_as_it_was_up_to_its_rounding(kind):
    plain = linear()
    layer = kind(plain)
    assert relative(layer.dequantize(), plain.weight) < ERRORS[kind]
    inputs = torch.randn(4, 256)  # few rows are multiplied in their own format, with this very weight
    torch.testing.assert_close(layer(inputs) - layer.bias, inputs @ layer.dequantize().t(), rtol=1e-3, atol=1e-4)
