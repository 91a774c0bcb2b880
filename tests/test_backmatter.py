"""The pages around the chapters: they are complete and lead somewhere."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import inspect
import json
import pkgutil
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from conftest import ROOT, chapters, pages, toc_entries

import minimind_core
from minimind_core.cli import build_parser

BOOK = ROOT / "book"
API = ("api", "api_parts", "api_book")
# Modules that nobody calls: a command, and the words of the two languages.
NOT_SHOWN = {
    "__main__",
    "cli",
    "book.__main__",
    "version",
    "microworld.chinese",
    "microworld.english",
}


def source(page: str) -> str:
    """A page's text; of a notebook, its cells of text."""
    path = ROOT / f"{page}.ipynb"
    if not path.exists():
        return path.with_suffix(".md").read_text("utf8")
    cells = json.loads(path.read_text("utf8"))["cells"]
    texts = [c["source"] for c in cells if c["cell_type"] == "markdown"]
    return "\n\n".join("".join(text) for text in texts)


TEXT = {page: source(page) for page in pages()}


# --- the glossary -----------------------------------------------------------


def terms() -> list[str]:
    block = TEXT["book/glossary"].split("```{glossary}\n")[1].split("```")[0]
    return re.findall(r"^(\S.*)$", block, re.MULTILINE)


def links_to_terms(page: str) -> list[str]:
    said = re.findall(r"\{term\}`([^`]+)`", TEXT[page])
    return [re.sub(r"^.*<(.+)>$", r"\1", one).casefold() for one in said]


def test_the_glossary_is_in_order_and_says_each_term_once():
    known = [term.casefold() for term in terms()]
    assert known == sorted(set(known))
    assert len(known) >= 60


def test_every_linked_term_exists_and_every_term_is_linked():
    known = {term.casefold() for term in terms()}
    linked = {page: set(links_to_terms(page)) for page in TEXT}
    for page, here in linked.items():
        assert here <= known, (page, here - known)
    assert known == set().union(*linked.values())


@pytest.mark.parametrize(
    "page", [page for page in chapters() if re.match(r"book/\d", page)]
)
def test_a_chapter_links_a_term_once_where_it_first_comes_up(page):
    here = links_to_terms(page)
    assert len(here) >= 8
    assert sorted(here) == sorted(set(here))


# --- what leads somewhere ---------------------------------------------------


def anchors(page: str) -> set[str]:
    slugs = pytest.importorskip("myst_parser.mdit_to_docutils.base")
    text = TEXT[page]
    for name in re.findall(r"```\{include\} (\S+)", text):
        text += (BOOK / name).read_text("utf8")
    headings = re.findall(r"^#{1,4} (.+)$", text, re.MULTILINE)
    return {slugs.default_slugify(h.replace("`", "")) for h in headings}


@pytest.mark.parametrize("page", pages())
def test_links_between_pages_have_a_page_and_a_heading(page):
    link = re.compile(r"\]\(([\w/]+)\.(?:ipynb|md)(?:#([^)]+))?\)")
    for name, anchor in link.findall(TEXT[page]):
        assert f"book/{name}" in TEXT, name
        if anchor:
            assert anchor in anchors(f"book/{name}"), (name, anchor)


def test_the_course_names_exercises_as_the_chapters_do():
    there = {}
    for page in chapters():
        there |= {
            label: title
            for title, label in re.findall(
                r"^```\{exercise\} (.+)\n:label: (\S+)$", TEXT[page], re.M
            )
        }
    named = re.findall(r"\{ref\}`(.+?) <(.+?)>`", TEXT["book/instructors"])
    assert len(named) >= 16
    for title, label in named:
        assert there[label] == title


WEEK = ["Read", "Run in class", "Slides", "Exercises", "Discuss", "Project"]


def test_every_week_of_the_course_has_all_it_needs():
    text = TEXT["book/instructors"]
    weeks = re.split(r"^### Week \d+.*$", text, flags=re.MULTILINE)
    assert len(weeks) == 9
    for week in weeks[1:]:
        week = week.split("\n## ")[0]
        parts = re.findall(r"^(\w.*)\n: ", week, re.MULTILINE)
        assert parts == WEEK


