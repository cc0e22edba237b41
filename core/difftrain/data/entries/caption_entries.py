"""The changes that a dataset entry wants in its captions: ``caption_shuffle`` and ``caption_filter_list``. No IO."""

from __future__ import annotations

from difftrain.config.dataset_list import placeholders
from difftrain.config.problems import Problems
from difftrain.config.schema import DatasetConfig, RunConfig
from difftrain.config.section import parse_options
from difftrain.config.user_values import plain_key
from difftrain.data.caption_edits import CaptionEdits, CaptionShuffle, is_filter_file, read_filter


def plan_caption_edits(
    config: RunConfig, entry: DatasetConfig, text_entry: DatasetConfig | None, problems: Problems
) -> CaptionEdits:
    """Return what an entry changes in its captions; wrong values become problems.

    Args:
        text_entry: The entry that holds the set's text embeddings, whose filters count too.
    """
    who = f"dataset {entry.id!r}: "
    shuffle = None
    if entry.caption_shuffle:
        values = {plain_key(key): value for key, value in entry.caption_shuffle.items()}
        prefix = "caption_shuffle: " if entry.caption_shuffle is config.caption_shuffle else f"{who}caption_shuffle: "
        known = placeholders(config, entry.id)
        shuffle = parse_options(CaptionShuffle, values, prefix=prefix, problems=problems, known=known)
    filters = entry.caption_filter_list or (text_entry.caption_filter_list if text_entry else ())
    if not is_filter_file(filters):
        for text in filters:
            try:
                read_filter(text)
            except ValueError as error:
                problems.add(f"{who}caption_filter_list: {error}")
    prompt = getattr(entry, "instance_prompt", None) if getattr(entry, "prepend_instance_prompt", False) else None
    return CaptionEdits(prompt=prompt or "", filters=filters, shuffle=shuffle if shuffle and shuffle.enable else None)
