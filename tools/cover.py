"""Draw the picture at the top of the README from a real pretraining run.

    python tools/cover.py              # trains for a few minutes
    python tools/cover.py runs/base    # or draws any run folder

The loss against the floor, and what the model wrote on its way there.
"""

from __future__ import annotations

import io
import sys
import tempfile
import textwrap
from pathlib import Path

import matplotlib
from PIL import Image

from minimind_core.book.viz import INK, PAPER
from minimind_core.run import column, read_log

matplotlib.use("agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "book" / "_static" / "journey.png"
PALE = "#515a61"
BLUE, GOLD = "#17607d", "#b4690e"


def draw(run: Path, out: Path = OUT) -> None:
    """Write the picture of one run to `out`."""
    history = read_log(run)
    steps, losses = column(history, "loss")
    checks, validation = column(history, "validation_loss")
    floor = column(history, "floor")[1][-1]
    said = [
        (entry["step"], entry["samples"][0])
        for entry in history
        if entry.get("samples")
    ]
    shown = [said[0], said[min(3, len(said) - 1)], said[-1]]

    plt.rcParams.update({"font.family": "DejaVu Sans", "font.size": 11})
    figure, (curve, words) = plt.subplots(
        1, 2, figsize=(11, 4.4), width_ratios=(1.15, 1), facecolor=PAPER
    )
    curve.set_facecolor(PAPER)
    curve.plot(steps, losses, color=BLUE, linewidth=1, alpha=0.45)
    curve.plot(checks, validation, "o-", color=BLUE, markersize=4)
    curve.axhline(floor, color=GOLD, linestyle=(0, (5, 3)), linewidth=2)
    curve.set_yscale("log")
    curve.set_yticks([0.3, 0.5, 1, 2, 5], ["0.3", "0.5", "1", "2", "5"])
    curve.yaxis.set_minor_locator(plt.NullLocator())
    curve.set_xlabel("training step", color=PALE)
    curve.set_ylabel("loss, nats per token", color=PALE)
    curve.tick_params(colors=PALE)
    curve.spines[["top", "right"]].set_visible(False)
    curve.spines[["left", "bottom"]].set_color("#c9c3b5")
    curve.annotate(
        "the floor: no model can do better",
        (steps[-1], floor),
        (0, -6),
        textcoords="offset points",
        ha="right",
        va="top",
        color=GOLD,
    )
    curve.annotate(
        "held-out stories",
        (checks[len(checks) // 3], validation[len(checks) // 3]),
        (6, 8),
        textcoords="offset points",
        color=BLUE,
    )
    curve.set_ylim(bottom=floor * 0.8)

    words.axis("off")
    top = 1.0
    for step, text in shown:
        clean = "".join(c if c.isprintable() else "�" for c in text)
        lines = textwrap.wrap(clean.strip().replace("$", r"\$"), 54)
        if len(lines) > 8:
            lines = [*lines[:7], lines[7][:51] + " …"]
        words.text(
            0.02, top, f"after {step:,} steps", color=GOLD, va="top",
            fontweight="bold", transform=words.transAxes,
        )  # fmt: skip
        words.text(
            0.02, top - 0.065, "\n".join(lines), color=INK, va="top",
            transform=words.transAxes, fontfamily="DejaVu Serif",
            fontsize=9.5, linespacing=1.4,
        )  # fmt: skip
        top -= 0.12 + 0.054 * len(lines)
    figure.tight_layout(w_pad=2)

    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=150)
    plt.close(figure)
    picture = Image.open(buffer).convert("RGB")
    picture.quantize(64, dither=Image.Dither.NONE).save(out, optimize=True)
    print(f"wrote {out}, {out.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        draw(Path(sys.argv[1]))
    else:
        from minimind_core import pretrain

        with tempfile.TemporaryDirectory() as folder:
            draw(pretrain(Path(folder) / "run", sample_every=20).path)
