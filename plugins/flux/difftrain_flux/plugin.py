"""Entry point: the FLUX.1 family and its text-to-image checkpoints. Light: imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterable

from difftrain import ModelFamily, ModelFlavour, hookimpl
from difftrain_flux.family import FluxFamily
from difftrain_flux.flavours import Dev, Krea, Schnell


@hookimpl
def difftrain_model_families() -> Iterable[type[ModelFamily]]:
    return (FluxFamily,)


@hookimpl
def difftrain_model_flavours() -> Iterable[type[ModelFlavour]]:
    return (Dev, Schnell, Krea)
