"""Does a long run with accidents train every sample as often as it should? ``python tools/endurance.py [STEPS]``

One run of 5,000 small steps is ended by a SIGHUP, hits a full disk at its validation images, is stopped by a NaN, and
resumes twice with another batch size. A plugin records the samples of each step. At the end every whole epoch must
have shown every sample as often as its dataset says, and no step may be missing. It takes about six minutes on two
cores; the full disk is a small tmpfs if this machine lets us mount one, else writing an image fails.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from pathlib import Path

from PIL import Image

PLUGIN = Path(__file__).with_name("endurance_plugin.py")
SIZES = [(32, 32), (48, 32), (32, 48)]
DATASETS = {"once": (41, 0), "thrice": (7, 2)}
"""Number of samples, and repeats of each."""
FLAGS = {
    "model": "flux", "flavour": "kontext", "pretrained_model_name_or_path": "tiny-random", "mixed_precision": "no",
    "gradient_checkpointing": "false", "aspect_bucket_alignment": 16, "lora_rank": 4, "learning_rate": 1e-4,
    "data_backend_config": "datasets.json", "plugins": str(PLUGIN), "loss_type": "endurance",
    "checkpoint_step_interval": 400, "checkpoints_total_limit": 2, "reference_dropout_probability": 0.2,
    "num_eval_images": 1, "validation_num_inference_steps": 1, "validation_resolution": 64,
}  # fmt: skip


def make_data(folder: Path) -> None:
    """Write pairs of noise in three sizes, and their dataset list."""
    draw = random.Random(0)
    entries = []
    for name, (count, repeats) in DATASETS.items():
        for index in range(count):
            size = SIZES[index % len(SIZES)]
            for side in (name, f"{name}-references"):
                path = folder / side / f"{index:03}.png"
                path.parent.mkdir(exist_ok=True)
                Image.frombytes("RGB", size, draw.randbytes(3 * size[0] * size[1])).save(path)
            (folder / name / f"{index:03}.txt").write_text(f"edit {index}")
        entries += [
            {"id": name, "instance_data_dir": name, "resolution": 32, "repeats": repeats,
             "conditioning_data": f"{name}-references"},
            {"id": f"{name}-references", "instance_data_dir": f"{name}-references", "resolution": 32,
             "caption_strategy": None, "conditioning_type": "reference_strict"},
        ]  # fmt: skip
    (folder / "datasets.json").write_text(json.dumps(entries))


def stage(folder: Path, expected: int, accident: str = "", **changes: object) -> str:
    """Run one command; return its output."""
    flags = FLAGS | changes
    command = [sys.executable, "-m", "difftrain", *(str(part) for key in flags for part in (f"--{key}", flags[key]))]
    environment = {**os.environ, "ENDURANCE": accident, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True, check=False)
    said = [line for line in done.stderr.splitlines() if not line.startswith("step ")]
    print(f"--- {accident or 'no accident'}, {changes}: status {done.returncode}", *said[-9:], sep="\n", flush=True)
    if done.returncode != expected:
        sys.exit(f"expected status {expected}")
    return done.stderr


def mounted(folder: Path) -> bool:
    """Mount a disk of 8 KiB for validation images, if this machine allows it."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, check=False)
    return done.returncode == 0


def judge(folder: Path, steps: int) -> None:
    """Compare the trained samples with the expected ones; exit with 1 if they differ."""
    by_step = {line["step"]: line for line in map(json.loads, (folder / "trained.jsonl").read_text().splitlines())}
    epochs: dict[int, Counter[str]] = defaultdict(Counter)
    for step in sorted(by_step):
        for epoch, key in by_step[step]["samples"]:
            epochs[epoch][key] += 1
    should = {f"{name}/{i:03}": repeats + 1 for name, (count, repeats) in DATASETS.items() for i in range(count)}
    *whole, last = sorted(epochs)
    wrong = [epoch for epoch in whole if epochs[epoch] != should]
    over = [key for key, count in epochs[last].items() if count > should[key]]
    missing = sorted(set(range(1, steps + 1)) - set(by_step))
    print(
        f"{len(by_step)} steps, {sum(len(line['samples']) for line in by_step.values())} samples trained, "
        f"{len(whole)} whole epochs of {sum(should.values())} visits: {len(wrong)} with other counts; "
        f"{len(over)} samples too often in the last, unfinished epoch; {len(missing)} steps missing"
    )
    sys.exit(1 if wrong or over or missing else 0)


def main() -> None:
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 5000
    fifth = steps // 5
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_data(folder)
        common = {"max_train_steps": steps, "validation_steps": 0}
        stage(folder, 128 + signal.SIGHUP, f"hangup {fifth}", train_batch_size=2, **common)
        previews = folder / "output" / "validation"
        small = mounted(previews)
        try:
            said = stage(
                folder, 1, f"nan {3 * fifth}" + ("" if small else ",full"), train_batch_size=3,
                max_train_steps=steps, validation_steps=max(1, fifth // 2),
            )  # fmt: skip
            if said.count("warning: the validation failed") != 1 or "no space left on device" not in said.lower():
                sys.exit("the full disk at a validation was not reported exactly once")
        finally:
            if small:
                subprocess.run(["umount", str(previews)], check=False)
        stage(folder, 0, train_batch_size=1, gradient_accumulation_steps=2, **common)
        judge(folder, steps)


if __name__ == "__main__":
    main()
