"""FLUX.1 for difftrain: the architecture, its text-to-image checkpoints, two tiny offline models.

Start with `family.py`.
"""
