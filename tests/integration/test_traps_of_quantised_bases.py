"""Silent traps of libraries around a quantised or fused base: what the user sees when a run keeps out of them.

The other traps: a loss that never moves and steps that are rounded away (`test_silent_traps.py`), alpha lost on saving
(`test_adapter_elsewhere.py`, `test_lora.py`), a launcher that starts one process (`test_start_processes.py`), cuDNN's
attention (`test_cudnn_attention.py`), what compiling loses (`test_tuned_blocks.py`, `test_fit_to_device.py`).
"""

import shutil

import pytest
import torch
from long_runs import ADAPTER, changed, losses
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from wiring import watch

from conftest import EditPairs, run_in
from difftrain.testing import load_denoiser
from difftrain_flux.built_in import tiny_random_folder
from difftrain_flux.family import FluxFamily
from difftrain_flux_kontext.flavour import Kontext

QUANTISED = ("int8-quanto", "int8-matmul")


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    """Return a function that gives the arguments of a run of two steps, and their folder."""
    folder = tmp_path_factory.mktemp("traps")
    pairs = EditPairs(folder)
    fixed = (*pairs.kontext, "--data_backend_config", pairs(), "--max_train_steps", 2)
    return lambda **options: (folder, changed(fixed, **options))


# silent trap: after fuse_qkv_projections, LoRA on to_q, to_k and to_v gets no gradient
@pytest.mark.parametrize("fused", ["true", None])
@pytest.mark.parametrize("target", ["all", "mmdit", "all+ffs"])
def test_every_adapted_module_learns_or_the_run_is_refused(arguments, target, fused):
    output = f"fused-{fused}-{target.replace('+', '-')}"
    asked = {"fuse_qkv_projections": fused} if fused else {}
    folder, given = arguments(output_dir=output, flux_lora_target=target, **asked)
    ended = run_in(folder, *given)
    if fused and ended.status == 2:
        assert "fuse_qkv_projections" in ended.err
        return
    assert ended.status == 0, ended.err
    # B starts at zero, and Adam moves whatever has a gradient
    weights = load_file(folder / output / ADAPTER)
    still = [name for name, weight in weights.items() if ".lora_B." in name and not weight.any()]
    assert still == []
    assert any(".attn.to_q." in name for name in weights)


@pytest.fixture(scope="module", params=QUANTISED)
def drawn(request, arguments):
    """Train on a quantised base, drawing images before and after; return the run, and how often layers were merged."""
    folder, given = arguments(
        output_dir=f"drawn-{request.param}", base_model_precision=request.param, learning_rate=0.02, validation_steps=2,
        validation_on_startup="true", num_eval_images=1, validation_num_inference_steps=1,
    )  # fmt: skip
    merged = []
    with pytest.MonkeyPatch.context() as patch:
        for kind in {LoraLayer, *LoraLayer.__subclasses__()}:
            if "merge" in vars(kind):
                patch.setattr(kind, "merge", lambda self, *_, **__: merged.append(self))
        return watch(folder, folder / f"drawn-{request.param}", given), merged


# silent trap: fuse_lora on a quantised base gives wrong output without an error
def test_an_adapter_is_never_fused_into_a_quantised_base(drawn):
    run, merged = drawn
    layers = [part for part in run.state.bare_denoiser.modules() if isinstance(part, LoraLayer)]
    assert layers
    assert not merged
    assert not any(layer.merged for layer in layers)


def test_training_drawing_and_saving_leave_a_quantised_base_as_it_was_loaded(drawn):
    run, _ = drawn
    family = FluxFamily()
    place = family.locate("tiny-random", Kontext())
    fresh = load_denoiser(family, place, quantizer=run.state.plan.quantizer).state_dict()
    trained = {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in run.state.bare_denoiser.state_dict().items()
        if ".lora_" not in name
    }
    assert trained.keys() == fresh.keys()
    for name, tensor in fresh.items():
        assert torch.equal(as_stored(trained[name]), as_stored(tensor)), name


def as_stored(value):
    return value if isinstance(value, torch.Tensor) else torch.zeros(0)


# silent trap: a quanto model that was written by save_pretrained is read as garbage, with a warning at most
def test_a_folder_that_a_quanto_model_was_saved_to_is_refused(arguments):
    from diffusers import FluxTransformer2DModel
    from optimum.quanto import freeze, qint8, quantize

    folder, given = arguments(output_dir="of-quanto", pretrained_model_name_or_path="./quantised")
    FluxFamily().locate("tiny-random", Kontext())  # writes its folder
    shutil.copytree(tiny_random_folder(), folder / "quantised", dirs_exist_ok=True)
    model = FluxTransformer2DModel.from_pretrained(folder / "quantised", subfolder="transformer")
    quantize(model, weights=qint8)
    freeze(model)
    model.save_pretrained(folder / "quantised" / "transformer")
    ended = run_in(folder, *given)
    assert ended.status == 2
    assert "its weights are not the" in ended.err
    assert "weight._scale" in ended.err


def test_checkpoints_hold_no_weight_of_the_base(drawn):
    run, _ = drawn
    names = {name for name, _ in run.state.bare_denoiser.named_modules() if name}
    files = list(run.output.rglob("*.safetensors"))
    assert len(files) > 2
    for file in files:
        tensors = load_file(file)
        of_the_model = [name for name in tensors if name.removeprefix("transformer.").rpartition(".")[0] in names]
        assert all(".lora_" in name for name in of_the_model), file


@pytest.mark.parametrize("precision", QUANTISED)
def test_a_resumed_run_quantises_the_model_anew_and_continues_alike(arguments, precision):
    def trained(output, *lengths):
        for steps in lengths:
            folder, given = arguments(output_dir=output, base_model_precision=precision, max_train_steps=steps)
            ended = run_in(folder, *given)
            assert ended.status == 0, ended.err
        return losses(folder / output)

    # the schedule's end must not matter: the rate is constant
    assert trained(f"parts-{precision}", 2, 4) == trained(f"whole-{precision}", 4)
