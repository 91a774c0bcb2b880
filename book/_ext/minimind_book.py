"""The few things the book asks of Sphinx beyond its settings.

1. Notebooks are executed again when one of their cells or the package has
   changed, two at a time; an edit to prose executes nothing (`execution.py`).
2. Formulas are set now (`formulas.py`), icons come from files beside the
   pages, and widgets become plain HTML (`frames.py`); no page asks another
   host for anything.
3. Where a page has a place for it, a trained model runs in it (`live.py`).
4. As long as nobody has said where the repository lives, the pages carry no
   links to it.
5. Without scripts a page is light or dark as the system is (`unscripted.py`).
"""

from __future__ import annotations

import html
import logging as std_logging
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import execution
import formulas
import frames
import live
import publish
import unscripted
import vendor
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.util import logging

logger = logging.getLogger(__name__)
ROOT = Path(__file__).resolve().parents[2]
UNSET_OWNER = "/OWNER/"

ICON_SCRIPT = re.compile(
    r"<script[^>]*scripts/fontawesome\.js[^>]*></script>"
)

# The theme's search while one types, which is off; the search page has its
# own copy of these.
SEARCH_SCRIPT = re.compile(
    r'<script src="[^"]*(?:searchtools|language_data|searchindex)\.js">'
    r"</script>\s*"
)

SHOWN_CHANGES = 5

TEST_NAME = re.compile(
    r'<code class="mm-test">(?P<file>tests/\w+\.py)::<wbr>'
    r"(?P<name>(?:\w|<wbr>)+)</code>"
)


# --- 2. Nothing from other hosts --------------------------------------------


def copy_vendor(app: Sphinx) -> None:
    """Put the files that the pages load below the output's `_static`."""
    try:
        source = vendor.fetch()
    except vendor.VendorError as error:
        raise ExtensionError(str(error)) from None
    target = Path(app.outdir) / "_static"
    formulas.begin(app, source / "katex")
    name = "source-serif-4"
    shutil.copytree(
        source / name, target / "vendor" / name, dirs_exist_ok=True
    )
    # Sphinx copies these too, but not when no page has changed.
    shutil.copytree(ROOT / "book" / "_static", target, dirs_exist_ok=True)


def local_page(
    app: Sphinx, pagename: str, templatename: str, context: dict, doctree: Any
) -> None:
    """Keep the files that a page uses, and none that call other hosts."""
    body = context.get("body", "")
    has_math = formulas.has_formulas(body)

    def wanted(script: Any) -> bool:
        said = f"{getattr(script, 'filename', script)}"
        said += getattr(script, "attributes", {}).get("body") or ""
        if "thebe" in said.lower():
            return False
        return has_math or formulas.STYLE not in said

    for key in ("script_files", "css_files"):
        context[key] = [item for item in context[key] if wanted(item)]
    body = with_card_links(body, app.config.html_theme_options)
    # A reference list is said to be a list, and its entries are no items.
    body = body.replace('<div role="list" class="citation-list">', "<div>")
    # A folded cell says what it does; its label would hide that.
    body = body.replace(
        '<summary aria-label="Toggle hidden content">', "<summary>"
    )
    body = with_bare_links(body)
    body = live.with_pictures(body)
    body = with_sizes(body, app)
    body = with_chapter_number(body, app, pagename)
    context["metatags"] = context.get("metatags", "") + social(
        app, pagename, context.get("title", ""), doctree
    )
    context["metatags"] += FONTS_FIRST % ("../" * pagename.count("/"))
    context["metatags"] += live.head(context, pagename)
    root = "../" * pagename.count("/")
    context["metatags"] += unscripted.HEAD % {"root": root}
    if found := changes(app, pagename):
        context["last_updated"] = found[0][1]
        path = Path(app.env.doc2path(pagename)).relative_to(app.srcdir)
        body += list_of_changes(
            found, app.config.html_theme_options, path.as_posix()
        )
    body = frames.with_frames(body, context["script_files"])
    context["script_files"] = [
        one for one in context["script_files"] if not frames.is_state(one)
    ]
    context["body"] = body


def with_card_links(body: str, options: dict[str, Any]) -> str:
    """Lead from the museum's cards to pages and to tests.

    In a notebook a card links to a notebook, and names a test. Here there is
    a page for the one, and for the other, once the repository has an
    address, a line in it.
    """
    body = re.sub(
        r'(<a class="mm-chapter" href="\w+)\.ipynb#', r"\1.html#", body
    )
    address = options.get("repository_url", "")
    if not address or UNSET_OWNER in address:
        return body
    branch = options.get("repository_branch") or "main"

    def link(match: re.Match[str]) -> str:
        lines = (ROOT / match["file"]).read_text("utf8").splitlines()
        start = f"def {match['name'].replace('<wbr>', '')}("
        number = [line.startswith(start) for line in lines].index(True) + 1
        to = f"{address}/blob/{branch}/{match['file']}#L{number}"
        return f'<a href="{to}">{match[0]}</a>'

    return TEST_NAME.sub(link, body)


