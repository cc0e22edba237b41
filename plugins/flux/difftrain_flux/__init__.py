"""FLUX.1 for difftrain: the architecture, its text-to-image checkpoints, a tiny offline model.

Start with `family.py`.
"""
