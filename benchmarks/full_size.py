"""The real command on a full-size model, compared with the bare loop on the same model in the same session.

usage: python benchmarks/full_size.py WORK_FOLDER [--steps 10] [--precisions int8-quanto no_change]

Makes the model (random weights, once) and eight 1024 px pairs from the demo photographs. Then for each precision: loads
the model alone (`load_model.py`), trains with `bare_step.py` and with `difftrain`, and prints seconds and peak host
memory of loading, the ratio of the steps, and peak memory of both.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from importlib.resources import files
from pathlib import Path

HERE = Path(__file__).parent


def make_pairs(folder: Path, count: int = 8) -> Path:
    """Write ``edits`` with captions and ``references``, 1100 px wide so that a crop to 1024 has something to cut."""
    from PIL import Image, ImageOps

    sources = sorted(Path(str(files("difftrain") / "demo" / "photos")).glob("*.jpg"))
    for name in ("edits", "references"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for index in range(count):
        photo = ImageOps.fit(Image.open(sources[index % len(sources)]).convert("RGB"), (1100, 1100))
        photo.rotate(index).save(folder / "references" / f"{index}.png", compress_level=1)
        ImageOps.grayscale(photo.rotate(index)).convert("RGB").save(folder / "edits" / f"{index}.png", compress_level=1)
        (folder / "edits" / f"{index}.txt").write_text(f"make it black and white, variant {index}")
    datasets = [
        {"id": "edits", "type": "local", "instance_data_dir": str(folder / "edits"), "resolution": 1024,
         "caption_strategy": "textfile", "conditioning_data": "references"},
        {"id": "references", "type": "local", "instance_data_dir": str(folder / "references"), "resolution": 1024,
         "caption_strategy": None, "conditioning_type": "reference_strict"},
    ]  # fmt: skip
    path = folder / "datasets.json"
    path.write_text(json.dumps(datasets))
    return path


def train(work: Path, precision: str, steps: int, datasets: Path, extra: list[str]) -> dict[str, float]:
    """Run the real command; return its median step time, peak memory and total wall time."""
    output = work / f"output-{precision}"
    command = [
        sys.executable, "-m", "difftrain", "--model", "flux", "--flavour", "kontext",
        "--pretrained_model_name_or_path", str(work / "model"), "--data_backend_config", str(datasets),
        "--cache_dir", str(work / "cache"), "--output_dir", str(output), "--base_model_precision", precision,
        "--max_train_steps", str(steps), "--resume_from_checkpoint", "none", "--validation_num_inference_steps", "4",
        "--num_eval_images", "1", "--validation_steps", str(steps), *extra,
    ]  # fmt: skip
    started = time.monotonic()
    subprocess.run(command, check=True)
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    steps_done = [line for line in lines if "seconds" in line]
    return {
        "seconds": statistics.median(line["seconds"] for line in steps_done[2:]),
        "peak_gib": max(line.get("peak_memory_gib", 0.0) for line in steps_done),
        "wall": round(time.monotonic() - started, 1),
        "losses": [round(line["loss"], 4) for line in steps_done],
    }


def alone(program: str, *arguments: object) -> dict[str, float]:
    """Run a neighbouring program in its own process; return the JSON line that it prints last."""
    command = [sys.executable, str(HERE / program), *map(str, arguments)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--precisions", nargs="+", default=["int8-quanto", "no_change"])
    arguments, extra = parser.parse_known_args()
    work = arguments.work.resolve()
    os.environ.setdefault("XDG_CACHE_HOME", str(work / "home"))
    if not (work / "model" / "text_encoder_2" / "config.json").is_file():
        subprocess.run([sys.executable, str(HERE / "make_checkpoint.py"), str(work / "model")], check=True)
    datasets = make_pairs(work / "pairs")
    rows = []
    for precision in arguments.precisions:
        loading = alone("load_model.py", work / "model", precision)
        print(precision, "loading", loading, flush=True)
        base = alone("bare_step.py", work / "model", precision, arguments.steps)
        ours = train(work, precision, arguments.steps, datasets, extra)
        rows.append((precision, loading, base, ours))
        print(precision, "bare", base, "difftrain", ours, flush=True)
    import torch

    print(f"\n{torch.cuda.get_device_name()}, torch {torch.__version__}, 1024 + 1024 px, LoRA 16, checkpointing")
    print(
        "| base weights | load s | host GiB of loading | bare s/step | difftrain s/step | ratio | bare GiB "
        "| difftrain GiB | whole run s |"
    )
    for precision, loading, base, ours in rows:
        ratio = ours["seconds"] / base["seconds"]
        print(
            f"| {precision} | {loading['seconds']} | {loading['host_gib']} | {base['seconds']:.3f} "
            f"| {ours['seconds']:.3f} | {ratio:.3f} | {base['peak_gib']} | {ours['peak_gib']:.1f} | {ours['wall']} |"
        )
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print(f"largest host memory of a process: {children:.1f} GiB")


if __name__ == "__main__":
    main()