def with_bare_links(body: str) -> str:
    """Keep the space before an exercise's name out of the link to it."""
    return re.sub(r"(Solution to)(<a [^>]*>) ", r"\1 \2", body)


IMAGE = re.compile(r'<img (?P<rest>[^>]*src="[^"]*_images/(?P<name>[^"]+)")')
CARD = "card.png"  # drawn by tools/card.py


# The typeface is asked for at once, and not when the style sheet has come:
# it is there before the first line is set. (From a disk there is no need to,
# and browsers refuse.)
FONTS_FIRST = """
<script>
if (location.protocol !== "file:")
  for (const face of ["400-normal", "600-normal"])
    document.head.append(Object.assign(document.createElement("link"), {
      rel: "preload", as: "font", type: "font/woff2", crossOrigin: "",
      href: "%s_static/vendor/source-serif-4/source-serif-4-latin-"
        + face + ".woff2",
    }));
</script>
"""


def with_sizes(body: str, app: Sphinx) -> str:
    """Give each picture its width and height, so that no text jumps."""
    from PIL import Image

    files = {name: path for path, name in app.builder.images.items()}

    def add(match: re.Match[str]) -> str:
        tag = body[match.start() : body.index(">", match.start())]
        path = Path(app.srcdir) / files.get(match["name"], "")
        known = {".png", ".jpg", ".webp", ".svg"}
        if " height=" in tag or path.suffix not in known:
            return match[0]
        if path.suffix == ".svg":
            said = re.search(
                r'width="(\d+)" height="(\d+)"', path.read_text("utf8")
            )
            if said is None:
                return match[0]
            wide, high = said.groups()
        else:
            with Image.open(path) as picture:
                wide, high = map(str, picture.size)
        return f'<img width="{wide}" height="{high}" {match["rest"]}'

    return IMAGE.sub(add, body)