def test_the_front_page_lists_the_chapters_in_their_order():
    front = TEXT["book/index"].split("## The chapters")[1]
    listed = re.findall(
        r"^`+\{grid-item-card\} (\d+\. .+)\n:link: (\w+)$", front, re.M
    )
    there = [
        (entry["title"], Path(entry["file"]).name)
        for entry in toc_entries()
        if re.match(r"book/\d", entry["file"])
    ]
    assert listed == there
    for _, name in listed:
        assert f"{{reading}}`{name}`" in front


def test_how_the_book_is_built_names_files_that_exist():
    told = re.findall(r"`((?:tests|book)/[^`]+)`", TEXT["book/building"])
    assert len(told) >= 8
    for pattern in told:
        assert list(ROOT.glob(pattern)), pattern


# --- works that are cited ---------------------------------------------------


def test_all_that_is_cited_is_in_the_list_and_all_in_the_list_is_cited():
    entries = (BOOK / "references.bib").read_text("utf8")
    keys = re.findall(r"^@\w+\{([^,\s]+),", entries, re.MULTILINE)
    assert len(set(keys)) == len(keys)
    cited = {
        key.strip()
        for text in TEXT.values()
        for told in re.findall(r"\{cite(?::\w+)?\}`([^`]+)`", text)
        for key in told.split(",")
    }
    assert cited == set(keys)
    assert ":all:" in TEXT["book/references"]


# --- the names of the package -----------------------------------------------


def shown_modules() -> set[str]:
    told = "".join(TEXT[f"book/{page}"] for page in API)
    found = re.findall(r"^\.\. automodule:: (\S+)\n   :members:", told, re.M)
    for package in re.findall(r"^\.\. submodules:: (\S+)$", told, re.M):
        home = importlib.import_module(package)
        modules = pkgutil.iter_modules(home.__path__, f"{package}.")
        found += [module.name for module in modules]
    assert len(found) == len(set(found))
    return set(found)


def all_modules() -> set[str]:
    walk = pkgutil.walk_packages(minimind_core.__path__, "minimind_core.")
    return {module.name for module in walk}


def test_every_module_is_on_an_api_page():
    hidden = {f"minimind_core.{name}" for name in NOT_SHOWN}
    packages = {
        f"minimind_core.{name}"
        for name in (
            "book", "book.checks", "book.exhibits", "book.viz", "data",
            "microworld",
        )
    }  # fmt: skip
    assert shown_modules() == all_modules() - hidden - packages


@pytest.mark.parametrize("module", sorted(all_modules()))
def test_what_is_public_has_a_docstring(module):
    home = importlib.import_module(module)
    assert inspect.getdoc(home)
    for name, thing in vars(home).items():
        named = inspect.isfunction(thing) or inspect.isclass(thing)
        if named and thing.__module__ == module and name[0] != "_":
            assert inspect.getdoc(thing), f"{module}.{name}"


def test_the_front_door_has_every_public_name():
    front = TEXT["book/api"].split("## The command")[0]
    listed = re.findall(r"^   ~(minimind_core\.\S+)$", front, re.MULTILINE)
    names = [name.rpartition(".")[2] for name in listed]
    public = set(minimind_core.__all__) - {"__version__"}
    assert sorted(names) == sorted(public)
    for path, name in zip(listed, names, strict=True):
        home = importlib.import_module(path.rpartition(".")[0])
        assert getattr(home, name) is getattr(minimind_core, name)


def test_the_table_of_commands_is_the_parsers():
    listed = re.findall(r"^\| `minimind (\w+)` \|", TEXT["book/api"], re.M)
    (commands,) = (
        action.choices
        for action in build_parser()._actions
        if isinstance(action, argparse._SubParsersAction)
    )
    assert listed == list(commands)


# --- what Sphinx is helped with ---------------------------------------------


@pytest.fixture(scope="module")
def backmatter():
    pytest.importorskip("sphinx")
    spec = importlib.util.spec_from_file_location(
        "backmatter", BOOK / "_ext" / "backmatter.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("tex", "plain"),
    [
        (r"\frac{\alpha}{r} BA", "α/r BA"),
        (r"\alpha / \sqrt{r}", "α/√r"),
        (r"6 \cdot 10^{-8}", "6 · 10⁻⁸"),
        (r"-\ln p", "−ln p"),
        ("k", "k"),
    ],
)
def test_a_formula_in_plain_text(backmatter, tex, plain):
    assert backmatter.plain_math(tex) == plain


