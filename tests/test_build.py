"""How the book is built: what is executed again, what fails, what is fetched.

A book of one small notebook is built with the real settings and hooks.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from conftest import ROOT


def extension(name: str):
    path = ROOT / "book" / "_ext" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


vendor = extension("vendor")
execution = extension("execution")


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


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package and its caches in place of the real ones."""
    folder = tmp_path / "minimind_core"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "one.py").write_text('"""A docstring."""\n')
    (folder / "words.json").write_text("{}")
    monkeypatch.setattr(execution, "PACKAGE", folder)
    monkeypatch.setattr(execution, "CACHES", tmp_path / "caches")
    return folder


@pytest.mark.parametrize(
    "file", ["deep/one.py", "words.json", "new.py", "deep/words.txt"]
)
def test_each_version_of_the_package_has_a_digest(package, file):
    """A docstring is part of it, because the pages print it."""
    before = execution.digest()
    (package / "deep" / "__pycache__").mkdir()
    (package / "deep" / "__pycache__" / "one.pyc").touch()
    assert execution.digest() == before
    (package / file).write_text('"""Another docstring."""\n')
    assert execution.digest() != before


def test_a_file_that_moves_changes_the_digest(package):
    before = execution.digest()
    (package / "deep" / "one.py").rename(package / "one.py")
    assert execution.digest() != before


def test_the_versions_of_libraries_are_part_of_the_digest(
    package, monkeypatch
):
    before = execution.digest()
    monkeypatch.setattr(execution.metadata, "version", lambda name: "9.9")
    assert execution.digest() != before


def test_the_newest_caches_are_kept(package):
    """The one in use among them, also when it was used before."""

    def use(text):
        (package / "new.py").write_text(text)
        config = SimpleNamespace()
        execution.use_cache(None, config)
        return Path(config.nb_execution_cache_path)

    first, second, third = (use(text) for text in "123")
    assert {first, second, third} == set(execution.CACHES.iterdir())
    for time, folder in enumerate((first, second, third)):
        os.utime(folder, (time, time))
    assert use("1") == first
    fourth = use("4")
    assert {third, first, fourth} == set(execution.CACHES.iterdir())


def test_a_line_that_comes_in_pieces_stays_one_line():
    """MyST-NB would end it after each piece."""
    def said(text, name="stdout"):
        return nbformat.v4.new_output("stream", name=name, text=text)

    picture = nbformat.v4.new_output("display_data", {"text/plain": "a"})
    cell = nbformat.v4.new_code_cell("", outputs=[
        said("0.1"), said(" -> park\n"), said("!", "stderr"), picture,
        said("0.6\n"),
    ])  # fmt: skip
    text = nbformat.v4.new_markdown_cell("No outputs.")
    book = nbformat.v4.new_notebook(cells=[text, cell])
    execution.join_streams(book)
    told = [output.get("text") for output in book.cells[1].outputs]
    assert told == ["0.1 -> park\n", "!", None, "0.6\n"]
    assert "outputs" not in book.cells[0]


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
    if not all((fetched / name).exists() for name in vendor.FOR_PAGES):
        pytest.skip("nothing is fetched yet: python book/_ext/vendor.py")
    book = tmp_path_factory.mktemp("small")
    for name in ("_config.yml", "_toc.yml", "book/references.bib"):
        (book / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, book / name)
    config = book / "_config.yml"  # as it is before anyone sets an address
    config.write_text(
        re.sub(
            r"(?<=  url: )https://\S+",
            "https://github.com/OWNER/minimind-core",
            config.read_text(),
        )
    )
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
    package = book / "minimind_core"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "deep.py").write_text("answer = 42\n")
    return book


COUNT = """\
import sys
sys.path.insert(0, "..")
from minimind_core.deep import answer
print("ran", file=open("runs.txt", "a"))
print(answer)"""


