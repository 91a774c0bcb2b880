"""What the pages around the chapters are made from.

1. The package's docstrings become the API pages: a module's docstring begins
   with its usage, set in by four blanks, which is code though no ``::``
   stands before it; and what stands in single backticks is a link if it names
   something in the package.
2. How to cite the book is taken from `CITATION.cff`.
3. How long a chapter takes to read is counted.
4. What was cited by its number on arXiv can be followed.
5. A term says what it means to whoever points at it.
6. Exercises are numbered by chapter: 4.1, 4.2 and so on.
"""

from __future__ import annotations

import ast
import importlib
import json
import math
import pkgutil
import re
from functools import lru_cache
from pathlib import Path
from types import GenericAlias
from typing import Any

import yaml
from docutils import nodes
from docutils.statemachine import StringList
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective, SphinxRole

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "minimind_core"
GLOSSARY = ROOT / "book" / "glossary.md"
UNSET_OWNER = "/OWNER/"
LINKED = {"function", "class", "exception", "method", "data"}
ARXIV = re.compile(r"arXiv:(\d{4}\.\d{4,5})")


# --- 1. Docstrings ----------------------------------------------------------


def usage_is_code(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list
) -> None:
    """Begin a module with its name, and mark what is code in its docstring.

    Code is each indented block that follows an unindented line, if the
    docstring has not marked it by itself.
    """
    if what != "module":
        return
    marked = [f".. rubric:: {name}", "   :class: module-name", "", ""]
    before = ""  # the last line with something in it
    # As it was written: where usage is all there is, its indent is lost.
    for line in [*(obj.__doc__ or "").splitlines(), ""]:
        begins = line.startswith("    ") and not marked[-1]
        if begins and before[:1].strip() and not before.endswith("::"):
            marked += ["::", ""]
        marked.append(line)
        before = line if line.strip() else before
    lines[:] = marked


def no_signature_of_others(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, *said: Any
) -> tuple[str, None] | None:
    """Leave out how to call what is only another name, as of a `dict`.

    Its arguments are Python's, or another library's, and not told here.
    """
    home = getattr(obj, "__module__", "")
    other = isinstance(obj, GenericAlias) or not home.startswith(PACKAGE)
    return ("", None) if what in ("class", "data") and other else None


def find(objects: dict[str, Any], target: str) -> str | None:
    """The one documented name that `target` can mean, or None.

    A lone lower-case word is more often a parameter than a function.
    """
    if not any(sign.isupper() or sign in "_." for sign in target):
        return None
    found = [
        name
        for name, entry in objects.items()
        if name.endswith(f".{target}") and entry.objtype in LINKED
    ]
    return found[0] if len(found) == 1 else None


def link_or_code(
    app: Sphinx, env: Any, node: Any, contnode: nodes.Node
) -> nodes.Node | None:
    """Resolve a name in backticks in the whole package, or leave it code."""
    if (node.get("refdomain"), node["reftype"]) != ("py", "obj"):
        return None
    objects = env.domaindata["py"]["objects"]
    name = find(objects, node["reftarget"])
    if name is None:
        return contnode
    entry = objects[name]
    target = app.builder.get_relative_uri(node["refdoc"], entry.docname)
    return nodes.reference(
        "",
        "",
        contnode,
        internal=True,
        refuri=f"{target}#{entry.node_id}",
        reftitle=name,
    )


