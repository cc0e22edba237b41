"""Prompts of the validation pictures that are drawn beside those of training samples."""

from __future__ import annotations

import json
from pathlib import Path

from difftrain.config.schema import RunConfig
from difftrain.errors import ConfigError, first_few


def validation_prompts(config: RunConfig) -> dict[str, str]:
    """Prompts by short name: the single one and those of the library file.

    Raises:
        ConfigError: If the library cannot be read or is no JSON object of texts.
    """
    prompts = {"prompt": config.validation_prompt} if config.validation_prompt else {}
    library = config.validation_prompt_library
    return prompts | (_read_library(library) if library else {})


def _read_library(path: Path) -> dict[str, str]:
    try:
        library = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise ConfigError(
            f"validation_prompt_library: {path} does not exist\nhint: relative paths start at {Path.cwd()}"
        ) from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"validation_prompt_library: {path} cannot be read as JSON ({error})") from error
    if not isinstance(library, dict):
        raise ConfigError(f'validation_prompt_library: {path} must be one object like {{"short-name": "the prompt"}}')
    wrong = [name for name, text in library.items() if not isinstance(text, str)]
    if wrong:
        raise ConfigError(
            f"validation_prompt_library: {path}: {len(wrong)} of {len(library)} prompts are no texts: "
            + first_few(wrong)
        )
    return library
