"""Runs of ``lora_type lycoris``: they train, resume bit-equal, and write files that the library loads."""

import json
from importlib.util import find_spec

import pytest
import torch
from long_runs import changed
from safetensors.torch import load_file
from test_adapter_elsewhere import train, write_prediction

from conftest import EditPairs, run_in
from difftrain_flux.built_in import tiny_random_folder

ADAPTER = "pytorch_lora_weights.safetensors"
FILES = {
    "lokr": {"algo": "lokr", "linear_dim": 10000, "factor": 4, "bypass_mode": True, "full_matrix": True},
    "low-rank lokr": {"algo": "lokr", "linear_dim": 2, "linear_alpha": 4, "factor": 4, "multiplier": 0.5},
    "loha": {"algo": "loha", "linear_dim": 4, "linear_alpha": 4},
    "full": {"algo": "full"},
}
PRESET = {"apply_preset": {"target_module": ["Attention", "FeedForward"]}}
PLAIN = {"lokr": {}, "low-rank lokr": {}, "loha": {}, "full": {}}
CASES = {
    **PLAIN,
    "lokr, fused": {"fuse_qkv_projections": "true"},
    "lokr, checkpointed and swapped": {"gradient_checkpointing": "true", "blocks_to_swap": "2"},
    "lokr, int8-quanto": {"base_model_precision": "int8-quanto"},
    "lokr, int8-matmul, fused": {"base_model_precision": "int8-matmul", "fuse_qkv_projections": "true"},
    "lokr, int8-torchao, fused": {"base_model_precision": "int8-torchao", "fuse_qkv_projections": "true"},
    "lokr, nf4-bnb": {"base_model_precision": "nf4-bnb"},
}
EXACT = [case for case, options in CASES.items() if "base_model_precision" not in options]
ROUNDING = {"int8-quanto": 0.1, "int8-matmul": 0.1, "int8-torchao": 0.1, "nf4-bnb": 0.4}
"""Relative difference of the adapter's effect that rounded weights around it make in the small model."""
PACKAGES = {"int8-torchao": "torchao", "nf4-bnb": "bitsandbytes"}
CASES = {
    case: options
    for case, options in CASES.items()
    if find_spec(PACKAGES.get(options.get("base_model_precision", ""), "torch"))
}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Return the data, with a config file for each algorithm."""
    made = EditPairs(tmp_path_factory.mktemp("lycoris"))
    made()
    for name, values in FILES.items():
        (made.folder / f"{name}.json").write_text(json.dumps(values | PRESET))
    return made


@pytest.fixture(scope="module")
def trained(pairs):
    """Return by case the trained run's folder, with its prediction for a fixed input."""
    folders = {}
    for number, (case, options) in enumerate(CASES.items()):
        folder = folders[case] = pairs.folder / f"output-{number}"
        config = f"{case.partition(',')[0]}.json"
        state = train(folder, pairs, {"lora_type": "lycoris", "lycoris_config": config, **options})
        write_prediction(state, folder / "inputs.safetensors")
        with state.plan.adapter.at_strength(state.bare_denoiser, 0):
            write_prediction(state, folder / "without.safetensors")
    return folders


def predicted(inputs, adapter=None):
    """Return the prediction of the stock transformer, with an adapter that the library loads."""
    from diffusers import FluxTransformer2DModel
    from lycoris import create_lycoris_from_weights

    model = FluxTransformer2DModel.from_pretrained(tiny_random_folder(), subfolder="transformer")
    if adapter is not None:
        network, _ = create_lycoris_from_weights(1.0, str(adapter), model)
        network.apply_to()
    with torch.no_grad():
        return model(**inputs, return_dict=False)[0]


@pytest.mark.parametrize("case", CASES)
def test_the_library_predicts_with_the_file_what_the_training_predicted(trained, case):
    inputs = load_file(trained[case] / "inputs.safetensors")
    expected = inputs.pop("prediction")
    plain = predicted(inputs)[:, : expected.shape[1]]
    loaded = predicted(inputs, trained[case] / ADAPTER)[:, : expected.shape[1]]
    assert (loaded - plain).abs().max() > 0.01
    if case in EXACT:
        assert (loaded - expected).abs().max() <= 1e-5
        return
    # the base's rounding differs, so the adapter's effect in each is compared
    effect = expected - load_file(trained[case] / "without.safetensors")["prediction"]
    assert (loaded - plain - effect).norm() < ROUNDING[CASES[case]["base_model_precision"]] * effect.norm()


@pytest.mark.parametrize("case", [case for case in CASES if case.startswith("lokr, ")])
def test_files_of_all_runs_are_alike(trained, case):
    plain, other = load_file(trained["lokr"] / ADAPTER), load_file(trained[case] / ADAPTER)
    assert {name: (part.shape, part.dtype) for name, part in other.items()} == {
        name: (part.shape, part.dtype) for name, part in plain.items()
    }
    assert "lycoris_transformer_blocks_0_attn_to_q.lokr_w1" in plain
    assert "lycoris_transformer_blocks_0_attn_to_q.alpha" in plain


