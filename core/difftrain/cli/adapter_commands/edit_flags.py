"""The flags of ``difftrain edit``."""

from __future__ import annotations

from collections.abc import Mapping

EDIT_FLAGS: Mapping[str, str] = {
    "adapter": "With edit: a run's output folder, one of its checkpoint-N folders, or an adapter's file.",
    "image": "With edit: the image to edit, or a folder of them.",
    "prompt": "With edit: what to do, worded as in training; default: the text file beside each image.",
    "reference": "With edit: a further reference image; repeat it for more. --image is the first.",
    "strength": "With edit: strengths of the adapter, such as 0,0.5,1; 0 is the model without it. [default: 1]",
    "seeds": "With edit: results of each edit, with consecutive seeds from --validation_seed. [default: 1]",
    "compare": "With edit: add a column of the model without the adapter.",
    "checkpoints": "With edit: all, or steps such as 200,300, of the run; default: the newest.",
    "targets": "With edit: the folder of what the images should become, with the same names; for the metrics.",
}
"""With their help."""
EDIT_VALUES: Mapping[str, str] = {
    "adapter": "PATH",
    "image": "PATH",
    "prompt": "TEXT",
    "reference": "PATH",
    "strength": "LIST",
    "seeds": "INT",
    "compare": "base",
    "checkpoints": "LIST",
    "targets": "PATH",
}
"""What they take."""
REPEATED = ("reference",)
"""Those that may be given several times; commas are part of their values."""
