"""One address in every file, and one set-up cell in every notebook."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

SPEC = importlib.util.spec_from_file_location(
    "repository", ROOT / "tools" / "repository.py"
)
repository = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(repository)

NOTEBOOKS = sorted((ROOT / "book").glob("*.ipynb"))


@pytest.fixture
def tree(tmp_path) -> Path:
    """A copy of what is stamped."""
    (tmp_path / "book").mkdir()
    for name in ("_config.yml", *repository.FILES):
        shutil.copy(ROOT / name, tmp_path / name)
    for path in NOTEBOOKS:
        shutil.copy(path, tmp_path / "book")
    return tmp_path


def texts(root: Path) -> dict[str, str]:
    return {
        path.relative_to(root).as_posix(): path.read_text("utf8")
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def test_all_files_say_the_address_of_the_config():
    config = yaml.safe_load((ROOT / "_config.yml").read_text("utf8"))
    url = config["repository"]["url"]
    assert repository.stamp(ROOT, write=False) == []
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf8"))
    assert citation["repository-code"] == url
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf8"))
    assert project["project"]["urls"]["Repository"] == url
    assert f"git clone {url} " in (ROOT / "README.md").read_text("utf8")


def test_no_other_file_says_it():
    """What is not stamped would keep the old address."""
    slug, _ = repository.address(ROOT)
    tracked = subprocess.run(
        ["git", "ls-files", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\0")
    stamped = {"_config.yml", *repository.FILES}
    stamped |= {path.relative_to(ROOT).as_posix() for path in NOTEBOOKS}
    for name in filter(None, tracked):
        path = ROOT / name
        if name in stamped or path.parent.name == "tests":
            continue
        if path.is_file() and path.suffix not in (".png", ".webp"):
            text = path.read_text("utf8")
            assert not re.search(rf"github\.com/{slug}\b", text), name


def test_a_new_address_goes_everywhere_and_back(tree):
    before = texts(tree)
    url = "https://github.com/me/my.fork"
    changed = repository.stamp(tree, f"{url}.git")
    assert set(changed) == set(before) - {"CONTRIBUTING.md"}
    old, _ = repository.address(ROOT)
    for name, text in texts(tree).items():
        assert f"/{old}" not in text, name
    config = yaml.safe_load((tree / "_config.yml").read_text("utf8"))
    assert config["repository"]["url"] == url
    assert repository.stamp(tree) == []  # said once is enough
    for path in (tree / "book").glob("*.ipynb"):
        badge, set_up = first_cells(path)
        where = f"/github/me/my.fork/blob/main/book/{path.name})"
        assert where in badge and "assert" not in set_up
        assert f'address = "{url}"' in set_up
        assert 'set_up("https://me.github.io/my.fork")' in set_up

    repository.stamp(tree, f"https://github.com/{old}")
    assert texts(tree) == before


def first_cells(path: Path) -> tuple[str, str]:
    cells = json.loads(path.read_text("utf8"))["cells"]
    set_up = next(
        cell for cell in cells if repository.MARK in "".join(cell["source"])
    )
    assert set_up["metadata"]["tags"] == ["remove-cell"]
    # before any other code, and after nothing but the badge and the title
    assert cells.index(set_up) == 2
    return tuple("".join(cell["source"]) for cell in (cells[0], set_up))


def test_the_set_up_cell_is_the_same_in_each_chapter():
    found = {first_cells(path)[1] for path in NOTEBOOKS}
    assert len(found) == 1
    (cell,) = found
    assert len(cell.splitlines()) <= 12
    for package in ("torch", "transformers", "ipywidgets", "[book]"):
        assert package not in cell, "Colab's own stay as they are"
    for path in NOTEBOOKS:
        badge = first_cells(path)[0]
        assert badge.count("](") == 1 and f"/book/{path.name})" in badge


def test_a_new_notebook_gets_both(tree):
    path = tree / "book" / NOTEBOOKS[0].name
    book = json.loads(path.read_text("utf8"))
    bare = {**book, "cells": [book["cells"][1], *book["cells"][3:]]}
    text = json.dumps(bare, indent=1, ensure_ascii=False) + "\n"
    path.write_text(text, "utf8")
    assert repository.stamp(tree) == [f"book/{path.name}"]
    assert first_cells(path) == first_cells(NOTEBOOKS[0])


@pytest.mark.parametrize(
    "url",
    ["me/fork", "https://example.org/me/fork", "https://github.com/me"],
)
def test_what_is_no_address_changes_nothing(tree, url):
    before = texts(tree)
    done = subprocess.run(
        [sys.executable, ROOT / "tools/repository.py", url, "--root", tree],
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert "https://github.com/owner/name" in done.stderr
    assert texts(tree) == before


def test_the_check_names_what_differs(tree):
    command = [sys.executable, ROOT / "tools" / "repository.py"]
    command += ["--root", tree, "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "all say" in done.stdout
    path = tree / "book" / NOTEBOOKS[0].name
    slug, _ = repository.address(tree)
    text = path.read_text("utf8").replace(slug, "someone/else")
    path.write_text(text, "utf8")
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode != 0
    assert f"differs: book/{path.name}" in done.stdout
