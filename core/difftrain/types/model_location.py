"""Where a model's files are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class ModelLocation:
    """Where a model's files are and what they contain; found without loading a weight."""

    name: str
    """As the user wrote it, or the flavour's hub id."""
    identity: str
    """Hash of the content, or the hub's commit: part of every cache key."""
    path: Path | None
    """Local diffusers folder; None means a hub download by ``name`` and ``revision``."""
    revision: str | None = None
    facts: Mapping[str, str] | None = None
    """Facts that the files state, such as {"pipeline": "EditPipeline"}, to be compared with the flavours'
    :attr:`~difftrain.contracts.ModelFlavour.weights`. If the mapping is empty, the user is told that the files state
    nothing. None is for weights that fit every flavour."""
    origins: tuple[str, ...] = ()
    """Models that the files say they were made from: hints, not certainties."""
    denoiser: ModelLocation | None = None
    """Where the denoiser is, if the user named it separately; its ``path`` may be one file. None means with the other
    parts. Then ``identity``, ``facts`` and ``origins`` above are of the other parts alone."""

    @property
    def of_denoiser(self) -> ModelLocation:
        """Where the denoiser is."""
        return self.denoiser or self