def build(book: Path, **variables: str) -> subprocess.CompletedProcess:
    command = str(Path(sys.executable).with_name("jupyter-book"))
    return subprocess.run(
        [command, "build", ".", "-W", "--keep-going", "-n"],
        cwd=book,
        capture_output=True,
        text=True,
        timeout=300,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "NO_COLOR": "1", **variables},
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

    source.write_text(notebook("# One\n\nOther prose.", COUNT + "\n1 + 1"))
    assert after("an edit to a cell") == 2
    deep = small_book / "minimind_core" / "deep.py"
    deep.write_text("answer = 43\n")
    assert after("an edit to the package") == 3
    assert "43" in page.read_text()
    assert after("no edit") == 3
    deep.write_text("answer = 42\n")
    assert after("a version that was executed before") == 3
    assert "42" in page.read_text()


def test_a_notebook_that_fails_fails_the_build_and_says_where(small_book):
    source = small_book / "book" / "one.ipynb"
    counter = small_book / "book" / "fails.txt"
    code = (
        "print('ran', file=open('fails.txt', 'a'))\n"
        "def halve(x):\n    return x / 0\n\nhalve(1)"
    )
    source.write_text(notebook("# One", code))
    for times in (1, 2):  # it fails again, though nothing has changed
        done = build(small_book)
        assert done.returncode != 0
        log = done.stdout + done.stderr
        assert "ZeroDivisionError" in log and "return x / 0" in log
        assert "book/one" in log
        # by us, and by MyST-NB, which tells of it
        assert counter.read_text().count("ran") == 2 * times


def test_two_notebooks_are_executed_at_a_time(small_book):
    """Each waits for the other, which one after the other cannot do."""
    for own, other in (("one", "two"), ("two", "one")):
        code = (
            "import pathlib, time\n"
            f"pathlib.Path('{own}.ready').touch()\n"
            "for _ in range(600):\n"
            f"    if pathlib.Path('{other}.ready').exists(): break\n"
            "    time.sleep(0.1)\n"
            "else: raise TimeoutError('nobody came')\n"
            "print('we met')"
        )
        page = small_book / "book" / f"{own}.ipynb"
        page.write_text(notebook(f"# {own}", code))
    toc = small_book / "_toc.yml"
    before = toc.read_text()
    toc.write_text(before + "- file: book/two\n")
    done = build(small_book, WORKERS="2")
    toc.write_text(before)
    (small_book / "book" / "two.ipynb").unlink()
    assert done.returncode == 0, done.stdout + done.stderr
    html = small_book / "_build" / "html" / "book"
    for name in ("one", "two"):
        assert "we met" in (html / f"{name}.html").read_text()


# --- formulas ---------------------------------------------------------------


@pytest.fixture
def katex(monkeypatch):
    """KaTeX in its process, and the module that starts it."""
    monkeypatch.syspath_prepend(ROOT / "book" / "_ext")
    formulas = extension("formulas")
    folder = ROOT / "_build" / "vendor" / "katex"
    if not folder.exists():
        pytest.skip("nothing is fetched yet: python book/_ext/vendor.py")
    setter = formulas.Katex(folder)
    yield setter, formulas
    setter.close()
    assert setter.process is None


def test_one_process_sets_each_formula_once(katex):
    setter, _ = katex
    first = setter.render("x^2")
    process = setter.process
    assert "<math" in first and 'class="katex-html" aria-hidden' in first
    assert "<mo>≤</mo>" in setter.render(r"a \le b")
    assert "katex-display" in setter.render("x^2", display=True)
    assert setter.process is process and process.poll() is None
    process.kill()
    process.wait()
    assert setter.render("x^2") == first  # nobody is asked


def test_a_formula_that_cannot_be_set_is_said_to_be_wrong(katex):
    setter, formulas = katex
    for _ in range(2):
        with pytest.raises(formulas.FormulaError, match=r"\\nothing"):
            setter.render(r"\nothing")
    with pytest.raises(formulas.FormulaError, match="unicode"):
        setter.render("größe")  # would be shown, in a font for text
    with pytest.raises(formulas.FormulaError, match="KaTeX_Fraktur-Regular"):
        setter.render(r"\mathfrak{g}")
    assert setter.render("x")


def test_the_style_has_no_other_fonts_than_those_that_are_shipped(katex):
    setter, formulas = katex
    whole = (setter.folder / "katex.min.css").read_text("utf8")
    style = formulas.own_style(whole)
    found = re.findall(r"url\(fonts/([^)]+)\)", style)
    assert sorted(found) == sorted(f"{n}.woff2" for n in formulas.FONTS)
    assert formulas.FACE.sub("", style) == formulas.FACE.sub("", whole)


