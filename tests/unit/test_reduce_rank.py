"""LoKr, LoHa and full changes as the nearest LoRA, and what that leaves out."""

import pytest
import torch

from difftrain.errors import CheckpointError
from difftrain.model.adapter_files import reduce_rank
from difftrain.model.adapter_files.changes import Factors, LowRank
from difftrain.model.adapter_files.reduce_rank import reduce_all, reduced


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


CHANGES = {
    "lokr": Factors(tensors={"lokr_w1": numbers(4, 3), "lokr_w2": numbers(6, 8)}, scale=-0.5),
    "lokr of low rank": Factors(
        tensors={"lokr_w1": numbers(4, 4), "lokr_w2_a": numbers(6, 2), "lokr_w2_b": numbers(2, 8)}, scale=2.0
    ),
    "loha": Factors(
        tensors={"hada_w1_a": numbers(24, 2), "hada_w1_b": numbers(2, 30), "hada_w2_a": numbers(24, 2, seed=1),
                 "hada_w2_b": numbers(2, 30, seed=1)}, scale=0.25,
    ),
    "loha of a high rank": Factors(
        tensors={"hada_w1_a": numbers(24, 6), "hada_w1_b": numbers(6, 30), "hada_w2_a": numbers(24, 6, seed=1),
                 "hada_w2_b": numbers(6, 30, seed=1)},
    ),
    "full": Factors(tensors={"diff": numbers(24, 30)}, scale=0.5),
    "a part of a lokr": Factors(tensors={"lokr_w1": numbers(4, 3), "lokr_w2": numbers(6, 8)}, span=(6, 18)),
    "lora": LowRank(down=numbers(12, 30), up=numbers(24, 12)),
}  # fmt: skip


@pytest.mark.parametrize("rank", [1, 3, 8, 100])
@pytest.mark.parametrize("kind", CHANGES)
def test_it_is_the_nearest_of_its_rank_and_its_error_is_told(kind, rank):
    change = CHANGES[kind]
    delta = change.delta()
    found = reduced(change, rank)
    left, values, right = torch.linalg.svd(delta, full_matrices=False)
    best = (left[:, :rank] * values[:rank]) @ right[:rank]
    torch.testing.assert_close(found.change.delta(), best, atol=1e-4, rtol=1e-4)
    error = float((found.change.delta() - delta).norm() / delta.norm())
    assert found.error == pytest.approx(error, abs=2e-3)
    assert found.change.rank <= rank or kind == "lora"


def test_a_large_full_change_is_as_near_as_all_its_singular_values_would_give(monkeypatch):
    monkeypatch.setattr(reduce_rank, "EXACT", 10)
    low = numbers(60, 5) @ numbers(5, 80) + 0.01 * numbers(60, 80)
    found = reduced(Factors(tensors={"diff": low}), 5)
    values = torch.linalg.svdvals(low)
    assert found.error == pytest.approx(float(values[5:].norm() / values.norm()), rel=0.01)


def test_a_smaller_lora_stays_as_it_is():
    change = CHANGES["lora"]
    assert reduced(change, 12).change is change


def test_nothing_stays_nothing():
    found = reduced(Factors(tensors={"diff": torch.zeros(5, 6)}), 2)
    assert found.error == 0
    assert found.change.delta().abs().max() == 0


def test_dora_is_refused_with_what_to_do():
    dora = LowRank(down=numbers(2, 4), up=numbers(3, 2), lengths=torch.ones(3))
    with pytest.raises(CheckpointError, match="use --merge"):
        reduce_all({"a": dora}, 2)
