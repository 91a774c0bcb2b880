"""Figures in a common style, and their HTML."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from textwrap import fill
from typing import TYPE_CHECKING, Any

from minimind_core.book.floats import FORMATS, FloatFormat
from minimind_core.book.viz.svg import (
    BLUE,
    FAINT,
    GREEN,
    INK,
    ORANGE,
    PALE_TO_BLUE,
    PAPER,
    PURPLE,
    RED,
    inline_svg,
    register_colormap,
)
from minimind_core.run import Record, column

if TYPE_CHECKING:
    from IPython.display import HTML
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind readers can distinguish; each
# curve also has its own line style.
COLOURS = (BLUE, ORANGE, GREEN, RED, PURPLE)
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
MARKERS = ("o", "s", "^", "D", "v")
WIDTH = 6.4  # inches at 100 pixels each; on a phone half of it is left
SMALL = 10.5  # the smallest letters, in points: on a phone they are half that


@contextmanager
def style() -> Iterator[None]:
    """The book's plot style, legible on light and dark pages."""
    import matplotlib.pyplot as plt

    register_colormap()
    settings: dict[Any, Any] = {
        "figure.facecolor": PAPER, "axes.facecolor": "none",
        "axes.edgecolor": INK,
        "axes.labelcolor": INK, "text.color": INK, "xtick.color": INK,
        "ytick.color": INK, "axes.spines.top": False,
        "axes.spines.right": False, "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": FAINT, "grid.linewidth": 0.6, "font.size": 12,
        "axes.titlesize": 13, "axes.titlelocation": "left",
        "lines.linewidth": 2.0, "legend.frameon": False,
        "figure.dpi": 100, "figure.constrained_layout.use": True,
        "figure.constrained_layout.h_pad": 0.09,
        "figure.constrained_layout.w_pad": 0.09,
    }  # fmt: skip
    with plt.rc_context(settings):
        yield


def new_figure(
    columns: int = 1, *, height: float = 3.2, **options: Any
) -> tuple[Figure, Any]:
    """Create an empty figure; use it within `style`.

    Parameters
    ----------
    columns : int
        Number of axes side by side.
    height : float
        In inches.

    Returns
    -------
    figure, axes
    """
    import matplotlib.pyplot as plt

    with style():
        return plt.subplots(1, columns, figsize=(WIDTH, height), **options)


def picture(figure: Figure, alt: str) -> str:
    """Convert a figure to HTML with alternative text, and close it.

    Parameters
    ----------
    figure : Figure
    alt : str
        What the picture shows, in at least three words.

    Returns
    -------
    str
        An ``<svg>`` in the colours of the page, see `inline_svg`.

    Raises
    ------
    ValueError
        If the text says nothing.
    """
    import matplotlib.pyplot as plt

    if len(alt.split()) < 3:
        raise ValueError(f"say what the picture shows, not just {alt!r}")
    with style():
        legends = [*figure.legends]
        for axes in figure.axes:
            axes.patch.set_facecolor("none")
            if legend := axes.get_legend():
                legends.append(legend)
        for legend in legends:
            legend.set_frame_on(False)
        text = inline_svg(figure, alt)
    plt.close(figure)
    return text


def show(figure: Figure, alt: str) -> HTML:
    """Show a figure with an alternative text.

    Parameters
    ----------
    figure : Figure
        Closed afterwards.
    alt : str
        A sentence for readers who cannot see the picture.
    """
    return as_html(f'<div class="figure">{picture(figure, alt)}</div>')


def as_html(text: str) -> HTML:
    """Wrap HTML as the output of a cell."""
    from IPython.display import HTML

    return HTML(text)


