"""FLUX.1 for difftrain: the architecture, its text-to-image checkpoints, two tiny offline models.

Start with `family.py`.

- `plugin`: entry point
- `family`: the family; start here
- `flavours`: its text-to-image checkpoints
- `known_keys`: keys of other programs' files
- `built_in`: names of the built-in checkpoints
- `model_files`: where a model's files are, and what they say
- `text_length`: T5 tokens of a prompt
- `text`: text to embeddings
- `vae`: images to latents
- `transformer`: the stock transformer, built empty
- `targets`: modules that an adapter wraps
- `packing`: latents to tokens and back
- `forward`: the training forward
- `sampling`: validation images through the stock pipeline
"""
