"""The saved adapter in diffusers, in a process that knows nothing of difftrain, predicts what it predicted in training.

Every case trains a few steps through the command, resumes the run in this process, and writes one fixed input with
its prediction to a file. One other process loads all adapters into the stock pipeline and repeats the predictions.
"""

import contextlib
import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file

from conftest import EditPairs, run_in
from difftrain import FlowMatching
from difftrain.checkpoints.resume_state import find_state
from difftrain.output.console import SilentReporter
from difftrain.planning.run_plan import plan_run
from difftrain.startup.prepare_run import prepare_run
from difftrain.steps.step import input_of, predict
from difftrain.steps.training_state import TrainingState
from difftrain.training.assemble import assemble
from difftrain.types import Batch
from difftrain_flux.built_in import tiny_random_folder
from difftrain_flux.packing import pack

ADAPTER = "pytorch_lora_weights.safetensors"
CASES = {
    "all": {"flux_lora_target": "all", "lora_rank": "4"},
    "mmdit": {"flux_lora_target": "mmdit", "lora_rank": "4"},
    "all+ffs": {"flux_lora_target": "all+ffs", "lora_rank": "4"},
    "alpha is twice the rank": {"lora_rank": "4", "lora_alpha": "8"},
    "alpha is below the rank": {"lora_rank": "4", "lora_alpha": "3", "flux_lora_target": "all+ffs"},
    "dora": {"lora_rank": "4", "lora_alpha": "8", "use_dora": "true", "flux_lora_target": "all+ffs"},
    "dora, fused": {"lora_rank": "4", "use_dora": "true", "fuse_qkv_projections": "true"},
    "rslora": {"lora_rank": "4", "use_rslora": "true"},
    "pissa": {"lora_rank": "4", "lora_alpha": "8", "lora_init_type": "pissa", "learning_rate": "0.002"},
    "own modules": {"lora_rank": "4", "peft_lora_target_modules": "to_q,ff.net.2"},
    "header without metadata": {"lora_rank": "4", "lora_alpha": "8"},
    "int8-quanto base": {"lora_rank": "4", "lora_alpha": "8", "base_model_precision": "int8-quanto"},
    "int8-torchao base": {"lora_rank": "4", "lora_alpha": "8", "base_model_precision": "int8-torchao"},
    "dora, int8-quanto base": {"lora_rank": "4", "use_dora": "true", "base_model_precision": "int8-quanto"},
}
EXACT = [case for case in CASES if "base" not in case]
PACKAGES = {"int8-torchao base": "torchao"}
CASES = {case: options for case, options in CASES.items() if find_spec(PACKAGES.get(case, "torch"))}

ELSEWHERE = """
import json, sys
import torch
from diffusers import FluxKontextPipeline
from safetensors.torch import load_file

model, cases = json.load(sys.stdin)
pipeline = FluxKontextPipeline.from_pretrained(model, torch_dtype=torch.float32)
found = {}
for name, (adapter, inputs) in cases.items():
    arguments = load_file(inputs)
    expected = arguments.pop("prediction")
    with torch.no_grad():
        base = pipeline.transformer(**arguments, return_dict=False)[0][:, : expected.shape[1]]
        pipeline.load_lora_weights(adapter)
        adapted = pipeline.transformer(**arguments, return_dict=False)[0][:, : expected.shape[1]]
        pipeline.unload_lora_weights()
    found[name] = {
        "difference": (adapted - expected).abs().max().item(),
        "effect": (adapted - base).abs().max().item(),
    }
print(json.dumps({"found": found, "ours": [name for name in sys.modules if name.startswith("difftrain")]}))
"""


