"""Generators of reference images bundled with difftrain, one module and entry point each."""
