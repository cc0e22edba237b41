"""Plugins: their hooks, how they are found, what they provide.

- `hookspecs`: the hooks
- `discovery`: finds and loads plugins, each by itself
- `registry`: what they provide, by kind and name
"""