def train(folder: Path, pairs: EditPairs, options: dict[str, str]) -> TrainingState:
    """Train three steps with the command; return the run as resumed from its last checkpoint."""
    flags = {
        "model_family": "flux", "model_flavour": "kontext", "pretrained_model_name_or_path": "tiny-random",
        "mixed_precision": "no", "gradient_checkpointing": "false", "aspect_bucket_alignment": "16",
        "validation_steps": "0", "learning_rate": "0.02", "max_train_steps": "3", "flux_guidance_value": "2.5",
        "data_backend_config": "datasets.json", "output_dir": str(folder), **options,
    }  # fmt: skip
    ended = run_in(pairs.folder, *(f"--{key}={value}" for key, value in flags.items()))
    assert ended.status == 0, ended.err
    with contextlib.chdir(pairs.folder):
        plan = plan_run(None, flags)
        prepared = prepare_run(plan, SilentReporter())
        assembled = assemble(plan, prepared, find_state(plan), Accelerator(mixed_precision="no"), SilentReporter())
    assert assembled.state.step == 3
    return assembled.state


def fixed_batch() -> Batch:
    """Return a target of 64x96 pixels and a reference of 80x64."""
    generator = torch.Generator().manual_seed(7)
    return Batch(
        latents=torch.randn(1, 16, 8, 12, generator=generator),
        references=[torch.randn(1, 16, 10, 8, generator=generator)],
        text={
            "prompt_embeds": torch.randn(1, 24, 32, generator=generator),
            "pooled_prompt_embeds": torch.randn(1, 32, generator=generator),
        },
    )


def write_prediction(state: TrainingState, path: Path) -> None:
    """Return the stock transformer's input for the fixed batch, and the prediction in training."""
    batch = fixed_batch()
    noise = torch.randn(batch.latents.shape, generator=torch.Generator().manual_seed(8))
    noisy = FlowMatching().add_noise(batch.latents, torch.tensor([0.6]), noise)
    with torch.no_grad():
        prediction = predict(state, state.bare_denoiser, input_of(state, noisy, batch))
    family, flavour = state.plan.family, state.plan.flavour
    taken = flavour.extend_input(family, family.build_input(noisy, batch, state.bare_denoiser), batch)
    tensors = {
        "hidden_states": taken.tokens,
        "img_ids": taken.ids,
        "timestep": taken.sigma,
        "guidance": taken.guidance,
        "encoder_hidden_states": taken.prompt_embeds,
        "txt_ids": torch.zeros(24, 3),
        "pooled_projections": taken.pooled,
        "prediction": pack(prediction),
    }
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


@pytest.fixture(scope="module")
def answer(tmp_path_factory):
    """Return the other process's results for all cases."""
    root = tmp_path_factory.mktemp("elsewhere")
    pairs = EditPairs(root)
    pairs()
    jobs = {}
    for number, (case, options) in enumerate(CASES.items()):
        output = root / f"output-{number}"
        write_prediction(train(output, pairs, options), output / "inputs.safetensors")
        adapter = output / ADAPTER
        if case == "header without metadata":
            adapter = output / "bare" / ADAPTER
            adapter.parent.mkdir()
            save_file(load_file(output / ADAPTER), adapter)
        jobs[case] = (str(adapter), str(output / "inputs.safetensors"))
    given = json.dumps([str(tiny_random_folder()), jobs])
    done = subprocess.run([sys.executable, "-c", ELSEWHERE], input=given, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def found(answer):
    """Return by case how far the other process is from training, and how much the adapter changes there."""
    return answer["found"]


def test_the_other_process_knows_nothing_of_difftrain(answer):
    assert answer["ours"] == []


@pytest.mark.parametrize("case", EXACT)
def test_adapter_predicts_elsewhere_what_it_predicts_in_training(found, case):
    assert found[case]["difference"] <= 1e-5


@pytest.mark.parametrize("case", CASES)
def test_adapter_has_an_effect_elsewhere(found, case):
    assert found[case]["effect"] > 0.01


@pytest.mark.parametrize("case", sorted(CASES.keys() - {*EXACT}))
def test_adapter_of_a_quantised_base_fits_the_unquantised_pipeline(found, case):
    # what is left is the rounding of the base's weights, not the adapter's
    assert found[case]["difference"] < 0.2 * found[case]["effect"]
