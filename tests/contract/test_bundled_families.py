"""The bundled family fulfils the contract with each of its flavours, on the built-in random checkpoint."""

from dataclasses import replace

import pytest

from difftrain import ModelFamily
from difftrain.testing import check_family, load_denoiser
from difftrain_flux.family import FluxFamily
from difftrain_flux.flavours import Dev, Krea, Schnell
from difftrain_flux_kontext.flavour import Kontext


@pytest.mark.parametrize("flavour", [Dev(), Krea(), Schnell(), Kontext(), Kontext(reference_ids="index")], ids=repr)
def test_flavour_fulfils_the_contract(flavour):
    family = FluxFamily()
    check_family(family, flavour, family.locate("tiny-random", flavour))


def test_blocks_are_those_that_the_transformer_repeats():
    family, flavour = FluxFamily(), Dev()
    denoiser = load_denoiser(family, family.locate("tiny-random", flavour))
    assert family.blocks(denoiser) == ModelFamily.blocks(family, denoiser)
    assert len(family.blocks(denoiser)) == 4


def test_layers_that_do_not_share_their_input_are_found():
    class Wrong(FluxFamily):
        def shared_input_linears(self, denoiser):
            return [("transformer_blocks.0.attn.to_q", "transformer_blocks.0.attn.add_q_proj")]

    family, flavour = Wrong(), Dev()
    with pytest.raises(AssertionError, match=r"to_q_add_q_proj is computed 2 times in 1 calls of its parent"):
        check_family(family, flavour, family.locate("tiny-random", flavour))


@pytest.mark.parametrize("change", [{"keys": 1}, {"masked": True}, {"head_dim": 8}])
def test_attention_shapes_that_no_forward_has_are_found(change):
    class Wrong(FluxFamily):
        def attention_shapes(self, batch, denoiser):
            return [replace(shape, **change) for shape in super().attention_shapes(batch, denoiser)]

    family, flavour = Wrong(), Kontext()
    with pytest.raises(AssertionError, match=r"attention_shapes\(\) says .* a forward has"):
        check_family(family, flavour, family.locate("tiny-random", flavour))
