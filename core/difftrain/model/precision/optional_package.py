"""Packages that only some precisions need."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def lacking(package: str, lowest: tuple[int, int]) -> str | None:
    """Return what is wrong with a package and how to get it, or None if it is installed in a version that works.

    Args:
        package: Its name for pip, which is also the module's.
        lowest: Version that is needed, the first two numbers of it.
    """
    wanted = ".".join(map(str, lowest))
    command = f"install it with `pip install '{package}>={wanted}'`"
    try:
        found = version(package)
    except PackageNotFoundError:
        return f"needs the package {package}; {command}"
    numbers = [int(part) for part in found.split(".")[:2] if part.isdecimal()]
    return f"needs {package} {wanted} or newer, and {found} is installed; {command}" if numbers < [*lowest] else None
