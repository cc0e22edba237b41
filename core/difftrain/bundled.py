"""The core's own objects, registered through the same hooks as a stranger's; found by the entry point ``core``.

Modules named here are light: what they need of torch they import when used.
"""

from __future__ import annotations

from collections.abc import Iterable

from difftrain import contracts
from difftrain.plugins.hookspecs import hookimpl
