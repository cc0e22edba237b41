"""A scan that is killed goes on where it stopped, and one statement finds the same rows as many."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from data_plans import SilentReporter, local, new_image

from difftrain.data.scanning import image_index, index_rows, many_files
from difftrain.data.scanning.image_index import ImageIndex

COUNT, CHUNK = 40, 10
SLOW_SCAN = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from data_plans import SilentReporter, local
from difftrain.data.scanning import file_facts, image_index
from difftrain.data.scanning.image_index import ImageIndex
image_index._IMAGES_A_CHUNK = int(sys.argv[4])
content = file_facts._content
read = []
def slowly(image):
    read.append(image)
    print(len(read), flush=True)
    if len(read) > 25:
        time.sleep(60)
    return content(image)
file_facts._content = slowly
with ImageIndex(Path(sys.argv[2])) as index, SilentReporter().phase("scan") as phase:
    index.examine(local(sorted(Path(sys.argv[3]).iterdir())), phase)
"""


def test_a_killed_scan_goes_on_where_it_stopped(tmp_path):
    files = [new_image(tmp_path / "images" / f"{number:03}.png", (16, 16), seed=number) for number in range(COUNT)]
    arguments = [Path(__file__).parent, tmp_path / "index.sqlite", tmp_path / "images", CHUNK]
    scan = subprocess.Popen([sys.executable, "-c", SLOW_SCAN, *map(str, arguments)], stdout=subprocess.PIPE, text=True)
    assert scan.stdout is not None
    for line in scan.stdout:
        if int(line) > 25:
            break
    time.sleep(0.2)
    os.kill(scan.pid, signal.SIGKILL)
    scan.wait()
    with ImageIndex(tmp_path / "index.sqlite") as index, SilentReporter().phase("scan") as phase:
        facts = index.examine(local(files), phase)
        assert index.hashed == COUNT - 2 * CHUNK  # the third chunk was not complete
        assert index.notes == []
    assert len({one.content_hash for one in facts}) == COUNT


HOSTILE = ["a'b.png", 'a"b.png', "a%b.png", "a_b.png", "a\nb.png", "é.png", "z\udcff.png", "日本.png", "-- x.png"]


@pytest.mark.parametrize("is_sorted", [True, False], ids=["one statement", "many statements"])
def test_rows_are_found_in_any_order_and_under_any_name(tmp_path, is_sorted, monkeypatch):
    monkeypatch.setattr(index_rows, "_IMAGES_A_QUERY", 3)
    for number, name in enumerate(HOSTILE):
        new_image(tmp_path / "plain.png", (16, 16), seed=number).rename(tmp_path / name)
    images = local([tmp_path / name for name in sorted(HOSTILE, reverse=not is_sorted)])
    with SilentReporter().phase("scan") as phase, ImageIndex(tmp_path / "index.sqlite") as index:
        first = index.examine(images, phase)
        assert index.hashed == len(HOSTILE)
        assert index.examine(images[1:-1], phase) == first[1:-1]
        assert index.examine([images[4], images[1]], phase) == [first[4], first[1]]
        assert index.hashed == len(HOSTILE)
    assert len({one.content_hash for one in first}) == len(HOSTILE)


def test_slow_disks_are_looked_at_in_threads(tmp_path, monkeypatch):
    monkeypatch.setattr(many_files, "_A_TASK", 2)
    files = [new_image(tmp_path / f"{number}.png", (16, 16)) for number in range(12)]
    looked, together = [], []

    def look(image):
        looked.append(image)
        time.sleep(0.02)
        together.append(len(looked) - len(together))
        return image.place

    with many_files.ManyFiles(len(files)) as opened:
        images = local(files)
        assert image_index._look_at(opened, look, images) == [image.place for image in images]
    assert max(together) > 1
