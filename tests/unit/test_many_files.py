"""Long lists of files are worked on in order, wherever that is done."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from difftrain.data.scanning import many_files
from difftrain.data.scanning.many_files import ManyFiles
from difftrain.machine.garbage import give_back_memory


def doubled(part):
    return [2 * one for one in part]


def process_of(part):
    return [os.getpid() for _ in part]


def doubled_unless_killed(part):
    """Die on one part, but not in the test's own process."""
    if 700 in part and multiprocessing.parent_process() is not None:
        os.kill(os.getpid(), signal.SIGKILL)
    return doubled(part)


def results_of(files, work, items, **how):
    return [result for part, results in files.work(work, items, **how) for result in results]


@pytest.mark.parametrize("may_leave", [True, False])
@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 1300])
def test_results_come_in_order(count, may_leave, monkeypatch):
    monkeypatch.setattr(many_files, "FEWEST_FOR_PROCESSES", 1000)
    with ManyFiles(count) as files:
        assert results_of(files, doubled, range(count), may_leave=may_leave) == doubled(range(count))


def test_many_files_are_read_in_several_processes_and_few_in_this_one(monkeypatch):
    monkeypatch.setattr(many_files, "FEWEST_FOR_PROCESSES", 1000)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    with ManyFiles(3000) as files:
        assert os.getpid() not in results_of(files, process_of, range(3000), may_leave=True)
        assert set(results_of(files, process_of, range(3000))) == {os.getpid()}
    with ManyFiles(900) as files:
        assert set(results_of(files, process_of, range(900), may_leave=True)) == {os.getpid()}


def test_a_reader_that_dies_loses_nothing(monkeypatch):
    monkeypatch.setattr(many_files, "FEWEST_FOR_PROCESSES", 1000)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    with ManyFiles(3000) as files:
        assert results_of(files, doubled_unless_killed, range(3000), may_leave=True) == doubled(range(3000))
        assert set(results_of(files, process_of, range(3000), may_leave=True)) == {os.getpid()}


def process_unless_killed(is_killed):
    """Die if told so, but not in the test's own process."""
    if is_killed and multiprocessing.parent_process() is not None:
        os.kill(os.getpid(), signal.SIGKILL)
    return os.getpid()


def test_one_item_is_worked_on_aside_and_here_if_the_process_dies(monkeypatch):
    monkeypatch.setattr(many_files, "FEWEST_FOR_PROCESSES", 5)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    with ManyFiles(0) as files:
        files.start_for(9)
        assert not files.have_started, "half of them may be captions"
        files.start_for(10)
        assert files.have_started
        assert files.aside(process_unless_killed, False)() != os.getpid()
        assert files.aside(process_unless_killed, True)() == os.getpid()
        assert files.aside(process_unless_killed, False)() == os.getpid()
        assert results_of(files, process_of, range(600), may_leave=True) == 600 * [os.getpid()]


def test_names_that_the_cache_of_attributes_keeps_are_let_go():
    name = "".join(
        ["a ", "name"]
    )  # as results from other processes bring that of their class, each in a text of its own
    holders = sys.getrefcount(name)
    getattr(ManyFiles, name, None)
    give_back_memory()
    assert sys.getrefcount(name) == holders


def test_only_slow_files_are_read_in_threads():
    threads = set()

    def slowly(part):
        threads.add(threading.current_thread())
        time.sleep(0.001 * len(part))
        return list(part)

    with ManyFiles(200) as files:
        assert results_of(files, slowly, range(200), slow=0.1) == list(range(200))
        assert threads == {threading.current_thread()}
        assert results_of(files, slowly, range(200), slow=0.0005) == list(range(200))
    assert len(threads) > 1


ENDLESS = """
import sys, time
from difftrain.data.scanning import many_files

def forever(part):
    print("begun", flush=True)
    time.sleep(600)
    return part

if __name__ == "__main__":
    many_files.FEWEST_FOR_PROCESSES = 1
    with many_files.ManyFiles(5000) as files:
        for part, _ in files.work(forever, range(5000), may_leave=True):
            print(part)
"""


def running(process):
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes as Linux shows them")
def test_processes_end_with_one_that_is_killed(tmp_path):
    script = tmp_path / "endless.py"
    script.write_text(ENDLESS)
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout.readline() == "begun\n"
        children = [int(name) for name in Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()]
        readers = [child for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]
        assert readers
        parent.kill()
    until = time.monotonic() + 60
    while any(map(running, readers)) and time.monotonic() < until:
        time.sleep(0.05)
    left = [reader for reader in readers if running(reader)]
    for reader in left:
        os.kill(reader, signal.SIGKILL)
    assert left == []
