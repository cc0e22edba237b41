"""Seeds for random draws that depend on what is drawn, not on what was drawn before.

Every draw of a run is seeded from the run's seed and the draw's place (epoch, step, sample).
So a resumed run needs no saved generator state, and an extra draw in one place changes nothing elsewhere.
"""

from __future__ import annotations

import hashlib

SEED_BITS = 63
"""Seeds are whole numbers below ``2**SEED_BITS``."""


def derive_seed(*parts: int | str) -> int:
    """Return a seed in [0, 2**63) from the parts, equal in every process and Python version (unlike ``hash``)."""
    texts = [part if isinstance(part, str) else str(part) for part in parts]
    text = "|".join([f"{len(one)}:{one}" for one in texts])
    return int.from_bytes(hashlib.sha256(text.encode(errors="surrogateescape")).digest()[:8], "big") >> (64 - SEED_BITS)