def plot_loss(
    history: Sequence[Record],
    *,
    vocab_size: int | None = None,
    until: int | None = None,
    title: str = "",
) -> Figure:
    """Plot training and validation loss, between ln V and the floor.

    Parameters
    ----------
    history : sequence of dict
        The lines of a run's log.
    vocab_size : int, optional
        Draws ln V, the loss of a uniform guess.
    until : int, optional
        Show steps up to this one, with the axes of the whole run.
    title : str
    """
    figure, axes = new_figure()
    losses = column(list(history), "loss")
    checks = column(list(history), "validation_loss")
    floors = column(list(history), "floor")[1]
    last = until if until is not None else losses[0][-1]

    def shown(points: tuple[list[int], list[float]]) -> list[Any]:
        pairs = [p for p in zip(*points, strict=True) if p[0] <= last]
        return [list(side) for side in zip(*pairs, strict=True)] or [[], []]

    axes.plot(*shown(losses), color=BLUE, lw=1.2, label="training")
    axes.plot(*shown(checks), color=ORANGE, marker="o", label="held out")
    if floors:
        axes.axhline(floors[-1], color=GREEN, ls="--", lw=1.6)
        axes.annotate(
            f"floor {floors[-1]:.3f}", (losses[0][-1], floors[-1]),
            ha="right", va="top", color=GREEN, xytext=(0, -4),
            textcoords="offset points",
        )  # fmt: skip
    if vocab_size:
        top = math.log(vocab_size)
        axes.axhline(top, color=PURPLE, ls=":", lw=1.6)
        axes.annotate(
            f"ln {vocab_size} = {top:.2f}", (losses[0][-1], top), ha="right",
            va="bottom", color=PURPLE, xytext=(0, 3),
            textcoords="offset points",
        )  # fmt: skip
        axes.set_ylim(top=top * 1.35)
    axes.set(
        xlabel="optimizer steps", ylabel="nats per token", yscale="log",
        xlim=(0, losses[0][-1] * 1.02), title=title,
    )  # fmt: skip
    low, high = min(*floors, *losses[1], *checks[1]), max(losses[1])
    axes.set_ylim(bottom=low * 0.6)
    ticks = [t for t in (0.05, 0.1, 0.2, 0.3, 0.5, 1, 2, 5, 10)
             if low * 0.6 < t < high * 1.5]  # fmt: skip
    axes.set_yticks(ticks, [f"{t:g}" for t in ticks])
    axes.minorticks_off()
    # Below the line of ln V, where there are no curves.
    axes.legend(loc="upper right", bbox_to_anchor=(1, 0.88))
    return figure


