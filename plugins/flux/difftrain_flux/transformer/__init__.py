"""The stock transformer.

- `empty_transformer`: built from a model's config, without weights
- `attention`: its attention, with a faster rotary embedding
"""
