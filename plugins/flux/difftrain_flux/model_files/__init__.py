"""Finds a FLUX.1 model's files and reads what they say about it.

- `locate`: finds a model without loading it
- `identify`: recognises a model from its small files
- `folder`: checks what a folder must contain
- `denoiser`: the transformer, with the other parts or in a place of its own
- `single_file`: a transformer in one file
- `layouts`: names and shapes of its tensors, original and in diffusers
- `components`: provides a local folder with the wanted components
- `quiet`: keeps the libraries quiet while they load
- `tiny_random`: builds the random checkpoint
- `entry_bytes`: sizes of cache entries
"""
