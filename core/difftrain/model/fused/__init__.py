"""Frozen layers that share their input: one product instead of several.

- `fuse_linears`: puts the layers of a model together
- `fused_layers`: the layers that it then has, and the call of a module that has them
"""
