"""Reference images that show the edges of the target; :mod:`difftrain_edges.plugin` registers them."""
