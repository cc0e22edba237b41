"""README.md and the pages of docs/ are true: their config snippets, plugin, flags, files and make targets work.

The reading order in CONTRIBUTING.md is that of the real calls.
"""

from __future__ import annotations

import ast
import inspect
import re
import tomllib
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import json5
import pytest

from conftest import new_image, run_in
from difftrain.cli.flags import OWN_FLAGS
from difftrain.config.run_options import RunConfig
from difftrain.planning.run_plan import plan_run
from difftrain.plugins.discovery import load_plugins
from difftrain.testing import check_generator

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]

PLUGIN_FILES = {
    "grey.py": (ROOT / "README.md", "class Grey"),
    "posterize.py": (ROOT / "docs" / "plugins.md", "class Posterize"),
    "detail.py": (ROOT / "docs" / "plugins.md", "class Detail"),
    "rows.py": (ROOT / "docs" / "plugins.md", "class JsonImages"),
}
"""Plugins that a page shows in full, in the Python block that defines a class."""
BASE = {"model_family": "flux", "model_flavour": "kontext", "max_train_steps": 1}
PAIRS = [{"id": "photos", "instance_data_dir": "photos", "conditioning": {"type": "superresolution"}}]

FLAGS_OF_OTHER_PROGRAMS = {"exclude", "local-dir"}
USERS_PLACES = ("config/", "data/", "dist/", "models/", "output/", ".venv", "grey.py", "./grey.py", "metrics.jsonl")
"""Files that readers make or find on their own machine."""


@dataclass(frozen=True)
class Snippet:
    """One JSON document of a page: a run file, a dataset list, or one entry of such a list."""

    page: str
    number: int
    value: Any

    def __str__(self) -> str:
        return f"{self.page}-{self.number}"


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def snippets() -> list[Snippet]:
    """Return every document; in a block with several, each follows a comment with a file name."""
    found = []
    for page in PAGES:
        texts = [text for block in blocks(page, "jsonc?") for text in re.split(r"^// \S+\.json$", block, flags=re.M)]
        values = [json5.loads(text) for text in texts if text.strip()]
        name = page.relative_to(ROOT).as_posix()
        found += [Snippet(name, number, value) for number, value in enumerate(values, start=1)]
    return found


@pytest.fixture
def plugin_files(tmp_path, monkeypatch):
    """Write the plugins of all pages into the current folder, as their reader would."""
    monkeypatch.chdir(tmp_path)
    for name, (page, defined) in PLUGIN_FILES.items():
        (block,) = (text for text in blocks(page, "python") if defined in text)
        Path(name).write_text(block, encoding="utf-8")
    return list(PLUGIN_FILES)


def package_of(page: str) -> list[str]:
    """Return the module that a page's own package names as its entry point, if the page belongs to one."""
    project = (ROOT / page).parent / "pyproject.toml"
    if not project.is_file() or project.parent == ROOT:
        return []
    points = tomllib.loads(project.read_text(encoding="utf-8"))["project"]["entry-points"]["difftrain"]
    return [str(project.parent / "src" / Path(*module.split("."))) + ".py" for module in points.values()]


def test_there_are_snippets_to_check():
    assert len([snippet for snippet in snippets() if snippet.page == "README.md"]) >= 3


@pytest.mark.parametrize("snippet", snippets(), ids=str)
def test_every_config_snippet_can_be_planned(snippet, plugin_files, monkeypatch):
    monkeypatch.syspath_prepend((ROOT / snippet.page).parent / "src")
    value = snippet.value
    is_run = isinstance(value, dict) and "id" not in value
    run = BASE | value if is_run else BASE
    entries = PAIRS if is_run else [value] if isinstance(value, dict) else value
    Path("run.json").write_text(json5.dumps(run))
    Path("datasets.json").write_text(json5.dumps([{"instance_data_dir": "photos", **entry} for entry in entries]))
    flags = {"data_backend_config": "datasets.json", "plugins": [*plugin_files, *package_of(snippet.page)]}
    assert plan_run(Path("run.json"), flags).data.datasets


