"""What a forward does and keeps is counted without weights, and is what a real forward does and keeps."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from difftrain.model.counting.denoiser_work import count_work
from difftrain.model.low_rank.lora import Lora
from difftrain.steps.optimizer_bytes import optimizer_bytes
from difftrain.steps.optimizers import AdamWBf16, OptimiLion
from difftrain.testing.tiny_family import TinyEditFlavour, TinyFamily
from difftrain.types import Batch, ModelOutline

EDGE, WIDTH = 64, 96


def counted(
    family=None, outline=None, *, size=(WIDTH, EDGE), references=(), samples=2, dtype=torch.float32, start="default"
):
    family = family or TinyFamily()
    flavour = TinyEditFlavour()
    return count_work(
        family,
        flavour,
        Lora(lora_rank=2 if start == "pissa" else 4, lora_init_type=start),
        outline or family.outline(None, flavour),
        target=size,
        references=references,
        samples=samples,
        dtype=dtype,
        adapter_dtype=dtype,
    )


def test_products_with_frozen_weights_are_counted_for_every_token():
    cells = 2 * (WIDTH // 8) * (EDGE // 8)
    weights = 3 * 32 + 3 * 32 + 32 * 32 + 32 * 3  # enter, see, middle, leave; words sees one row a sample
    assert counted().forward.linear_flops == 2 * cells * weights + 2 * 2 * (8 + 1) * 32


def test_blocks_are_counted_apart_from_the_rest():
    work = counted()
    (block,) = work.blocks
    assert block.linear_weights == 32 * 32
    assert work.rest.linear_flops + block.linear_flops == work.forward.linear_flops
    assert block.input_bytes == 4 * 32 * 2 * 12 * 8


def test_weights_are_counted_by_what_becomes_of_them():
    work = counted()
    biases = 32 + 32 + 32 + 3
    assert work.linear_weights == 3 * 32 + 3 * 32 + 9 * 32 + 32 * 32 + 32 * 3
    assert work.other_bytes == 4 * biases
    assert work.trained == 4 * ((3 + 32) + (3 + 32) + (9 + 32) + (32 + 32) + (32 + 3))


def test_the_start_of_an_adapter_counts_among_the_frozen_weights():
    plain, started = counted(), counted(start="pissa")  # of half the rank
    assert started.trained == plain.trained / 2
    assert started.other_bytes == plain.other_bytes + 4 * started.trained
    assert started.forward.linear_flops == plain.forward.linear_flops
    assert started.forward.other_flops == plain.forward.other_flops


def test_a_batch_twice_as_large_does_and_keeps_twice_as_much():
    once, twice = counted(samples=2).forward, counted(samples=4).forward
    for name in ("linear_flops", "kept_bytes", "linear_rows"):
        assert getattr(twice, name) == 2 * getattr(once, name), name
    assert twice.operations == once.operations


class Mixed(nn.Module):
    """A block with a norm, an activation and attention."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.enter, self.leave = nn.LayerNorm(32), nn.Linear(32, 96), nn.Linear(32, 32)

    def forward(self, hidden):
        query, key, value = self.enter(self.norm(hidden)).chunk(3, dim=-1)
        heads = [part.unflatten(-1, (2, 16)).transpose(1, 2) for part in (query, key, value)]
        # dense, as cuDNN's kernel gives it: the CPU's output is laid out by tokens, so that no copy would be needed
        mixed = nn.functional.scaled_dot_product_attention(*heads).contiguous().transpose(1, 2).flatten(2)
        return hidden + nn.functional.gelu(self.leave(mixed), approximate="tanh")


class MixedModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Mixed(), Mixed()

    def forward(self, hidden):
        return self.second(self.first(hidden))


class MixedFamily(TinyFamily):
    """Passes latents of 32 channels through two blocks."""

    def blocks(self, denoiser):
        return [part for part in denoiser.modules() if isinstance(part, Mixed)]

    def adapter_targets(self, denoiser):
        return ["first.enter", "second.leave"]

    def build_input(self, noisy, batch, denoiser):
        return noisy.noisy

    def predict(self, denoiser, model_input):
        return denoiser(model_input.flatten(2).transpose(1, 2))


def mixed_batch(size, references, count, device="meta"):
    return Batch(latents=torch.zeros(count, 32, size[1] // 8, size[0] // 8, device=device), references=[], text={})


def test_the_activations_that_are_kept_are_those_of_a_real_forward():
    with torch.device("meta"):
        empty = MixedModel()
    outline = ModelOutline(denoiser=empty, example_batch=mixed_batch)
    work = counted(MixedFamily(), outline)
    model = MixedModel().requires_grad_(False)
    Lora(lora_rank=4).attach(model, MixedFamily().adapter_targets(model), torch.float32)
    weights = {part.untyped_storage().data_ptr() for part in model.parameters()}
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    rows = mixed_batch((WIDTH, EDGE), (), 2, "cpu").latents.flatten(2).transpose(1, 2).contiguous()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(rows)
    real = sum(part.untyped_storage().nbytes() for storage, part in kept.items() if storage not in weights)
    assert sum(block.kept_bytes for block in work.blocks) == pytest.approx(real, rel=0.02)


def test_attention_is_one_kernel():
    with torch.device("meta"):
        empty = MixedModel()
    (first, _) = counted(MixedFamily(), ModelOutline(denoiser=empty, example_batch=mixed_batch)).blocks
    tokens = (WIDTH // 8) * (EDGE // 8)
    assert first.attention_flops == 4 * 2 * tokens**2 * 32
    assert first.attention_bytes == 2 * tokens * 4 * (32 + 2)


def test_norms_run_in_float32_under_autocast_and_products_in_bfloat16():
    with torch.device("meta"):
        empty = MixedModel()
    outline = ModelOutline(denoiser=empty, example_batch=mixed_batch)
    half = counted(MixedFamily(), outline, dtype=torch.bfloat16)
    assert half.blocks[0].attention_bytes == 2 * (WIDTH // 8) * (EDGE // 8) * (2 * 32 + 4 * 2)
    assert half.forward.largest_bytes == 4 * 2 * (WIDTH // 8) * (EDGE // 8) * 32 * 1.5  # the 96 features in bfloat16


@pytest.mark.parametrize(
    ("factory", "dtype", "each"),
    [(AdamWBf16(), torch.bfloat16, 6), (AdamWBf16(), torch.float32, 8), (OptimiLion(), torch.float32, 4)],
)
def test_the_state_of_an_optimizer_is_measured(factory, dtype, each):
    assert optimizer_bytes(factory, dtype) == pytest.approx(each, abs=0.1)
