"""Sortable cards for bugs, and a chart of their lifetimes."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from datetime import date
from typing import TYPE_CHECKING, Any

from minimind_core.book.viz.figures import (
    COLOURS,
    FAINT,
    INK,
    PAPER,
    SMALL,
    WIDTH,
    as_html,
    style,
)

if TYPE_CHECKING:
    from IPython.display import HTML
    from matplotlib.figure import Figure

ORDERS = {
    "cost": "what it costs you",
    "date": "when it came",
    "page": "chapter",
}
"""Sort keys of the cards, with their labels."""

HATCHES = ("", "///", "...", "\\\\\\", "xx", "++")


def exhibit_cards(
    exhibits: Sequence[Any], measured: Mapping[str, Any]
) -> HTML:
    """Show one card per bug, with a menu for their order.

    The page sorts them without a kernel. If scripts are disabled, the cards
    are ordered by cost and the menu is hidden.

    Parameters
    ----------
    exhibits : sequence of Exhibit
    measured : mapping of str to Measured
        The measurement of each bug, by its key.
    """
    def dearest(exhibit: Any) -> tuple[int, str]:
        return exhibit.kind.rank, exhibit.came

    cards = "".join(
        _card(exhibit, measured[exhibit.key])
        for exhibit in sorted(exhibits, key=dearest)
    )
    choices = "".join(
        f'<option value="{key}">{said}</option>'
        for key, said in ORDERS.items()
    )
    return as_html(
        f'<div class="mm-museum"><p class="mm-sort" hidden><label>Sort by '
        f'<select autocomplete="off">{choices}</select></label> '
        f'<span role="status"></span></p>'
        f'<ol class="mm-cards">{cards}</ol></div>'
        f"<script>{_SORT_SCRIPT}</script>"
    )


def _card(exhibit: Any, found: Any) -> str:
    came = _when(exhibit.came, exhibit.came_url)
    gone = _when(exhibit.gone, exhibit.gone_url)
    life = f"{came} to {gone}" if gone else f"since {came}"
    before, after = (_text(label) for label in found.labels)
    path, _, name = exhibit.test.partition("::test_")
    test = f"{path}::<wbr>test_" + name.replace("_", "_<wbr>")
    file, _, line = exhibit.place.partition(":")
    lines = f"lines {line}" if "-" in line else f"line {line}"
    keys = {
        "cost": f"{exhibit.kind.rank}{exhibit.came}",
        "date": exhibit.came,
        "page": f"{exhibit.page}{exhibit.kind.rank}{exhibit.came}",
    }
    data = " ".join(f'data-{k}="{_text(v)}"' for k, v in keys.items())
    code = "\n".join(line.rstrip() for line in exhibit.quote.splitlines())
    rows = (
        ("What it does", _text(exhibit.cost)),
        ("Measured", f"{_text(found.what)} "
         f'<span class="mm-bug"><b>{before}</b> '
         f"<span>{_text(found.bug)}</span></span> "
         f'<span class="mm-fix"><b>{after}</b> '
         f"<span>{_text(found.fix)}</span></span>"),
        ("Do instead", _text(exhibit.fix)),
        ("Test", "<details><summary>fails if the package has this "
         "bug</summary>"
         f'<code class="mm-test">{test}</code></details>'),
    )  # fmt: skip
    facts = "".join(
        f"<span>{fact}</span>"
        for fact in (
            f"costs <b>{_text(exhibit.kind.label)}</b>",
            f"revealed by <b>{_text(exhibit.noticed.label)}</b>",
            life,
            f"runs {_chapter(exhibit)}",
        )
    )
    body = "".join(
        f"<div><dt>{name}</dt><dd><div>{text}</div></dd></div>"
        for name, text in rows
    )
    return (
        f'<li class="mm-card" id="card-{exhibit.key}" {data}>'
        f'<p class="mm-key">{exhibit.key}</p>'
        f"<h3>{_text(exhibit.title)}</h3>"
        f'<p class="mm-facts">{facts}</p>'
        f"<pre><code>{html.escape(code)}</code></pre>"
        f'<p class="mm-source"><a href="{exhibit.url}">{file}, {lines}</a>, '
        f"commit {exhibit.commit}, MiniMind, Apache-2.0</p>"
        f"<dl>{body}</dl></li>"
    )


def _text(words: str) -> str:
    """Escape a text, and format names of code as such."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(words))


