"""Finds the line of each key in a JSON-with-comments text, for error messages.

The parser gives values without positions; this scanner gives positions without values.
"""

from __future__ import annotations

import re

KeyPath = tuple[str | int, ...]

_TOKEN = re.compile(
    r"""
    (?P<comment>//[^\n]*|/\*.*?\*/)
  | (?P<text>"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')
  | (?P<mark>[{}\[\],:])
  | (?P<word>[^\s{}\[\],:"']+)
    """,
    re.VERBOSE | re.DOTALL,
)


def key_lines(text: str) -> dict[KeyPath, int]:
    """Return the line (from 1) of every key and list item, by its path: ``("conditioning", 0, "type")``.

    The text should be valid JSON with comments; in anything else it finds as many as it can.
    """
    lines: dict[KeyPath, int] = {}
    path: list[str | int] = []
    closers: list[str] = []
    pending: tuple[str, int] | None = None
    line, position = 1, 0
    for token in _TOKEN.finditer(text):
        line += text.count("\n", position, token.start())
        position = token.start()
        if token.lastgroup == "comment":
            continue
        value = token.group()
        if value in ("{", "["):
            if closers and closers[-1] == "]":
                lines.setdefault(tuple(path), line)
            closers.append("}" if value == "{" else "]")
            path.append("" if value == "{" else 0)
        elif value in ("}", "]"):
            if closers:
                closers.pop()
                path.pop()
        elif value == ",":
            if closers and closers[-1] == "]":
                path[-1] = int(path[-1]) + 1
        elif value == ":":
            if pending is not None and closers and closers[-1] == "}":
                path[-1] = pending[0]
                lines.setdefault(tuple(path), pending[1])
        elif closers and closers[-1] == "]":
            lines.setdefault(tuple(path), line)
        else:
            pending = (value[1:-1] if token.lastgroup == "text" else value, line)
    return lines
