"""What ``difftrain edit`` is asked for, from the flags as typed. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from difftrain.config.paths import expand_path
from difftrain.config.problems import Problems

MOST_SEEDS = 1000


@dataclass(frozen=True, kw_only=True)
class AskedEdit:
    """The flags of an edit; files have not been looked at."""

    adapter: Path
    image: Path
    """One image, or a folder of them."""
    prompt: str | None
    """None takes the text file beside each image."""
    references: tuple[Path, ...]
    """Further references, in order; the image is the first."""
    strengths: tuple[float, ...]
    """1 is as trained, 0 is the model without the adapter; each once."""
    seeds: int
    compares_base: bool
    checkpoints: tuple[int, ...] | None
    """Steps; empty is all of them, None the newest."""
    targets: Path | None
    output: Path | None


def read_asked(given: Mapping[str, str | Sequence[str]], problems: Problems) -> AskedEdit | None:
    """Return what was asked, as far as it can be read; None without an adapter or an image.

    Args:
        given: The values of the command's own flags by name, as typed.
    """
    for name, value in (("adapter", "a run's folder, a checkpoint or a file"), ("image", "an image or a folder")):
        if not given.get(name):
            problems.add(f"--{name} is missing: name {value}")
    strengths = _strengths(_text(given, "strength") or "1", problems)
    seeds = _seeds(_text(given, "seeds") or "1", problems)
    checkpoints = _checkpoints(_text(given, "checkpoints"), problems)
    compare = _text(given, "compare")
    if compare not in (None, "base"):
        problems.add(f"--compare {compare}: the only thing to compare with is base, the model without the adapter")
    paths: dict[str, Path | None] = {}
    for name in ("adapter", "image", "targets", "output"):
        paths[name] = _path(name, _text(given, name), problems)
    references = [_path("reference", text, problems) for text in given.get("reference", ())]
    adapter, image = paths["adapter"], paths["image"]
    if adapter is None or image is None:
        return None
    return AskedEdit(
        adapter=adapter,
        image=image,
        prompt=_text(given, "prompt"),
        references=tuple(path for path in references if path is not None),
        strengths=strengths,
        seeds=seeds,
        compares_base=compare == "base",
        checkpoints=checkpoints,
        targets=paths["targets"],
        output=paths["output"],
    )


def _text(given: Mapping[str, str | Sequence[str]], name: str) -> str | None:
    value = given.get(name)
    return value if isinstance(value, str) else None


def _path(name: str, text: str | None, problems: Problems) -> Path | None:
    if text is None:
        return None
    with problems.catching(f"flag --{name}: "):
        return Path(expand_path(text, {}))
    return None


def _strengths(text: str, problems: Problems) -> tuple[float, ...]:
    found = []
    for part in filter(None, map(str.strip, text.split(","))):
        try:
            value = float(part)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            problems.add(f"--strength {text}: {part!r} is not a number; write, for example, --strength 0,0.5,1")
        found.append(value)
    if not found:
        problems.add("--strength has no numbers; write, for example, --strength 0,0.5,1")
    return tuple(dict.fromkeys(found))


def _seeds(text: str, problems: Problems) -> int:
    if text.isascii() and text.isdigit() and 1 <= int(text) <= MOST_SEEDS:
        return int(text)
    problems.add(
        f"--seeds {text}: must be how many results to draw of each edit, 1 to {MOST_SEEDS}; "
        "the first has the seed of --validation_seed"
    )
    return 1


def _checkpoints(text: str | None, problems: Problems) -> tuple[int, ...] | None:
    if text is None:
        return None
    parts = [part.strip().removeprefix("checkpoint-") for part in text.split(",")]
    if parts == ["all"]:
        return ()
    if not all(part.isascii() and part.isdigit() for part in parts):
        problems.add(f"--checkpoints {text}: write all, or steps such as 200,300")
        return None
    return tuple(dict.fromkeys(map(int, parts)))
