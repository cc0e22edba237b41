"""Whether a caption describes an image instead of telling an edit. A guess, for English only."""

from __future__ import annotations

import re

_OPENINGS = (
    "a|an|the|this|that|these|those|there|here|it|he|she|they|two|three|four|five|several|some|many|photo|photograph|"
    "image|picture|portrait|painting|drawing|illustration|closeup|close-up|view|scene|shot|selfie|landscape"
)
"""Words that begin a description."""
_EDITS = (
    "make|turn|change|replace|add|remove|delete|erase|convert|transform|put|place|swap|set|give|take|keep|move|rotate|"
    "flip|mirror|crop|zoom|blur|sharpen|restore|repair|fix|colou?r|colori[sz]e|colouri[sz]e|recolou?r|paint|repaint|"
    "draw|redraw|sketch|brighten|darken|lighten|enhance|upscale|improve|clean|extend|expand|shrink|enlarge|resize|"
    "reduce|increase|decrease|raise|lower|let|show|render|style|styli[sz]e|apply|use|fill|cut|cover|uncover|hide|reveal|"
    "open|close|dress|undress|wear|age|edit|adjust|modify|insert|inpaint|outpaint|retouch|smooth|soften|deblur|denoise|"
    "desaturate|saturate|tint|shift|relight|combine|merge|blend|imagine|generate|create|should|must|please|become|into|"
    "instead|without"
)
"""Words of an instruction, anywhere in the caption."""
_DESCRIPTION = re.compile(rf"\W*(?:{_OPENINGS})\s+\S+\s+\S", re.IGNORECASE)
_INSTRUCTION = re.compile(rf"\b(?:{_EDITS})(?:s|d|ed|ing)?\b", re.IGNORECASE)


def describes(caption: str) -> bool:
    """Return whether a caption begins as a description does, and no word of it tells an edit."""
    return bool(caption.isascii() and _DESCRIPTION.match(caption) and not _INSTRUCTION.search(caption))
