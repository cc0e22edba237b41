"""``difftrain plugins``: what is installed, what each gives, and why one failed."""

from __future__ import annotations

import json
from dataclasses import asdict

from difftrain.cli.invocation import Invocation
from difftrain.plugins.load import PluginStatus


def list_plugins(invocation: Invocation) -> int:
    """Print every plugin; the status is 0 even when one failed, as the list could be made."""
    statuses = invocation.plugins.statuses
    if invocation.json:
        print(json.dumps([asdict(status) for status in statuses], indent=2))
        return 0
    for status in statuses:
        print(_described(status))
    return 0


def _described(status: PluginStatus) -> str:
    lines = [f"{status.name}  {status.status}  {status.giver}"]
    if status.error is not None:
        reason = "turned off by" if status.status == "disabled" else "failed:"
        lines.append(f"    {reason} {status.error}")
    lines += [f"    {kind}: {', '.join(names)}" for kind, names in status.provides.items()]
    return "\n".join(lines)
