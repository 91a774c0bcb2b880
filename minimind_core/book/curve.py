"""The loss curve of the front page, whose points are models.

The curve is HTML around a small SVG that is stretched to the width it has:
its lines keep their width (``non-scaling-stroke``), and what is written
stands beside it as text of the page, which is as large on a phone. The
colours are those of the book's figures. A script makes a button of each
point; without scripts it is a picture.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence

from minimind_core.book.viz.svg import FAINT, GREEN, ORANGE, colour
from minimind_core.run import Record, column

FIRST = 17  # the steps before are not drawn: the axis is logarithmic
LEFT, RIGHT = 9.0, 94.0  # in percent of the width
TOP, BOTTOM = 6.0, 94.0
BELOW = 0.75  # of the floor: the lowest loss on the axis
LOSSES = (0.5, 1, 2, 5)


def loss_curve(
    history: Sequence[Record], points: Mapping[str, Mapping[str, float]]
) -> str:
    """Draw the loss on held-out texts against steps, down to the floor.

    Parameters
    ----------
    history : sequence of dict
        The lines of a run's log, with ``floor``.
    points : mapping of str to mapping
        For each model that can be chosen, by its name: its ``step``, its
        ``loss`` on the same texts, and their ``floor``.

    Returns
    -------
    str
        A ``<figure class="lab-curve">``. Both axes are logarithmic.
    """
    floor = next(iter(points.values()))["floor"]
    checks = dict(zip(*column(list(history), "validation_loss"), strict=True))
    seen = {int(one["step"]): one["loss"] for one in points.values()}
    line = sorted({**checks, **seen}.items())
    last, high = line[-1][0], line[0][1] * 1.25

    def across(step: float) -> float:
        share = math.log(step / FIRST) / math.log(last / FIRST)
        return round(LEFT + share * (RIGHT - LEFT), 2)

    def down(loss: float) -> float:
        share = math.log(high / loss) / math.log(high / (BELOW * floor))
        return round(TOP + share * (BOTTOM - TOP), 2)

    grid, ticks = [], []
    for loss in LOSSES:
        if floor * 1.2 < loss < high:
            y = down(loss)
            grid.append(f"M0 {y}H100")
            ticks.append(
                f'<span class="lab-tick" style="top:{y}%">{loss:g}</span>'
            )
    path = "L".join(f"{across(step)} {down(loss)}" for step, loss in line)
    spots = []
    for name, one in points.items():
        step, loss = int(one["step"]), one["loss"]
        spots.append(
            f'<span class="lab-point" data-stage="{html.escape(name)}" '
            f'style="left:{across(step)}%">'
            f'<span class="dot" style="top:{down(loss)}%"></span>'
            f'<span class="step">{step}</span></span>'
        )
    said = (
        f"The loss on new stories falls in {last} steps of training from "
        f"{line[0][1]:.1f} to {line[-1][1]:.3f} nats per token, onto a "
        f"dashed line at {floor:.3f}, the floor that no model can beat."
    )
    return (
        '<figure class="lab-curve"><p class="lab-axis">Loss on new stories, '
        'in nats per token</p><div class="lab-plot">'
        '<svg viewBox="0 0 100 100" preserveAspectRatio="none" role="img" '
        f'aria-label="{said}">'
        f'<path style="stroke:{colour(FAINT)}" d="{"".join(grid)}"/>'
        f'<path class="floor" style="stroke:{colour(GREEN)}" '
        f'd="M0 {down(floor)}H100"/>'
        f'<path class="loss" style="stroke:{colour(ORANGE)}" d="M{path}"/>'
        f'</svg>{"".join(ticks)}'
        f'<span class="lab-floor" style="top:{down(floor)}%;'
        f'color:{colour(GREEN)}">the floor, {floor:.3f}: no model can do '
        f"better</span>{''.join(spots)}</div>"
        '<p class="lab-axis below">Steps of training</p></figure>'
    )
