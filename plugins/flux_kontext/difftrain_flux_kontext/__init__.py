"""FLUX.1 Kontext for difftrain: the checkpoint, its references and how they are paired. Start with `flavour.py`."""