@pytest.mark.parametrize(
    ("tex", "nowrap", "shown"),
    [
        ("a = b", False, "a = b"),
        (r"a &= b \\ c &= d", False,
         r"\begin{split}a &= b \\ c &= d\end{split}"),
        ("a\n\nb", False, r"\begin{aligned}a \\ b\end{aligned}"),
        (r"\begin{align}a\end{align}", True, r"\begin{align*}a\end{align*}"),
        (r"\begin{gather*}a\end{gather*}", True,
         r"\begin{gather*}a\end{gather*}"),
    ],
)  # fmt: skip
def test_a_display_of_several_lines_is_one_array(katex, tex, nowrap, shown):
    from docutils import nodes

    setter, formulas = katex
    node = nodes.math_block(tex, tex, nowrap=nowrap)
    assert formulas.display_tex(node) == shown
    assert "<math" in setter.render(shown, display=True)


def test_formulas_of_all_kinds_are_in_the_page(small_book):
    source = small_book / "book" / "one.ipynb"
    code = (
        "from IPython.display import Latex, display\n"
        "display(Latex('$u^2$'), Latex('$$v^3$$'))"
    )
    prose = (
        "# One\n\nIn a line $x_1$.\n\n$$\na &= b \\\\\nc &= d\n$$ (both)\n\n"
        "By {eq}`both`.\n\n\\begin{align*}\ne &= f\n\\end{align*}\n"
    )
    source.write_text(notebook(prose, code))
    done = build(small_book)
    assert done.returncode == 0, done.stdout + done.stderr
    html = small_book / "_build" / "html"
    page = (html / "book" / "one.html").read_text("utf8")
    told = re.findall(r'<annotation [^>]*>(.*?)</annotation>', page, re.S)
    for tex in ("x_1", "u^2", "v^3", "c &amp;= d", "e &amp;= f"):
        assert [one for one in told if tex in one], tex
    assert page.count('class="katex"') == len(told) == 5
    assert '<span class="eqno">(1)' in page
    assert 'href="#equation-both">(1)</a>' in page
    assert "katex.min.css" in page and "MathJax" not in page
    # A page without formulas does without their style.
    assert "katex" not in (html / "book" / "index.html").read_text("utf8")
    assert not list(html.rglob("katex*.js"))


def test_a_wrong_formula_fails_the_build_and_says_where(small_book):
    source = small_book / "book" / "one.ipynb"
    source.write_text(notebook("# One", COUNT))
    index = small_book / "book" / "index.md"
    before = index.read_text()
    index.write_text(before + "\nA line.\n\nAnd $a \\nothing b$ here.\n")
    done = build(small_book)
    index.write_text(before)
    assert done.returncode != 0
    log = done.stdout + done.stderr
    assert re.search(r"book/index\.md:7: WARNING: .*a \\nothing b", log), log
    assert "Undefined control sequence" in log


# --- pages ----------------------------------------------------------------


def test_a_page_says_when_it_was_last_changed(small_book):
    """Which is the day of its last commit, and not that of the build."""
    source = small_book / "book" / "one.ipynb"
    source.write_text(notebook("# One", COUNT))
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@localhost"]
    when = {"GIT_COMMITTER_DATE": "2020-02-03T12:00:00Z"}
    for command in (
        ["init", "--quiet"],
        ["add", "book/one.ipynb"],
        ["commit", "--quiet", "--message", "One <page>"],
    ):
        subprocess.run(
            [*git, *command],
            cwd=small_book,
            check=True,
            env={**os.environ, **when},
        )
    done = build(small_book)
    shutil.rmtree(small_book / ".git")
    assert done.returncode == 0, done.stdout + done.stderr
    html = small_book / "_build" / "html" / "book"
    page = (html / "one.html").read_text()
    assert "Last updated on 2020-02-03" in page
    listed = re.findall(r"<li>(.*?)</li>", page[page.index("page-changes") :])
    assert len(listed) == 1  # and no link, as there is no address
    assert re.fullmatch(
        r"2020-02-03 <code>[0-9a-f]{7,}</code> One &lt;page&gt;", listed[0]
    )
    assert "page-changes" not in (html / "index.html").read_text()
    other = re.search(
        r"Last updated on (\S+)\.", (html / "index.html").read_text()
    )
    assert other is not None and other[1] != "2020-02-03"


