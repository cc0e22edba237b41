"""The stock transformer.

- `empty_transformer`: built from a model's config, without weights
- `last_block`: the last block for the target's tokens alone
- `attention`: its attention, with a faster rotary embedding
"""
