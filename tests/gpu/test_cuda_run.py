"""Checks that need a CUDA device: the same run there, in every precision, with safe attention."""

import pytest
import torch

from conftest import read_metrics
from difftrain.model.precision.quanto import QuantoInt8
from difftrain.testing import load_denoiser
from difftrain_flux.family import FluxFamily
from difftrain_flux_kontext.flavour import Kontext

pytestmark = pytest.mark.gpu


def losses(command, edit_pairs, **options):
    """Return the losses of twelve steps; ``options`` replace flags of the quick run."""
    flags = [*edit_pairs.kontext, "--data_backend_config", edit_pairs(), "--max_train_steps", 12]
    for key, value in options.items():
        if f"--{key}" in flags:
            flags[flags.index(f"--{key}") + 1] = value
        else:
            flags += [f"--{key}", value]
    ended = command(*flags, "--resume_from_checkpoint", "none")
    assert ended.status == 0, ended.err
    return [line["loss"] for line in read_metrics(edit_pairs.output)]


def test_first_loss_is_that_of_a_cpu_run(command, edit_pairs, monkeypatch):
    # noise and noise levels are drawn on the CPU, so a device changes only rounding
    on_gpu = losses(command, edit_pairs)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    on_cpu = losses(command, edit_pairs)
    AcceleratorState._reset_state(reset_partial_state=True)
    assert on_gpu[0] == pytest.approx(on_cpu[0], rel=1e-3)


@pytest.mark.parametrize("precision", ["no_change", "int8-quanto", "int8-torchao", "fp8-torchao", "nf4-bnb"])
def test_bf16_runs_learn(command, edit_pairs, precision):
    seen = losses(
        command,
        edit_pairs,
        mixed_precision="bf16",
        base_model_precision=precision,
        gradient_checkpointing="true",
        learning_rate=3e-3,
    )
    assert sum(seen[-3:]) < 0.95 * sum(seen[:3])


def test_cudnn_attention_is_off_after_a_run(command, edit_pairs):
    losses(command, edit_pairs)
    assert not torch.backends.cuda.cudnn_sdp_enabled()


def test_metrics_tell_the_peak_memory(command, edit_pairs):
    losses(command, edit_pairs)
    assert all(line["peak_memory_gib"] > 0 for line in read_metrics(edit_pairs.output))


def test_a_resumed_run_continues_with_its_optimizer_on_the_device(command, edit_pairs):
    # torch.load must put moments back onto the device, and counters that stay on the CPU back there
    whole = losses(command, edit_pairs, mixed_precision="bf16", learning_rate=3e-3)
    flags = [*edit_pairs.kontext, "--data_backend_config", edit_pairs(), "--output_dir", "parts"]
    flags[flags.index("--mixed_precision") + 1] = "bf16"
    flags[flags.index("--learning_rate") + 1] = 3e-3
    for steps in (5, 12):
        ended = command(*flags, "--max_train_steps", steps)
        assert ended.status == 0, ended.err
    parts = [line["loss"] for line in read_metrics(edit_pairs.folder / "parts")]
    assert parts == pytest.approx(whole, rel=2e-2)
    stored = torch.load(edit_pairs.folder / "parts/checkpoint-12/resume/optimizer.pt", weights_only=True)["state"]
    assert {entry["exp_avg"].device.type for entry in stored.values()} == {"cuda"}


@pytest.mark.parametrize("quantizer", [None, QuantoInt8()])
def test_the_model_is_loaded_onto_the_card(quantizer):
    family, flavour, card = FluxFamily(), Kontext(), torch.device("cuda")
    place = family.locate("tiny", flavour)
    denoiser = load_denoiser(family, place, dtype=torch.bfloat16, device=card, quantizer=quantizer)
    assert {tensor.device.type for tensor in (*denoiser.parameters(), *denoiser.buffers())} == {"cuda"}
    on_cpu = load_denoiser(family, place, dtype=torch.bfloat16, quantizer=quantizer)
    for (name, ours), theirs in zip(denoiser.named_parameters(), on_cpu.parameters(), strict=True):
        # rounded on another device an integer may be off by one
        apart = (ours.cpu().float() - theirs.float()).abs().max()
        assert apart <= (1 if ours.dtype == torch.int8 else 0), name


def test_a_card_that_is_full_saves_and_ends_with_one_error(command, edit_pairs, monkeypatch):
    from difftrain.steps.losses import MeanSquaredError

    original, calls = MeanSquaredError.compute, []

    def greedy(self, prediction, noisy, batch):
        calls.append(torch.is_grad_enabled())
        if sum(calls) == 5:  # one for the trial before the first step
            torch.empty(1 << 44, device="cuda")
        return original(self, prediction, noisy, batch)

    monkeypatch.setattr(MeanSquaredError, "compute", greedy)
    ended = command(*edit_pairs.kontext, "--data_backend_config", edit_pairs(), "--max_train_steps", 12)
    assert ended.status == 2
    assert "error: out of memory in step 4: CUDA out of memory" in ended.err
    assert [path.name for path in edit_pairs.output.glob("checkpoint-*")] == ["checkpoint-3"]
