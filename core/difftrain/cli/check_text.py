"""The output of ``difftrain check`` for people: what the run would do, and what was found, worst first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from difftrain.doctor.examine import Examined

_STYLES = {"problem": "bold red", "note": "bold yellow", "maybe": "bold cyan", "not checked": "bold"}


def print_summary(found: Mapping[str, Any], notes: Iterable[str], examined: Examined, page: str | None) -> None:
    """Print everything; on a terminal in colours.

    Args:
        found: As ``--json`` prints it.
        notes: Those that are not about the data.
        page: Where the page is.
    """
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    print(summary(found))
    for note in notes:
        _print_finding(console, "note", note)
    for finding in examined.findings:
        # `hint` already begins the line that says what to do
        _print_finding(console, "maybe" if finding.level == "hint" else finding.level, finding.message)
    for one in examined.not_checked:
        _print_finding(console, "not checked", f"{_titles(one.kinds)}; {one.why}")
    if page is not None:
        print(f"page: {page}")
    print("ready to train")


def _titles(kinds: Sequence[str]) -> str:
    from difftrain.doctor.kinds import KINDS, NEED_PIXELS

    return "what only pixels tell, such as shifts" if kinds == NEED_PIXELS else ", ".join(map(KINDS.__getitem__, kinds))


def _print_finding(console: Any, level: str, message: str) -> None:
    from rich.text import Text

    text = Text(f"{level}: ", style=_STYLES[level]) if console.is_terminal else Text(f"{level}: ")
    first, _, rest = message.partition("\n")
    text.append(first, style="default")
    if rest:
        text.append(f"\n{rest}", style="dim default" if console.is_terminal else "")
    console.print(text, markup=False)


def summary(found: Mapping[str, Any]) -> str:
    """Return what the run would do, without notes."""
    model = found["model"]
    weights = f" (weights of {' or '.join(model['weights_of'])})" if model["weights_of"] else ""
    denoiser = "" if model["denoiser"] == model["name"] else f" with the denoiser of {model['denoiser']}"
    lines = [f"model: {model['family']} {model['flavour']}, {model['name']}{denoiser}{weights}"]
    for name, dataset in found["datasets"].items():
        left_out = "".join(f", {count} left out by {why}" for why, count in dataset["left_out"].items())
        used = f", {dataset['samples']} samples" if dataset["samples"] else ""
        held_out = ", held out from training" if dataset["held_out"] else ""
        lines.append(f"dataset {name}: {dataset['images']} images{used}{held_out}{left_out}")
    for key in ("buckets", "reference_buckets"):
        if found[key]:
            listed = ", ".join(f"{size} ({count})" for size, count in found[key].items())
            lines.append(f"{key.replace('_', ' ')}: {listed}")
    full = f"{100 * found['batches_full']:.0f} % full"
    epoch = f"{found['batches_per_epoch']} batches ({full}) and {found['steps_per_epoch']} steps per epoch"
    lines.append(f"{found['samples']} samples, {epoch}, {found['total_steps']} steps in total")
    if found["held_out_samples"]:
        lines.append(f"{found['held_out_samples']} samples are held out: measured and drawn, never trained on")
    encoded = " and ".join(f"{count} {what}" for what, count in found["to_encode"].items() if count)
    if on_demand := found["to_encode_on_demand"]:
        encoded = " and ".join(filter(None, [encoded, f"{on_demand} images when batches need them"]))
    lines.append(f"to encode: {encoded}" if encoded else "caches: complete, nothing to encode")
    lines += [_describe_need(need) for need in found["disk"] if need["files"]]
    return "\n".join(lines)


def _describe_need(need: Mapping[str, Any]) -> str:
    from difftrain.machine.disk import describe_bytes

    size = f", about {describe_bytes(need['bytes'])}" if need["bytes"] else ""
    return f"disk: {need['what']}: {need['files']} files{size}, in {need['folder']}"