class Submodules(SphinxDirective):
    """All modules of a package, each as ``automodule`` shows it."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        self.env.note_reread()  # a new module is not seen otherwise
        (package,) = self.arguments
        folder = importlib.import_module(package).__path__
        lines = []
        for module in pkgutil.iter_modules(folder, f"{package}."):
            lines += [f".. automodule:: {module.name}", "   :members:", ""]
        container = nodes.Element()
        source = self.get_source_info()[0]
        self.state.nested_parse(
            StringList(lines, source), self.content_offset, container
        )
        return container.children


def name_types(app: Sphinx, config: Any) -> None:
    """Have the package's classes linked where a docstring gives a type.

    What numpydoc would link by itself is documented elsewhere; it stays text.
    """
    from numpydoc.xref import DEFAULT_LINKS

    names = {word: word for word in DEFAULT_LINKS}
    for path in sorted((ROOT / "minimind_core").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        module = ".".join(parts).removesuffix(".__init__")
        for node in ast.parse(path.read_text("utf8")).body:
            if isinstance(node, ast.ClassDef) and node.name[0] != "_":
                names[node.name] = f"{module}.{node.name}"
    config.numpydoc_xref_aliases = names
    config.numpydoc_xref_ignore = "all"  # other words


def only_what_has_source(app: Sphinx) -> list:
    """Keep Python's own modules out of the list of source pages.

    They have no page there, so `sphinx.ext.viewcode` lists a dead link.
    """
    modules = getattr(app.env, "_viewcode_modules", {})
    for name in [name for name, entry in modules.items() if not entry]:
        del modules[name]
    return []


# --- 2. How to cite ---------------------------------------------------------


def bibtex(citation: dict[str, Any]) -> str:
    """The BibTeX entry for what a `CITATION.cff` says.

    An address that nobody has set yet is left out.
    """
    fields = {
        "author": " and ".join(
            f"{{{one['name']}}}"
            if "name" in one
            else f"{one['family-names']}, {one['given-names']}"
            for one in citation["authors"]
        ),
        "title": citation["title"].replace("_", r"\_"),
        "version": str(citation["version"]),
        "license": citation["license"],
    }
    if "date-released" in citation:
        fields["year"] = str(citation["date-released"])[:4]
    address = citation.get("repository-code", UNSET_OWNER)
    if UNSET_OWNER not in address:
        fields["url"] = address
    key = citation["title"].split(":")[0]
    told = "".join(f"  {k:7} = {{{v}}},\n" for k, v in fields.items())
    return f"@software{{{key},\n{told}}}"


class HowToCite(SphinxDirective):
    """The entry to cite the book by."""

    def run(self) -> list[nodes.Node]:
        source = ROOT / "CITATION.cff"
        self.env.note_dependency(str(source))
        entry = bibtex(yaml.safe_load(source.read_text("utf8")))
        return [nodes.literal_block(entry, entry, language="bibtex")]


# --- 3. How long a chapter is -----------------------------------------------


def minutes_to_read(notebook: dict[str, Any]) -> int:
    """Minutes for the text alone, at 150 words a minute."""
    words = sum(
        len("".join(cell["source"]).split())
        for cell in notebook["cells"]
        if cell["cell_type"] == "markdown"
    )
    return math.ceil(words / 150)


class ReadingTime(SphinxRole):
    """``{reading}`05_pretraining``` is the time to read that chapter."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        source = ROOT / "book" / f"{self.text}.ipynb"
        self.env.note_dependency(str(source))
        minutes = minutes_to_read(json.loads(source.read_text("utf8")))
        told = f"about {max(5, 5 * round(minutes / 5))} minutes"
        return [nodes.inline(told, told, classes=["reading-time"])], []


# --- 4. What can be followed ------------------------------------------------


