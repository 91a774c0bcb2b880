"""Formulas, set while the book is built.

KaTeX turns each formula into HTML for the eye and into MathML for a screen
reader. It runs here, in one process of node for the whole build, and a page
loads no script for its formulas: only KaTeX's style sheet and a few fonts,
which lie beside the pages. So the formulas are there without scripts too, and
on paper.

A formula that KaTeX does not understand is a warning with its file and line,
and with `-W` the end of the build.
"""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import vendor
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.util import logging
from sphinx.util.math import get_node_equation_number

logger = logging.getLogger(__name__)
RENDERER = "katex"  # html_math_renderer in _config.yml
FOLDER = "vendor/katex"  # below _static
STYLE = f"{FOLDER}/katex.min.css"

# Those that the formulas of the book need. A formula that needs another one
# is an error that says so.
FONTS = (
    "KaTeX_Main-Regular",
    "KaTeX_Math-Italic",
    "KaTeX_Size1-Regular",
    "KaTeX_Size2-Regular",
    "KaTeX_Size3-Regular",
)

# One formula a line, and one answer a line, as JSON.
SCRIPT = """
const katex = require(process.argv[1]);
const lines = require("readline").createInterface({ input: process.stdin });
lines.on("line", (line) => {
  const { tex, display } = JSON.parse(line);
  const answer = {};
  try {
    answer.html = katex.renderToString(tex, {
      displayMode: display, output: "htmlAndMathml",
      throwOnError: true, strict: "error", trust: false,
    });
  } catch (error) {
    answer.error = error.message;
  }
  process.stdout.write(JSON.stringify(answer) + "\\n");
});
"""

FACE = re.compile(r"@font-face\{[^}]*\}")
RULE = re.compile(r"(?P<selectors>[^{}]+)\{(?P<said>[^{}]*)\}")
NUMBERED = re.compile(r"\\(begin|end)\{(align|alignat|equation|gather)\}")


class FormulaError(Exception):
    """A formula cannot be shown as it is written."""


class Katex:
    """KaTeX in a process of node, which starts with the first formula.

    Parameters
    ----------
    folder : Path
        Where `vendor.py` has put KaTeX.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.known: dict[tuple[str, bool], dict[str, str]] = {}
        self.process: subprocess.Popen[str] | None = None
        style = (folder / "katex.min.css").read_text("utf8")
        self.fonts = fonts_by_classes(style)

    def render(self, tex: str, display: bool = False) -> str:
        """The HTML of a formula; each formula is asked for once.

        Raises
        ------
        FormulaError
            If KaTeX does not understand it, or if it needs a font that is
            not among `FONTS`.
        """
        answer = self.known.get((tex, display))
        if answer is None:
            answer = self._ask({"tex": tex, "display": display})
            self.known[tex, display] = answer
        if "error" in answer:
            raise FormulaError(answer["error"])
        if missing := self.fonts_of(answer["html"]) - set(FONTS):
            raise FormulaError(
                f"it needs {', '.join(sorted(missing))}, which the pages do "
                "not load: add it to FONTS in book/_ext/formulas.py"
            )
        return answer["html"]

    def fonts_of(self, formula: str) -> set[str]:
        """The fonts that the HTML of a formula may use."""
        said = re.findall(r'class="([^"]*)"', formula)
        classes = set(" ".join(said).split())
        return {font for needed, font in self.fonts if needed <= classes}

    def _ask(self, question: dict[str, Any]) -> dict[str, str]:
        if self.process is None:
            script = str(self.folder / "katex.min.js")
            self.process = subprocess.Popen(
                [vendor.node_command(), "-e", SCRIPT, script],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                encoding="utf-8",
            )
        sender, receiver = self.process.stdin, self.process.stdout
        assert sender is not None and receiver is not None
        sender.write(json.dumps(question) + "\n")
        sender.flush()
        line = receiver.readline()
        if not line:
            raise ExtensionError("node ended while it was setting formulas")
        return json.loads(line)

    def close(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.communicate()  # it ends with its input
            self.process = None


def fonts_by_classes(style: str) -> list[tuple[frozenset[str], str]]:
    """Which classes ask for which font, from KaTeX's style sheet."""
    found = [(frozenset(["katex"]), "KaTeX_Main-Regular")]
    for rule in RULE.finditer(FACE.sub("", style)):
        said = rule["said"]
        family = re.search(r"font-family:(KaTeX_\w+)", said)
        kind = "Bold" * ("font-weight:700" in said)
        kind += "Italic" * ("font-style:italic" in said)
        if family is None and not kind:
            continue
        name = family[1] if family else "KaTeX_Main"
        for selector in rule["selectors"].split(","):
            classes = frozenset(re.findall(r"\.([\w-]+)", selector))
            found.append((classes, f"{name}-{kind or 'Regular'}"))
    return found


