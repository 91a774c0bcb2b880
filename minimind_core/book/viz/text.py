"""Show texts, tokens, tables and the package's own source."""

from __future__ import annotations

import html
import inspect
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minimind_core.book.viz.figures import as_html
from minimind_core.chat import encode_conversation
from minimind_core.microworld import NotInLanguage, read_story

if TYPE_CHECKING:
    from IPython.display import HTML, Markdown
    from transformers import PreTrainedTokenizerFast

_BOX = (
    "border:1px solid currentColor;border-radius:6px;padding:.6em .9em;"
    "margin:.4em 0;line-height:1.7;"
    "font-family:var(--pst-font-family-base,inherit)"
)


_CELL = 'style="text-align:left;vertical-align:top;padding:.3em .7em"'
_SHORT = _CELL.replace('em"', 'em;white-space:nowrap"')
_NUMBER = _SHORT.replace("left", "right")


def story_html(text: str, language: str = "en") -> str:
    """Format a story with its verdict and the position of any error.

    Parameters
    ----------
    text : str
    language : {"en", "zh"}
    """
    try:
        story = read_story(text, language)
    except NotInLanguage as error:
        at, begun = error.position, ""
        words = all(re.match(r"\w", e) for e in error.expected)
        if language == "en" and words:  # if inside a word, back to its start
            begun = re.split(r"\W", text[:at])[-1]
        at -= len(begun)
        wanted = " or ".join(
            f"“{(begun + e).strip()}”" for e in error.expected[:3]
        )
        return (
            f'<div style="{_BOX}"><b>✗ leaves the world</b> after '
            f"{at} characters, where it could go on with "
            f"{html.escape(wanted)}, for example<br>{html.escape(text[:at])}"
            '<mark style="text-decoration:underline wavy">'
            f"{html.escape(text[at:]) or '(end)'}</mark></div>"
        )
    return (
        f'<div style="{_BOX}"><b>✓ a valid story</b>, probability '
        f"e<sup>{story.logprob:.1f}</sup><br>{html.escape(text)}</div>"
    )


def show_story(text: str, language: str = "en") -> HTML:
    """Show a text as `story_html` formats it."""
    return as_html(story_html(text, language))


def show_tokens(
    tokenizer: PreTrainedTokenizerFast,
    ids: Sequence[int],
    supervised: Sequence[bool] | None = None,
) -> HTML:
    """Show tokens as boxes, with supervised ones bold and underlined.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerFast
    ids : sequence of int
    supervised : sequence of bool, optional
    """
    boxes = []
    for place, token in enumerate(ids):
        text = html.escape(str(tokenizer.decode([token]))) or "·"
        text = text.replace(" ", "␣").replace("\n", "⏎")
        bold = supervised is not None and supervised[place]
        look = "font-weight:700;text-decoration:underline;" if bold else ""
        boxes.append(
            f'<span title="id {token}" style="{look}border:1px solid '
            f'currentColor;border-radius:3px;padding:0 .2em;margin:.1em;'
            f'display:inline-block">{text}</span>'
        )
        if text.endswith("⏎"):
            boxes.append("<br>")
    return as_html(f'<div style="line-height:2">{"".join(boxes)}</div>')


def show_loss_mask(
    tokenizer: PreTrainedTokenizerFast, messages: list[dict[str, Any]]
) -> HTML:
    """Show a conversation token by token, with supervised ones marked."""
    ids, labels = encode_conversation(tokenizer, messages)
    return show_tokens(tokenizer, ids, [label != -100 for label in labels])


def show_files(folder: str | Path, about: dict[str, str]) -> HTML:
    """Show the files of a folder with their sizes and descriptions.

    Parameters
    ----------
    folder : path
    about : dict of str to str
        File name -> description. Only these files are shown.
    """
    rows = [
        f"<tr><td {_CELL}><code>{html.escape(name)}</code></td>"
        f'<td {_NUMBER}>'
        f"{(Path(folder) / name).stat().st_size / 1000:,.1f} kB</td>"
        f"<td {_CELL}>{html.escape(text)}</td></tr>"
        for name, text in about.items()
    ]
    names = ("file", "size", "what is in it")
    head = "".join(f"<th {_CELL}>{name}</th>" for name in names)
    return as_html(
        f"<table><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table>"
    )


def show_table(rows: Sequence[Sequence[Any]], head: Sequence[str]) -> HTML:
    """Show a table; numbers have three digits and are right-aligned."""

    def written(value: Any) -> str:
        return f"{value:.3g}" if isinstance(value, float) else str(value)

    texts = [[written(value) for value in row] for row in rows]
    numbers = [
        all(map(_IS_NUMBER.fullmatch, column))
        for column in zip(*texts, strict=True)
    ]

    def cell(text: str, number: bool) -> str:
        # Dates and names should not be broken across lines.
        short = _NUMBER if number else _SHORT
        style = _CELL if len(text) > 14 else short
        return f"<td {style}>{_whole_dates(text)}</td>"

    top = "".join(
        f"<th {_CELL.replace('left', 'right') if number else _CELL}>"
        f"{_whole_dates(name)}</th>"
        for name, number in zip(head, numbers, strict=True)
    )
    body = "".join(
        f"<tr>{''.join(map(cell, row, numbers))}</tr>" for row in texts
    )
    return as_html(
        f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"
    )


_IS_NUMBER = re.compile(
    r"[-–−]?|[-−+]?\d[\d,.]*(e[-+]?\d+)?( ?(%|M|kB|MB|s|ms))?"
)


def _whole_dates(text: str) -> str:
    """Escape a text, and keep dates from breaking at their hyphens."""
    return re.sub(
        r"\d{4}-\d\d-\d\d",
        r'<span style="white-space:nowrap">\g<0></span>', html.escape(text),
    )  # fmt: skip


def show_source(*things: Any) -> Markdown:
    """Show the package's source of functions or classes."""
    from IPython.display import Markdown

    parts = [textwrap.dedent(inspect.getsource(thing)) for thing in things]
    return Markdown("```python\n" + "\n\n".join(parts).rstrip() + "\n```")


def glue(name: str, value: Any) -> None:
    """Give a value a name that the page's text can refer to.

    This does nothing where `myst_nb` is not installed.
    """
    try:
        from myst_nb import glue as put
    except ImportError:
        return
    put(name, value, display=False)
