"""Encoded images and captions on disk, keyed by content.

- `tensor_cache`: one file of tensors per key, complete or absent
- `cache_listing`: which of many entries a folder has, without opening each
- `sample_caches`: finds the entries that samples need, and fills them
- `decoded_groups`: decodes images in groups of one size
- `keep_caches`: reads every entry, removes those that a run does not need
- `old_crops`: clears crops that no epoch shows any more
- `text_views`: references as a text encoder sees them
"""