def own_style(style: str) -> str:
    """KaTeX's style sheet with no other fonts than `FONTS`."""

    def keep(match: re.Match[str]) -> str:
        name = re.search(r"url\(fonts/([\w-]+)\.woff2\)", match[0])
        if name is None or name[1] not in FONTS:
            return ""
        source = f'src:url(fonts/{name[1]}.woff2) format("woff2")'
        return re.sub(r"src:[^;}]*", source, match[0])

    return FACE.sub(keep, style)


def has_formulas(body: str) -> bool:
    """Whether a page's HTML shows formulas."""
    return 'class="katex"' in body


def display_tex(node: nodes.math_block) -> str:
    r"""The formula of a display, as Sphinx would pass it to MathJax.

    Several lines become one array, and so do parts between empty lines. An
    environment such as ``align`` loses its own numbers: Sphinx counts.
    """
    tex = node.astext()
    if node.get("nowrap"):
        return NUMBERED.sub(r"\\\1{\2*}", tex)
    parts = [part.strip() for part in tex.split("\n\n") if part.strip()]
    parts = [
        rf"\begin{{split}}{part}\end{{split}}" if r"\\" in part else part
        for part in parts
    ]
    if len(parts) == 1:
        return parts[0]
    together = r" \\ ".join(parts)
    return rf"\begin{{aligned}}{together}\end{{aligned}}"


def set_formula(writer: Any, node: nodes.Element, display: bool) -> str:
    """The HTML of a node; the formula as it is written if that fails."""
    tex = display_tex(node) if display else node.astext()
    try:
        return writer.builder.app.katex.render(tex, display)
    except FormulaError as error:
        message = f"the formula {' '.join(tex.split())} fails: {error}"
        logger.warning(message, location=node, type="formula")
        return f"<code>{html.escape(tex)}</code>"


def visit_inline(writer: Any, node: nodes.math) -> None:
    """Write a formula within a line."""
    said = set_formula(writer, node, display=False)
    opening = writer.starttag(
        node, "span", "", CLASS="math notranslate nohighlight"
    )
    writer.body.append(f"{opening}{said}</span>")
    raise nodes.SkipNode


def visit_display(writer: Any, node: nodes.math_block) -> None:
    """Write a formula that stands by itself, and its number if any."""
    writer.body.append(
        writer.starttag(node, "div", CLASS="math notranslate nohighlight")
    )
    if node.get("number"):
        number = get_node_equation_number(writer, node)
        writer.body.append(f'<span class="eqno">({number})')
        writer.add_permalink_ref(node, "Link to this equation")
        writer.body.append("</span>")
    writer.body.append(set_formula(writer, node, display=True) + "</div>\n")
    raise nodes.SkipNode


def begin(app: Sphinx, source: Path) -> None:
    """Put the style sheet and the fonts below the output's `_static`."""
    app.katex = Katex(source)  # type: ignore[attr-defined]
    target = Path(app.outdir) / "_static" / FOLDER
    shutil.rmtree(target, ignore_errors=True)
    (target / "fonts").mkdir(parents=True)
    style = own_style((source / "katex.min.css").read_text("utf8"))
    (target / "katex.min.css").write_text(style, "utf8")
    shutil.copy(source / "LICENSE", target)
    for name in FONTS:
        shutil.copy(source / "fonts" / f"{name}.woff2", target / "fonts")


def end(app: Sphinx, exception: Exception | None) -> None:
    """End the process of node."""
    if hasattr(app, "katex"):
        app.katex.close()


def setup(app: Sphinx) -> None:
    app.add_html_math_renderer(
        RENDERER, (visit_inline, None), (visit_display, None)
    )
    app.add_css_file(STYLE)
    app.connect("build-finished", end)
