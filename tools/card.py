"""Draw the card that others show when they link to the book.

    python tools/card.py              # from the trained model in the cache
    python tools/card.py runs/base    # or from any run folder

1200 by 630 pixels, the title and one picture: the loss on its floor.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

import matplotlib
from PIL import Image

from minimind_core.book.viz import INK, PAPER
from minimind_core.run import column, read_log

matplotlib.use("agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "book" / "_static" / "card.png"
PALE = "#515a61"
BLUE, GOLD = "#17607d", "#b4690e"


def draw(run: Path, out: Path = OUT) -> None:
    """Write the card of one run to `out`."""
    history = read_log(run)
    steps, losses = column(history, "loss")
    floor = column(history, "floor")[1][-1]
    figure = plt.figure(figsize=(12, 6.3), facecolor=PAPER)
    words = {"fontfamily": "DejaVu Serif", "color": INK, "ha": "left"}
    figure.text(0.06, 0.80, "MiniMind,", fontsize=50, **words)
    figure.text(0.06, 0.665, "line by line", fontsize=50, **words)
    figure.text(
        0.062, 0.44,
        "Build, break and fix\na small language model,\n"
        "in pages that move.",
        fontsize=24, linespacing=1.5, va="center",
        **{**words, "color": PALE},
    )  # fmt: skip
    curve = figure.add_axes((0.56, 0.17, 0.38, 0.68), facecolor=PAPER)
    curve.plot(steps, losses, color=BLUE, linewidth=3)
    curve.axhline(floor, color=GOLD, linestyle=(0, (5, 3)), linewidth=3)
    curve.set_yscale("log")
    curve.yaxis.set_major_locator(plt.NullLocator())
    curve.yaxis.set_minor_locator(plt.NullLocator())
    curve.set_xticks([])
    curve.spines[["top", "right"]].set_visible(False)
    curve.spines[["left", "bottom"]].set_color("#c9c3b5")
    curve.spines[["left", "bottom"]].set_linewidth(2)
    curve.annotate(
        "the loss that no model can beat",
        (steps[-1], floor), (0, -12), textcoords="offset points",
        ha="right", va="top", color=GOLD, fontsize=17,
    )  # fmt: skip
    curve.set_ylim(bottom=floor * 0.72)

    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=100, facecolor=PAPER)
    plt.close(figure)
    picture = Image.open(buffer).convert("RGB")
    picture.quantize(64, dither=Image.Dither.NONE).save(out, optimize=True)
    print(f"wrote {out}, {out.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        draw(Path(sys.argv[1]))
    else:
        from minimind_core.book.stages import get_stage

        draw(get_stage("pretrain"))
