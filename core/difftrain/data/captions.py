"""Where captions come from: text files, file names, one prompt for all."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Self

from pydantic import model_validator

from difftrain.contracts import CaptionSource
from difftrain.errors import DataError


class _PromptedCaptions(CaptionSource):
    """Captions that one text may be put before."""

    instance_prompt: str | None = None
    """Text for :attr:`prepend_instance_prompt`."""
    prepend_instance_prompt: bool = False
    """Put ``instance_prompt`` before every caption."""

    @model_validator(mode="after")
    def _prompt_is_there(self) -> Self:
        if self.prepend_instance_prompt and not self.instance_prompt:
            raise ValueError("prepend_instance_prompt = true needs an instance_prompt")
        return self

    def _prompted(self, caption: str) -> str:
        return f"{self.instance_prompt} {caption}".strip() if self.prepend_instance_prompt else caption


class TextfileCaptions(_PromptedCaptions):
    """A text file beside each image with the same stem: ``cat.png`` and ``cat.txt``."""

    name: ClassVar[str] = "textfile"

    def files(self, image: Path) -> tuple[Path, ...]:
        return (_text_file(image),)

    def captions(self, image: Path, key: str) -> tuple[str, ...] | None:
        file = _text_file(image)
        try:
            text = file.read_bytes().decode("utf-8-sig")
        except FileNotFoundError:
            return None
        except UnicodeDecodeError as error:
            raise DataError(f"{file}: caption is not UTF-8 text (byte {error.start})") from error
        except OSError as error:
            raise DataError(f"{file}: caption cannot be read ({error.strerror})") from error
        lines = [line.strip() for line in text.splitlines()]
        return tuple(self._prompted(line) for line in lines if line) or (self._prompted(""),)


def _text_file(image: Path) -> Path:
    # As image.with_suffix(".txt"), in half the time, for 200,000 files.
    return Path(str(image).rpartition(".")[0] + ".txt")


class FilenameCaptions(_PromptedCaptions):
    """The image's file name, with underscores and dashes as spaces."""

    name: ClassVar[str] = "filename"

    def files(self, image: Path) -> tuple[Path, ...]:
        return ()

    def captions(self, image: Path, key: str) -> tuple[str, ...] | None:
        words = image.stem.replace("_", " ").replace("-", " ").split()
        return (self._prompted(" ".join(words)),)


class InstancePrompt(CaptionSource):
    """One prompt for every image of the dataset."""

    name: ClassVar[str] = "instanceprompt"

    instance_prompt: str
    """The caption of every image."""

    def files(self, image: Path) -> tuple[Path, ...]:
        return ()

    def captions(self, image: Path, key: str) -> tuple[str, ...] | None:
        return (self.instance_prompt,)
