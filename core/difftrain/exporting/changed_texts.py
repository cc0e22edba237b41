"""What the header of a file says when its weights have become others: a LoRA of another rank, or a whole model."""

from __future__ import annotations

from collections.abc import Mapping

from difftrain.publishing.file_metadata import FILE_NOTE_KEY

_ARCHITECTURE, _TITLE = "modelspec.architecture", "modelspec.title"
_OF_MATRICES = (FILE_NOTE_KEY, "training.rank", "training.alpha")


def texts_of_lora(known: Mapping[str, str]) -> dict[str, str]:
    """Return what is true of the nearest LoRA of a file's change."""
    texts = _without_matrices(known)
    if architecture := texts.get(_ARCHITECTURE):
        texts[_ARCHITECTURE] = f"{architecture.partition('/')[0]}/lora"
    if title := texts.get(_TITLE):
        texts[_TITLE] = f"{title}, as LoRA"
    return texts


def texts_of_merged(known: Mapping[str, str]) -> dict[str, str]:
    """Return what is true of a model with an adapter merged in."""
    texts = _without_matrices(known)
    if architecture := texts.get(_ARCHITECTURE):
        texts[_ARCHITECTURE] = architecture.partition("/")[0]
    if title := texts.get(_TITLE):
        texts[_TITLE] = f"{title}, merged"
    return texts


def _without_matrices(known: Mapping[str, str]) -> dict[str, str]:
    return {key: text for key, text in known.items() if key not in _OF_MATRICES}
