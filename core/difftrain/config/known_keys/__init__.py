"""Keys and values that users' files carry and the options classes do not have. Data only.

A key that is in no options class must be in one of these tables, or it is an error. An options class that defines one
of the keys, or registers one of the names, wins over the tables; a family adds its own by ``known_keys``.

- `key_tables`: what a table can say of a key
- `run_keys`: keys of the run file that are named otherwise here or not built yet
- `idle_keys`: keys of the run file without effect
- `dataset_keys`: keys of a dataset entry
- `known_values`: values of keys that do exist
"""

from difftrain.config.known_keys.dataset_keys import DATASET_TABLES, KEYS_OF_TYPE
from difftrain.config.known_keys.key_tables import (
    ZERO_ASKS,
    Idle,
    KnownKeys,
    asks_for_nothing,
    because,
    is_unset,
    means_no_name,
)
from difftrain.config.known_keys.known_values import NOT_BUILT_VALUES, OTHER_NAMES
from difftrain.config.known_keys.run_keys import RUN_TABLES

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
