"""The models that run in the pages: written when a build begins, and loaded
only by pages that have a place for them.

A place is plain HTML that says something by itself, for a notebook and for
readers without scripts:

    <div class="mm-lab" data-lab="write">
    <p>What stands here until the model does.</p>
    </div>

The widgets are in `book/_static/lab`; what they load is written by
`minimind_core.book.lab` from the stages that the chapters use.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

PLACE = 'class="mm-lab"'
OPENING = re.compile(r'<div class="mm-lab" data-lab="(?P<kind>\w+)"[^>]*>')
SHOWN = re.compile(r'<img (src="([^"]*/shown-\w+)\.webp"[^>]*)>')
PICTURES: dict[str, str] = {}  # by the kind of place
FOLDER = "live"  # below _static; the readable modules are in _static/lab
HEAD = """
<link rel="stylesheet" href="%(root)s_static/lab/lab.css">
<script src="%(root)s_static/live/index.js"></script>
<script src="%(root)s_static/live/page.js"></script>
"""


def has_places(folder: Path) -> bool:
    """Whether a source in the book's folder has a place for a model."""
    quoted = PLACE.replace('"', '\\"')  # in a notebook's JSON
    return any(
        PLACE in text or quoted in text
        for path in (*folder.glob("book/*.md"), *folder.glob("book/*.ipynb"))
        if (text := path.read_text("utf8"))
    )


def write_models(app: Sphinx) -> None:
    """Write scripts, world and models below the output's `_static`."""
    if app.builder.name != "html" or not has_places(Path(app.srcdir)):
        return
    from minimind_core.book.lab import write_lab

    source = Path(__file__).resolve().parents[1] / "_static" / "lab"
    PICTURES.update(write_lab(source, Path(app.outdir) / "_static" / FOLDER))


def with_pictures(body: str) -> str:
    """Let each place show what was written there when the book was built.

    A widget's picture has a twin for dark pages.
    """

    def add(match: re.Match[str]) -> str:
        return match[0] + PICTURES.get(match["kind"], "")

    return SHOWN.sub(
        r'<picture><source srcset="\2-dark.webp" '
        r'media="screen and (prefers-color-scheme: dark)">'
        r'<img class="dark-light" \1></picture>',
        OPENING.sub(add, body),
    )


def head(context: dict[str, Any], pagename: str) -> str:
    """What the head of a page needs, if it has a place for a model."""
    if PLACE not in context.get("body", ""):
        return ""
    return HEAD % {"root": "../" * pagename.count("/")}


def setup(app: Sphinx) -> None:
    """Connect to the build."""
    app.connect("builder-inited", write_models)