def changes(app: Sphinx, page: str) -> list[tuple[str, str, str]]:
    """The last commits to a page: each one's name, day and first line.

    Empty if git knows none. Sphinx itself would say on which day the book
    was built.
    """
    if page not in app.env.found_docs or shutil.which("git") is None:
        return []
    path = Path(app.env.doc2path(page))
    log = ["git", "log", "--no-merges", f"-{SHOWN_CHANGES}"]
    done = subprocess.run(
        [*log, "--format=%h%x09%cs%x09%s", "--", path.name],
        cwd=path.parent,
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    lines = done.stdout.splitlines() if done.returncode == 0 else []
    found = []
    for line in lines:
        name, day, said = line.split("\t", 2)
        found.append((name, day, said))
    return found


def list_of_changes(
    found: list[tuple[str, str, str]], options: dict[str, Any], source: str
) -> str:
    """What was changed on a page, folded; the names lead to the commits.

    They do once the repository has an address, and so does the rest of the
    history.
    """
    address = options.get("repository_url", "")
    known = address and UNSET_OWNER not in address
    lines = []
    for name, day, said in found:
        commit = f"<code>{name}</code>"
        if known:
            commit = f'<a href="{address}/commit/{name}">{commit}</a>'
        lines.append(f"<li>{day} {commit} {html.escape(said)}</li>")
    if known:
        branch = options.get("repository_branch") or "main"
        history = f"{address}/commits/{branch}/{source}"
        lines.append(f'<li><a href="{history}">all changes</a></li>')
    return (
        '<details class="page-changes"><summary>Changes to this page'
        f"</summary><ul>{''.join(lines)}</ul></details>"
    )


def with_chapter_number(body: str, app: Sphinx, page: str) -> str:
    """Say above a chapter's title which one it is.

    On a phone the list of pages, which says it too, is out of sight.
    """
    contents = app.config.external_site_map  # of _toc.yml
    title = contents[page].title if page in contents else None
    number = re.match(r"(\d+)\. ", title or "")
    if number is None:
        return body
    said = f'<p class="chapter-number">Chapter {number[1]}</p>'
    return body.replace("<h1>", f"{said}\n<h1>", 1)


def social(app: Sphinx, page: str, title: str, doctree: Any) -> str:
    """What others show when they link to a page: its card."""
    said = ""
    for paragraph in doctree.findall(nodes.paragraph) if doctree else ():
        said = " ".join(paragraph.astext().split())
        break
    if len(said) > 200:
        said = said[:200].rpartition(" ")[0] + " …"
    base = app.config.html_baseurl
    up = "../" * page.count("/")
    picture = f"{base or up}_static/{CARD}"
    tags = {
        "og:type": "article",
        "og:site_name": app.config.html_title,
        "og:title": re.sub("<[^>]*>", "", title),
        "og:description": said,
        "og:image": picture,
        "og:image:alt": "A loss curve falling onto a dashed line, the floor",
        "twitter:card": "summary_large_image",
    }
    if base:
        tags["og:url"] = f"{base}{page}.html"
    lines = [
        f'<meta property="{name}" content="{html.escape(text)}"/>'
        for name, text in tags.items()
        if text
    ]
    if said:
        lines.append(
            f'<meta name="description" content="{html.escape(said)}"/>'
        )
    return "\n".join(["", *lines])


def subset_icons(app: Sphinx, exception: Exception | None) -> None:
    """Replace 1.5 MB of icons by a font of the dozen that the pages show.

    The theme draws its icons twice: its style sheet has Font Awesome as a
    web font, and a script replaces each by a drawing. The script goes; the
    font keeps the glyphs that occur in the pages and in the theme's scripts.
    """
    if exception or app.builder.name != "html":
        return
    import pydata_sphinx_theme
    from fontTools import subset

    std_logging.getLogger("fontTools").setLevel(std_logging.WARNING)
    theme = Path(pydata_sphinx_theme.__file__).parent
    source = theme / "theme" / "pydata_sphinx_theme" / "static"
    out = Path(app.outdir)
    static = out / "_static"
    style = "styles/pydata-sphinx-theme.css"
    css = (source / style).read_text("utf8")

    names: set[str] = set()
    for path in [*out.rglob("*.html"), *source.glob("scripts/*theme.js")]:
        text = path.read_text("utf8")
        names.update(re.findall(r"\bfa-[a-z][a-z0-9-]*", text))
        if path.suffix == ".html" and "scripts/fontawesome.js" in text:
            text = ICON_SCRIPT.sub("", text)
            if path.name != "search.html":
                text = SEARCH_SCRIPT.sub("", text)
            path.write_text(text, "utf8")
    # Icons come from classes in the pages, and from rules of the theme.
    rules = re.sub(r"\.fa-[^{}]*\{[^}]*\}", "", css)
    for path in out.glob("_static/**/*.css"):
        if path.name != Path(style).name:
            rules += path.read_text("utf8")
    codes = {
        int(code, 16) for code in re.findall(r'"\\(f[0-9a-f]{3})"', rules)
    }
    codes |= {ord(sign) for sign in re.findall("[\ue000-\uf8ff]", rules)}
    for name in names:
        rule = rf"\.{name}:before[^{{}}]*{{content:\"\\([0-9a-f]+)\""
        codes.update(int(code, 16) for code in re.findall(rule, css))

    fonts = "vendor/fontawesome/webfonts"
    shutil.rmtree(static / fonts, ignore_errors=True)
    (static / fonts).mkdir(parents=True)
    for path in source.glob(f"{fonts}/*.ttf"):
        font = subset.load_font(str(path), subset.Options())
        glyphs = subset.Subsetter(subset.Options())
        glyphs.populate(unicodes=codes)
        glyphs.subset(font)
        font.flavor = "woff"
        font.save(str(static / fonts / f"{path.stem}.woff"))
        css = re.sub(
            rf"src:url\([^)]*{path.stem}\.woff2\)[^;}}]*",
            f'src:url(../{fonts}/{path.stem}.woff) format("woff")',
            css,
        )
    (static / style).write_text(css, "utf8")
    (static / "scripts" / "fontawesome.js").unlink(missing_ok=True)


# --- 4. The repository's address --------------------------------------------


def no_dead_links(app: Sphinx, config: Any) -> None:
    """Leave out what would point to a repository nobody has named yet."""
    options = config.html_theme_options
    url = options.get("repository_url", "")
    if UNSET_OWNER not in url:
        pages = re.fullmatch(r"https://github\.com/([^/]+)/([^/]+)/?", url)
        if pages and not config.html_baseurl:  # where GitHub publishes it
            owner, name = pages.groups()
            config.html_baseurl = f"https://{owner.lower()}.github.io/{name}/"
        return
    for name in ("repository", "issues", "edit_page", "source"):
        options[f"use_{name}_button"] = False
    options.pop("launch_buttons", None)
    logger.info(
        "The repository's address is not set yet (repository: url: in "
        "_config.yml), so the pages have no links to it."
    )


def setup(app: Sphinx) -> dict[str, Any]:
    execution.setup(app)
    formulas.setup(app)
    live.setup(app)
    publish.setup(app)
    unscripted.setup(app)
    app.connect("config-inited", no_dead_links)
    app.connect("builder-inited", copy_vendor)
    app.connect("html-page-context", local_page, priority=900)
    app.connect("build-finished", subset_icons, priority=900)
    app.add_js_file("book.js", loading_method="defer")
    app.add_js_file("frames.js", loading_method="defer")
    app.add_js_file("predict.js", loading_method="defer")
    # All pages that are written ask the same process for their formulas.
    return {"parallel_read_safe": True, "parallel_write_safe": False}
