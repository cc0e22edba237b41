"""``difftrain``: train."""

from __future__ import annotations

from difftrain.cli.invocation import Invocation
from difftrain.errors import ConfigError


def train(invocation: Invocation) -> int:
    """Plan, then train; gives the exit status.

    Raises:
        DifftrainError: Whatever the user can mend.
    """
    if invocation.json:
        raise ConfigError("--json belongs to `difftrain check` and `difftrain plugins`")
    plan = invocation.plan()
    # only now torch: everything that the config can have wrong is known, and was known fast
    from difftrain.train.run import run_training

    return run_training(plan)
