"""What the pages show: figures, things to move, and the package's source.

    from minimind_core.viz import frames_slider, plot_loss, show, show_source
    show(plot_loss(run.history), alt="The loss falls onto the floor.")
    show_source(RMSNorm.forward)

The only module that draws. A figure becomes a picture with a text that says
what it shows; a slider goes through frames that were made beforehand, so it
moves in a published page with nothing running behind it.
"""

from __future__ import annotations

import base64
import html
import inspect
import io
import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minimind_core.chat import encode_conversation
from minimind_core.microworld import NotInLanguage, read_story
from minimind_core.run import Record, column

if TYPE_CHECKING:
    from collections.abc import Callable

    from IPython.display import HTML, Markdown
    from matplotlib.figure import Figure
    from transformers import PreTrainedTokenizerFast

# Okabe and Ito's colours, which stay apart for colour-blind readers; each
# also has a line style of its own where two lines meet.
BLUE, ORANGE, GREEN, RED, PURPLE = (
    "#0072b2", "#b35900", "#00795a", "#b3261e", "#8a4a78",
)  # fmt: skip
COLOURS = (BLUE, ORANGE, GREEN, RED, PURPLE)
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
MARKERS = ("o", "s", "^", "D", "v")
INK, PAPER, FAINT = "#22272e", "#fbfaf7", "#d9d6cf"
WIDTH = 7.2  # inches at 100 pixels each: a page's column
SHARP = 1.5  # pixels of a picture for one of the page


# --- figures ---------------------------------------------------------------


@contextmanager
def style() -> Iterator[None]:
    """The book's plot style: a light card that reads on any page."""
    import matplotlib.pyplot as plt

    settings: dict[Any, Any] = {
        "figure.facecolor": PAPER, "axes.facecolor": PAPER,
        "savefig.facecolor": PAPER, "axes.edgecolor": INK,
        "axes.labelcolor": INK, "text.color": INK, "xtick.color": INK,
        "ytick.color": INK, "axes.spines.top": False,
        "axes.spines.right": False, "axes.grid": True,
        "grid.color": FAINT, "grid.linewidth": 0.6, "font.size": 11,
        "axes.titlesize": 12, "axes.titlelocation": "left",
        "lines.linewidth": 2.0, "legend.frameon": False,
        "figure.dpi": 100, "figure.constrained_layout.use": True,
    }  # fmt: skip
    with plt.rc_context(settings):
        yield


def new_figure(
    columns: int = 1, *, height: float = 3.2, **options: Any
) -> tuple[Figure, Any]:
    """An empty figure in the book's style, to draw on under `style`.

    Parameters
    ----------
    columns : int
        Axes side by side.
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
    """A figure as an ``<img>`` with its text and its size.

    The picture is reduced to 48 colours, which halves it and cannot be
    seen; the figure is closed.
    """
    import matplotlib.pyplot as plt
    from PIL import Image

    if len(alt.split()) < 3:
        raise ValueError(f"say what the picture shows, not just {alt!r}")
    raw = io.BytesIO()
    with style():
        figure.savefig(raw, dpi=100 * SHARP)
    plt.close(figure)
    image = Image.open(raw).convert("RGB")
    small = image.quantize(48, dither=Image.Dither.NONE)
    out = io.BytesIO()
    small.save(out, "PNG", optimize=True)
    data = base64.b64encode(out.getvalue()).decode()
    wide, high = (round(side / SHARP) for side in image.size)
    return (
        f'<img alt="{html.escape(alt, quote=True)}" width="{wide}" '
        f'height="{high}" style="max-width:100%;height:auto;'
        f'border-radius:6px" src="data:image/png;base64,{data}">'
    )


def show(figure: Figure, alt: str) -> HTML:
    """Show a figure with the text that says what is to be seen in it.

    Parameters
    ----------
    figure : Figure
        Closed afterwards.
    alt : str
        A sentence, for those who do not see the picture.
    """
    return _html(f'<div class="figure">{picture(figure, alt)}</div>')


def _html(text: str) -> HTML:
    from IPython.display import HTML

    return HTML(text)


def plot_loss(
    history: Sequence[Record],
    *,
    vocab_size: int | None = None,
    until: int | None = None,
    title: str = "",
) -> Figure:
    """Training and validation loss, between ln V and the floor.

    Parameters
    ----------
    history : sequence of dict
        The lines of a run's log.
    vocab_size : int, optional
        Draws where guessing among all tokens starts.
    until : int, optional
        Show steps up to this one; the axes stay as for the whole run.
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
    low = min([*floors, min(losses[1])])
    axes.set_ylim(bottom=low * 0.6)
    ticks = [t for t in (0.2, 0.3, 0.5, 1, 2, 5, 10) if t > low * 0.6]
    axes.set_yticks(ticks, [f"{t:g}" for t in ticks])
    axes.minorticks_off()
    axes.legend(loc="upper center", ncols=2)
    return figure


