"""Figures as SVG in the page, in the page's own colours and typeface.

An ``<img>`` cannot see the variables of the page that it stands in, but an
inline SVG can. So a figure's colours become CSS variables, each with the
colour that it was drawn in as a fallback, and the page gives them other
values in the dark. In a notebook there are no such variables, and the figure
keeps its colours and its paper.
"""

from __future__ import annotations

import hashlib
import html
import io
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, RED, PURPLE = (
    "#0072b2", "#b35900", "#00795a", "#b3261e", "#8a4a78",
)  # fmt: skip
INK, PAPER, FAINT = "#22272e", "#fbfaf7", "#d9d6cf"
VARIABLES = {
    INK: "ink", PAPER: "paper", FAINT: "faint", BLUE: "blue",
    ORANGE: "orange", GREEN: "green", RED: "red", PURPLE: "purple",
    "#000000": "ink",  # what a notebook draws without saying in which colour
}  # fmt: skip
"""The colours that a page may replace, by the name of their variable."""
POINT = 100 / 72  # pixels of the page for one point of matplotlib

SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",  # letters stay letters
    "svg.hashsalt": "minimind",  # the same figure gives the same text
    "image.interpolation": "none",  # one pixel for one number
    "savefig.facecolor": "none",
}
PALE_TO_BLUE = "minimind_pale_to_blue"
"""A colormap from nothing to blue: the page is seen through small values."""


def colour(value: str) -> str:
    """Return CSS for a colour: its variable, with itself as the fallback.

    Parameters
    ----------
    value : str
        As ``#rrggbb``; one that is not in `VARIABLES` is returned as it is.
    """
    name = VARIABLES.get(value.lower())
    return f"var(--fig-{name}, {value})" if name else value


def register_colormap() -> None:
    """Make `PALE_TO_BLUE` known to matplotlib."""
    import matplotlib
    from matplotlib.colors import LinearSegmentedColormap, to_rgba

    if PALE_TO_BLUE not in matplotlib.colormaps:
        # Not quite to the end, so that numbers can be read on it.
        ends = [to_rgba(BLUE, 0), to_rgba(BLUE, 0.75)]
        matplotlib.colormaps.register(
            LinearSegmentedColormap.from_list(PALE_TO_BLUE, ends)
        )


def inline_svg(figure: Figure, alt: str) -> str:
    """Convert a figure to an ``<svg>`` that can stand in HTML.

    Parameters
    ----------
    figure : Figure
        It is not closed.
    alt : str
        What the figure shows, for readers who cannot see it.

    Returns
    -------
    str
        No name in it can clash with another figure's, and no rule in it
        applies to the rest of the page.
    """
    import matplotlib.pyplot as plt

    raw = io.StringIO()
    with plt.rc_context(SETTINGS):
        figure.savefig(raw, format="svg", metadata={"Date": None})
    text = raw.getvalue()
    text = text[text.index("<svg") :]
    _, wide, high = re.findall(r'viewBox="0 0 (([\d.]+) ([\d.]+))"', text)[0]
    body = text[text.index(">") + 1 : text.rindex("</svg>")]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", body,
                  flags=re.DOTALL)  # fmt: skip
    body = re.sub(r"<!--.*?-->", "", body, flags=re.DOTALL)
    body = re.sub(r'<g id="[^"]*"', "<g", body)
    prefix = hashlib.sha256(body.encode()).hexdigest()[:6]
    body = re.sub(r' id="', f' id="f{prefix}', body)
    body = re.sub(r'(?:xlink:)?href="#', f'href="#f{prefix}', body)
    body = body.replace("xlink:href=", "href=")
    body = re.sub(r"url\(#", f"url(#f{prefix}", body)
    body = re.sub(r' (d|x|y|points)="([^"]*)"', _rounded, body)
    family = "var(--fig-font, sans-serif)"
    size = r"font: ([\w ]*[\d.]+px) [^;\"]*"
    body = re.sub(size, rf"font: \1 {family}", body)
    body = re.sub(r"font-family: [^;\"]*", f"font-family: {family}", body)
    # An attribute takes no variable; a style does.
    body = re.sub(r' fill="(#[0-9a-f]{6})"', r' style="fill: \1"', body)
    body = re.sub(
        r"(fill|stroke): (#[0-9a-f]{6})",
        lambda match: f"{match[1]}: {colour(match[2])}",
        body,
    )
    body = re.sub(r"\s*\n\s*", "\n", body).strip()
    across, down = (round(float(side) * POINT) for side in (wide, high))
    return (
        f'<svg class="figure-svg" role="img" '
        f'aria-label="{html.escape(alt, quote=True)}" '
        f'viewBox="0 0 {wide} {high}" width="{across}" height="{down}" '
        f'style="max-width:100%;height:auto;border-radius:6px;'
        f"background:var(--fig-ground, {PAPER});fill:{colour(INK)};"
        f'stroke-linejoin:round;stroke-linecap:butt">{body}</svg>'
    )


def _rounded(match: re.Match[str]) -> str:
    """Coordinates to a hundredth of a point."""
    numbers = re.sub(
        r"-?\d+\.\d{3,}", lambda one: f"{float(one[0]):.2f}", match[2]
    )
    numbers = re.sub(r"\s*\n\s*", "", numbers)
    return f' {match[1]}="{numbers}"'
