"""Writes run files and dataset lists, and plans them with the bundled plugins, for the tests of the config."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from difftrain.errors import DifftrainError
from difftrain.planning.run_plan import RunPlan, plan_run
from difftrain.plugins.discovery import load_plugins

USERS_FILES = Path(__file__).parent / "users_files"
PLUGINS = load_plugins()


def run_values(**changes):
    """Return a valid run with changes; a change to ``...`` leaves the key out."""
    values = {
        "model_family": "flux",
        "model_flavour": "kontext",
        "max_train_steps": 10,
        "learning_rate": 1e-4,
        "data_backend_config": "datasets.json",
        **changes,
    }
    return {key: value for key, value in values.items() if value is not ...}


def target_set(**changes):
    """Return a valid target set with changes."""
    values = {"id": "edits", "instance_data_dir": "edits", "caption_strategy": "textfile", **changes}
    return {key: value for key, value in values.items() if value is not ...}


def reference_set(**changes):
    """Return a valid reference set with changes."""
    values = {"id": "refs", "instance_data_dir": "refs", "conditioning_type": "reference_strict", **changes}
    return {key: value for key, value in values.items() if value is not ...}


def pair(**changes):
    """Return a target set and its reference set."""
    return [target_set(conditioning_data="refs", **changes), reference_set()]


def plan(run=None, datasets=None, **flags) -> RunPlan:
    """Plan a run whose files are written into the current directory."""
    Path("config.json").write_text(run if isinstance(run, str) else json.dumps(run or run_values()))
    Path("datasets.json").write_text(datasets if isinstance(datasets, str) else json.dumps(datasets or pair()))
    return plan_run(Path("config.json"), flags, plugins=PLUGINS)


def error_of(run=None, datasets=None, **flags) -> str:
    """Return the message of a run that cannot be planned."""
    with pytest.raises(DifftrainError) as caught:
        plan(run, datasets, **flags)
    return str(caught.value)
