"""The page's text: whatever names and captions contain, only JSON that HTML cannot misread holds them."""

import json
import re
from html.parser import HTMLParser

import pytest

from difftrain import ConfigError
from difftrain.doctor.page import MARK, PAGE, as_inert_json, check_page_folder, page_text, write_page

HOSTILE = [
    "<script>alert(1)</script>",
    "</script><img src=x onerror=alert(1)>",
    "<!--<script>",
    "\"'&amp;`${1}",
    "two\nlines\r\u2028\u2029",
    "שלום \u202eevil",
    "\udcff\udc80 not UTF-8",
    "{{script}} {{data}} {{style}}",
]


def data(**more):
    return {"names": HOSTILE, **more}


class Reader(HTMLParser):
    """Notes the tags of a page, and what its data block holds."""

    def __init__(self):
        super().__init__()
        self.tags, self.block, self.inside = [], "", False

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.inside = dict(attributes).get("id") == "data"

    def handle_data(self, text):
        if self.inside:
            self.block += text

    def handle_endtag(self, tag):
        self.inside = False


def read(text):
    reader = Reader()
    reader.feed(text)
    return reader


def test_the_data_survives_and_makes_no_tag():
    plain, hostile = read(page_text({"names": []})), read(page_text(data()))
    assert [tag for tag, _ in hostile.tags] == [tag for tag, _ in plain.tags]
    assert json.loads(hostile.block) == data()


@pytest.mark.parametrize("text", HOSTILE)
def test_json_has_no_character_with_a_meaning_in_html(text):
    written = as_inert_json({text: text})
    assert not re.search(r"[<>&\u2028\u2029]", written)
    assert written.isascii()
    assert json.loads(written) == {text: text}


def test_the_page_asks_for_nothing_from_the_network():
    text = page_text(data())
    addresses = [value for _, given in read(text).tags for key, value in given.items() if key in ("src", "href")]
    assert addresses == []
    assert "http" not in re.sub(r'http-equiv="', "", text)
    assert "default-src 'none'" in text


def test_the_only_script_that_may_run_is_the_page_s_own():
    text = page_text(data())
    policy = re.search(r"script-src ([^;]+);", text).group(1)
    assert re.fullmatch(r"'sha256-[A-Za-z0-9+/=]+'", policy)


def test_a_page_of_someone_else_is_not_replaced(tmp_path):
    (tmp_path / PAGE).write_text("<h1>mine</h1>")
    with pytest.raises(ConfigError, match="was not written by difftrain"):
        check_page_folder(tmp_path, {})


def test_an_earlier_page_is_replaced(tmp_path):
    write_page(tmp_path, {"names": ["old"]})
    check_page_folder(tmp_path, {})
    assert MARK in write_page(tmp_path, data()).read_text()
    assert "old" not in (tmp_path / PAGE).read_text().partition('id="data">')[2].partition("</script>")[0]


@pytest.mark.parametrize("below", [".", "pages", "a/../pages"])
def test_a_page_among_the_data_is_refused(tmp_path, below):
    with pytest.raises(ConfigError, match="lies in instance_data_dir of dataset 'edits'"):
        check_page_folder(tmp_path / below, {"edits": tmp_path})
