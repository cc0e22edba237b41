"""The bundled family fulfils the contract with each of its flavours, on the built-in random checkpoint."""

import pytest

from difftrain.testing import check_family
from difftrain_flux.family import FluxFamily
from difftrain_flux.flavours import Dev, Krea, Schnell
from difftrain_flux_kontext.flavour import Kontext


@pytest.mark.parametrize("flavour", [Dev(), Krea(), Schnell(), Kontext(), Kontext(reference_ids="index")], ids=repr)
def test_flavour_fulfils_the_contract(flavour):
    family = FluxFamily()
    check_family(family, flavour, family.locate("tiny-random", flavour))
