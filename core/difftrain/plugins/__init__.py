"""Plugins: their hooks, how they are found, what they provide.

- `hookspecs`: the hooks
- `discovery`: finds and loads plugins, each independently
- `registry`: the classes they provide, by kind and name
"""
