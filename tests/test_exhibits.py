"""The bugs on show: each is documented, and guarded by a test that exists."""

import ast
import json
import re
from datetime import date
from pathlib import Path

import pytest
from conftest import ROOT

import minimind_core
from minimind_core.book.exhibits import catalogue
from minimind_core.book.exhibits.catalogue import Kind, Notice
from minimind_core.book.viz import exhibit_cards, picture, plot_lifelines

exhibits = pytest.mark.parametrize(
    "exhibit", catalogue(), ids=lambda exhibit: exhibit.key
)


@exhibits
def test_an_exhibit_says_where_and_when(exhibit):
    assert re.fullmatch(r"[0-9a-f]{7,40}", exhibit.commit)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", exhibit.date)
    assert re.fullmatch(r"[\w/.-]+\.py:\d+(-\d+)?", exhibit.place)
    assert exhibit.url.startswith("https://github.com/")
    for text in (exhibit.title, exhibit.cost, exhibit.fix):
        assert len(text.split()) >= 3, text


@exhibits
def test_an_exhibit_has_all_that_its_card_shows(exhibit):
    lines = exhibit.quote.splitlines()
    assert 1 <= len(lines) <= 4 and lines[0].strip(" .")
    assert exhibit.kind in Kind and exhibit.noticed in Notice
    came, gone = exhibit.came, exhibit.gone
    moment = r"\d{4}-\d\d-\d\d ([0-9a-f]{7}|#\d+)"
    assert re.fullmatch(moment, came) and re.fullmatch(moment, gone or came)
    seen = date.fromisoformat(exhibit.date)
    assert date.fromisoformat(came[:10]) <= seen
    assert not gone or seen < date.fromisoformat(gone[:10])
    for text in (exhibit.cost, exhibit.fix):
        assert text.endswith(".") and (text[0].isupper() or text[0] == "`")


def test_there_are_enough_and_of_every_kind():
    assert len(catalogue()) >= 15
    assert {exhibit.kind for exhibit in catalogue()} == set(Kind)
    assert {exhibit.noticed for exhibit in catalogue()} == set(Notice)
    assert [kind.rank for kind in Kind] == list(range(len(Kind)))


@exhibits
def test_bug_and_remedy_differ_as_claimed(exhibit):
    found = exhibit.measure()
    assert found.holds, found
    assert found.bug != found.fix
    assert found == exhibit.measure(), "the same each time"


def cells(page):
    path = ROOT / "book" / f"{page}.ipynb"
    found = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [(c["cell_type"], "".join(c["source"])) for c in found]


@exhibits
def test_its_page_has_its_anchor_and_runs_its_module(exhibit):
    label = f"({exhibit.anchor})="
    found = cells(exhibit.page)
    at = [n for n, (_, text) in enumerate(found)
          if label in text.splitlines()]  # fmt: skip
    assert len(at) == 1, label
    imported = [n for n, (kind, text) in enumerate(found)
                if kind == "code" and f"from {exhibit.module} " in text]
    assert imported, exhibit.module
    # No anchor for an exhibit that is not there.
    keys = re.findall(
        r"^\(exhibit-(.+)\)=$", "\n".join(text for _, text in found), re.M
    )
    here = {one.key for one in catalogue() if one.page == exhibit.page}
    assert set(keys) == here and len(keys) == len(here)


def test_a_card_shows_all_of_it():
    shown = catalogue()[:3]
    measured = {exhibit.key: exhibit.measure() for exhibit in shown}
    page = exhibit_cards(shown, measured).data.replace("_<wbr>", "_")
    assert page.count('<li class="mm-card"') == 3
    for exhibit in shown:
        for text in (
            exhibit.url, exhibit.commit, exhibit.came[:10], exhibit.anchor,
            exhibit.kind.label, exhibit.noticed.label, "Apache-2.0",
            exhibit.test.partition("::")[2], measured[exhibit.key].bug,
        ):  # fmt: skip
            assert text in page, text
    assert "<select" in page and 'class="mm-sort" hidden' in page
    assert page.count("<b>with the bug</b>") == 3
    evil = type(measured[shown[0].key])("<b>", "<i>", "&", True)
    page = exhibit_cards(shown[:1], {shown[0].key: evil}).data
    assert "&lt;b&gt;" in page and "&lt;i&gt;" in page and "<i>" not in page


def test_lifelines_end_where_a_bug_was_put_right():
    figure = plot_lifelines(catalogue(), "2026-08-21")
    (axes,) = figure.axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert sorted(names) == sorted(one.key for one in catalogue())
    arrows = [line for line in axes.lines if line.get_marker() == ">"]
    still = [one for one in catalogue() if not one.gone]
    assert len(arrows) == len(still) < len(axes.patches) == len(names)
    picture(figure, "a line for each bug")


@exhibits
def test_its_regression_test_and_its_page_exist(exhibit):
    file, _, name = exhibit.test.partition("::")
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    names = {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
    }
    assert name in names, exhibit.test
    assert (ROOT / "book" / f"{exhibit.page}.ipynb").exists()


def test_nothing_in_the_package_uses_an_exhibit():
    package = Path(minimind_core.__file__).parent
    for path in package.rglob("*.py"):
        if path.parent.name != "exhibits":
            text = path.read_text(encoding="utf-8")
            assert "minimind_core.book.exhibits" not in text, path
