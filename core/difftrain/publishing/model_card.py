"""Writes the model card and its images beside the adapter."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from difftrain.errors import MachineError
from difftrain.machine.retries import refusal
from difftrain.output.output_dir import CARD_FILE, CARD_IMAGES, is_own_card
from difftrain.publishing.card_text import CardImage, CardMaterial, card_text
from difftrain.publishing.run_facts import RunFacts

MOST_IMAGES = 4


def copy_images(drawn: Mapping[Path, str | None], output_dir: Path) -> list[CardImage]:
    """Copy images of a validation into the card's folder, in place of earlier ones.

    Their names are numbers, because those of validation images come from the data.

    Args:
        drawn: Images with their prompts, as :class:`CardImage` has them; the first few are taken.

    Raises:
        MachineError: If they cannot be copied.
    """
    folder = output_dir / CARD_IMAGES
    images = []
    try:
        shutil.rmtree(folder, ignore_errors=True)
        for number, (path, prompt) in enumerate(list(drawn.items())[:MOST_IMAGES], 1):
            folder.mkdir(exist_ok=True)
            name = f"{number}{path.suffix}"
            shutil.copyfile(path, folder / name)
            images.append(CardImage(path=f"{CARD_IMAGES}/{name}", prompt=prompt))
    except OSError as error:
        raise MachineError(refusal(f"{folder} cannot be written", error)) from error
    return images


def write_card(facts: RunFacts, material: CardMaterial, output_dir: Path) -> bool:
    """Write the card, unless a page of the user's own is there; return whether it was written.

    Raises:
        MachineError: If it cannot be written.
    """
    path = output_dir / CARD_FILE
    if path.exists() and not is_own_card(path):
        return False
    temporary = path.with_name(f".{path.name}.partial")
    try:
        temporary.write_text(card_text(facts, material), encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise MachineError(refusal(f"{path} cannot be written", error)) from error
    finally:
        temporary.unlink(missing_ok=True)
    return True
