"""The benchmarks that compare modes, on small models: what they measure, and that they see a mode that is wrong."""

import importlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from forked_runs import ForkedRun
from PIL import Image

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def modules():
    """Return the modules of the benchmarks by name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        yield importlib.import_module


@pytest.fixture
def figures(modules):
    return modules("agreement_figures")


class Forked(ForkedRun):
    """What ``agreement.py`` starts, without the import of torch."""

    def __init__(self, command, *, stdin, stdout, stderr, text):
        _, script, row = command
        assert (Path(script).name, stdin, text) == ("agreement_run.py", subprocess.PIPE, True)
        told = Path(stderr.name).with_suffix(".told")
        os.mkfifo(told)
        self.stdin = os.fdopen(os.open(told, os.O_RDWR), "w")
        super().__init__(BENCHMARKS, (row,), "agreement_child:main", given=told, errors=Path(stderr.name))


@pytest.fixture(scope="module")
def measured(modules, tmp_path_factory):
    """Compare one mode with the reference; return the figures by mode, and the path of the picture."""
    folder = tmp_path_factory.mktemp("agreement")
    given = (
        "--small", "--pixels", 64, "--steps", 24, "--learning_rate", 1e-3, "--modes", "int8-quanto",
        "--json", folder / "found.json", "--plot", folder / "curves.png",
    )  # fmt: skip
    agreement = modules("agreement")
    with pytest.MonkeyPatch.context() as patch:
        started = SimpleNamespace(Popen=Forked, PIPE=subprocess.PIPE, DEVNULL=subprocess.DEVNULL)
        patch.setattr(agreement, "subprocess", started)
        assert agreement.main([str(part) for part in given]) == 0
    return json.loads((folder / "found.json").read_text()), folder / "curves.png"


def test_the_reference_learns_and_agrees_with_itself(measured):
    reference = measured[0]["bf16, exact"]
    before, after = reference["fixed_loss"]
    assert after < 0.99 * before
    assert reference["largest_difference"] == 0
    for found in reference["gradients"].values():
        assert found["cosine"] == pytest.approx(1)


def test_a_mode_sees_the_same_draws_with_weights_of_its_own(measured):
    reference, mode = (measured[0][name] for name in ("bf16, exact", "int8-quanto"))
    assert mode["losses"] == pytest.approx(reference["losses"], rel=0.01)
    assert mode["losses"] != reference["losses"]
    assert mode["learnt"] == pytest.approx(1, abs=0.05)


def test_gradients_are_compared_at_three_places(measured):
    found = measured[0]["int8-quanto"]["gradients"]
    assert set(found) == {"start", "random", "end"}
    # at the start only B has gradients
    assert found["start"]["weights"] < found["random"]["weights"] == found["end"]["weights"]
    assert len({likeness["norm"] for likeness in found.values()}) == 3
    for likeness in found.values():
        assert 0.99 < likeness["worst"] <= likeness["cosine"] < 1
        assert likeness["ratio"] == pytest.approx(1, abs=0.02)


def test_the_curves_are_drawn(measured):
    assert Image.open(measured[1]).size[0] == 1000


def test_likeness_is_over_all_weights_and_names_the_worst_module(figures):
    exact = {
        "one.lora_A.weight": torch.zeros(3),  # as A's gradient is while B is zero
        "one.lora_B.weight": torch.tensor([3.0, 0.0]),
        "two.lora_B.weight": torch.tensor([0.0, 1.0]),
    }
    ours = {**exact, "one.lora_A.weight": torch.ones(3), "two.lora_B.weight": torch.tensor([1.0, 1.0])}
    found = figures.likeness(ours, exact)
    assert found.worst_module == "two"
    assert found.worst == pytest.approx(math.sqrt(0.5))
    assert found.cosine == pytest.approx(10 / math.sqrt(11 * 10))
    assert found.ratio == pytest.approx(math.sqrt(11 / 10))
    assert found.weights == 4
    assert found.norm == pytest.approx(math.sqrt(10))


def test_a_module_without_a_number_or_without_a_gradient_is_the_worst(figures):
    exact = {"one.lora_B.weight": torch.ones(2), "two.lora_B.weight": torch.ones(2)}
    lost = figures.likeness({**exact, "two.lora_B.weight": torch.zeros(2)}, exact)
    assert (lost.worst, lost.worst_module) == (0, "two")
    broken = figures.likeness({**exact, "two.lora_B.weight": torch.full((2,), math.nan)}, exact)
    assert math.isnan(broken.worst)
    assert broken.worst_module == "two"
    assert math.isnan(broken.cosine)
    with pytest.raises(ValueError, match="different weights"):
        figures.likeness({}, exact)


def test_losses_are_compared_as_means_of_ten_steps(figures):
    reference = [1.0] * 12
    ours = [1.0] * 11 + [2.0]
    assert figures.smooth(ours) == pytest.approx([1, 1, 1.1])
    assert figures.differences(ours, reference) == pytest.approx([0, 0, 0.1])


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, None),
        ({"largest_difference": 0.5}, "its loss differs by 50.00%"),
        ({"largest_difference": math.nan}, "its loss differs"),
        ({"fixed_loss": [2.0, 2.1]}, "it has learnt nothing"),
        ({"learnt": 0.8}, "it has learnt 80.0% of what"),
        ({"cosine": 0.5}, "the cosine of its gradients at end is 0.5000, below 0.98"),
        ({"cosine": math.nan}, "the cosine of its gradients"),
        ({"ratio": 2.0}, "its gradients at end are 2.000 times as large"),
        ({"compiled": False}, "it was not compiled"),
    ],
)
def test_what_is_outside_the_tolerance_is_said(modules, changed, said):
    gradient = {"cosine": 0.999, "ratio": 1.0} | {key: changed[key] for key in changed if key in ("cosine", "ratio")}
    row = {"largest_difference": 0.001, "learnt": 1.0, "fixed_loss": [2.0, 1.5], "compiled": True, **changed}
    wrong = modules("agreement").outside("fp8-matmul", {**row, "gradients": {"end": gradient}})
    assert (not wrong) if said is None else said in wrong[0]


def test_the_weights_make_the_stream_grow_and_pass_the_input_on(modules):
    # what the figures of random weights rest on: blocks contribute, and errors are not amplified
    model = modules("agreement_model")
    family, batch = model.SmallTrainedLike(), model.make_batches(model.SmallTrainedLike, 64, torch.device("cpu"))[0]
    denoiser = family.empty_denoiser(None)
    denoiser.load_state_dict(dict(family.denoiser_weights(None)), assign=True)
    sizes = {}
    denoiser.x_embedder.register_forward_hook(lambda _module, _given, out: sizes.update(first=out.std().item()))
    denoiser.norm_out.register_forward_pre_hook(lambda _module, given: sizes.update(last=given[0].std().item()))
    sigma = torch.tensor([0.5])

    @torch.no_grad()
    def predict(latents):
        noisy = SimpleNamespace(noisy=latents, sigma=sigma, timestep=sigma)
        return family.predict(denoiser, family.build_input(noisy, batch, denoiser))

    moved, plain = predict(1.01 * batch.latents), predict(batch.latents)
    assert 1.5 < sizes["last"] / sizes["first"] < 6
    assert (moved - plain).norm() < 0.02 * plain.norm()
    assert torch.nn.functional.cosine_similarity(plain.flatten(), batch.latents.flatten(), dim=0) > 0.1


def test_the_demo_is_scored_in_each_mode_against_float32(modules, tmp_path, monkeypatch, capsys):
    def forked(command, **options):
        assert command[:3] == [sys.executable, "-m", "difftrain"]
        run = ForkedRun(tmp_path, command[3:])
        out, err = run.communicate(timeout=options["timeout"])
        return subprocess.CompletedProcess(command, run.returncode, out, err)

    demo_modes = modules("demo_modes")
    monkeypatch.setattr(demo_modes, "subprocess", SimpleNamespace(run=forked, TimeoutExpired=subprocess.TimeoutExpired))
    demo_modes.main(["--small", "--modes", "int8-matmul", "--json", str(tmp_path / "found.json")])
    told = capsys.readouterr().out
    found = json.loads((tmp_path / "found.json").read_text())
    assert set(found) == {"float32", "int8-matmul"}
    assert found["float32"]["psnr_reference"] == found["int8-matmul"]["psnr_reference"] > 15
    assert 0 < abs(found["float32"]["psnr"] - found["int8-matmul"]["psnr"]) < 1
    assert "40 of 40 linear layers of its blocks have 8-bit weights" in told
    assert f"int8-matmul, seed 42: {found['int8-matmul']['psnr']:.3f} dB, " in told


def test_modes_of_the_demo_that_take_too_long_are_stopped_and_named(modules, tmp_path, capsys):
    given = ("--small", "--minutes", 0.01, "--at_once", 1, "--modes", "bf16", "--json", tmp_path / "found.json")
    assert modules("demo_modes").main([str(part) for part in given]) == 1
    assert "float32, seed 42: failed, 1 s" in capsys.readouterr().out
    found = json.loads((tmp_path / "found.json").read_text())
    assert found == {"float32": {"failed": "not done after 1 s"}, "bf16": {"failed": "not begun in time"}}


def test_a_mode_far_from_float32_is_named(modules, capsys):
    row = {"compiled": False, "psnr_reference": 20.0, "psnr_before": 19.0}
    rows = {"float32": {**row, "psnr": 22.0}, "bf16": {**row, "psnr": 21.95}, "int8-quanto": {**row, "psnr": 21.8}}
    assert modules("demo_modes").print_rows(rows, seeds=1) == 1
    assert "more than 0.1 dB from float32: int8-quanto" in capsys.readouterr().out
    assert modules("demo_modes").print_rows({**rows, "int8-quanto": {"failed": "boom"}}, seeds=1) == 1
    assert modules("demo_modes").print_rows({name: rows[name] for name in ("float32", "bf16")}, seeds=1) == 0
