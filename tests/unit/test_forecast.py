"""The forecast of memory and time agrees with measured steps, and its choices follow from it."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from difftrain.errors import ConfigError
from difftrain.model.precision.eight_bit_matmul import Fp8Matmul, Int8Matmul
from difftrain.model.precision.quanto import QuantoInt2, QuantoInt4, QuantoInt8
from difftrain.planning.forecast.cards import CARDS, GIB, Card, card_of_device, find_card
from difftrain.planning.forecast.choose import best
from difftrain.planning.forecast.memory import TrainedBytes, fits, most_kept, peak_bytes
from difftrain.planning.forecast.modes import mode_of, modes_for
from difftrain.planning.forecast.seconds import ATTENTION, step_seconds
from difftrain.types import ModelWork, Work
from rounding_plugin import Rounded8

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "plan_check.py"
QUANTIZERS = (QuantoInt8, Fp8Matmul, Int8Matmul)
TRAINED = TrainedBytes(weight=2, optimizer=6)


def load_script():
    spec = importlib.util.spec_from_file_location("plan_check", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["plan_check"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


plan_check = load_script()


@pytest.mark.parametrize("row", plan_check.measured_rows(), ids=lambda row: f"{row['card']} {row['name']}")
def test_the_forecast_agrees_with_a_measured_step(row):
    compared = plan_check.compare(row)
    assert compared.off_in_memory == pytest.approx(0, abs=0.10), compared
    assert compared.off_in_time == pytest.approx(0, abs=0.15), compared


@pytest.fixture(scope="module")
def full_size():
    work, _ = plan_check.full_size_work(1024, 1, 1, "all")
    return work


def chosen(work, name):
    card = find_card(name)
    return best(work, modes_for(QUANTIZERS, card.capability, compute="bfloat16", compiled=True), TRAINED, card)


@pytest.mark.parametrize(
    ("card", "precision"),
    [("3090", "int8-matmul"), ("4090", "int8-matmul"), ("A100 80GB", "int8-matmul"), ("H100", "fp8-matmul")],
)
def test_a_card_gets_the_fastest_precision_that_it_has(full_size, card, precision):
    assert chosen(full_size, card).mode.precision == precision


def test_weights_stay_exact_where_rounded_ones_gain_nothing(full_size):
    a100 = find_card("A100 80GB")
    slow = Card(**{**{key: getattr(a100, key) for key in Card.__slots__}, "int8": 1.2 * a100.bfloat16})
    modes = modes_for(QUANTIZERS, slow.capability, compute="bfloat16", compiled=True)
    assert best(full_size, modes, TRAINED, slow).mode.precision == "no_change"


def test_as_many_blocks_keep_their_activations_as_fit(full_size):
    one = chosen(full_size, "4090")
    assert 0 < one.mode.kept < len(full_size.blocks)
    assert one.fits
    more = one.mode.keeping(one.mode.kept + 1)
    assert not fits(peak_bytes(full_size, more, TRAINED), one.card)
    assert step_seconds(full_size, more, one.card) < one.seconds


def test_two_bits_are_never_recommended():
    modes = modes_for((QuantoInt2, QuantoInt4), (9, 0), compute="bfloat16", compiled=True)
    assert [mode.precision for mode in modes] == ["no_change", "int4-quanto"]


def test_where_nothing_fits_the_smallest_setting_is_shown():
    work, _ = plan_check.full_size_work(1024, 8, 4, "all")
    one = chosen(work, "3090")
    assert not one.fits
    assert one.mode.kept == 0
    assert one.mode.precision != "no_change"
    assert most_kept(work, one.mode, TRAINED, one.card) is None


BLOCK = Work(
    linear_flops=1e12, linear_weights=1e6, linear_rows=1e6, other_flops=1e9, other_bytes=1e6, attention_flops=1e12,
    moved_bytes=1e9, operations=10, kept_bytes=1000, input_bytes=100, attention_bytes=10, largest_bytes=50,
)  # fmt: skip
TWO_BLOCKS = ModelWork(
    blocks=(BLOCK, BLOCK), rest=Work(), linear_weights=10, other_bytes=7, trained=3, tokens={"target": 1}, samples=1
)


def mode(quantizer=None, *, compiled=False, kept=0, attention="cudnn", recorded=False):
    return mode_of(quantizer, compute="bfloat16", compiled=compiled, kept=kept, attention=attention, recorded=recorded)


def test_peak_memory_is_the_sum_of_its_parts():
    steady = 10 * 2 + 7 + 3 * (2 + 6)
    in_flight = 2.6 * 50
    assert peak_bytes(TWO_BLOCKS, mode(kept=2), TRAINED) == steady + 2 * 1000 + in_flight
    assert peak_bytes(TWO_BLOCKS, mode(kept=1), TRAINED) == steady + 1000 + 100 + 1000 + in_flight
    compiled = peak_bytes(TWO_BLOCKS, mode(compiled=True), TRAINED)
    assert compiled == pytest.approx(steady + 2 * (100 + 10) + 0.8 * 1000 + in_flight)
    assert peak_bytes(TWO_BLOCKS, mode(Fp8Matmul, kept=2), TRAINED) == steady - 10 + 2000 + in_flight


def test_gradients_of_a_whole_model_come_as_activations_go_unless_micro_batches_follow():
    """3 bytes in each of 1000 trained weights, whose gradients are more than all activations."""
    work = replace(TWO_BLOCKS, linear_weights=0, other_bytes=0, trained=1000)
    once, more = (TrainedBytes(weight=3, optimizer=5, gradients_stay=stay) for stay in (False, True))
    in_flight = peak_bytes(work, mode(kept=2), TrainedBytes(weight=0, optimizer=0)) - 2 * 1000
    assert peak_bytes(work, mode(kept=2), once) == 1000 * (3 + 5) + 1000 * 3 + in_flight
    assert peak_bytes(work, mode(kept=2), more) == 1000 * (3 + 5) + 1000 * 3 + 2 * 1000 + in_flight


def test_uncompiled_recomputing_costs_a_whole_forward():
    card = find_card("H100")
    kept, half, none = (step_seconds(TWO_BLOCKS, mode(kept=count), card) for count in (2, 1, 0))
    assert none - half == pytest.approx(half - kept)
    only_attention = step_seconds(TWO_BLOCKS, mode(kept=2, attention="flash"), card)
    assert only_attention > kept


def test_faster_attention_makes_a_faster_step(full_size):
    modes = [mode_of(None, compute="bfloat16", compiled=True, kept=57, attention=kernel) for kernel in ATTENTION]
    seconds = {mode.attention: step_seconds(full_size, mode, find_card("H100")) for mode in modes}
    assert seconds["flash-attn-4"] < seconds["cudnn"] < seconds["flash"]


@pytest.mark.parametrize(("quantizer", "compiled"), [(QuantoInt8, True), (Rounded8, False)])
def test_stored_weights_are_unpacked_and_compiled_if_they_can_be(quantizer, compiled):
    found = mode(quantizer, compiled=True)
    assert (found.compiled, found.unpacks, found.products) == (compiled, True, "bfloat16")
    assert step_seconds(TWO_BLOCKS, found, find_card("H100")) > step_seconds(
        TWO_BLOCKS, mode(compiled=compiled), find_card("H100")
    )


@pytest.mark.parametrize("typed", ["RTX 4090", "4090", "rtx4090", "NVIDIA GeForce RTX 4090", "rtx-4090"])
def test_a_card_is_found_in_any_spelling(typed):
    assert find_card(typed).name == "RTX 4090"


@pytest.mark.parametrize(
    ("typed", "guess"), [("4080", "RTX 4090"), ("a100", "A100 40GB"), ("RTX 3090 Ti", "RTX 3090"), ("V100", "H100")]
)
def test_an_unknown_card_is_an_error_with_the_nearest_one(typed, guess):
    with pytest.raises(ConfigError, match=f'did you mean "{guess}"'):
        find_card(typed)


@pytest.mark.parametrize(
    ("name", "capability", "gib", "found"),
    [
        ("NVIDIA H100 80GB HBM3", (9, 0), 79.1, "H100"),
        ("NVIDIA A100-SXM4-40GB", (8, 0), 39.4, "A100 40GB"),
        ("NVIDIA A100-SXM4-80GB", (8, 0), 79.2, "A100 80GB"),
        ("NVIDIA GeForce RTX 4090", (8, 9), 23.6, "RTX 4090"),
        ("NVIDIA GeForce RTX 4080", (8, 9), 15.7, None),
        ("NVIDIA L40S", (8, 9), 44.4, None),
    ],
)
def test_the_card_of_a_machine_has_the_rates_of_its_kind_and_its_own_memory(name, capability, gib, found):
    card = card_of_device(name, capability, round(gib * GIB))
    assert (card.name if card else None) == found
    if card:
        assert card.memory == round(gib * GIB)


def test_cards_without_fp8_have_no_such_rate():
    assert {card.name for card in CARDS if card.fp8 is None} == {"RTX 3090", "A100 40GB", "A100 80GB"}
    assert all((card.capability >= Fp8Matmul.needs_capability) == (card.fp8 is not None) for card in CARDS)
