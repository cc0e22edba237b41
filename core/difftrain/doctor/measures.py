"""What comparing pixels found, kept between runs in one SQLite file, by content. It is only a cache."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

VERSION = 1
"""Raise it when what comparing measures changes."""
BUSY_SECONDS = 60.0
"""Seconds to wait for another program that writes."""
_A_QUERY = 500
_SCHEMA = "CREATE TABLE IF NOT EXISTS measures (key TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID"


@dataclass(frozen=True, kw_only=True, slots=True)
class PairMeasures:
    """How a target differs from its reference, over what is encoded of them."""

    difference: float
    """Mean difference of all pixels and colours, in percent of the full range."""
    changed: float
    """Percent of blocks that differ by more than noise."""
    right: float
    """Estimated shift of the target against the reference, in pixels of the encoded target."""
    down: float
    zoom: float
    """Estimated scale of the target over the reference's; 1 is none."""
    aligned_by: int
    """Version of the estimate; 0 if the package for it is not installed."""


class MeasureStore:
    """The open file; whatever cannot be read is measured again. Use it as a context manager, from one thread."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.notes: list[str] = []
        """What could not be read or kept, for the user."""
        self._connection = self._open()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()

    def pixel_hashes(self, content_hashes: Sequence[str]) -> dict[str, str]:
        """Return the known hashes of pixels, by content hash."""
        found = self._known([f"pixels|{one}" for one in content_hashes])
        return {key.partition("|")[2]: value for key, value in found.items()}

    def measures(self, keys: Sequence[str]) -> dict[str, PairMeasures]:
        """Return the known measures, by :attr:`~difftrain.doctor.pairs.Pair.key`."""
        found: dict[str, PairMeasures] = {}
        for key, value in self._known([f"pair|{one}" for one in keys]).items():
            with suppress(ValueError, TypeError):  # another version's
                found[key.partition("|")[2]] = PairMeasures(**json.loads(value))
        return found

    def remember(self, hashes: Mapping[str, str], measures: Mapping[str, PairMeasures]) -> None:
        """Keep what was found; a file that cannot be written loses it."""
        rows = [(f"pixels|{key}", value) for key, value in hashes.items()]
        rows += [(f"pair|{key}", json.dumps(asdict(value))) for key, value in measures.items()]
        try:
            with self._connection:
                self._connection.executemany("INSERT OR REPLACE INTO measures VALUES (?, ?)", rows)
        except sqlite3.Error as error:
            self._note(f"cannot be written ({error}); what is compared now is not remembered")

    def _known(self, keys: Sequence[str]) -> dict[str, str]:
        found: dict[str, str] = {}
        try:
            for part in _parts(list(dict.fromkeys(keys))):
                query = f"SELECT key, value FROM measures WHERE key IN ({','.join('?' * len(part))})"
                found.update(self._connection.execute(query, part).fetchall())
        except sqlite3.Error as error:
            self._note(f"cannot be read ({error}); pairs are compared again")
        return found

    def _open(self) -> sqlite3.Connection:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            return self._connected(self.path)
        except sqlite3.OperationalError as error:  # locked or not writable: no reason to take it from other runs
            self._note(f"cannot be used ({error}); what is compared now is not remembered")
        except (sqlite3.Error, OSError) as error:
            self._note(f"cannot be used ({error}); it is made anew, and pairs are compared again")
            with suppress(sqlite3.Error, OSError):
                self.path.unlink(missing_ok=True)
                return self._connected(self.path)
            self._note("cannot be made anew; what is compared now is not remembered")
        return self._connected(Path(":memory:"))

    def _note(self, text: str) -> None:
        note = f"{self.path} {text}"
        if note not in self.notes:
            self.notes.append(note)

    def _connected(self, path: Path) -> sqlite3.Connection:
        connection = sqlite3.connect(path, timeout=BUSY_SECONDS)
        try:
            if connection.execute("PRAGMA user_version").fetchone()[0] not in (0, VERSION):
                connection.execute("DROP TABLE IF EXISTS measures")
            connection.execute(_SCHEMA)
            connection.execute(f"PRAGMA user_version = {VERSION}")
            connection.commit()
        except BaseException:
            connection.close()
            raise
        return connection


def _parts(keys: Sequence[str]) -> Iterable[Sequence[str]]:
    return (keys[start : start + _A_QUERY] for start in range(0, len(keys), _A_QUERY))