@pytest.fixture
def readers_folder(tmp_path):
    """Make a folder in which someone followed the README: both files as printed, and images where they say."""
    run, pairs, made = blocks(ROOT / "README.md", "jsonc")
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "config.json").write_text(run, encoding="utf-8")
    (tmp_path / "config" / "multidatabackend.json").write_text(pairs, encoding="utf-8")
    (tmp_path / "config" / "made.json").write_text(made, encoding="utf-8")
    for seed, name in enumerate(("data/edits/cat.png", "data/references/cat.jpg", "data/photos/cat.png")):
        new_image(tmp_path / name, (96, 64), seed=seed)
    (tmp_path / "data/edits/cat.txt").write_text("make it black and white\nremove all colour")
    return tmp_path


@pytest.mark.parametrize("datasets", ["multidatabackend.json", "made.json"])
def test_the_quick_start_passes_check_as_it_is_printed(readers_folder, datasets):
    ended = run_in(
        readers_folder,
        "check",
        "--pretrained_model_name_or_path=tiny-random",
        f"--data_backend_config=config/{datasets}",
    )
    assert ended.status == 0, ended.err
    notes = [line for line in ended.out.splitlines() if line.startswith("note:")]
    # the images of this test are small, those of a reader are not
    told = [note for note in notes if "images are enlarged by more than" not in note]
    assert all("several captions, one per line" in note for note in told), "only what the reader wrote on purpose"
    assert "ready to train" in ended.out


def test_the_plugin_is_found_by_name_and_keeps_the_contract(plugin_files):
    check_generator(load_plugins(files=["grey.py"]).registry.find("generator", "grey"))


def test_every_flag_exists():
    loaded = load_plugins()
    known = {*loaded.run_schema.model_fields, *loaded.run_tables.renamed, *OWN_FLAGS, *FLAGS_OF_OTHER_PROGRAMS}
    assert [flag for flag in re.findall(r"--([a-z][\w-]*)", README) if flag not in known] == []


def test_every_path_exists():
    marked = [name for name in re.findall(r"`([\w./-]+)`", README) if "/" in name or re.search(r"\.\w+$", name)]
    ours = [name for name in marked if not name.startswith(USERS_PLACES)]
    assert len(ours) > 10
    roots = (ROOT, ROOT / "core" / "difftrain")
    assert [name for name in ours if not any((root / name).exists() for root in roots)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_leads_somewhere(page):
    links = re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if "://" not in link and not (page.parent / link).exists()] == []


def test_every_make_target_exists():
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(re.findall(r"\bmake (demo|test|lint|install|[a-z]+)(?=`|\s+#)", README)) <= set(targets)


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "RELEASING.md"])
def test_every_make_target_of_a_page_for_developers_exists(name):
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    page = (ROOT / name).read_text(encoding="utf-8")
    named = re.findall(r"(?:^|`|&& )make ([a-z-]+)", page, re.MULTILINE)
    assert len(named) > 2
    assert [target for target in named if target not in targets] == []


def test_the_precisions_that_work_are_those_that_the_readme_lists():
    (line,) = re.findall(r"^- precisions other than bf16, (.*?) \(", README, re.MULTILINE | re.DOTALL)
    registered = {quantizer.name for quantizer in load_plugins().registry.classes("quantizer")}
    assert set(re.findall(r"`([\w-]+)`", line)) == registered


OTHER_WORDS = {"picture": "image", "edit set": "target set", "text embedding": "prompt embeds", "run config": "config"}
"""Words that pages used for a thing, and the word of the glossary in docs/how-it-works.md."""
GENERATED = (ROOT / "docs" / "options.md", ROOT / "docs" / "precision.md")
"""They have the words of the docstrings."""
QUOTES = {"docs/log.md": r"^ {12}\S+ +\S+\.py .*$", "docs/plugins.md": r"^\| `ModelF.*$"}
"""What a page quotes as it is: old names of tests, messages."""


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page not in GENERATED], ids=lambda page: page.relative_to(ROOT).as_posix()
)
def test_a_page_keeps_to_the_words_of_the_glossary(page):
    name = page.relative_to(ROOT).as_posix()
    text = page.read_text(encoding="utf-8")
    if name in QUOTES:
        text = re.sub(QUOTES[name], "", text, flags=re.MULTILINE)
    found = {word for word in OTHER_WORDS if re.search(rf"\b{word}s?\b", text, re.IGNORECASE)}
    assert {word: OTHER_WORDS[word] for word in found} == {}


