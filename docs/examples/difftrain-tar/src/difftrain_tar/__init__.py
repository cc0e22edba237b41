"""Pairs from tar files in the WebDataset convention; :mod:`difftrain_tar.plugin` registers them."""