def test_changes_lead_to_their_commits(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "book" / "_ext")
    hooks = extension("minimind_book")
    found = [("abc1234", "2020-02-03", "Less & more")]
    known = {"repository_url": "https://github.com/me/book",
             "repository_branch": "dev"}  # fmt: skip
    told = hooks.list_of_changes(found, known, "book/one.ipynb")
    for part in (
        '<a href="https://github.com/me/book/commit/abc1234">',
        '<a href="https://github.com/me/book/commits/dev/book/one.ipynb">',
        "Less &amp; more",
    ):
        assert part in told
    unset = {"repository_url": "https://github.com/OWNER/book"}
    assert "href" not in hooks.list_of_changes(found, unset, "book/one.md")


def test_a_term_says_what_it_means_and_says_it_anew(small_book):
    """A change of the glossary reaches the pages that link to it."""
    source = small_book / "book" / "one.ipynb"
    source.write_text(notebook("# One\n\nA {term}`loss`.", COUNT))
    toc = small_book / "_toc.yml"
    before = toc.read_text()
    toc.write_text(
        before.replace("book/one\n", 'book/one\n  title: "7. One"\n')
        + "- file: book/glossary\n"
    )
    glossary = small_book / "book" / "glossary.md"
    page = small_book / "_build" / "html" / "book" / "one.html"
    for meaning in ("What $-\\ln p$ is.", "Another thing."):
        glossary.write_text(
            "# Glossary\n\n```{glossary}\nloss\n"
            f"    {meaning}\n    [There](one.ipynb)\n```\n"
        )
        done = build(small_book)
        assert done.returncode == 0, done.stdout + done.stderr
        said = meaning.replace("$-\\ln p$", "−ln p")
        assert f'title="{said}"><span class="xref std std-term">' in (
            page.read_text("utf8")
        )
    text = page.read_text("utf8")
    assert re.search(r'"chapter-number">Chapter 7</p>\s*<h1>One', text)
    toc.write_text(before)
    glossary.unlink()


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

    settings = config.read_text()
    config.write_text(settings.replace("/OWNER/", "/someone/"))
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
        "https://someone.github.io/minimind-core/_static/card.png",
    ):
        assert link in html, link


def test_the_link_to_an_exercise_begins_with_its_name(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "book" / "_ext")
    hooks = extension("minimind_book")
    title = 'Solution to<a href="#x"> Exercise 1</a>'
    plain = 'Solution to <a href="#x">Exercise 1</a>'
    assert hooks.with_bare_links(title) == plain
    assert hooks.with_bare_links(plain) == plain


def test_cards_lead_to_pages_and_to_tests(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "book" / "_ext")
    hooks = extension("minimind_book")
    card = (
        '<a class="mm-chapter" href="04_precision.ipynb#exhibit-x">in</a>'
        '<a class="mm-chapter" href="#exhibit-y">below</a>'
        '<code class="mm-test">tests/test_build.py::<wbr>'
        "test_cards_<wbr>lead_<wbr>to_<wbr>pages_<wbr>and_<wbr>to_<wbr>"
        "tests</code>"
        '<a href="05_pretraining.ipynb">as it is</a>'
    )
    unset = {"repository_url": "https://github.com/OWNER/book"}
    page = hooks.with_card_links(card, unset)
    assert page == card.replace("04_precision.ipynb", "04_precision.html")
    known = {"repository_url": "https://github.com/me/book",
             "repository_branch": "dev"}  # fmt: skip
    page = hooks.with_card_links(card, known)
    line = test_cards_lead_to_pages_and_to_tests.__code__.co_firstlineno
    place = f"https://github.com/me/book/blob/dev/tests/test_build.py#L{line}"
    assert f'<a href="{place}"><code class="mm-test">' in page
