"""Failures without an error: a loss that never moves, steps that bfloat16 rounds away."""

import pytest
import torch
from torch import nn

from conftest import read_metrics
from difftrain.steps.optimizers import AdamWBf16


def fixed_losses(command, edit_pairs, *arguments):
    """Return the loss on the same samples and noise before and after fifteen steps."""
    given = dict(zip(edit_pairs.kontext[::2], edit_pairs.kontext[1::2], strict=True))
    given |= {
        "--data_backend_config": edit_pairs(), "--mixed_precision": "bf16", "--max_train_steps": 15,
        "--validation_steps": 15, "--validation_on_startup": "true", "--num_eval_images": 0, "--train_batch_size": 2,
    }  # fmt: skip
    given |= dict(zip(arguments[::2], arguments[1::2], strict=True))
    ended = command(*(part for pair in given.items() for part in pair))
    assert ended.status == 0, ended.err
    return [line["fixed_loss"] for line in read_metrics(edit_pairs.output) if "fixed_loss" in line]


# Float32 adapter weights under autocast are cast to bfloat16; a cast kept from the first step would never change.
@pytest.mark.parametrize("optimizer", ["optimi-lion", "adamw_bf16"])
@pytest.mark.parametrize("checkpointing", ["true", "false"])
def test_loss_moves_under_bfloat16(command, edit_pairs, optimizer, checkpointing):
    before, after = fixed_losses(
        command,
        edit_pairs,
        "--optimizer",
        optimizer,
        "--learning_rate",
        3e-3,
        "--gradient_checkpointing",
        checkpointing,
    )
    assert after < 0.95 * before


def test_fixed_loss_is_the_same_whatever_was_drawn_before(command, edit_pairs):
    # with random guidance too, a measurement depends on the weights alone: a rate of almost zero keeps both
    before, after = fixed_losses(
        command, edit_pairs, "--learning_rate", 1e-12, "--flux_guidance_mode", "random-range", "--lora_dropout", 0.5
    )
    assert after == pytest.approx(before, rel=1e-6)


def way(build, *, steps=400, rate=1e-5):
    """Return how far bfloat16 weights of about 0.1 move under equal gradients, on average; their spacing is 0.0005."""
    start = 0.1 + 0.01 * torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    weights = nn.Parameter(start.to(torch.bfloat16))
    before = weights.detach().float()
    optimizer = build([weights], rate)
    for _ in range(steps):
        weights.grad = torch.ones_like(weights)
        optimizer.step()
    return (before - weights.detach().float()).mean().item()


def test_adamw_bf16_goes_its_way_where_torch_adamw_is_rounded_to_a_halt():
    # Adam moves one learning rate per step under a constant gradient
    expected = 400 * 1e-5
    ours = way(lambda weights, rate: AdamWBf16(weight_decay=0.0).build([("weight", weights[0])], rate))
    torchs = way(lambda weights, rate: torch.optim.AdamW(weights, lr=rate, weight_decay=0.0))
    assert torchs < 0.05 * expected
    assert ours == pytest.approx(expected, rel=0.1)
