"""Plants known faults, one at a time, and checks whether the tests catch them. Run by hand: ``make mutants``.

Each fault in ``tools/planted_faults/*.toml`` undoes one piece of wiring: an option that is read and then dropped, a
check that is never made. A fault that no test catches shows that a test is missing. The tested tree is a copy
in a temporary folder; the working tree is never touched. Why the faults are written by hand:
``docs/adr/006-planted-faults-by-hand.md``.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FAULTS = ROOT / "tools" / "planted_faults"
PACKAGES = ("core", "plugins/flux", "plugins/flux_kontext", "plugins/conditioning_generators")
PATIENCE = 900
"""Seconds for the tests of one fault; a fault that makes them hang is caught."""
_FAILED = re.compile(r"^(?:FAILED|ERROR) ([^\s\[]+)", re.MULTILINE)
"""A test without its parameters, whose text may contain anything."""
_OF_THE_FAULTS = "tests/unit/test_planted_faults.py"
"""Fails with every fault, because the text to replace is gone."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One replacement of text that breaks the trainer."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    """Arguments for pytest: the tests most likely to catch it; none means the whole suite."""

    def plant(self, tree: Path) -> None:
        """Write the fault into a copy of the tree.

        Raises:
            FaultError: If the text to replace does not occur exactly once.
        """
        path = tree / self.file
        count = path.read_text(encoding="utf-8").count(self.old) if path.is_file() else 0
        if count != 1:
            raise FaultError(f"{self.name}: the text to replace occurs {count} times in {self.file}")
        path.write_text(path.read_text(encoding="utf-8").replace(self.old, self.new), encoding="utf-8")


class FaultError(Exception):
    """A fault cannot be planted, or its tests do not run."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The result of testing one fault."""

    fault: Fault
    caught_by: str
    """The first test that failed; empty if the fault is alive."""
    seconds: float


def main() -> int:
    """Try the faults; return 0 if all are caught, 1 if one is alive, 2 if one cannot be tried."""
    arguments = _arguments()
    try:
        faults = _chosen(read_faults(FAULTS), arguments.only)
        if arguments.list:
            print("\n".join(f"{fault.name}  {fault.file}" for fault in faults))
            return 0
        with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
            _check_that_all_apply(faults, Path(folder))
            verdicts = _try_all(faults, Path(folder), arguments.jobs)
            _check_without_faults(verdicts, Path(folder))
    except FaultError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table(verdicts))
    alive = [verdict.fault.name for verdict in verdicts if not verdict.caught_by]
    print(f"{len(verdicts)} faults, {len(verdicts) - len(alive)} caught, {len(alive)} alive", *alive)
    return 1 if alive else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Plant known faults and see whether the tests catch them.")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="one fault; may be repeated")
    parser.add_argument("--list", action="store_true", help="only list the faults")
    parser.add_argument("--jobs", type=int, default=2, help="faults to try at once (default: 2)")
    return parser.parse_args()


def read_faults(folder: Path) -> list[Fault]:
    """Return all faults, in the order of the files.

    Raises:
        FaultError: If two have the same name.
    """
    faults = []
    for path in sorted(folder.glob("*.toml")):
        for entry in tomllib.loads(path.read_text(encoding="utf-8"))["fault"]:
            faults.append(Fault(**{**entry, "tests": tuple(entry["tests"])}))
    names = [fault.name for fault in faults]
    if doubled := {name for name in names if names.count(name) > 1}:
        raise FaultError(f"two faults have one name: {', '.join(sorted(doubled))}")
    return faults


def _chosen(faults: Sequence[Fault], names: Sequence[str]) -> list[Fault]:
    unknown = set(names) - {fault.name for fault in faults}
    if unknown:
        raise FaultError(f"no fault is called {', '.join(sorted(unknown))}; see --list")
    return [fault for fault in faults if not names or fault.name in names]


def _check_that_all_apply(faults: Sequence[Fault], folder: Path) -> None:
    for fault in faults:
        copied = folder / "check" / fault.file
        copied.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / fault.file).is_file():
            shutil.copy(ROOT / fault.file, copied)
        fault.plant(folder / "check")


def _check_without_faults(verdicts: Sequence[Verdict], folder: Path) -> None:
    """Check that the tests that caught a fault pass without one; otherwise they would prove nothing.

    Raises:
        FaultError: Names the test that fails by itself.
    """
    tests = sorted({verdict.caught_by for verdict in verdicts if verdict.caught_by.startswith("tests/")})
    if tests:
        print(f"the {len(tests)} tests that caught something, without a fault", flush=True)
        failed, said = _run_tests(_copied_tree(folder, "whole"), tests)
        if failed is not None:
            raise FaultError(f"a test fails without a fault: {failed}\n{said}")


def _try_all(faults: Sequence[Fault], folder: Path, jobs: int) -> list[Verdict]:
    started = time.monotonic()
    verdicts = {}
    with ThreadPoolExecutor(max_workers=jobs) as pool:
        running = {pool.submit(_try, fault, folder): fault for fault in faults}
        for number, future in enumerate(as_completed(running), 1):
            verdict = future.result()
            verdicts[verdict.fault.name] = verdict
            left = (time.monotonic() - started) / number * (len(faults) - number)
            told = f"caught by {verdict.caught_by}" if verdict.caught_by else "ALIVE"
            print(f"[{number}/{len(faults)}, {left:.0f} s left] {verdict.fault.name}: {told}", flush=True)
    return [verdicts[fault.name] for fault in faults]


def _try(fault: Fault, folder: Path) -> Verdict:
    started = time.monotonic()
    tree = _copied_tree(folder, fault.name)
    fault.plant(tree)
    failed, _ = _run_tests(tree, fault.tests)
    shutil.rmtree(tree, ignore_errors=True)
    return Verdict(fault=fault, caught_by=failed or "", seconds=time.monotonic() - started)


def _copied_tree(folder: Path, name: str) -> Path:
    """Copy the working tree's files, except those that git ignores."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True,
        check=True,
    )  # fmt: skip
    tree = folder / name
    for relative in filter(None, listed.stdout.decode().split("\0")):
        source, copied = ROOT / relative, tree / relative
        if source.is_file():
            copied.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, copied)
    return tree


def _run_tests(tree: Path, tests: Sequence[str]) -> tuple[str | None, str]:
    """Return the first failed test (None if all passed) and the end of pytest's output.

    Raises:
        FaultError: If no test was run.
    """
    # this path comes before the tree of an editable installation
    packages = os.pathsep.join(str(tree / package) for package in PACKAGES)
    environment = {**os.environ, "PYTHONPATH": packages, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-m", "not learning", "-p", "no:cacheprovider"]
    command += ["--ignore", _OF_THE_FAULTS, *tests]
    try:
        ended = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        return f"no test ended within {PATIENCE} s", ""
    said = (ended.stdout + ended.stderr)[-3000:]
    if ended.returncode == 0:
        return None, said
    failures = _FAILED.findall(ended.stdout)
    if ended.returncode not in (1, 2) or not failures:
        raise FaultError(f"{' '.join(tests)}: pytest ended with {ended.returncode}\n{said}")
    return failures[0], said


def table(verdicts: Sequence[Verdict]) -> str:
    """Rows of fault, file, first failing test and seconds, in columns."""
    rows = [("fault", "file", "caught by", "seconds")]
    for verdict in verdicts:
        caught_by = verdict.caught_by.removeprefix("tests/") or "ALIVE"
        rows.append((verdict.fault.name, verdict.fault.file, caught_by, f"{verdict.seconds:.0f}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


if __name__ == "__main__":
    sys.exit(main())
