"""How the package's docstrings become the API pages.

1. A module's docstring begins with its usage, set in by four blanks: that is
   code, though no ``::`` stands before it.
2. What stands in single backticks is a link if it names something in the
   package, and code in any case.
"""

from __future__ import annotations

from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

LINKED = {"function", "class", "exception", "method", "data"}


def usage_is_code(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list
) -> None:
    """Say before each indented block of a module's docstring that it is code.

    Only what follows an unindented line is meant, and not what the docstring
    has marked by itself.
    """
    if what != "module":
        return
    marked: list[str] = []
    before = ""  # the last line with something in it
    # As it was written: where usage is all there is, its indent is lost.
    for line in [*(obj.__doc__ or "").splitlines(), ""]:
        begins = line.startswith("    ") and marked and not marked[-1]
        if begins and before[:1].strip() and not before.endswith("::"):
            marked += ["::", ""]
        marked.append(line)
        before = line if line.strip() else before
    lines[:] = marked


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


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("autodoc-process-docstring", usage_is_code, priority=900)
    app.connect("missing-reference", link_or_code)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
