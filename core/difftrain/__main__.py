"""``python -m difftrain``: the same as ``difftrain``, for torchrun and machines without scripts on the path."""

from difftrain.cli.main import main

main()
