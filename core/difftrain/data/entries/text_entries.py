"""The text_embeds entries of a dataset list: where text embeddings are cached, and which entries name which. No IO."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from difftrain.config.messages import nearest
from difftrain.config.problems import Problems
from difftrain.config.schema import DatasetConfig, RunConfig


def text_folder_of(config: RunConfig, datasets: Sequence[DatasetConfig], problems: Problems) -> Path:
    """Return the folder of the text embeddings: of the default text_embeds entry, or one of our own."""
    entries = [entry for entry in datasets if entry.dataset_type == "text_embeds"]
    defaults = [entry for entry in entries if entry.default] or entries
    if len(defaults) > 1:
        names = ", ".join(repr(entry.id) for entry in defaults)
        problems.add(f"text_embeds datasets {names}: exactly one of them must have default = true")
    for entry in entries:
        if entry not in defaults:
            problems.note(f"dataset {entry.id!r}: not used, all text embeddings go to {defaults[0].id!r}")
    _check_text_embeds(datasets, [entry.id for entry in entries], defaults[0].id if defaults else None, problems)
    chosen = defaults[0].cache_dir if defaults else None
    return chosen or config.cache_dir / "text"


def _check_text_embeds(
    datasets: Sequence[DatasetConfig], known: Sequence[str], chosen: str | None, problems: Problems
) -> None:
    """Check that the text_embeds entry a target set names exists; note if all text goes to another one."""
    for entry in datasets:
        name = entry.text_embeds
        if name is None or name == chosen:
            continue
        if name in known:
            problems.note(f"dataset {entry.id!r}: text_embeds {name!r}: no effect, all text goes to {chosen!r}")
        else:
            guess = nearest(name, known)
            advice = f"did you mean {guess!r}?" if guess else f"known: {', '.join(known) or 'none'}"
            problems.add(
                f"dataset {entry.id!r}: text_embeds names {name!r}, which is not a text_embeds dataset; {advice}"
            )