def test_no_formula_of_the_glossary_is_left_with_its_commands(backmatter):
    formulas = re.findall(r"\$([^$]+)\$", TEXT["book/glossary"])
    assert len(formulas) > 10
    left = [one for one in map(backmatter.plain_math, formulas)
            if re.search(r"[\\{}^_]", one)]  # fmt: skip
    assert left == []


def test_the_citation_is_that_of_the_file(backmatter):
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf8"))
    citation["repository-code"] = "https://github.com/OWNER/minimind-core"
    title = citation["title"].replace("_", r"\_")
    entry = backmatter.bibtex(citation)
    assert entry.splitlines() == [
        "@software{minimind_core,",
        f"  author  = {{{{{citation['authors'][0]['name']}}}}},",
        f"  title   = {{{title}}},",
        f"  version = {{{minimind_core.__version__}}},",
        "  license = {MIT},",
        "}",
    ]
    citation["repository-code"] = "https://github.com/me/mine"
    citation["authors"] = [{"family-names": "Noether", "given-names": "Emmy"}]
    entry = backmatter.bibtex(citation)
    assert "  url     = {https://github.com/me/mine},\n" in entry
    assert "author  = {Noether, Emmy}" in entry


def test_another_name_of_a_dict_is_not_told_how_to_be_called(backmatter):
    from minimind_core.run import Record, Run

    leave_out = backmatter.no_signature_of_others
    assert leave_out(None, "class", "Record", Record, {}) == ("", None)
    assert leave_out(None, "class", "Run", Run, {}) is None


def test_reading_takes_as_long_as_its_words(backmatter):
    text = {"cell_type": "markdown", "source": ["so many words "] * 700}
    code = {"cell_type": "code", "source": ["x = 1\n"] * 5000}
    assert backmatter.minutes_to_read({"cells": [text, code]}) == 14
    assert backmatter.minutes_to_read({"cells": [text, text]}) == 28


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("Said.\n\n    use()\n", "Said.\n\n::\n\n    use()\n"),
        (
            "Said.\n\n    use()\n\n    again()\n\nMore.\n",
            "Said.\n\n::\n\n    use()\n\n    again()\n\nMore.\n",
        ),
        ("As so::\n\n    use()\n", "As so::\n\n    use()\n"),
        ("- a point\n    goes on\n", "- a point\n    goes on\n"),
    ],
)
def test_usage_in_a_docstring_is_code(backmatter, before, after):
    lines: list[str] = []
    module = SimpleNamespace(__doc__=before)
    backmatter.usage_is_code(None, "module", "some", module, {}, lines)
    head = ".. rubric:: some\n   :class: module-name\n\n\n"
    assert "\n".join(lines) == head + after


def test_classes_of_the_package_are_linked_as_types(backmatter):
    pytest.importorskip("numpydoc")
    config = SimpleNamespace()
    backmatter.name_types(None, config)
    known = config.numpydoc_xref_aliases
    assert known["Trainer"] == "minimind_core.train.Trainer"
    assert known["Story"] == "minimind_core.microworld.stories.Story"
    assert known["sequence"] == "sequence", "is to stay text"


def test_a_name_is_linked_if_it_can_mean_one_thing_only(backmatter):
    def entry(kind: str = "function") -> SimpleNamespace:
        return SimpleNamespace(objtype=kind)

    objects = {
        "core.train.Trainer": entry("class"),
        "core.data.pack": entry(),
        "core.model.Block.forward": entry("method"),
        "core.model.Head.forward": entry("method"),
        "core.run_it": entry("module"),
    }
    assert backmatter.find(objects, "Trainer") == "core.train.Trainer"
    assert backmatter.find(objects, "data.pack") == "core.data.pack"
    for unclear in ("pack", "Block", "run_it", "_forward"):
        assert backmatter.find(objects, unclear) is None
    full = backmatter.find(objects, "Block.forward")
    assert full == "core.model.Block.forward"
