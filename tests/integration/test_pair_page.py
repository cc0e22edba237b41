"""The page in a headless Chromium. Skipped where there is none; set DIFFTRAIN_CHROMIUM to name one."""

import shutil

import pytest

from browser import opened_browser
from conftest import run_in
from difftrain.doctor.kinds import KINDS
from difftrain.doctor.page import write_page
from difftrain.doctor.page_rows import COLUMNS
from pictures_of_pairs import edited, faulty_pairs, view, write_config, write_pair

HOSTILE = ["<script>alert(1)<", "quote\"'&amp;", "line\nbreak", "שלום"]
CAPTION = "</script><img src=x onerror=alert(1)> make it red"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with opened_browser(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture(scope="module")
def address(browser, tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    faulty_pairs(root)
    for name in HOSTILE:
        write_pair(root, name, view("cat", right=80), edited(view("cat", right=80)), CAPTION)
    ended = run_in(root, "check", "--html", "page", *write_config(root))
    assert ended.status == 0, ended.err
    yield (root / "page" / "index.html").as_uri()
    shutil.rmtree(root / "page")


def rows(browser):
    return browser.run("[...document.querySelectorAll('.row .name')].map((one) => one.textContent)")


def shown(browser):
    return browser.run("document.getElementById('shown').textContent")


def test_hostile_names_and_captions_are_text(browser, address):
    browser.problems.clear()
    browser.open(f"{address}#text=onerror")
    assert sorted(rows(browser)) == sorted(f"{name}.png" for name in HOSTILE)
    captions = browser.run("[...document.querySelectorAll('.row .caption')].map((one) => one.textContent)")
    assert captions == [CAPTION] * len(HOSTILE)
    assert browser.run("document.querySelectorAll('main script, main img[src=x]').length") == 0
    assert browser.problems == []


def test_nothing_is_asked_from_the_network(browser, address):
    browser.requests.clear()
    browser.open(address)
    browser.wait_for("[...document.images].some((one) => one.complete && one.naturalWidth > 0)")
    assert all(one.startswith(("file:", "about:", "data:")) for one in browser.requests)
    assert browser.run("[...document.images].every((one) => one.loading === 'lazy')")


def test_a_finding_filters_its_pairs(browser, address):
    browser.open(address)
    browser.run("document.querySelector('#findings button[data-kind=near_equal]').click()")
    assert rows(browser) == ["near_equal.png"]
    assert shown(browser) == "1 of 14"
    assert browser.run("location.hash") == "#kind=near_equal"
    browser.run("document.getElementById('reset').click()")
    assert shown(browser) == "14 of 14"


def test_sorting_by_difference_puts_copies_first(browser, address):
    browser.open(f"{address}#sort=difference")
    assert rows(browser)[:2] == ["no_edit.png", "near_equal.png"]


def test_the_crop_box_lies_where_training_crops(browser, address):
    browser.open(f"{address}#text=good")
    box = "document.querySelector('.row .box').getBoundingClientRect()"
    frame = "document.querySelector('.row .box').parentElement.getBoundingClientRect()"
    left, width, top, height = browser.run(
        f"[({box}.left - {frame}.left) / {frame}.width, {box}.width / {frame}.width, "
        f"({box}.top - {frame}.top) / {frame}.height, {box}.height / {frame}.height]"
    )
    bucket, resize = browser.run("[rows[shown[0]][column.bucket], rows[shown[0]][column.crop]]")
    assert (left, top, width, height) == pytest.approx(resize, abs=0.01)
    assert bucket[0] % 32 == bucket[1] % 32 == 0


def test_keys_move_open_and_close(browser, address):
    browser.open(address)
    browser.run("document.getElementById('list').focus()")
    browser.press("ArrowDown")
    second = browser.run("document.querySelector('.row.current .name').textContent")
    assert second == rows(browser)[1]
    browser.press("Enter")
    assert browser.run("document.getElementById('large').open")
    browser.press("ArrowRight")
    assert browser.run("document.querySelector('dialog .name').textContent") == rows(browser)[2]
    browser.press("Escape")
    assert not browser.run("document.getElementById('large').open")
    browser.press("/", "/")
    assert browser.run("document.activeElement.id") == "text"


@pytest.mark.parametrize("width", [420, 1000, 1600])
@pytest.mark.parametrize("dark", [False, True])
def test_nothing_overflows(browser, address, width, dark):
    browser.open(address, width=width, dark=dark)
    assert browser.run("document.documentElement.scrollWidth <= innerWidth")
    low = browser.run("[...document.querySelectorAll('.row')].every((one) => one.scrollWidth <= one.clientWidth + 1)")
    assert low
    assert (browser.run("getComputedStyle(document.body).backgroundColor") == "rgb(23, 24, 26)") is dark


def test_twenty_thousand_rows_stay_quick_and_few_exist(browser, tmp_path):
    image = ["edits", "{}.png", [480, 320], [320, 224], [0, 0.02, 1, 0.96], "aa/b.jpg"]
    made = [
        [image[0], f"{number:05}.png", *image[2:], "references", f"{number:05}.png", *image[2:], [f"make it {number}"],
         [], number % 100 / 10, 50, 0, 0, 1]
        for number in range(20_000)
    ]  # fmt: skip
    kinds = [{"kind": kind, "title": title} for kind, title in KINDS.items()]
    data = {"kinds": kinds, "findings": [], "not_checked": [], "facts": {}, "left_out": 0, "columns": list(COLUMNS)}
    page = write_page(tmp_path, {**data, "rows": made})
    browser.open(page.as_uri())
    assert shown(browser) == "20,000 of 20,000"
    assert (
        browser.run("(() => { const start = performance.now(); changed(); return performance.now() - start })()") < 1000
    )
    browser.run("document.getElementById('list').focus()")
    browser.press("End")
    assert browser.run("document.querySelector('.row.current .name').textContent") == "19999.png"
    assert browser.run("document.querySelectorAll('.row').length") < 30
