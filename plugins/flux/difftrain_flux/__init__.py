"""FLUX.1 for difftrain: the architecture, its text-to-image checkpoints, two tiny offline models.

Start with `family.py`.

- `plugin`: entry point
- `family`: the family; start here
- `flavours`: its text-to-image checkpoints
- `known_keys`: keys from other programs' files
- `built_in`: names of the built-in checkpoints
- `model_files`: finds a model's files and reads what they say
- `outline`: the model by its shapes, without weights
- `text_length`: T5 tokens of a prompt
- `text`: text to embeddings
- `text`: encodes text
- `vae`: encodes images
- `targets`: modules that an adapter wraps
- `packing`: latents to tokens and back
- `forward`: the training forward
- `sampling`: validation images through the stock pipeline
"""
