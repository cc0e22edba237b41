"""Crops around the brightest part of an image; :mod:`difftrain_focus.plugin` registers the style."""
