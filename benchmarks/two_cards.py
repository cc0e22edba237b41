"""The real command on one card and on two (DDP through torchrun), same full-size model, same batch per card.

usage: python benchmarks/two_cards.py WORK_FOLDER [STEPS]       after or instead of full_size.py; needs two GPUs
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from full_size import HERE, make_pairs


def run(work: Path, datasets: Path, cards: int, steps: int) -> list[dict]:
    """Run once; return the metrics of its steps."""
    output = work / f"output-cards-{cards}"
    launcher = [sys.executable, "-m", "difftrain"]
    if cards > 1:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(cards), "-m", "difftrain"]
    command = [
        *launcher, "--model", "flux", "--flavour", "kontext", "--pretrained_model_name_or_path", str(work / "model"),
        "--data_backend_config", str(datasets), "--cache_dir", str(work / "cache"), "--output_dir", str(output),
        "--max_train_steps", str(steps), "--validation_steps", "0", "--resume_from_checkpoint", "none",
    ]  # fmt: skip
    cards_seen = {"CUDA_VISIBLE_DEVICES": ",".join(map(str, range(cards)))}
    subprocess.run(command, check=True, env={**os.environ, **cards_seen})
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def main(work: Path, steps: int) -> None:
    os.environ.setdefault("XDG_CACHE_HOME", str(work / "home"))
    if not (work / "model" / "text_encoder_2" / "config.json").is_file():
        subprocess.run([sys.executable, str(HERE / "make_checkpoint.py"), str(work / "model")], check=True)
    datasets = make_pairs(work / "pairs")
    for cards in (1, 2):
        lines = run(work, datasets, cards, steps)
        seconds = statistics.median(line["seconds"] for line in lines[2:])
        samples = lines[-1]["samples"]
        print(
            f"{cards} card(s): {seconds:.3f} s/step, {samples} samples per step, {samples / seconds:.3f} samples/s, "
            f"losses {[round(line['loss'], 4) for line in lines]}",
            flush=True,
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), int(sys.argv[2]) if len(sys.argv) > 2 else 6)
