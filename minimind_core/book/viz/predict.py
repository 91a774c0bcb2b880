"""Questions that a reader answers before a cell shows what is true."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING

from minimind_core.book.viz.figures import as_html

if TYPE_CHECKING:
    from IPython.display import HTML


def predict(
    question: str,
    *,
    answer: int | float,
    choices: Sequence[str] = (),
    unit: str = "",
    because: str = "",
) -> HTML:
    """Ask the reader for a prediction, with the answer folded away.

    Parameters
    ----------
    question : str
        HTML, one or two sentences.
    answer : int or float
        With `choices`, the index of the right one; otherwise the number.
    choices : sequence of str
        HTML, two to five of them. Without any, the answer is a number.
    unit : str
        What the number counts, for example ``"bytes"``.
    because : str
        HTML, a sentence or two that explain the answer.

    Returns
    -------
    HTML
        The answer unfolds by a click, in a page and in a notebook, without
        a kernel or a script. In a page, ``predict.js`` lets the reader
        choose or type, and covers the results of the following cells tagged
        ``answer`` until then.

    Raises
    ------
    ValueError
        If `answer` is not the index of a choice.
    """
    if choices:
        if answer not in range(len(choices)):
            raise ValueError(
                f"answer={answer} is not the index of one of "
                f"{len(choices)} choices"
            )
        listed = "".join(f"<li>{choice}</li>" for choice in choices)
        options, truth = f"<ol>{listed}</ol>", choices[int(answer)]
    else:
        shown = f"{answer:,}" if isinstance(answer, int) else f"{answer:g}"
        options, truth = "", f"{shown} {unit}".strip()
    return as_html(
        f'<div class="mm-predict" data-answer="{answer}" '
        f'data-unit="{html.escape(unit, quote=True)}">'
        '<p class="mm-predict-title">Predict</p>'
        f"<p>{question}</p>{options}"
        "<details><summary>Show the answer</summary>"
        f"<p><strong>{truth}</strong> {because}</p></details></div>"
    )
