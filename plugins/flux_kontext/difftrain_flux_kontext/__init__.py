"""FLUX.1 Kontext for difftrain: the checkpoint, its references and their pairing. Start with `flavour.py`."""