def plot_attention(
    weights: Any,
    tokens: Sequence[str],
    *,
    rows: Sequence[int] | None = None,
    title: str = "",
) -> Figure:
    """Who looks at whom: attention weights as a map.

    Parameters
    ----------
    weights : array, shape (time, time)
        Of one head.
    tokens : sequence of str
    rows : sequence of int, optional
        The positions that look; all of them if not given.
    title : str
    """
    import matplotlib.pyplot as plt

    chosen = list(range(len(tokens))) if rows is None else list(rows)
    seen = max(chosen) + 1  # nothing looks ahead
    with style():
        figure, axes = plt.subplots(figsize=(WIDTH, 0.22 * len(chosen) + 1.6))
    image = axes.imshow(
        weights[chosen, :seen], cmap="Blues", vmin=0, vmax=1, aspect="auto"
    )
    axes.grid(False)
    axes.set_xticks(range(seen), tokens[:seen], rotation=90, fontsize=8)
    axes.set_yticks(
        range(len(chosen)), [tokens[i] for i in chosen], fontsize=9
    )
    axes.set(xlabel="looked at", ylabel="looking", title=title)
    figure.colorbar(image, ax=axes, label="weight", pad=0.01)
    return figure


def plot_bars(
    values: dict[str, float],
    *,
    label: str,
    limit: float | None = None,
    others: dict[str, float] | None = None,
    names: tuple[str, str] = ("", ""),
) -> Figure:
    """Shares by name, as lying bars with their numbers.

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
        What the two sets of bars are.
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
        lengths = [bars.get(key, 0.0) for key in keys]
        drawn = axes.barh(
            places, lengths, thick * 0.92, color=colour, hatch=hatch,
            edgecolor=PAPER, label=name or None,
        )  # fmt: skip
        axes.bar_label(drawn, fmt="%.2f", padding=3, fontsize=8)
    if limit is not None:
        axes.axvline(limit, color=GREEN, ls="--", lw=1.4)
    axes.set_yticks(range(len(keys)), keys)
    axes.invert_yaxis()
    axes.set_xlabel(label)
    axes.grid(axis="y", visible=False)
    axes.set_xlim(0, max(1.0, *values.values()) * 1.1)
    if others is not None:
        axes.legend(loc="upper left", bbox_to_anchor=(0, 1.14), ncols=2)
    return figure


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
    """Curves that colour and line style both tell apart.

    Parameters
    ----------
    lines : mapping of str to (xs, ys)
        Each curve's name in the legend and its points.
    xlabel, ylabel : str
        With units.
    logx, logy : bool
        A logarithmic axis.
    level : mapping of str to float, optional
        Horizontal lines with a name, such as a floor.
    markers : bool
        A mark at each point.
    legend : bool
    title : str
    height : float
        In inches.
    """
    figure, axes = new_figure(height=height)
    right = -math.inf
    for number, (name, (xs, ys)) in enumerate(lines.items()):
        axes.plot(
            xs, ys, label=name, lw=1.8, ms=5,
            color=COLOURS[number % len(COLOURS)],
            ls=DASHES[number % len(DASHES)],
            marker=MARKERS[number % len(MARKERS)] if markers else None,
        )  # fmt: skip
        right = max(right, *xs)
    for name, value in (level or {}).items():
        axes.axhline(value, color=INK, ls=(0, (1, 2)), lw=1.3)
        axes.annotate(
            name, (right, value), ha="right", va="bottom", fontsize=9,
            xytext=(0, 2), textcoords="offset points",
        )  # fmt: skip
    axes.set(xlabel=xlabel, ylabel=ylabel, title=title)
    if logx:
        axes.set_xscale("log")
    if logy:
        axes.set_yscale("log")
    if legend and len(lines) > 1:
        axes.legend(fontsize=9)
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
    """A table of numbers as shades, row by row from the top.

    Parameters
    ----------
    matrix : array, shape (rows, columns)
    rows, columns : sequence of str, optional
        Names at the edges.
    xlabel, ylabel : str
    label : str
        What the shade means; without it there is no scale beside the map.
    limits : tuple of float, optional
        Values of the lightest and the darkest shade.
    numbers : bool
        Write each value into its field.
    title : str
    height : float, optional
        In inches; chosen from the number of rows if not given.
    """
    high = height or min(0.28 * len(matrix) + 1.4, 6.0)
    figure, axes = new_figure(height=high)
    low, top = limits or (None, None)
    image = axes.imshow(matrix, cmap="Blues", vmin=low, vmax=top,
                        aspect="auto")  # fmt: skip
    axes.grid(False)
    if columns is not None:
        long = max(map(len, columns)) > 4 and len(columns) > 8
        axes.set_xticks(range(len(columns)), columns, fontsize=9,
                        rotation=90 if long else 0)  # fmt: skip
    if rows is not None:
        axes.set_yticks(range(len(rows)), rows, fontsize=9)
    if numbers:
        for (row, column_), share in _shares(matrix, image):
            value = float(matrix[row][column_])
            text = f"{value:.0f}" if value.is_integer() else f"{value:.2f}"
            axes.text(column_, row, text, ha="center", va="center",
                      fontsize=9, color=PAPER if share > 0.55 else INK)
    axes.set(xlabel=xlabel, ylabel=ylabel, title=title)
    if label:
        figure.colorbar(image, ax=axes, label=label, pad=0.01)
    return figure


def _shares(
    matrix: Any, image: Any
) -> Iterator[tuple[tuple[int, int], float]]:
    """Where each value of a map lies between its lightest and darkest."""
    for row, values in enumerate(matrix):
        for place, value in enumerate(values):
            yield (row, place), float(image.norm(float(value)))


# --- text ------------------------------------------------------------------

_BOX = (
    "border:1px solid currentColor;border-radius:6px;padding:.6em .9em;"
    "margin:.4em 0;line-height:1.7;"
    "font-family:var(--pst-font-family-base,inherit)"
)


_CELL = 'style="text-align:left;vertical-align:top;padding:.3em .7em"'


def story_html(text: str, language: str = "en") -> str:
    """A story with the verdict of the Reader, and where it went wrong.

    Parameters
    ----------
    text : str
    language : {"en", "zh"}
    """
    try:
        story = read_story(text, language)
    except NotInLanguage as error:
        at = error.position
        wanted = " or ".join(f"“{e.strip()}”" for e in error.expected[:3])
        return (
            f'<div style="{_BOX}"><b>✗ leaves the world</b> after '
            f"{at} characters, where it should go on with "
            f"{html.escape(wanted)}<br>{html.escape(text[:at])}"
            '<mark style="text-decoration:underline wavy">'
            f"{html.escape(text[at:]) or '(end)'}</mark></div>"
        )
    return (
        f'<div style="{_BOX}"><b>✓ a valid story</b>, probability '
        f"e<sup>{story.logprob:.1f}</sup><br>{html.escape(text)}</div>"
    )


def show_story(text: str, language: str = "en") -> HTML:
    """Show what `story_html` makes of a text."""
    return _html(story_html(text, language))


def show_tokens(
    tokenizer: PreTrainedTokenizerFast,
    ids: Sequence[int],
    learnt: Sequence[bool] | None = None,
) -> HTML:
    """Show tokens as boxes; those that are learnt bold and underlined.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerFast
    ids : sequence of int
    learnt : sequence of bool, optional
    """
    boxes = []
    for place, token in enumerate(ids):
        text = html.escape(str(tokenizer.decode([token]))) or "·"
        text = text.replace(" ", "␣").replace("\n", "⏎")
        known = learnt is not None and learnt[place]
        look = "font-weight:700;text-decoration:underline;" if known else ""
        boxes.append(
            f'<span title="id {token}" style="{look}border:1px solid '
            f'currentColor;border-radius:3px;padding:0 .2em;margin:.1em;'
            f'display:inline-block">{text}</span>'
        )
        if text.endswith("⏎"):
            boxes.append("<br>")
    return _html(f'<div style="line-height:2">{"".join(boxes)}</div>')


def show_loss_mask(
    tokenizer: PreTrainedTokenizerFast, messages: list[dict[str, Any]]
) -> HTML:
    """Show a conversation token by token, with what is learnt marked."""
    ids, labels = encode_conversation(tokenizer, messages)
    return show_tokens(tokenizer, ids, [label != -100 for label in labels])


def show_files(folder: str | Path, about: dict[str, str]) -> HTML:
    """Show the files of a folder with their sizes and what they are for.

    Parameters
    ----------
    folder : path
    about : dict of str to str
        File name -> what is in it. Only these are shown.
    """
    rows = [
        f"<tr><td {_CELL}><code>{html.escape(name)}</code></td>"
        f'<td style="text-align:right">'
        f"{(Path(folder) / name).stat().st_size / 1000:,.1f} kB</td>"
        f"<td {_CELL}>{html.escape(text)}</td></tr>"
        for name, text in about.items()
    ]
    names = ("file", "size", "what is in it")
    head = "".join(f"<th {_CELL}>{name}</th>" for name in names)
    return _html(
        f"<table><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table>"
    )


def show_table(rows: Sequence[Sequence[Any]], head: Sequence[str]) -> HTML:
    """Show a table; numbers are set with three decimals at most."""

    def cell(value: Any) -> str:
        text = f"{value:.3g}" if isinstance(value, float) else str(value)
        return f"<td {_CELL}>{html.escape(text)}</td>"

    top = "".join(f"<th {_CELL}>{html.escape(name)}</th>" for name in head)
    body = "".join(f"<tr>{''.join(map(cell, row))}</tr>" for row in rows)
    return _html(
        f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"
    )


def show_source(*things: Any) -> Markdown:
    """Show the source of functions or classes, as the package has it."""
    from IPython.display import Markdown

    parts = [textwrap.dedent(inspect.getsource(thing)) for thing in things]
    return Markdown("```python\n" + "\n\n".join(parts).rstrip() + "\n```")


def glue(name: str, value: Any) -> None:
    """Give a number a name that the page's text can use.

    Outside of a book's build, where `myst_nb` may be missing, nothing
    happens.
    """
    try:
        from myst_nb import glue as put
    except ImportError:
        return
    put(name, value, display=False)


# --- things to move --------------------------------------------------------


def frames_slider(
    frames: Sequence[str],
    labels: Sequence[str],
    *,
    description: str,
    play: bool = True,
) -> Any:
    """Step through frames that were made beforehand.

    Parameters
    ----------
    frames : sequence of str
        HTML: from `picture`, `story_html` or your own.
    labels : sequence of str
        What the slider says at each frame.
    description : str
        What is moved.
    play : bool
        A button that runs through them.

    Returns
    -------
    ipywidgets.Widget
        The link between slider and frames is made in the browser, so it
        works in a page without a kernel.
    """
    import ipywidgets as w

    wide = w.Layout(width="100%", max_width="40rem")
    slider = w.SelectionSlider(
        options=[(label, i) for i, label in enumerate(labels)],
        description=description, layout=wide,
        style={"description_width": "initial"},
    )  # fmt: skip
    boxes = [w.HTML(frame) for frame in frames]
    controls: list[Any] = [slider]
    if play:
        player = w.Play(
            min=0, max=len(frames) - 1, interval=900,
            layout=w.Layout(width="9rem"),
        )  # fmt: skip
        w.jslink((player, "value"), (slider, "index"))
        controls.insert(0, player)
    bar = w.HBox(controls, layout=w.Layout(flex_flow="row wrap"))
    return w.VBox([bar, _stack(boxes, slider, "index")])


def picker(
    labels: Sequence[str], frames: Sequence[str], *, description: str
) -> Any:
    """Choose one of several frames from a list.

    Parameters
    ----------
    labels, frames, description
        As in `frames_slider`.

    Returns
    -------
    ipywidgets.Widget
    """
    import ipywidgets as w

    chooser = w.Dropdown(
        options=list(labels), description=description,
        layout=w.Layout(width="100%", max_width="40rem"),
        style={"description_width": "initial"},
    )  # fmt: skip
    boxes = [w.HTML(frame) for frame in frames]
    return w.VBox([chooser, _stack(boxes, chooser, "index")])


def _stack(boxes: list[Any], control: Any, trait: str) -> Any:
    """The frame a control points at, in a page and under old versions."""
    import ipywidgets as w

    if hasattr(w, "Stack"):
        stack = w.Stack(boxes, selected_index=0)
        w.jslink((control, trait), (stack, "selected_index"))
        return stack
    # ipywidgets 7, as on Colab, has no Stack; there a kernel is running.
    shown = w.VBox([boxes[0]])

    def turn(change: Any) -> None:
        shown.children = [boxes[change["new"]]]

    control.observe(turn, names=trait)
    return shown


def chat_box(reply: Callable[[str], str], *, question: str) -> Any:
    """A text field that answers, where a kernel is running.

    Parameters
    ----------
    reply : callable
        Takes the text and returns the answer.
    question : str
        What stands in the field at first.
    """
    import ipywidgets as w

    field = w.Textarea(
        question, layout=w.Layout(width="100%", max_width="40rem")
    )
    button = w.Button(description="Ask")
    answer = w.HTML()

    def ask(_: Any) -> None:
        answer.value = f"<p>{html.escape(reply(field.value))}</p>"

    button.on_click(ask)
    return w.VBox([field, button, answer])
