"""The image formats that can be read: those of the installed Pillow and its installed extensions."""

from __future__ import annotations

import ctypes
import functools
import importlib
from contextlib import suppress

from difftrain.data.files.file_types import IMAGE_FORMATS

_CODECS = {"AVIF": "avif", "JPEG": "jpg", "JPEG2000": "jpg_2000", "WEBP": "webp"}
"""Formats that a build of Pillow may lack."""


@functools.cache
def readable_formats() -> tuple[str, ...]:
    """Return formats by Pillow's names, the usual ones first. No file is tried as anything else, whatever its name."""
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
    """Return the suffixes in lower case, each with its dot."""
    return frozenset(suffix for suffix, name in IMAGE_FORMATS.items() if name in readable_formats())


def _register_extensions() -> None:
    """Register installed extensions of Pillow; it reads HEIC and JPEG XL only through them."""
    with suppress(ImportError):
        importlib.import_module("pillow_heif").register_heif_opener()
    with suppress(ImportError):
        importlib.import_module("pillow_jxl")


def _silence_libtiff() -> None:
    """Stop libtiff from writing to standard error, where it names no file; Pillow raises an error anyway.

    Where libtiff is linked into Pillow its function is not found, and nothing changes.
    """
    with suppress(AttributeError, OSError):
        set_handler = ctypes.CDLL(importlib.import_module("PIL._imaging").__file__).TIFFSetErrorHandler
        set_handler.argtypes, set_handler.restype = [ctypes.c_void_p], ctypes.c_void_p
        set_handler(None)
