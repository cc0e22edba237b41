"""Wraps the loading of a part by its library's own class. Light: the libraries are imported when used."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from difftrain.errors import ModelError


@contextmanager
def without_bars() -> Iterator[None]:
    """Hide bars of components and shards: the core shows what is being loaded. Downloads keep theirs."""
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    shown = [library for library in (of_diffusers, of_transformers) if library.is_progress_bar_enabled()]
    for library in shown:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in shown:
            library.enable_progress_bar()


@contextmanager
def loading(part: Path) -> Iterator[None]:
    """Wrap the stock classes' loading of a part: keep it quiet, and turn its errors into one message.

    Raises:
        ModelError: If the part's config and weights do not fit together, or a file cannot be read.
    """
    import torch

    dtype = torch.get_default_dtype()
    try:
        with without_bars():
            yield
    except (ValueError, OSError, RuntimeError, LookupError, TypeError) as error:
        torch.set_default_dtype(dtype)  # the stock classes change it, and do not restore it when they fail
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ModelError(
            f"{part} cannot be loaded: {reason}\nhint: download or save this part again, config and weights together"
        ) from error
