"""The bugs on show: each is documented, and guarded by a test that exists."""

import ast
import re
from pathlib import Path

import pytest
from conftest import ROOT

import minimind_core
from minimind_core.exhibits import catalogue

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
            assert "minimind_core.exhibits" not in text, path