def _when(moment: str, url: str) -> str:
    """The day of ``YYYY-MM-DD commit``, linked to the change."""
    day = moment.partition(" ")[0]
    time = f'<time datetime="{day}">{day}</time>'
    return f'<a href="{url}">{time}</a>' if day else ""


def _chapter(exhibit: Any) -> str:
    """A link to the page on which it runs."""
    number = re.match(r"\d+", exhibit.page)
    name = f"in chapter {int(number[0])}" if number else "below"
    page = f"{exhibit.page}.ipynb" if number else ""
    return f'<a class="mm-chapter" href="{page}#{exhibit.anchor}">{name}</a>'


_SORT_SCRIPT = """
(() => {
  const museum = document.currentScript.previousElementSibling;
  const bar = museum.querySelector(".mm-sort");
  const list = museum.querySelector(".mm-cards");
  const choice = bar.querySelector("select");
  bar.hidden = false;
  choice.addEventListener("change", () => {
    const key = card => card.dataset[choice.value];
    const cards = [...list.children].sort(
      (a, b) => key(a) < key(b) ? -1 : key(a) > key(b) ? 1 : 0);
    list.append(...cards);
    bar.querySelector("[role=status]").textContent =
      `first: ${cards[0].querySelector("h3").textContent}`;
  });
})();
"""


def plot_lifelines(exhibits: Sequence[Any], until: str) -> Figure:
    """Plot when each bug existed, grouped by its cost.

    Parameters
    ----------
    exhibits : sequence of Exhibit
    until : str
        The last day that was checked, as ``YYYY-MM-DD``. A bug that still
        existed ends in an arrow.
    """
    import matplotlib.pyplot as plt
    from matplotlib.dates import DateFormatter, MonthLocator, date2num

    def day(moment: str) -> float:
        return float(date2num(date.fromisoformat(moment[:10])))

    every: Any = type(exhibits[0].kind)
    kinds = list(every)
    rows = len(exhibits) + 1.2 * len(kinds)
    with style():
        figure, axes = plt.subplots(figsize=(WIDTH, 0.26 * rows + 0.6))
    y, names, places = 0.0, [], []
    left, right = day(min(e.came for e in exhibits)), day(until)
    last = max(right, *(day(e.gone) for e in exhibits if e.gone))
    for kind in kinds:
        some = [e for e in exhibits if e.kind is kind]
        axes.text(left, y, f"costs {kind.label}", va="center", fontsize=11,
                  weight="bold")  # fmt: skip
        y += 1
        for exhibit in sorted(some, key=lambda e: e.came):
            start = day(exhibit.came)
            end = day(exhibit.gone) if exhibit.gone else right
            axes.barh(
                y, end - start, left=start, height=0.62, edgecolor=PAPER,
                color=COLOURS[kind.rank % len(COLOURS)], lw=0,
                hatch=HATCHES[kind.rank % len(HATCHES)],
            )  # fmt: skip
            if not exhibit.gone:
                axes.plot(right + 9, y, ">", color=INK, ms=5)
            names.append(exhibit.key)
            places.append(y)
            y += 1
        y += 0.4
    axes.set_yticks(places, names, fontsize=SMALL)
    axes.set(ylim=(y - 0.6, -0.8), xlim=(left - 12, last + 20))
    axes.xaxis.set_major_locator(MonthLocator((1, 7)))
    axes.xaxis.set_major_formatter(DateFormatter("%Y-%m"))
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color=FAINT)
    axes.set_axisbelow(True)
    axes.tick_params(axis="x", labelsize=SMALL)
    axes.tick_params(axis="y", length=0)
    return figure
