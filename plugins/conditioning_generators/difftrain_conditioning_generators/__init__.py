"""Generators of conditioning images bundled with difftrain, one module and entry point each."""
