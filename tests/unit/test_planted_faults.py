"""The planted faults of ``make mutants`` can still be planted, and the runner reports them correctly."""

import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def mutants():
    """Return the module ``tools/mutants.py``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "tools")
        return importlib.import_module("mutants")


def test_every_fault_can_be_planted_and_changes_something(mutants):
    wrong = [
        f"{fault.name}: its text occurs {count} times in {fault.file}"
        for fault in mutants.read_faults(mutants.FAULTS)
        if (count := (ROOT / fault.file).read_text().count(fault.old)) != 1 or fault.old == fault.new
    ]
    assert wrong == []


def test_every_fault_names_tests_that_are_there(mutants):
    missing = []
    for fault in mutants.read_faults(mutants.FAULTS):
        for named in fault.tests:
            file, _, function = named.partition("::")
            text = (ROOT / file).read_text() if (ROOT / file).is_file() else ""
            if f"def {function}(" not in text and not (text and not function):
                missing.append(f"{fault.name}: {named}")
    assert missing == []


def fault(mutants, **fields):
    values = {"name": "a", "file": "code.py", "old": "one", "new": "two", "tests": ("tests/a.py",)}
    return mutants.Fault(**{**values, **fields})


def test_a_fault_is_planted_in_the_copy(mutants, tmp_path):
    (tmp_path / "code.py").write_text("x = one\n")
    fault(mutants).plant(tmp_path)
    assert (tmp_path / "code.py").read_text() == "x = two\n"


@pytest.mark.parametrize("content", ["x = 1\n", "one = one\n", None])
def test_a_fault_that_does_not_apply_once_is_an_error_that_names_it(mutants, tmp_path, content):
    if content is not None:
        (tmp_path / "code.py").write_text(content)
    with pytest.raises(mutants.FaultError, match=r"a: the text to replace occurs [02] times in code\.py"):
        fault(mutants).plant(tmp_path)


def test_two_faults_of_one_name_are_an_error(mutants, tmp_path):
    entry = '[[fault]]\nname = "a"\nfile = "code.py"\nold = "one"\nnew = "two"\ntests = []\n'
    (tmp_path / "faults.toml").write_text(entry * 2)
    with pytest.raises(mutants.FaultError, match="two faults have one name: a"):
        mutants.read_faults(tmp_path)


def test_the_first_test_that_failed_is_named_without_its_parameters(mutants):
    said = "FAILED tests/a.py::test_b[the text - has spaces] - AssertionError\nFAILED tests/a.py::test_c - KeyError\n"
    assert mutants._FAILED.findall(said) == ["tests/a.py::test_b", "tests/a.py::test_c"]


def test_the_table_tells_which_fault_is_alive(mutants):
    caught = mutants.Verdict(fault=fault(mutants), caught_by="tests/unit/test_a.py::test_b", seconds=2.4)
    alive = mutants.Verdict(fault=fault(mutants, name="longer"), caught_by="", seconds=10.0)
    assert mutants.table([caught, alive]).splitlines() == [
        "fault   file     caught by               seconds",
        "a       code.py  unit/test_a.py::test_b  2",
        "longer  code.py  ALIVE                   10",
    ]
