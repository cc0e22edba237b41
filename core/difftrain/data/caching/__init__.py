"""Encoded images and captions on disk, under keys of their content.

- `tensor_cache`: tensors under a key: complete or absent
- `sample_caches`: which entries samples need; fills them
- `text_views`: references as a text encoder sees them
"""
