"""Which image formats can be read here: those of Pillow as it was built, and those of installed extensions."""

from __future__ import annotations

import ctypes
import functools
import importlib
from contextlib import suppress

from difftrain.data.files.file_types import IMAGE_FORMATS

_CODECS = {"AVIF": "avif", "JPEG": "jpg", "JPEG2000": "jpg_2000", "WEBP": "webp"}
"""Formats that a Pillow may have been built without."""


@functools.cache
def readable_formats() -> tuple[str, ...]:
    """In Pillow's names, the usual ones first. A file is only ever tried as one of these, whatever its name says."""
    from PIL import Image, features

    _register_extensions()
    _silence_libtiff()
    Image.init()
    formats = dict.fromkeys(IMAGE_FORMATS.values())
    return tuple(
        name for name in formats if name in Image.OPEN and (name not in _CODECS or features.check(_CODECS[name]))
    )


@functools.cache
def readable_suffixes() -> frozenset[str]:
    """In lower case, each with its dot."""
    return frozenset(suffix for suffix, name in IMAGE_FORMATS.items() if name in readable_formats())


def _register_extensions() -> None:
    """Extensions of Pillow that are installed; HEIC and JPEG XL are read through them alone."""
    with suppress(ImportError):
        importlib.import_module("pillow_heif").register_heif_opener()
    with suppress(ImportError):
        importlib.import_module("pillow_jxl")


def _silence_libtiff() -> None:
    """It writes to the standard error what is wrong with a file, naming none; Pillow raises an error all the same.

    Where the library is built into Pillow its function is not found, and stays as it is.
    """
    with suppress(AttributeError, OSError):
        set_handler = ctypes.CDLL(importlib.import_module("PIL._imaging").__file__).TIFFSetErrorHandler
        set_handler.argtypes, set_handler.restype = [ctypes.c_void_p], ctypes.c_void_p
        set_handler(None)
