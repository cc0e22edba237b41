"""Optimizers of plugins with their own learning rates and evaluation weights, through the whole run."""

import re
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from long_runs import ADAPTER, changed
from safetensors.torch import load_file

from conftest import EditPairs, read_metrics, run_in

PLUGIN = Path(__file__).with_name("optimizer_plugins.py")
GUIDE = Path(__file__).parents[2] / "docs" / "plugins.md"
RATES = {"lora-plus": 1e-3, "schedule-free": 0.5, "growing": 50.0, "averaged-lora-plus": 1e-3}
WEIGHTS = "resume/adapter.safetensors"


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    """Train with one of the optimizers; return the output folder. Equal runs are done once."""
    folder = tmp_path_factory.mktemp("optimizers")
    pairs = EditPairs(folder)
    blocks = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    (of_the_guide,) = (block for block in blocks if "class AveragedLoraPlus" in block)
    (folder / "of_the_guide.py").write_text(of_the_guide, encoding="utf-8")
    arguments = (*pairs.kontext, "--data_backend_config", pairs(count=5), "--plugins", f"{PLUGIN},./of_the_guide.py")
    arguments += ("--max_train_steps", 6)
    done = {}

    def start(name, output="whole", **options):
        options = {"optimizer": name, "learning_rate": RATES[name], "output_dir": f"{name}-{output}", **options}
        key = repr(options)
        if key not in done:
            ended = run_in(folder, *changed(arguments, checkpoint_step_interval=3, **options))
            assert ended.status == 0, ended.err
            done[key] = folder / f"{name}-{output}"
        return done[key]

    return start


def groups_of(checkpoint):
    """Return the settings of the optimizer's groups."""
    told = torch.load(checkpoint / "resume" / "optimizer.pt", weights_only=True)
    return [group["settings"] for group in told["groups"]]


def rates_of(output):
    return [line["learning_rate"] for line in read_metrics(output) if "loss" in line]


@pytest.mark.parametrize("name", RATES)
def test_a_resumed_run_ends_with_the_bytes_of_one_that_was_not_stopped(train, name):
    whole = train(name)
    resumed = train(name, "resumed", resume_from_checkpoint=whole / "checkpoint-3")
    for file in (ADAPTER, f"checkpoint-6/{ADAPTER}", f"checkpoint-6/{WEIGHTS}"):
        assert (resumed / file).read_bytes() == (whole / file).read_bytes(), file
    assert (whole / ADAPTER).read_bytes() != (whole / "checkpoint-3" / ADAPTER).read_bytes()
    assert rates_of(resumed) == rates_of(whole)[3:]


def test_the_schedule_multiplies_the_rate_of_each_group(train):
    output = train("lora-plus", "linear", lr_scheduler="linear")
    a, b = groups_of(output / "checkpoint-3")
    assert (a["initial_lr"], b["initial_lr"]) == (1e-3, 16e-3)
    assert (a["lr"], b["lr"]) == pytest.approx((1e-3 * 4 / 6, 16e-3 * 4 / 6))
    assert rates_of(output) == pytest.approx([1e-3 * left / 6 for left in (6, 5, 4, 3, 2, 1)])


def test_groups_keep_their_ratio_when_the_learning_rate_is_changed_on_the_way(train):
    output = train(
        "lora-plus", "faster", learning_rate=2e-3, resume_from_checkpoint=train("lora-plus") / "checkpoint-3"
    )
    a, b = groups_of(output / "checkpoint-6")
    assert (a["lr"], b["lr"]) == (2e-3, 32e-3)
    assert rates_of(output) == [2e-3] * 3


def test_a_ratio_that_is_changed_on_the_way_is_taken_over(train):
    options = {"optimizer_config": "ratio=4", "resume_from_checkpoint": train("lora-plus") / "checkpoint-3"}
    a, b = groups_of(train("lora-plus", "other-ratio", **options) / "checkpoint-6")
    assert (a["lr"], b["lr"]) == (1e-3, 4e-3)


def test_a_rate_that_the_optimizer_finds_is_reported_and_continues_growing_after_a_resume(train):
    whole = train("growing")
    rates = rates_of(whole)
    assert rates[0] == 50.0 * 1e-3
    assert all(1.2 < after / before < 1.6 for before, after in pairwise(rates))


def test_weights_that_are_arrived_at_are_saved_and_exported_and_those_in_training_are_kept_to_continue(train):
    output = train("schedule-free")
    exported, trained = load_file(output / "checkpoint-6" / ADAPTER), load_file(output / "checkpoint-6" / WEIGHTS)
    told = torch.load(output / "checkpoint-6" / "resume" / "optimizer.pt", weights_only=True)
    lasts = {name.replace(".default.", "."): state["last"] for name, state in told["state"].items()}
    assert told["groups"][0]["settings"]["training"]
    for name, weight in trained.items():
        mean = weight.lerp(lasts[name], 1 - 1 / 0.9)
        torch.testing.assert_close(exported[f"transformer.{name}"], mean, rtol=1e-6, atol=1e-8)
    assert any(not torch.equal(exported[f"transformer.{name}"], weight) for name, weight in trained.items())
    assert (output / ADAPTER).read_bytes() == (output / "checkpoint-6" / ADAPTER).read_bytes()


def test_the_guides_optimizer_exports_the_mean_of_the_weights(train):
    output = train("averaged-lora-plus")
    told = torch.load(output / "checkpoint-6" / "resume" / "optimizer.pt", weights_only=True)
    exported = load_file(output / "checkpoint-6" / ADAPTER)
    assert told["state"]
    for name, state in told["state"].items():
        assert torch.equal(exported[f"transformer.{name.replace('.default.', '.')}"], state["mean"]), name


@pytest.fixture
def looked_at(monkeypatch):
    """Return the weights used by validations and by tests before saving, by (kind, step)."""
    from difftrain.checkpoints import saver
    from difftrain.validation import validator

    found = {}

    def watch(module, kind):
        original = module.loss_at

        def loss_at(run, *rest):
            state = run.plan.adapter.state(run.bare_denoiser)
            found[kind, run.step] = {name: tensor.clone() for name, tensor in state.items()}
            return original(run, *rest)

        monkeypatch.setattr(module, "loss_at", loss_at)

    watch(validator, "validation")
    watch(saver, "proof")
    return found


def test_validations_and_proofs_see_the_weights_that_are_arrived_at_and_change_nothing(train, looked_at):
    validation = {"num_eval_images": 0, "validation_steps": 1, "validation_on_startup": "true"}
    output = train("schedule-free", "validated", **validation)
    for step in (3, 6):
        exported = load_file(output / f"checkpoint-{step}" / ADAPTER)
        for kind in ("validation", "proof"):
            seen = looked_at[kind, step]
            assert all(torch.equal(exported[f"transformer.{name}"], tensor) for name, tensor in seen.items()), kind
    assert len(looked_at) == 7 + 2
    unwatched = train("schedule-free")
    for file in (ADAPTER, f"checkpoint-6/{WEIGHTS}"):
        assert (output / file).read_bytes() == (unwatched / file).read_bytes(), file