def link_arxiv(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Make links of arXiv's numbers in lists of references."""
    for entry in doctree.findall(nodes.citation):
        for text in list(entry.findall(nodes.Text)):
            found = ARXIV.search(text)
            if found is None or isinstance(text.parent, nodes.reference):
                continue
            before, after = text[: found.start()], text[found.end() :]
            link = nodes.reference(
                "",
                found[0],
                refuri=f"https://arxiv.org/abs/{found[1]}",
                internal=False,
            )
            parts = [nodes.Text(before), link, nodes.Text(after)]
            text.parent.replace(text, parts)


# --- 5. What a term means ---------------------------------------------------

# Mathematics of the glossary, for a place where there is only plain text.
PLAIN = [
    (r"\\frac\{(.+?)\}\{(.+?)\}", r"\1/\2"),
    (r"\\sqrt\{(.+?)\}", r"√\1"),
    (r"\\alpha", "α"),
    (r"\\theta", "θ"),
    (r"\\ln ", "ln "),
    (r"\\cdot", "·"),
    (r"\^\{(.+?)\}", lambda m: m[1].translate(RAISED)),
    ("-(?=ln)", "−"),
    (r" */ *", "/"),
]
RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def plain_math(tex: str) -> str:
    """A short formula without its commands, as in `α/r`."""
    for pattern, plain in PLAIN:
        tex = re.sub(pattern, plain, tex)
    return tex


def meaning(definition: nodes.Element) -> str:
    """A definition in plain text, without the link to its chapter at the end.

    Only its first paragraph, which is all that the glossary has.
    """
    paragraph = next(definition.findall(nodes.paragraph)).deepcopy()
    last = paragraph.children[-1]
    if isinstance(last, pending_xref | nodes.reference):
        paragraph.remove(last)
    for formula in list(paragraph.findall(nodes.math)):
        plain = nodes.Text(plain_math(formula.astext()))
        formula.parent.replace(formula, plain)
    return " ".join(paragraph.astext().split())


@lru_cache(maxsize=1)
def meanings(env: Any) -> dict[str, str]:
    """What each term of the glossary means, by the term's anchor."""
    terms = env.domaindata["std"]["objects"]
    pages = {page for (kind, _), (page, _) in terms.items() if kind == "term"}
    found: dict[str, str] = {}
    for page in sorted(pages):
        for item in env.get_doctree(page).findall(nodes.definition_list_item):
            said = next(item.findall(nodes.definition), None)
            if said is None or not any(said.findall(nodes.paragraph)):
                continue
            for term in item.findall(nodes.term):
                found |= dict.fromkeys(term["ids"], meaning(said))
    return found


def depend_on_glossary(app: Sphinx, doctree: nodes.document) -> None:
    """Have a page with terms made again when the glossary changes."""
    if any(
        link["reftype"] == "term" for link in doctree.findall(pending_xref)
    ):
        app.env.note_dependency(str(GLOSSARY))


def say_what_terms_mean(
    app: Sphinx, doctree: nodes.document, docname: str
) -> None:
    """Give each link to a term the term's meaning as its title.

    book.js shows it, also to those who go from link to link by keys; where
    scripts are off, the browser shows titles by itself.
    """
    links = [
        word.parent
        for word in doctree.findall(nodes.inline)
        if "std-term" in word["classes"]
        and isinstance(word.parent, nodes.reference)
    ]
    known = meanings(app.env) if links else {}
    for link in links:
        address = link.get("refid") or link.get("refuri", "")
        anchor = address.rpartition("#")[2]
        if anchor in known:
            link["reftitle"] = known[anchor]


def number_exercises(_app: Sphinx, env: Any) -> list[str]:
    """Number exercises within their chapter instead of through the book.

    Sphinx has numbered them all just before, in reading order.
    """
    for page, kinds in env.toc_fignumbers.items():
        name = Path(page).name
        chapter = re.match(r"\d+", name)
        place = int(chapter[0]) if chapter else name[0].upper()
        numbers = kinds.get("exercise", {})
        in_order = sorted(numbers, key=lambda one: numbers[one])
        for own, one in enumerate(in_order, 1):
            numbers[one] = (place, own)
    return []


def setup(app: Sphinx) -> dict[str, Any]:
    # before numpydoc adds its own names to these
    app.connect("config-inited", name_types, priority=400)
    app.connect("autodoc-process-docstring", usage_is_code, priority=900)
    app.connect("autodoc-process-signature", no_signature_of_others)
    app.connect("missing-reference", link_or_code)
    app.connect("html-collect-pages", only_what_has_source, priority=400)
    app.connect("doctree-resolved", link_arxiv)
    app.connect("doctree-read", depend_on_glossary)
    app.connect("doctree-resolved", say_what_terms_mean)
    app.connect("env-get-updated", number_exercises, priority=900)
    app.add_directive("submodules", Submodules)
    app.add_directive("how-to-cite", HowToCite)
    app.add_role("reading", ReadingTime())
    return {"parallel_read_safe": True, "parallel_write_safe": True}
