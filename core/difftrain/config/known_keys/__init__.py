"""Keys and values that users' files carry and the options classes do not have. Data only.

A key that is in no options class must be in one of these tables, or it is an error. An options class that defines one
of the keys, or registers one of the names, wins over the tables; a family adds its own by ``known_keys``.

- ``tables.py``: what a table can say of a key.
- ``run.py``, ``idle_run.py``: keys of the run file, not built yet and without effect.
- ``dataset.py``: keys of a dataset entry.
- ``values.py``: values of keys that do exist.
"""

from difftrain.config.known_keys.dataset import DATASET_TABLES, KEYS_OF_TYPE
from difftrain.config.known_keys.run import RUN_TABLES
from difftrain.config.known_keys.tables import (
    ZERO_ASKS,
    Idle,
    KnownKeys,
    asks_for_nothing,
    because,
    is_unset,
    means_no_name,
)
from difftrain.config.known_keys.values import NOT_BUILT_VALUES, OTHER_NAMES

__all__ = [
    "DATASET_TABLES",
    "KEYS_OF_TYPE",
    "NOT_BUILT_VALUES",
    "OTHER_NAMES",
    "RUN_TABLES",
    "ZERO_ASKS",
    "Idle",
    "KnownKeys",
    "asks_for_nothing",
    "because",
    "is_unset",
    "means_no_name",
]
