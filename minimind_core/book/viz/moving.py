"""Interactive widgets, most of which need no kernel."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

def frames_slider(
    frames: Sequence[str],
    labels: Sequence[str],
    *,
    description: str,
    play: bool = True,
    start: int = 0,
) -> Any:
    """Show a slider that steps through precomputed frames.

    Parameters
    ----------
    frames : sequence of str
        HTML: from `picture`, `story_html` or your own.
    labels : sequence of str
        Label of the slider at each frame.
    description : str
        Description of the slider.
    play : bool
        Add a button that plays the frames.
    start : int
        Which frame is shown first, for example that of the neutral value.

    Returns
    -------
    ipywidgets.Widget
        The link between slider and frames is made in the browser, so it
        works in a page without a kernel.
    """
    import ipywidgets as w

    wide = w.Layout(width="100%", max_width="40rem")
    slider = w.SelectionSlider(
        options=[(label, i) for i, label in enumerate(labels)], index=start,
        description=description, layout=wide,
        style={"description_width": "initial"},
    )  # fmt: skip
    boxes = [w.HTML(frame) for frame in frames]
    controls: list[Any] = [slider]
    if play:
        player = w.Play(
            min=0, max=len(frames) - 1, interval=900, value=start,
            layout=w.Layout(width="9rem"),
        )  # fmt: skip
        w.jslink((player, "value"), (slider, "index"))
        controls.insert(0, player)
    bar = w.HBox(controls, layout=w.Layout(flex_flow="row wrap"))
    return w.VBox([bar, _stack(boxes, slider, "index", start)])


def picker(
    labels: Sequence[str], frames: Sequence[str], *, description: str
) -> Any:
    """Show a menu that selects one of several frames.

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


def _stack(
    boxes: list[Any], control: Any, trait: str, start: int = 0
) -> Any:
    """Show the selected frame, also under ipywidgets 7."""
    import ipywidgets as w

    if hasattr(w, "Stack"):
        stack = w.Stack(boxes, selected_index=start)
        w.jslink((control, trait), (stack, "selected_index"))
        return stack
    # ipywidgets 7, as on Colab, has no Stack; there a kernel is running.
    shown = w.VBox([boxes[start]])

    def turn(change: Any) -> None:
        shown.children = [boxes[change["new"]]]

    control.observe(turn, names=trait)
    return shown


def chat_box(reply: Callable[[str], str], *, question: str) -> Any:
    """Show a text field that answers if a kernel is running.

    Parameters
    ----------
    reply : callable
        Takes the text and returns the answer.
    question : str
        Initial content of the field.
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
