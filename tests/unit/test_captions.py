"""Caption files as they come: their encodings, their lines, and names that nearly match."""

import subprocess

import pytest
from data_plans import SilentReporter, caption, data_plan, new_image, target_set

from difftrain import DataError
from difftrain.data.files.captions import TextfileCaptions
from difftrain.data.files.local_image import LocalImage
from difftrain.data.samples.prepare_samples import prepare_samples

ENGLISH = "make the sky blue, and add a boat"
GERMAN = "m\u00e4che den Himmel gr\u00fcner, f\u00fcge ein Caf\u00e9 hinzu"
CHINESE = "\u628a\u5929\u7a7a\u53d8\u6210\u84dd\u8272\uff0c\u52a0\u4e00\u6761\u8239"
RUSSIAN = "\u0441\u0434\u0435\u043b\u0430\u0439 \u043d\u0435\u0431\u043e \u0441\u0438\u043d\u0438\u043c"
JAPANESE = "\u7a7a\u3092\u9752\u304f\u3057\u3066\u304f\u3060\u3055\u3044"


def prepare(root, **options):
    return prepare_samples(data_plan(root, target_set(root, **options)), reporter=SilentReporter())


def problem_of(root, **options):
    with pytest.raises(DataError) as raised:
        prepare(root, **options)
    return str(raised.value)


def captions_of(root, data):
    (root / "a.txt").write_bytes(data)
    return TextfileCaptions().captions(LocalImage.at(root / "a.png"))


@pytest.mark.parametrize(
    ("text", "codec", "named"),
    [
        (ENGLISH, "utf-16", "UTF-16"), (GERMAN, "utf-16", "UTF-16"), (ENGLISH, "utf-32", "UTF-32"),
        (ENGLISH, "utf-16-le", "UTF-16LE"), (ENGLISH, "utf-16-be", "UTF-16BE"), (GERMAN, "utf-16-le", "UTF-16LE"),
        (ENGLISH, "utf-32-le", "UTF-32LE"), (ENGLISH, "utf-32-be", "UTF-32BE"),
        (GERMAN, "cp1252", "CP1252"), (GERMAN, "latin-1", "CP1252"), ("50 \u20ac \u2013 caf\u00e9", "cp1252", "CP1252"),
        (CHINESE, "gb18030", "GB18030"), (CHINESE, "gbk", "GB18030"), (RUSSIAN, "cp1251", "CP1251"),
        (JAPANESE, "shift_jis", "SHIFT_JIS"),
    ],
)  # fmt: skip
def test_other_encodings_are_named_with_a_remedy_that_works(tmp_path, text, codec, named):
    with pytest.raises(DataError, match=f"not UTF-8 but probably {named}\n") as raised:
        captions_of(tmp_path, text.encode(codec))
    remedy = str(raised.value).partition("hint: ")[2]
    subprocess.run(["/bin/sh", "-c", remedy], check=True, cwd=tmp_path)
    assert TextfileCaptions().captions(LocalImage.at(tmp_path / "a.png")) == (text,)


@pytest.mark.parametrize("text", [ENGLISH, GERMAN, CHINESE, RUSSIAN, JAPANESE])
@pytest.mark.parametrize("codec", ["utf-8", "utf-8-sig"])
def test_utf8_is_read_with_and_without_a_mark(tmp_path, text, codec):
    assert captions_of(tmp_path, text.encode(codec)) == (text,)


def test_nul_bytes_are_no_caption(tmp_path):
    with pytest.raises(DataError, match="contains NUL bytes"):
        captions_of(tmp_path, b"make it red\0\0\0 and blue")


@pytest.mark.parametrize("data", [b"", b"\n \n", b"\xef\xbb\xbf"])
def test_a_file_without_words_is_the_empty_caption(tmp_path, data):
    assert captions_of(tmp_path, data) == ("",)


def test_many_captions_of_another_encoding_are_one_problem_with_one_remedy(tmp_path):
    for number in range(6):
        path = new_image(tmp_path / "edits" / f"{number}.png")
        path.with_suffix(".txt").write_bytes(GERMAN.encode("cp1252"))
    message = problem_of(tmp_path)
    assert message.startswith("dataset 'edits': 6 captions cannot be read: ")
    assert message.count("hint:") == message.count("iconv") == 1


def test_captions_split_into_lines_are_counted(tmp_path):
    caption(new_image(tmp_path / "edits" / "a.png", seed=1), "red\nblue")
    caption(new_image(tmp_path / "edits" / "b.png", seed=2), "red")
    [note] = prepare(tmp_path).notes
    assert note.startswith("dataset 'edits': 1 images have several captions, one per line of their caption file")


@pytest.mark.parametrize(
    ("near", "advice"),
    [
        ("cat.TXT", "rename cat.TXT to cat.txt"),
        ("cat.caption", "rename cat.caption to cat.txt"),
        ("cat.text", "rename cat.text to cat.txt"),
        ("cat.png.txt", "rename cat.png.txt to cat.txt"),
        ("Cat.txt", "rename Cat.txt to cat.txt"),
        ("cat .txt", "rename cat .txt to cat.txt"),
        ("captions/cat.txt", "move captions/cat.txt to cat.txt"),
        ("cat.json", "cat.json is not read"),
        ("metadata.jsonl", "metadata.jsonl is not read: set caption_strategy = jsonl"),
        ("captions.csv", 'captions.csv is not read: set caption_strategy = csv and "csv": {"path": ...}'),
        ("captions.txt", "captions.txt is not read: put each caption into its own file"),
        ("metadata.csv", "metadata.csv is not read"),
    ],
)
def test_near_misses_are_pointed_at_where_a_caption_is_missing(tmp_path, near, advice):
    path = new_image(tmp_path / "edits" / "cat.png")
    if path.with_name("CAT.PNG").exists():
        pytest.skip("names that differ in case only are the same here")
    (path.parent / near).parent.mkdir(exist_ok=True)
    (path.parent / near).write_text("a cat")
    message = problem_of(tmp_path)
    assert "1 of 1 images have no caption: cat.png" in message
    assert advice in message


def test_accents_of_the_other_form_are_pointed_at(tmp_path):
    new_image(tmp_path / "edits" / "caf\u00e9.png")
    (tmp_path / "edits" / "cafe\u0301.txt").write_text("a place")
    message = problem_of(tmp_path)
    assert "1 of 1 images have no caption" in message
    assert "in another Unicode form" in message


def test_thousands_of_near_misses_stay_one_short_message(tmp_path):
    for number in range(40):
        path = new_image(tmp_path / "edits" / f"{number:03}.png", (32, 32))
        path.with_suffix(".caption").write_text("red")
    message = problem_of(tmp_path)
    assert "rename 000.caption to 000.txt, and so on for 40 files" in message
    assert len(message) < 500
