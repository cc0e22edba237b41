"""One file to a CUDA device: the same numbers as on the CPU, and a host that never holds the model."""

import pytest
import torch

from difftrain.model.load_denoiser import load_denoiser
from difftrain.model.precision.quanto import QuantoInt8
from difftrain_flux.family import FluxFamily
from difftrain_flux_kontext.flavour import Kontext
from flux_single_files import in_fp8, original, save, tiny_state

pytestmark = pytest.mark.gpu
FORMS = {
    "bf16": lambda state: original(state),
    "fp8": lambda state: in_fp8(original(state)),
    "scaled fp8": lambda state: in_fp8(original(state), ".scale_weight"),
}


def located(tmp_path, form):
    path = save(FORMS[form](tiny_state()), tmp_path / "mine.safetensors")
    return FluxFamily().locate_with_denoiser("tiny", str(path), Kontext())


@pytest.mark.parametrize("form", FORMS)
def test_a_file_has_the_same_numbers_on_the_card(tmp_path, form):
    location = located(tmp_path, form)
    on_cpu, on_card = (
        load_denoiser(FluxFamily(), location, dtype=torch.bfloat16, device=torch.device(device)).state_dict()
        for device in ("cpu", "cuda")
    )
    assert all(tensor.is_cuda for tensor in on_card.values())
    assert [name for name, tensor in on_card.items() if not torch.equal(tensor.cpu(), on_cpu[name])] == []


@pytest.mark.parametrize("form", FORMS)
def test_a_file_is_quantised_on_the_card(tmp_path, form):
    location = located(tmp_path, form)
    quantised = load_denoiser(
        FluxFamily(), location, dtype=torch.bfloat16, device=torch.device("cuda"), quantizer=QuantoInt8()
    )
    assert all(tensor.device.type == "cuda" for tensor in quantised.state_dict().values())
