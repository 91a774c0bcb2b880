"""How the book is built: what is executed again, what fails, what is fetched.

A book of one small notebook is built with the real settings and hooks.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from conftest import ROOT

SPEC = importlib.util.spec_from_file_location(
    "vendor", ROOT / "book" / "_ext" / "vendor.py"
)
vendor = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(vendor)


# --- what is fetched --------------------------------------------------------


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """A package of our own in place of npm's, and a folder to fetch into."""
    source = tmp_path / "package"
    source.mkdir()
    (source / "player.js").write_text("play()")
    (source / "font.woff2").write_text("glyphs")
    (source / "readme.md").write_text("not wanted")
    archive = tmp_path / "player-1.0.0.tgz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(source, "package")
    digest = vendor.hashlib.sha256(archive.read_bytes()).hexdigest()
    packages = {
        "player@1.0.0": ("player", digest, {"player.js": "p.js"}, "*.woff2")
    }
    monkeypatch.setattr(vendor, "PACKAGES", packages)
    monkeypatch.setattr(vendor, "VENDOR", tmp_path / "vendor")
    return archive


def test_only_what_is_named_is_kept_and_it_is_fetched_once(shop, monkeypatch):
    asked = []

    def pack(package, folder):
        asked.append(package)
        return Path(shutil.copy(shop, folder))

    monkeypatch.setattr(vendor, "pack", pack)
    for _ in range(2):
        folder = vendor.fetch() / "player"
        files = sorted(path.name for path in folder.iterdir())
        assert files == [".sha256", "font.woff2", "p.js"]
    assert asked == ["player@1.0.0"]


def test_an_archive_that_is_not_the_known_one_is_refused(shop, monkeypatch):
    shop.write_bytes(shop.read_bytes() + b"!")
    monkeypatch.setattr(vendor, "pack", lambda package, folder: shop)
    with pytest.raises(vendor.VendorError, match="SHA-256"):
        vendor.fetch()
    assert not (vendor.VENDOR / "player").exists()


def test_without_a_network_it_says_what_to_do(shop, monkeypatch):
    monkeypatch.setenv("npm_config_registry", "http://127.0.0.1:9")
    monkeypatch.setenv("npm_config_fetch_retries", "0")
    with pytest.raises(vendor.VendorError, match=r"npm pack player@1\.0\.0"):
        vendor.fetch()
    # and what it said works: the archive, put there by hand
    shutil.copy(shop, vendor.VENDOR)
    assert (vendor.fetch() / "player" / "p.js").exists()


# --- what is executed -------------------------------------------------------


def notebook(prose: str, code: str) -> str:
    cells = [
        {"cell_type": "markdown", "id": "a", "metadata": {}, "source": prose},
        {
            "cell_type": "code",
            "execution_count": None,
            "id": "b",
            "metadata": {},
            "outputs": [],
            "source": code,
        },
    ]
    kernel = {"display_name": "Python 3", "name": "python3"}
    return json.dumps(
        {
            "cells": cells,
            "metadata": {"kernelspec": {**kernel, "language": "python"}},
            "nbformat": 4,
            "nbformat_minor": 5,
        }
    )


@pytest.fixture(scope="module")
def small_book(tmp_path_factory) -> Path:
    """The book's own settings around one notebook, which counts its runs."""
    pytest.importorskip("jupyter_book")
    fetched = ROOT / "_build" / "vendor"
    if not fetched.exists():
        pytest.skip("nothing is fetched yet: python book/_ext/vendor.py")
    book = tmp_path_factory.mktemp("small")
    for name in ("_config.yml", "_toc.yml", "book/references.bib"):
        (book / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, book / name)
    for name in ("book/_ext", "book/_static", "_build/vendor"):
        shutil.copytree(
            ROOT / name,
            book / name,
            ignore=shutil.ignore_patterns("__pycache__"),
        )
    (book / "_toc.yml").write_text(
        "format: jb-book\nroot: book/index\nchapters:\n- file: book/one\n"
    )
    (book / "book" / "index.md").write_text("# A book\n\nOf one page.\n")
    (book / "minimind_core").mkdir()
    (book / "minimind_core" / "__init__.py").write_text("answer = 42\n")
    return book


COUNT = "print('ran', file=open('runs.txt', 'a'))\nprint(6 * 7)"


def build(book: Path) -> subprocess.CompletedProcess:
    command = str(Path(sys.executable).with_name("jupyter-book"))
    return subprocess.run(
        [command, "build", ".", "-W", "--keep-going", "-n"],
        cwd=book,
        capture_output=True,
        text=True,
        timeout=300,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "NO_COLOR": "1"},
    )


def test_only_a_change_of_code_executes_again(small_book):
    page = small_book / "_build" / "html" / "book" / "one.html"
    source = small_book / "book" / "one.ipynb"
    counter = small_book / "book" / "runs.txt"

    def after(what: str) -> int:
        done = build(small_book)
        assert done.returncode == 0, (what, done.stdout + done.stderr)
        return counter.read_text().count("ran")

    source.write_text(notebook("# One\n\nSome prose.", COUNT))
    assert after("the first build") == 1
    assert "42" in page.read_text()

    source.write_text(notebook("# One\n\nOther prose.", COUNT))
    assert after("an edit to prose") == 1
    assert "Other prose" in page.read_text()

    (small_book / "minimind_core" / "__init__.py").write_text("answer = 43\n")
    assert after("an edit to the package") == 2
    assert after("no edit") == 2


def test_a_notebook_that_fails_fails_the_build_and_says_where(small_book):
    source = small_book / "book" / "one.ipynb"
    code = "def halve(x):\n    return x / 0\n\nhalve(1)"
    source.write_text(notebook("# One", code))
    done = build(small_book)
    assert done.returncode != 0
    log = done.stdout + done.stderr
    assert "ZeroDivisionError" in log and "return x / 0" in log


def test_links_to_the_repository_wait_for_its_address(small_book):
    source = small_book / "book" / "one.ipynb"
    source.write_text(notebook("# One", COUNT))
    config = small_book / "_config.yml"
    page = small_book / "_build" / "html" / "book" / "one.html"

    done = build(small_book)
    assert done.returncode == 0
    assert "address is not set" in done.stdout + done.stderr
    assert "OWNER" not in page.read_text("utf8")
    assert "colab" not in page.read_text("utf8")

    config.write_text(config.read_text().replace("/OWNER/", "/someone/"))
    done = build(small_book)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "address is not set" not in done.stdout + done.stderr
    where = "someone/minimind-core"
    html = page.read_text("utf8")
    for link in (
        f"https://colab.research.google.com/github/{where}/blob/main/book/one",
        f"https://mybinder.org/v2/gh/{where}/main",
        f"https://github.com/{where}/edit/main/book/one.ipynb",
        f"https://github.com/{where}/issues",
    ):
        assert link in html, link
