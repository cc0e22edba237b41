"""Qwen-Image-Edit for difftrain. Start with `family.py`."""
