"""Caption sources: text files, file names, one prompt for all."""

from __future__ import annotations

import errno
import shlex
from pathlib import Path
from typing import ClassVar, Self

from pydantic import model_validator

from difftrain.contracts import CaptionSource
from difftrain.data.files.local_image import LocalImage
from difftrain.data.files.utf8 import decode_utf8, guess_encoding, is_utf8
from difftrain.errors import DataError, printable
from difftrain.machine.open_file import read_file
from difftrain.types import SourceImage


class PromptedCaptions(CaptionSource):
    """Captions with an optional common prefix."""

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


class TextfileCaptions(PromptedCaptions):
    """A text file beside each image, with the same stem: ``cat.png`` and ``cat.txt``."""

    name: ClassVar[str] = "textfile"
    remedy: ClassVar[str] = "add a caption file to each (an empty file is an empty caption)"

    disable_multiline_split: bool = False
    """Take a file of several lines as one caption, instead of one caption a line."""

    def files(self, image: SourceImage) -> tuple[str | Path, ...]:
        return (_text_file(image),) if isinstance(image, LocalImage) else ()

    def captions(self, image: SourceImage) -> tuple[str, ...] | None:
        if not isinstance(image, LocalImage):
            raise DataError(
                f"{printable(image.place)}: is not a file, so it has no text file beside it\n"
                f"hint: {self.name!r} works only for images that are files; set another caption_strategy, or null"
            )
        text = _read_text(_text_file(image))
        if text is None:
            return None
        lines = [line.strip() for line in text.splitlines()]
        if self.disable_multiline_split:
            return (self._prompted("\n".join(line for line in lines if line)),)
        return tuple(self._prompted(line) for line in lines if line) or (self._prompted(""),)


def _read_text(file: str) -> str | None:
    """Return a caption file's text; None if there is no such file.

    Raises:
        DataError: If it cannot be read, or is not UTF-8; then names the likely encoding.
    """
    try:
        _, data = read_file(file)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:  # no such file can exist
            return None
        raise DataError(
            f"{printable(file)}: caption cannot be read ({(error.strerror or str(error)).lower()})"
        ) from error
    text = decode_utf8(data)
    if text is not None:
        return text
    encoding = guess_encoding(data)
    if encoding is None:
        raise DataError(f"{printable(file)}: caption contains NUL bytes, so it is not text\nhint: rewrite it as UTF-8")
    name = shlex.quote(printable(file))
    raise DataError(
        f"{printable(file)}: caption is not UTF-8 but probably {encoding}\n"
        f"hint: iconv -f {encoding} -t UTF-8 {name} > new.txt && mv new.txt {name}"
    )


def _text_file(image: LocalImage) -> str:
    return image.file.rpartition(".")[0] + ".txt"


class FilenameCaptions(PromptedCaptions):
    """The image's file name, with spaces for underscores and dashes."""

    name: ClassVar[str] = "filename"

    def files(self, image: SourceImage) -> tuple[Path, ...]:
        return ()

    def captions(self, image: SourceImage) -> tuple[str, ...] | None:
        name = image.stem.rpartition("/")[2]
        if not is_utf8(name):
            raise DataError(f"{printable(image.place)}: its name is not UTF-8, so it gives no caption\nhint: rename it")
        words = name.replace("_", " ").replace("-", " ").split()
        return (self._prompted(" ".join(words)),)


class InstancePrompt(CaptionSource):
    """One prompt for every image of the dataset."""

    name: ClassVar[str] = "instanceprompt"

    instance_prompt: str
    """The caption of every image."""

    def files(self, image: SourceImage) -> tuple[Path, ...]:
        return ()

    def captions(self, image: SourceImage) -> tuple[str, ...] | None:
        return (self.instance_prompt,)
