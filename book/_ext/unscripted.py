"""The page's theme for readers without scripts.

The theme's pages are sent with ``data-theme="auto"``, and a script puts
``light`` or ``dark`` there. Its style sheets, and the book's, have colours
for these two alone, so that without scripts a page would have none. A style
sheet that only such readers load says the same rules once more, as the
system's setting chooses them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from sphinx.application import Sphinx

FILE = "noscript.css"
HEAD = (
    '\n<noscript><link rel="stylesheet" '
    f'href="%(root)s_static/{FILE}"></noscript>\n'
)
SCHEMES = {
    "light": "print, not all and (prefers-color-scheme: dark)",
    "dark": "screen and (prefers-color-scheme: dark)",
}
SHEET = re.compile(r'<link[^>]*href="([^"?]+\.css)[^"]*"[^>]*>')
COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)


def rules(css: str) -> Iterator[tuple[str, str]]:
    """Yield what stands before each outer pair of braces, and within it."""
    css = COMMENT.sub("", css)
    start = depth = opened = 0
    for place, sign in enumerate(css):
        if sign == ";" and depth == 0:
            start = place + 1  # a rule without braces, as @charset
        elif sign == "{":
            if depth == 0:
                opened = place
            depth += 1
        elif sign == "}":
            depth -= 1
            if depth == 0:
                yield css[start:opened].strip(), css[opened + 1 : place]
                start = place + 1


def selectors(text: str) -> list[str]:
    """Split a list of selectors at its outer commas."""
    parts, depth = [""], 0
    for sign in text:
        depth += {"(": 1, "[": 1, ")": -1, "]": -1}.get(sign, 0)
        if sign == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += sign
    return [part.strip() for part in parts]


def of_theme(css: str, name: str) -> str:
    """Return the rules for one theme, as rules for a page without one."""
    theme = re.compile(rf"""\[data-theme=["']?{name}["']?\]""")
    out = []
    for head, body in rules(css):
        if head.startswith(("@media", "@supports")):
            if inner := of_theme(body, name):
                out.append(f"{head}{{{inner}}}")
        elif not head.startswith("@"):
            kept = [one for one in selectors(head) if theme.search(one)]
            if kept:
                head = theme.sub('[data-theme="auto"]', ",".join(kept))
                out.append(f"{head}{{{body.strip()}}}")
    return "\n".join(out)


def as_the_system(css: str) -> str:
    """Return style sheets' rules for themes, as the system's setting asks."""
    return "\n".join(
        f"@media {scheme} {{\n{of_theme(css, name)}\n}}"
        for name, scheme in SCHEMES.items()
    )


def write_sheet(app: Sphinx, exception: Exception | None) -> None:
    """Write the style sheet from those that the front page loads."""
    if exception or app.builder.name != "html":
        return
    page = Path(app.outdir) / f"{app.config.root_doc}.html"
    css = "\n".join(
        (page.parent / name).resolve().read_text("utf8")
        for name in SHEET.findall(page.read_text("utf8"))
        if "://" not in name and not name.endswith(FILE)
    )
    text = as_the_system(css)
    (Path(app.outdir) / "_static" / FILE).write_text(text, "utf8")


def setup(app: Sphinx) -> None:
    """Connect to the build, after the icons have been replaced."""
    app.connect("build-finished", write_sheet, priority=950)
