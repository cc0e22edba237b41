"""Where a FLUX.1 model's files are, and what they say of themselves.

- `locate`: finds a model without loading it
- `identify`: what its small files say that it is
- `folder`: what a folder must hold
- `components`: a local folder with the wanted components
- `quiet`: keeps the libraries quiet while they load
- `tiny_random`: builds the random checkpoint
- `entry_bytes`: bytes of cache entries
"""
