"""``difftrain plugins``: what is installed, what each plugin provides, and why one failed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from difftrain.cli.invocation import Invocation
from difftrain.plugins.discovery import PluginStatus
from difftrain.plugins.registry import Registry


def list_plugins(invocation: Invocation) -> int:
    """Print every plugin; the status is 0 even if one failed, because listing them worked."""
    statuses = invocation.plugins.statuses
    if invocation.json:
        print(json.dumps([asdict(status) for status in statuses], indent=2))
        return 0
    for status in statuses:
        print(_described(status, invocation.plugins.registry))
    return 0


def _described(status: PluginStatus, registry: Registry) -> str:
    lines = [f"{status.name}  {status.status}  {status.provider}"]
    if status.error is not None:
        reason = "turned off by" if status.status == "disabled" else "failed:"
        lines.append(f"    {reason} {status.error}")
    lines += [f"    {kind}: {_listed(kind, names, registry)}" for kind, names in status.provides.items()]
    return "\n".join(lines)


def _listed(kind: str, names: Sequence[str], registry: Registry) -> str:
    """Return ``blur (also soften), noise``: each class once, with its aliases after its name."""
    of_class: dict[type, list[str]] = {}
    for name in names:
        of_class.setdefault(registry.all(kind)[name], []).append(name)
    return ", ".join(
        name + (f" (also {', '.join(aliases)})" if aliases else "") for name, *aliases in of_class.values()
    )
