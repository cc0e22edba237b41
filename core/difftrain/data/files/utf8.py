"""Decodes texts that should be UTF-8, or guesses their encoding."""

from __future__ import annotations

import codecs
import re
from collections.abc import Container

_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
"""Longer marks first, because one of them begins like a shorter one."""
_RUNS = re.compile(rb"[\x80-\xff]+")


def decode_utf8(data: bytes) -> str | None:
    """Return the text without a byte order mark; None if it is not UTF-8 text."""
    try:
        text = data.removeprefix(codecs.BOM_UTF8).decode()  # utf-8-sig takes ten times as long
    except UnicodeDecodeError:
        return None
    return None if "\0" in text else text


def is_utf8(name: str) -> bool:
    """Return whether a file name is UTF-8; other bytes are lone surrogates in Python."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def guess_encoding(data: bytes) -> str | None:
    """Return the likely encoding, as iconv names it, of bytes that are not UTF-8 text; None if they are not text."""
    for mark, name in _MARKS.items():
        if data.startswith(mark):
            return name
    if b"\0" in data:
        return _guess_wide(data)
    runs = _RUNS.findall(data)
    letters = b"".join(runs)
    if sum(len(run) > 1 for run in runs) < len(runs) / 2:  # single accents between plain letters
        return "CP1252"
    if _share(letters, range(0xE0, 0x100)) > 0.7:  # small Cyrillic letters
        return "CP1251"
    if _share(letters, (0x82, 0x83)) > 0.2:  # kana
        return "SHIFT_JIS"
    return "GB18030" if _is_text(data, "gb18030") else "CP1252"


def _guess_wide(data: bytes) -> str | None:
    """Detect wide characters without a byte order mark: for plain letters all bytes but one are zero."""
    for name, width, place in (("UTF-32LE", 4, 0), ("UTF-32BE", 4, 3), ("UTF-16LE", 2, 0), ("UTF-16BE", 2, 1)):
        zeros = [data[other::width].count(0) for other in range(width) if other != place]
        enough = (len(data) // width) * (0.9 if width == 4 else 0.3)
        if len(data) % width == 0 and min(zeros) > enough and _is_text(data, name.lower().replace("-", "_")):
            return name
    return None


def _share(data: bytes, of: Container[int]) -> float:
    return sum(byte in of for byte in data) / max(1, len(data))


def _is_text(data: bytes, encoding: str) -> bool:
    try:
        return "\0" not in data.decode(encoding)
    except UnicodeDecodeError:
        return False
