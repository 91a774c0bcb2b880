"""Stacked bars."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from minimind_core.book.viz.figures import (
    COLOURS,
    INK,
    PAPER,
    SMALL,
    new_figure,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_HATCHES = ("", "//", "..", "xx", "\\\\")


def plot_shares(
    bars: Mapping[str, Mapping[str, float]],
    *,
    label: str,
    limits: Mapping[str, float] | None = None,
    top: float | None = None,
) -> Figure:
    """Plot horizontal stacked bars.

    Parameters
    ----------
    bars : mapping of str to mapping of str to float
        Name of a bar -> part -> amount.
    label : str
        Label of the axis, with a unit.
    limits : mapping of str to float, optional
        Named vertical lines, such as the size of a memory.
    top : float, optional
        Where the axis ends.
    """
    parts = list(dict.fromkeys(p for bar in bars.values() for p in bar))
    figure, axes = new_figure(height=0.4 * len(bars) + 1.5)
    if limits:
        figure.set_figheight(2.7)
    for number, part in enumerate(parts):
        before = [
            sum(bar.get(p, 0.0) for p in parts[:number])
            for bar in bars.values()
        ]
        axes.barh(
            range(len(bars)), [bar.get(part, 0.0) for bar in bars.values()],
            0.62, left=before, color=COLOURS[number], edgecolor=PAPER,
            lw=0.5, hatch=_HATCHES[number], label=part,
        )  # fmt: skip
    for name, value in (limits or {}).items():
        axes.axvline(value, color=INK, ls=(0, (1, 2)), lw=1.3)
        axes.annotate(
            name, (value, 1), xycoords=("data", "axes fraction"),
            fontsize=SMALL, xytext=(-2, -2), textcoords="offset points",
            rotation=90, ha="right", va="top",
        )  # fmt: skip
    axes.set_yticks(range(len(bars)), list(bars))
    axes.set_ylim(len(bars) - 0.5, -1.3 if limits else -0.6)
    axes.set_xlim(0, top)
    axes.set_xlabel(label)
    axes.grid(axis="y", visible=False)
    figure.legend(
        loc="outside upper center", ncols=len(parts), fontsize=SMALL
    )
    return figure
