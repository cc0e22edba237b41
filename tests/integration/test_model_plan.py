"""A model with a trained adapter, loaded without a dataset list and without a length."""

import contextlib

import pytest
import torch
from long_runs import ADAPTER, changed

from conftest import EditPairs, run_in
from difftrain import Batch, ConfigError, FlowMatching
from difftrain.output.console import SilentReporter
from difftrain.planning.model_plan import ModelPlan, plan_model
from difftrain.planning.run_plan import RunPlan, plan_run
from difftrain.startup.find_model import find_model
from difftrain.training.adapted_model import load_adapted
from difftrain.training.frozen_encoders import Encoders

CPU = torch.device("cpu")
FLAGS = {
    "model_family": "flux", "model_flavour": "kontext", "pretrained_model_name_or_path": "tiny-random",
    "mixed_precision": "no", "lora_rank": "4",
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return the folder of a run's adapter."""
    pairs = EditPairs(tmp_path_factory.mktemp("trained"))
    arguments = (*pairs.kontext, "--data_backend_config", pairs(count=2))
    ended = run_in(pairs.folder, *changed(arguments, max_train_steps=3, learning_rate=0.02))
    assert ended.status == 0, ended.err
    return pairs.output


@pytest.fixture
def elsewhere(tmp_path):
    with contextlib.chdir(tmp_path):
        yield tmp_path


def load(plan, reporter=None):
    return load_adapted(
        plan,
        find_model(plan).location,
        device=CPU,
        adapter_dtype=torch.float32,
        reporter=reporter or SilentReporter(),
    )


class Phases(SilentReporter):
    """Keeps the names of phases."""

    def __init__(self):
        self.names = []

    def phase(self, name, total=None):
        self.names.append(name)
        return super().phase(name, total)


@pytest.mark.parametrize(("kind", "told"), [("pissa", True), ("default", False)])
def test_a_start_that_takes_minutes_for_a_large_model_has_a_line_of_progress(elsewhere, kind, told):
    phases = Phases()
    load(plan_model(None, FLAGS | {"lora_init_type": kind}), phases)
    assert ("pissa: find the part of each weight to begin with" in phases.names) == told


def predicted(plan, denoiser):
    generator = torch.Generator().manual_seed(7)
    shapes = {"prompt_embeds": (1, 24, 32), "pooled_prompt_embeds": (1, 32)}
    text = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    batch = Batch(latents=torch.randn(1, 16, 8, 12, generator=generator), references=[], text=text)
    noise = torch.randn(batch.latents.shape, generator=generator)
    noisy = FlowMatching().add_noise(batch.latents, torch.tensor([0.6]), noise)
    with torch.no_grad():
        return plan.family.predict(denoiser, plan.family.build_input(noisy, batch, denoiser))


def test_a_model_with_an_adapter_from_a_file_is_planned_and_loaded_without_a_dataset(trained, elsewhere):
    plan = plan_model(None, FLAGS)
    assert not isinstance(plan, RunPlan)
    denoiser = load(plan)
    before = predicted(plan, denoiser)
    weights = plan.adapter.read(trained / ADAPTER, plan.family.lora_prefix)
    plan.adapter.load_state(denoiser, weights)
    for name, weight in plan.adapter.state(denoiser).items():
        assert torch.equal(weight, weights[name])
    assert (predicted(plan, denoiser) - before).abs().max() > 0.01
    assert list(elsewhere.iterdir()) == []


def test_its_encoders_are_loaded_too(elsewhere):
    plan = plan_model(None, FLAGS)
    encoders = Encoders(plan, find_model(plan).location, CPU)
    assert encoders.text() is encoders.text()
    assert encoders.idle_image_encoder() is encoders.image()


def test_the_plan_of_a_run_serves_where_a_model_is_asked_for(edit_pairs):
    with contextlib.chdir(edit_pairs.folder):
        plan = plan_run(None, {**FLAGS, "max_train_steps": "1", "data_backend_config": str(edit_pairs())})
    assert isinstance(plan, ModelPlan)
    alone = plan_model(None, FLAGS)
    assert (plan.family, plan.flavour, plan.adapter) == (alone.family, alone.flavour, alone.adapter)


def test_all_problems_of_a_model_are_reported_together(elsewhere):
    with pytest.raises(ConfigError) as caught:
        plan_model(None, {**FLAGS, "model_flavour": "contxt", "lora_type": "lokra", "lora_rank": "0", "sead": "1"})
    told = str(caught.value)
    for part in (
        "model_flavour: unknown flavour 'contxt'",
        "lora_type: unknown adapter 'lokra'",
        "--lora_rank",
        "sead",
    ):
        assert part in told


def test_a_run_needs_its_length(elsewhere):
    with pytest.raises(ConfigError, match="neither max_train_steps nor num_train_epochs is set"):
        plan_run(None, FLAGS)
