"""Keys and values that users' files contain and the options classes do not have. Data only.

A key that is in no options class must be in one of these tables, or it is an error. An options class that defines one
of the keys, or registers one of the names, wins over the tables; a family adds its own with ``known_keys``.

- `key_tables`: the types of the tables
- `run_keys`: keys of the run file that have another name here or are not supported yet
- `idle_keys`: keys of the run file without effect
- `dataset_keys`: keys of a dataset entry
- `known_values`: foreign or unsupported values of keys that exist here
"""

from difftrain.config.known_keys.dataset_keys import DATASET_TABLES, KEYS_OF_TYPE
from difftrain.config.known_keys.key_tables import (
    Idle,
    KnownKeys,
    asks_for_nothing,
    because,
    is_unset,
    means_no_name,
)
from difftrain.config.known_keys.known_values import (
    INSTEAD,
    NO_PRECISIONS,
    NOT_BUILT_VALUES,
    OTHER_NAMES,
    PLAIN_CROP_STYLES,
    PRECISION_KEYS,
    PRECISION_WORDS,
    UNCLEAR_PRECISIONS,
    USUAL_ELSEWHERE,
)
from difftrain.config.known_keys.run_keys import RUN_TABLES

__all__ = [
    "DATASET_TABLES",
    "INSTEAD",
    "KEYS_OF_TYPE",
    "NOT_BUILT_VALUES",
    "NO_PRECISIONS",
    "OTHER_NAMES",
    "PLAIN_CROP_STYLES",
    "PRECISION_KEYS",
    "PRECISION_WORDS",
    "RUN_TABLES",
    "UNCLEAR_PRECISIONS",
    "USUAL_ELSEWHERE",
    "Idle",
    "KnownKeys",
    "asks_for_nothing",
    "because",
    "is_unset",
    "means_no_name",
]
