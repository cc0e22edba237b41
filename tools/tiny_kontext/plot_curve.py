"""Draws the training curves of `docs/tiny_kontext/curve.jsonl`; needs matplotlib, which difftrain does not.

python plot_curve.py ../../docs/tiny_kontext/curve.jsonl curve.png
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def draw(lines: list[dict], path: Path) -> None:
    """Draw the VAE's PSNR on training crops, and the transformer's two losses, over their steps."""
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 3.8))
    vae = [line for line in lines if line["part"] == "vae"]
    left.plot([line["step"] for line in vae], [line["psnr"] for line in vae], color="tab:green")
    left.set(title="VAE, training crops", xlabel="step", ylabel="PSNR, dB")
    transformer = [line for line in lines if line["part"] == "transformer"]
    steps = [line["step"] for line in transformer]
    for name, label in (("edit", "edits"), ("plain", "without a reference")):
        right.plot(steps, [line[name] for line in transformer], label=label)
    for call in (2, 3):
        right.axvline(min(line["step"] for line in transformer if line["call"] == call), color="lightgrey", zorder=0)
    right.set(title="transformer (grey: one call ends, the next resumes)", xlabel="step", ylabel="velocity loss")
    right.set(yscale="log")
    right.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=90)


if __name__ == "__main__":
    curve, image = map(Path, sys.argv[1:])
    draw([json.loads(line) for line in curve.read_text().splitlines()], image)