def plot_attention(
    weights: Any,
    tokens: Sequence[str],
    *,
    rows: Sequence[int] | None = None,
    title: str = "",
) -> Figure:
    """Plot attention weights as a heat map.

    If there is no room for all tokens on the axis, only those with the
    largest weights are named.

    Parameters
    ----------
    weights : array, shape (time, time)
        Weights of one head.
    tokens : sequence of str
    rows : sequence of int, optional
        Query positions to show; all of them by default.
    title : str
    """
    import matplotlib.pyplot as plt

    chosen = list(range(len(tokens))) if rows is None else list(rows)
    seen = max(chosen) + 1  # attention is causal
    with style():
        figure, axes = plt.subplots(figsize=(WIDTH, 0.22 * len(chosen) + 1.6))
    image = axes.imshow(
        weights[chosen, :seen], cmap=PALE_TO_BLUE, vmin=0, vmax=1,
        aspect="auto",
    )  # fmt: skip
    axes.grid(False)
    most = [max(float(weights[row, i]) for row in chosen)
            for i in range(seen)]  # fmt: skip
    named = _apart(most, room=1 + seen // 30)
    axes.set_xticks(
        named, [tokens[i] for i in named], rotation=90, fontsize=SMALL
    )
    axes.set_yticks(
        range(len(chosen)), [tokens[i] for i in chosen], fontsize=SMALL
    )
    axes.set(xlabel="looked at", ylabel="looking", title=title)
    figure.colorbar(image, ax=axes, label="weight", pad=0.01)
    return figure


def _apart(weights: Sequence[float], room: int) -> list[int]:
    """Positions of the largest weights, at least `room` apart."""
    kept: list[int] = []
    for at in sorted(range(len(weights)), key=lambda i: -weights[i]):
        if all(abs(at - other) >= room for other in kept):
            kept.append(at)
    return sorted(kept)


def plot_bars(
    values: dict[str, float],
    *,
    label: str,
    limit: float | None = None,
    others: dict[str, float] | None = None,
    names: tuple[str, str] = ("", ""),
) -> Figure:
    """Plot shares by name, as horizontal bars with their values.

    Parameters
    ----------
    values : dict of str to float
    label : str
        Of the axis.
    limit : float, optional
        A line to compare with.
    others : dict of str to float, optional
        A second bar beside each.
    names : tuple of str
        Names of the two sets of bars.
    """
    import matplotlib.pyplot as plt

    keys = list(values)
    per_row = 0.26 if others is None else 0.42
    with style():
        figure, axes = plt.subplots(figsize=(WIDTH, per_row * len(keys) + 1))
    sets = [(values, BLUE, "", names[0])]
    if others is not None:
        sets.append((others, ORANGE, "//", names[1]))
    thick = 0.8 / len(sets)
    for number, (bars, colour, hatch, name) in enumerate(sets):
        places = [i + (number - (len(sets) - 1) / 2) * thick
                  for i in range(len(keys))]  # fmt: skip
        lengths = [bars.get(key, 0) for key in keys]
        drawn = axes.barh(
            places, lengths, thick * 0.92, color=colour, hatch=hatch,
            edgecolor=PAPER, label=name or None,
        )  # fmt: skip
        whole = all(isinstance(length, int) for length in lengths)
        axes.bar_label(drawn, fmt="%d" if whole else "%.2f", padding=3,
                       fontsize=SMALL)  # fmt: skip
    if limit is not None:
        axes.axvline(limit, color=GREEN, ls="--", lw=1.4)
    axes.set_yticks(range(len(keys)), keys)
    axes.invert_yaxis()
    axes.set_xlabel(label)
    axes.grid(axis="y", visible=False)
    # The axis shows the whole, unless the shares are too small for that.
    most = max(*values.values(), *(others or {}).values(), limit or 0)
    axes.set_xlim(0, 1.13 * (1 if 0.4 < most < 1 else most or 1))
    if others is not None:
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    return figure


def _plain_ticks(axis: Axis) -> None:
    """Label the ticks of a logarithmic axis with plain numbers.

    Labels read 0.2, 0.5 and 1,000 rather than powers of ten, unless the
    numbers are too large or too small for that.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    def plain(low: float, high: float) -> bool:
        return low >= 5e-4 and high <= 2e5

    class Ticks(LogLocator):
        def tick_values(self, vmin: float, vmax: float) -> Any:
            few = plain(vmin, vmax) and vmax < 200 * vmin
            self.set_params(subs=(1, 2, 5) if few else (1,))
            return super().tick_values(vmin, vmax)

    def name(value: float, _: Any) -> str:
        if plain(*axis.get_view_interval()):
            return f"{value:,g}"
        return f"$10^{{{round(math.log10(value))}}}$"

    axis.set_major_locator(Ticks())
    axis.set_major_formatter(FuncFormatter(name))
    axis.set_minor_formatter(NullFormatter())


def plot_lines(
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    xlabel: str,
    ylabel: str,
    logx: bool = False,
    logy: bool = False,
    level: Mapping[str, float] | None = None,
    markers: bool = False,
    legend: bool = True,
    title: str = "",
    height: float = 3.2,
) -> Figure:
    """Plot curves that differ in both colour and line style.

    Parameters
    ----------
    lines : mapping of str to (xs, ys)
        Each curve's name in the legend and its points.
    xlabel, ylabel : str
        With units.
    logx, logy : bool
        A logarithmic axis.
    level : mapping of str to float, optional
        Named horizontal lines, such as a floor.
    markers : bool
        Draw a marker at each point.
    legend : bool
    title : str
    height : float
        In inches.
    """
    figure, axes = new_figure(height=height)
    for number, (name, (xs, ys)) in enumerate(lines.items()):
        axes.plot(
            xs, ys, label=name, lw=1.8, ms=5,
            color=COLOURS[number % len(COLOURS)],
            ls=DASHES[number % len(DASHES)],
            marker=MARKERS[number % len(MARKERS)] if markers else None,
        )  # fmt: skip
    for name, value in (level or {}).items():
        axes.axhline(value, color=INK, ls=(0, (1, 2)), lw=1.3)
        # Beside the axes, where no curve can run through it.
        axes.annotate(
            fill(name, 10), (1, value), xycoords=axes.get_yaxis_transform(),
            ha="left", va="center", fontsize=SMALL, xytext=(4, 0),
            textcoords="offset points", annotation_clip=False,
        )  # fmt: skip
    axes.set(xlabel=xlabel, ylabel=ylabel, title=title)
    if logx:
        axes.set_xscale("log")
        _plain_ticks(axes.xaxis)
    if logy:
        axes.set_yscale("log")
        _plain_ticks(axes.yaxis)
    if legend and len(lines) > 1:
        axes.legend(fontsize=SMALL)
    return figure


def plot_map(
    matrix: Any,
    *,
    rows: Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
    xlabel: str = "",
    ylabel: str = "",
    label: str = "",
    limits: tuple[float, float] | None = None,
    numbers: bool = False,
    title: str = "",
    height: float | None = None,
) -> Figure:
    """Plot a matrix as a heat map, row by row from the top.

    Parameters
    ----------
    matrix : array, shape (rows, columns)
    rows, columns : sequence of str, optional
        Names at the edges.
    xlabel, ylabel : str
    label : str
        Label of the colour bar; without it there is no colour bar.
    limits : tuple of float, optional
        Values of the lightest and the darkest shade.
    numbers : bool
        Write each value into its cell.
    title : str
    height : float, optional
        In inches; chosen from the number of rows if not given.
    """
    high = height or min(0.28 * len(matrix) + 1.4, 6.0)
    figure, axes = new_figure(height=high)
    low, top = limits or (None, None)
    image = axes.imshow(matrix, cmap=PALE_TO_BLUE, vmin=low, vmax=top,
                        aspect="auto")  # fmt: skip
    axes.grid(False)
    size = SMALL if max(map(len, (rows or "", columns or ""))) < 13 else 9
    if columns is not None:
        long = max(map(len, columns)) > 4 and len(columns) > 8
        names = [fill(name, 42 // len(columns)) if len(columns) < 5 else name
                 for name in columns]  # fmt: skip
        axes.set_xticks(range(len(columns)), names, fontsize=size,
                        rotation=90 if long else 0)  # fmt: skip
    if rows is not None:
        axes.set_yticks(range(len(rows)), rows, fontsize=size)
    if numbers:
        for row, values in enumerate(matrix):
            for place, value in enumerate(map(float, values)):
                whole = value.is_integer()
                axes.text(
                    place, row, f"{value:.0f}" if whole else f"{value:.2f}",
                    ha="center", va="center", fontsize=size, color=INK,
                )  # fmt: skip
    axes.set(xlabel=xlabel, ylabel=ylabel, title=title)
    if label:
        figure.colorbar(image, ax=axes, label=label, pad=0.01)
    return figure


def plot_formats() -> Figure:
    """Plot the range of each float format."""
    figure, axes = new_figure(height=2.4)
    for row, form in enumerate(FORMATS):
        low, normal, top = map(
            math.log10, (form.smallest, form.smallest_normal, form.max)
        )
        axes.barh(row, top - normal, left=normal, height=0.5, color=BLUE)
        axes.barh(row, normal - low, left=low, height=0.5, color=PAPER,
                  edgecolor=BLUE, hatch="////")  # fmt: skip
        for place, text in ((low, form.smallest), (top, form.max)):
            axes.annotate(f"{text:.1e}", (place, row - 0.33), fontsize=9,
                          ha="center", va="bottom")  # fmt: skip
    axes.set_yticks(range(len(FORMATS)), [form.name for form in FORMATS])
    axes.invert_yaxis()
    axes.set(xlim=(-56, 50), ylim=(len(FORMATS) - 0.6, -0.75),
             xlabel="size of the number, as a power of ten")  # fmt: skip
    axes.grid(axis="y", visible=False)
    return figure


def plot_sizes(
    sizes: Mapping[str, Any],
    form: FloatFormat,
    *,
    xlabel: str,
    limits: tuple[float, float],
    title: str = "",
) -> Figure:
    """Plot the sizes of numbers against the range of a float format.

    Parameters
    ----------
    sizes : mapping of str to array
        Each group's name and its numbers.
    form : FloatFormat
        The range where it loses digits is shaded lightly, and the range
        where it has only zero or infinity darkly.
    xlabel : str
    limits : tuple of float
        Powers of ten at the ends of the axis.
    title : str
    """
    import numpy as np

    figure, axes = new_figure(height=2.9)
    edges = np.linspace(*limits, 61)
    for number, (name, values) in enumerate(sizes.items()):
        values = np.abs(np.asarray(values, dtype=np.float64)).ravel()
        logs = np.log10(values[values > 0]).clip(*limits)
        share = np.full(len(logs), 1 / max(len(logs), 1))
        axes.hist(logs, edges, weights=share, histtype="step", lw=1.8,
                  label=name, color=COLOURS[number], ls=DASHES[number])
    zero = math.log10(form.smallest / 2)
    normal, top = map(math.log10, (form.smallest_normal, form.max))
    for left, right, shade, hatch in (
        (limits[0], zero, 0.30, "xx"),
        (zero, normal, 0.12, None),
        (top, limits[1], 0.30, "xx"),
    ):
        if right > limits[0] and left < limits[1]:
            axes.axvspan(max(left, limits[0]), min(right, limits[1]),
                         color=RED, alpha=shade, lw=0, hatch=hatch)
    high = axes.get_ylim()[1] * 1.3
    for place, text in ((zero, "zero"), (normal, "digits go")):
        if limits[0] < place < limits[1]:
            axes.annotate(f"{text} ", (place, high * 0.97), fontsize=9,
                          ha="right", va="top")  # fmt: skip
    axes.set(xlim=limits, ylim=(0, high), xlabel=xlabel, ylabel="share",
             title=title)  # fmt: skip
    # Above the axes, because curves and shades fill the inside.
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.01), ncols=2,
                fontsize=9, frameon=False)  # fmt: skip
    return figure
