"""The text_embeds entries of a dataset list: where text embeddings are cached, and which entries name which. No IO."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from difftrain.config.messages import nearest
from difftrain.config.problems import Problems
from difftrain.config.schema import DatasetConfig, RunConfig


@dataclass(frozen=True, kw_only=True)
class TextEntries:
    """Which text_embeds entry holds the text of which set."""

    default_folder: Path
    """Where all text goes that no set keeps elsewhere, and that of validations."""
    by_set: Mapping[str, DatasetConfig]
    """The entry of each set, by the set's id; sets are missing if there is no entry at all."""
    folders: Mapping[str, Path]
    """Folders of the entries that sets name, beside the default one, by entry id."""

    def folder_of(self, dataset_id: str) -> Path | None:
        """Return the folder of a set's text; None is the default one."""
        entry = self.by_set.get(dataset_id)
        return None if entry is None else self.folders.get(entry.id)


def plan_text_entries(config: RunConfig, datasets: Sequence[DatasetConfig], problems: Problems) -> TextEntries:
    """Return the text_embeds entries that sets use: those that they name, else the default one.

    Without any entry, text goes to a folder of our own.
    """
    entries = {entry.id: entry for entry in datasets if entry.dataset_type == "text_embeds"}
    defaults = [entry for entry in entries.values() if entry.default] or list(entries.values())
    if len(defaults) > 1:
        names = ", ".join(repr(entry.id) for entry in defaults)
        problems.add(f"text_embeds datasets {names}: exactly one of them must have default = true")
    default = defaults[0] if defaults else None
    by_set = {}
    for entry in datasets:
        if entry.dataset_type == "text_embeds":
            continue
        _check_name(entry, entries, problems)
        chosen = entries.get(entry.text_embeds or "", default)
        if chosen is not None:
            by_set[entry.id] = chosen
    used = {entry.id for entry in by_set.values()}
    for entry in entries.values():
        if entry is not default and entry.id not in used:
            problems.note(f"dataset {entry.id!r}: not used, no set names it in text_embeds, and it is not the default")
    folders = {name: _folder(config, entries[name]) for name in used if default and name != default.id}
    default_folder = (default and default.cache_dir) or config.cache_dir / "text"
    return TextEntries(default_folder=default_folder, by_set=by_set, folders=folders)


def _folder(config: RunConfig, entry: DatasetConfig) -> Path:
    return entry.cache_dir or config.cache_dir / f"text-{entry.id}"


def _check_name(entry: DatasetConfig, known: Mapping[str, DatasetConfig], problems: Problems) -> None:
    """Check that the text_embeds entry that a set names exists."""
    name = entry.text_embeds
    if name is None or name in known:
        return
    guess = nearest(name, known)
    advice = f"did you mean {guess!r}?" if guess else f"known: {', '.join(known) or 'none'}"
    problems.add(f"dataset {entry.id!r}: text_embeds names {name!r}, which is not a text_embeds dataset; {advice}")
