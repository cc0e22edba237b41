"""Finds a FLUX.1 model's files and reads what they say about it.

- `locate`: finds a model without loading it
- `identify`: recognises a model from its small files
- `folder`: checks what a folder must contain
- `components`: provides a local folder with the wanted components
- `quiet`: keeps the libraries quiet while they load
- `tiny_random`: builds the random checkpoint
- `entry_bytes`: sizes of cache entries
"""
