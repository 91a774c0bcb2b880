"""What is asked of the notebooks before any of them is run."""

from __future__ import annotations

import ast
import importlib
import json
import re
from pathlib import Path

import pytest
from conftest import ROOT, pages, toc_entries

NOTEBOOKS = sorted((ROOT / "book").glob("*.ipynb"))
TEXTS = sorted((ROOT / "book").glob("*.md"))
CHECKED = "nbval-check-output"
MACHINE_PATH = re.compile(
    r"(?<![\w.:/<])/(home|Users|root|tmp|work|opt|mnt|var)/\w|\b[A-Z]:\\\w"
)

notebooks = pytest.mark.parametrize(
    "path", NOTEBOOKS, ids=lambda path: path.name
)


def cells(path: Path, kind: str | None = None) -> list[dict]:
    found = json.loads(path.read_text("utf8"))["cells"]
    return [c for c in found if kind in (None, c["cell_type"])]


def source(cell: dict) -> str:
    return "".join(cell["source"])


def tags(cell: dict) -> list[str]:
    return cell["metadata"].get("tags", [])


def prose(path: Path) -> str:
    if path.suffix == ".md":
        return path.read_text("utf8")
    return "\n\n".join(source(cell) for cell in cells(path, "markdown"))


def test_the_table_of_contents_names_every_page():
    there = {
        path.relative_to(ROOT).with_suffix("").as_posix()
        for path in [*NOTEBOOKS, *TEXTS]
    }
    assert set(pages()) == there
    assert NOTEBOOKS, "a book has chapters"


def test_the_sidebar_numbers_the_chapters():
    """As their files do; the text says "chapter 4" and means this."""
    for entry in toc_entries():
        path = ROOT / f"{entry['file']}.ipynb"
        number = re.match(r"\d+", path.name)
        if number and path.exists():
            heading = re.search(r"^# (.+)$", prose(path), re.MULTILINE)
            assert entry["title"] == f"{int(number[0])}. {heading[1]}"


@notebooks
def test_a_notebook_is_plain_and_current(path):
    book = json.loads(path.read_text("utf8"))
    assert book["nbformat"] == 4 and book["nbformat_minor"] >= 5
    assert book["metadata"]["kernelspec"]["name"] == "python3"
    identities = [cell["id"] for cell in book["cells"]]
    assert len(set(identities)) == len(identities)
    assert "widgets" not in book["metadata"], "the state of widgets is output"


@notebooks
def test_a_chapter_opens_with_its_title(path):
    badge, first = cells(path, "markdown")[:2]
    assert badge["id"] == "badge"  # tests/test_repository.py
    assert re.match(r"(\(.*\)=\n)?# \S", source(first))
    titles = re.findall(r"^# .+$", prose(path), re.MULTILINE)
    assert len(titles) == 1, titles


@notebooks
def test_code_fits_the_column_and_parses(path):
    for number, cell in enumerate(cells(path, "code")):
        text = source(cell)
        for line in text.splitlines():
            assert len(line) <= 78, f"cell {number}: {line}"
        python = "\n".join(
            "pass" if re.match(r"\s*[%!]", line) else line
            for line in text.splitlines()
        )
        ast.parse(python)


# What returns something to look at, which a page shows only at a cell's end.
SHOWS = {
    "as_html", "chat_box", "exhibit_cards", "frames_slider", "picker",
    "predict", "show", "show_files", "show_loss_mask", "show_source",
    "show_story", "show_table", "show_tokens",
}  # fmt: skip


@notebooks
def test_what_a_cell_shows_is_its_last_line(path):
    for number, cell in enumerate(cells(path, "code")):
        text = re.sub(r"^\s*[%!].*$", "pass", source(cell), flags=re.M)
        for statement in ast.parse(text).body[:-1]:
            call = getattr(statement, "value", None)
            if isinstance(statement, ast.Expr) and isinstance(call, ast.Call):
                name = getattr(call.func, "id", "")
                assert name not in SHOWS, f"cell {number}: {name} is not seen"


@notebooks
def test_what_a_notebook_imports_from_the_package_is_there(path):
    for cell in cells(path, "code"):
        text = re.sub(r"^\s*[%!].*$", "pass", source(cell), flags=re.M)
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, ast.ImportFrom) or not node.module:
                continue
            if node.module.split(".")[0] != "minimind_core":
                continue
            module = importlib.import_module(node.module)
            for alias in node.names:
                if not hasattr(module, alias.name):
                    importlib.import_module(f"{node.module}.{alias.name}")


@notebooks
def test_outputs_are_kept_only_where_they_are_checked(path):
    for number, cell in enumerate(cells(path, "code")):
        if CHECKED in tags(cell):
            # nbval does not look at a cell without a count or an output
            assert cell["execution_count"] is not None, number
            assert cell["outputs"], number
        else:
            assert cell["outputs"] == [], f"cell {number}: strip outputs"


@pytest.mark.parametrize(
    "path", [*NOTEBOOKS, *TEXTS], ids=lambda path: path.name
)
def test_pictures_in_the_text_say_what_they_show(path):
    text = re.sub(r"```python.*?```", "", prose(path), flags=re.DOTALL)
    for alt in re.findall(r"!\[(.*?)\]\(", text, re.DOTALL):
        assert len(alt.split()) >= 3, f"say more than {alt!r}"
    for tag in re.findall(r"<img [^>]*>", text):
        assert re.search(r'alt="[^"]{10,}"', tag), tag
    blocks = re.findall(
        r"^[`:]{3,}\{(?:figure|image)\}[^\n]*\n(.*?)^[`:]{3,}$",
        text,
        re.DOTALL | re.MULTILINE,
    )
    for block in blocks:
        assert re.search(r":alt: \S+ \S+ \S+", block), block


@pytest.mark.parametrize(
    "path", [*NOTEBOOKS, *TEXTS], ids=lambda path: path.name
)
def test_no_page_knows_the_machine_it_was_written_on(path):
    text = path.read_text("utf8")
    found = MACHINE_PATH.search(text)
    assert found is None, text[max(0, found.start() - 60) : found.end() + 60]
    assert "TODO" not in text and "FIXME" not in text


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_what_a_page_includes_of_a_file_is_there(path):
    text = path.read_text("utf8")
    for name, options in re.findall(
        r"```\{include\} (\S+)\n(.*?)```", text, re.DOTALL
    ):
        found = (path.parent / name).read_text("utf8")
        for mark in re.findall(r'-(?:after|before): "(.+)"', options):
            assert mark in found, f"{name} has no {mark!r}"
