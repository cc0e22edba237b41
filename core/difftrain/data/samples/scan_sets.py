"""Scans all datasets of a run: while one is turned into records, processes already read the files of the next."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeVar

from difftrain.data.entries.data_plan import DataPlan
from difftrain.data.samples.audit import audit_contents
from difftrain.data.samples.findings import Findings
from difftrain.data.samples.remembered import DataMemory
from difftrain.data.scanning.image_index import ImageIndex
from difftrain.data.scanning.scan import BegunScan, Scan, begin_scan, finish_scan
from difftrain.errors import DataError
from difftrain.types import Finding, Reporter

_Result = TypeVar("_Result")


def scan_sets(
    plan: DataPlan,
    index: ImageIndex,
    reporter: Reporter,
    findings: Findings,
    *,
    memory: DataMemory | None = None,
) -> dict[str, Scan]:
    """Return the scans of those datasets that could be read, by id.

    Args:
        memory: Looks at the files of each dataset before they are listed.

    Raises:
        DataError: With every problem, if some could not.
    """
    scans: dict[str, Scan] = {}

    def start_readers(files: int) -> None:
        assert memory is not None, "see below"
        memory.look_ahead(index.readers_for_files(files))

    with index.shared_readers():
        begun: list[BegunScan | DataError] = []
        for dataset in plan.datasets:
            if memory is not None:
                memory.look_at(dataset, start_readers)  # while it looks, they start: that takes them a while
            begun.append(_or_error(partial(begin_scan, dataset, index, written=plan.written_folders)))
        for dataset in plan.datasets:
            one = begun.pop(0)  # what it holds is let go before the next one is finished
            scanned = one if isinstance(one, DataError) else _or_error(partial(finish_scan, one, reporter))
            if isinstance(scanned, DataError):
                for problem in scanned.problems:
                    findings.found.append(Finding.of_message("no_source", "problem", dataset.id, problem))
                continue
            scans[dataset.id] = scanned
            findings.found += scanned.findings
            for option, count in scanned.left_out.items():
                findings.note("left_out", dataset.id, f"{count} images are left out by {option}")
            if not dataset.is_reference:
                audit_contents(findings, dataset.id, scanned)
            findings.pack()  # now, while processes read the next dataset
    if len(scans) < len(plan.datasets):
        findings.raise_problems()
    return scans


def _or_error(work: Callable[[], _Result]) -> _Result | DataError:
    try:
        return work()
    except DataError as error:
        return error