def test_the_wheel_has_the_name_in_the_readme():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert set(re.findall(r"dist/(\S+)", README)) - {"`"} == {f"difftrain-{version}-py3-none-any.whl"}


@pytest.mark.parametrize("message", ["continue with:", "ready to train", "not supported yet in difftrain"])
def test_a_quoted_message_is_in_the_code(message):
    assert f'"{message}' in README
    sources = (ROOT / "core" / "difftrain").rglob("*.py")
    assert any(f'"{message}' in source.read_text(encoding="utf-8") for source in sources)


def reading_order() -> list[str]:
    """Return the files that CONTRIBUTING.md lists, checked for one clause each."""
    (section,) = re.findall(r"^## Reading order\n(.*?)^## ", CONTRIBUTING, re.DOTALL | re.MULTILINE)
    items = re.findall(r"^\d+\. (.*\n(?:   .*\n)*)", section, re.MULTILINE)
    files = [re.match(r"\[([\w./]+)\]\(\1\): \S", item) for item in items]
    assert all(files), "an item is a link to the file, then why to read it"
    return [file[1] for file in files if file]


def parsed(file: str) -> ast.Module:
    return ast.parse((ROOT / file).read_text(encoding="utf-8"))


def functions_used(caller: str, callee: str) -> set[str]:
    """Return the functions of the second file that the first one imports and uses.

    A class counts only through :func:`methods_chosen_by_plan`: importing a type is not a call.
    """
    module = callee.removeprefix("core/").removesuffix(".py").replace("/", ".")
    package, _, name = module.rpartition(".")
    nodes = list(ast.walk(parsed(caller)))
    imports = [node for node in nodes if isinstance(node, ast.ImportFrom)]
    direct = {alias.asname or alias.name for node in imports if node.module == module for alias in node.names}
    whole = {
        alias.asname or alias.name
        for node in imports
        if node.module == package
        for alias in node.names
        if alias.name == name
    }
    used = {node.id for node in nodes if isinstance(node, ast.Name)} & direct
    used |= {
        node.attr
        for node in nodes
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in whole
    }
    return used & {node.name for node in parsed(callee).body if isinstance(node, ast.FunctionDef)}


def methods_chosen_by_plan(caller: str, callee: str) -> set[str]:
    """Return calls such as ``state.plan.loss.compute()`` that reach a class of the second file, here a ``Loss``."""
    calls = re.findall(r"plan\.(\w+)\.(\w+)\(", ast.unparse(parsed(caller)))
    classes = [node for node in parsed(callee).body if isinstance(node, ast.ClassDef)]
    return {
        f"{kind}.{method}"
        for kind, method in calls
        for cls in classes
        if kind.title().replace("_", "") in {ast.unparse(base) for base in cls.bases}
        and method in {node.name for node in cls.body if isinstance(node, ast.FunctionDef)}
    }


def test_the_reading_order_has_at_most_ten_files_and_all_exist():
    files = reading_order()
    assert 2 < len(files) <= 10
    assert [file for file in files if not (ROOT / file).is_file()] == []


def test_the_reading_order_leads_from_the_readme_through_the_command_to_the_loss():
    script = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]["difftrain"]
    command = f"core/{script.partition(':')[0].replace('.', '/')}.py"
    usual = RunConfig.model_fields["loss_type"].default
    loss = Path(inspect.getfile(load_plugins().registry.find("loss", usual))).relative_to(ROOT).as_posix()
    files = reading_order()
    assert (files[0], files[1], files[-1]) == ("README.md", command, loss)
    assert "CONTRIBUTING.md#reading-order" in README


def test_each_file_of_the_reading_order_calls_the_next():
    files = reading_order()[1:]
    assert [pair for pair in pairwise(files) if not functions_used(*pair) and not methods_chosen_by_plan(*pair)] == []
