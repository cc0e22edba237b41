"""Entry point: the Kontext checkpoint of the flux family and the pairings of its references. Light."""

from __future__ import annotations

from collections.abc import Iterable

from difftrain import ModelFlavour, Pairing, hookimpl
from difftrain_flux_kontext.flavour import Kontext
from difftrain_flux_kontext.pairing import ReferenceLoose, ReferenceStrict


@hookimpl
def difftrain_model_flavours() -> Iterable[type[ModelFlavour]]:
    return (Kontext,)


@hookimpl
def difftrain_pairings() -> Iterable[type[Pairing]]:
    return (ReferenceStrict, ReferenceLoose)
