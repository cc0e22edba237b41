"""The shape of the packages: no import cycles, small folders, unique module names."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MOST_MODULES = 14
PACKAGES = {
    path.name: path
    for path in (ROOT / "core/difftrain", *(ROOT / "plugins").glob("*/difftrain_*"))
    if (path / "__init__.py").is_file()
}


def modules(package: Path) -> dict[str, Path]:
    """Return dotted names and files of a package's modules; a package in it stands for its `__init__.py`."""
    names = {}
    for path in package.rglob("*.py"):
        parts = path.relative_to(package.parent).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


MODULES = {name: path for package in PACKAGES.values() for name, path in modules(package).items()}


def imports(path: Path, known: dict[str, Path]) -> Iterator[str]:
    """Return every module that a file imports: at its top, within functions, or only for type checkers."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield from (name for name in (inner if inner in known else node.module,) if name in known)


def first_circle(known: dict[str, Path]) -> list[str]:
    graph = {name: set(imports(path, known)) - {name} for name, path in known.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        circle: list[str] = error.args[1]
        return circle
    return []


def test_no_modules_import_each_other_in_a_circle():
    assert first_circle(MODULES) == []


@pytest.mark.parametrize(
    "second", ["def f():\n    from a import one\n", "import typing\nif typing.TYPE_CHECKING:\n    import a.one\n"]
)
def test_a_circle_of_late_or_type_imports_is_found(tmp_path, second):
    package = tmp_path / "a"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "one.py").write_text("from a.two import f\n")
    (package / "two.py").write_text(second)
    assert sorted(set(first_circle(modules(package)))) == ["a.one", "a.two"]


def test_no_folder_has_too_many_modules():
    counts = Counter(path.parent for path in MODULES.values() if path.name != "__init__.py")
    assert {str(folder): count for folder, count in counts.items() if count > MOST_MODULES} == {}


@pytest.mark.parametrize("package", PACKAGES)
def test_no_name_of_a_module_comes_twice(package):
    names = Counter(name.rpartition(".")[2] for name in modules(PACKAGES[package]) if name != package)
    assert [name for name, count in names.items() if count > 1] == []


def listed(package: Path) -> list[str]:
    """Return the modules that a package's docstring lists: lines such as ``- `name`: what it does``."""
    text = ast.get_docstring(ast.parse((package / "__init__.py").read_text(encoding="utf-8"))) or ""
    return [line.split("`")[1] for line in text.splitlines() if line.startswith("- `")]


@pytest.mark.parametrize(
    "package",
    [
        path.parent
        for name, path in MODULES.items()
        if path.name == "__init__.py" and name not in ("difftrain", "difftrain.demo") and name.startswith("difftrain.")
    ],
    ids=lambda path: path.relative_to(ROOT).as_posix(),
)
def test_every_package_lists_its_modules(package):
    there = {path.stem for path in package.glob("*.py")} | {path.parent.name for path in package.glob("*/__init__.py")}
    assert sorted(listed(package)) == sorted(there - {"__init__"})
