"""Generators of conditioning pictures bundled with difftrain, one module and entry point each."""