def test_the_file_lies_beside_its_weights(trained, pairs):
    for folder in (trained["lokr"], trained["lokr"] / "checkpoint-3"):
        assert json.loads((folder / "lycoris_config.json").read_text()) == FILES["lokr"] | PRESET


def arguments(pairs, **options):
    usual = {
        "lora_type": "lycoris", "lycoris_config": "lokr.json", "max_train_steps": 4, "checkpoint_step_interval": 2,
        "data_backend_config": "datasets.json",
    }  # fmt: skip
    flags = changed(pairs.kontext, **usual | options)
    flags = dict(zip(flags[::2], flags[1::2], strict=True))
    del flags["--lora_rank"]
    return [part for pair in flags.items() for part in pair]


@pytest.fixture(scope="module")
def whole(pairs):
    """Return a run of four steps, with a checkpoint after two."""
    ended = run_in(pairs.folder, *arguments(pairs, output_dir="whole"))
    assert ended.status == 0, ended.err
    return ended


def test_the_adapted_modules_are_counted_by_kind_before_the_first_step(whole):
    before, _, _ = whole.err.partition("step 1/")
    assert "adapter lycoris: 30 modules: 22 of FluxAttention (lokr), 8 of FeedForward (lokr), " in before


def test_a_resumed_run_gives_the_bytes_of_an_uninterrupted_one(pairs, whole):
    resuming = arguments(pairs, output_dir="resumed", resume_from_checkpoint="whole/checkpoint-2")
    ended = run_in(pairs.folder, *resuming)
    assert ended.status == 0, ended.err
    assert "resumed whole/checkpoint-2 at step 2" in ended.err
    first, second = (pairs.folder / name / ADAPTER for name in ("whole", "resumed"))
    assert first.read_bytes() == second.read_bytes()


def test_a_changed_file_cannot_be_resumed_even_under_its_old_name(pairs, whole):
    path = pairs.folder / "lokr.json"
    before = path.read_text()
    path.write_text(json.dumps(FILES["lokr"] | PRESET | {"factor": 8, "multiplier": 0.5}))
    try:
        ended = run_in(pairs.folder, *arguments(pairs, output_dir="other", resume_from_checkpoint="whole/checkpoint-2"))
    finally:
        path.write_text(before)
    assert ended.status == 2
    assert "lycoris_config factor was 4 and is now 8" in ended.err
    assert "lycoris_config multiplier was 1.0 and is now 0.5" in ended.err


def test_a_missing_file_is_named_with_its_key_beside_other_problems(pairs):
    ended = run_in(pairs.folder, *arguments(pairs, lycoris_config="gone/lokr.json", seed=-1, output_dir="nothing"))
    assert ended.status == 2
    assert "lycoris_config: gone/lokr.json does not exist" in ended.err
    assert "seed must be" in ended.err
    assert not (pairs.folder / "nothing").exists()


def test_a_class_that_the_model_lacks_ends_the_run_before_anything_is_encoded(pairs):
    (pairs.folder / "strange.json").write_text('{"apply_preset": {"target_module": ["FeedForwrd"]}}')
    ended = run_in(pairs.folder, *arguments(pairs, lycoris_config="strange.json", cache_dir="fresh", output_dir="none"))
    assert ended.status == 2
    assert "did you mean 'FeedForward'?" in ended.err
    assert "encode images" not in ended.err


def drawn(output):
    """Return the one image of the last step."""
    (path,) = set(output.rglob("*4/*.png")) - set(output.rglob("sheet.png"))
    return path.read_bytes()


def test_images_of_validation_are_drawn_with_it_at_the_strength_asked_for(pairs):
    drawing = {"validation_steps": 4, "num_eval_images": 1, "validation_num_inference_steps": 1}
    ended = run_in(pairs.folder, *arguments(pairs, output_dir="drawn", validation_resolution=64, **drawing))
    assert ended.status == 0, ended.err
    full = drawn(pairs.folder / "drawn")
    weaker = arguments(pairs, output_dir="weaker", validation_resolution=64, validation_lycoris_strength=0, **drawing)
    ended = run_in(pairs.folder, *weaker)
    assert ended.status == 0, ended.err
    assert full != drawn(pairs.folder / "weaker")
    assert (pairs.folder / "drawn" / ADAPTER).read_bytes() == (pairs.folder / "weaker" / ADAPTER).read_bytes()


def test_the_plan_counts_its_trained_weights(pairs, whole):
    said = whole.err.partition("(lokr), ")[2].rpartition(" trained weights")[0].split()[-1]
    flags = [*arguments(pairs, output_dir="planned"), "--json"]
    ended = run_in(pairs.folder, "plan", *flags)
    assert ended.status == 0, ended.err
    assert f"{int(said.replace(',', ''))}" in json.dumps(ended.json)
