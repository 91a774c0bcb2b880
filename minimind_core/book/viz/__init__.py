"""Figures, widgets and source listings for the book's pages.

    from minimind_core.book.viz import frames_slider, plot_loss, show
    show(plot_loss(run.history), alt="The loss falls onto the floor.")
    show_source(RMSNorm.forward)

This is the only package that plots. Every figure gets an alternative text. A
slider steps through precomputed frames, so that it works in a published page
without a kernel.
"""

from __future__ import annotations

from minimind_core.book.viz.bits import bit_field
from minimind_core.book.viz.cards import exhibit_cards, plot_lifelines
from minimind_core.book.viz.figures import (
    BLUE,
    COLOURS,
    DASHES,
    FAINT,
    GREEN,
    INK,
    MARKERS,
    ORANGE,
    PAPER,
    PURPLE,
    RED,
    WIDTH,
    as_html,
    new_figure,
    picture,
    plot_attention,
    plot_bars,
    plot_formats,
    plot_lines,
    plot_loss,
    plot_map,
    plot_sizes,
    show,
    style,
)
from minimind_core.book.viz.moving import chat_box, frames_slider, picker
from minimind_core.book.viz.predict import predict
from minimind_core.book.viz.shares import plot_shares
from minimind_core.book.viz.svg import PALE_TO_BLUE, inline_svg
from minimind_core.book.viz.text import (
    glue,
    show_files,
    show_loss_mask,
    show_source,
    show_story,
    show_table,
    show_tokens,
    story_html,
)

__all__ = [
    "BLUE",
    "COLOURS",
    "DASHES",
    "FAINT",
    "GREEN",
    "INK",
    "MARKERS",
    "ORANGE",
    "PALE_TO_BLUE",
    "PAPER",
    "PURPLE",
    "RED",
    "WIDTH",
    "as_html",
    "bit_field",
    "chat_box",
    "exhibit_cards",
    "frames_slider",
    "glue",
    "inline_svg",
    "new_figure",
    "picker",
    "picture",
    "plot_attention",
    "plot_bars",
    "plot_formats",
    "plot_lifelines",
    "plot_lines",
    "plot_loss",
    "plot_map",
    "plot_shares",
    "plot_sizes",
    "predict",
    "show",
    "show_files",
    "show_loss_mask",
    "show_source",
    "show_story",
    "show_table",
    "show_tokens",
    "story_html",
    "style",
]
