"""Sliders and menus of the notebooks, as HTML that needs no widget library.

In a notebook `frames_slider` and `picker` are ipywidgets. All that they show
is computed beforehand and lies in the widgets' state, so a page can hold the
frames themselves, and a few lines of our own (`_static/frames.js`) choose one
of them. Without scripts the first frame is shown.
"""

from __future__ import annotations

import html
import json
import re
from typing import Any

from sphinx.errors import ExtensionError

WIDGET_VIEW = re.compile(
    r'<script type="application/vnd\.jupyter\.widget-view\+json">'
    r"(?P<view>.*?)</script>",
    re.DOTALL,
)


def is_state(script: Any) -> bool:
    """Whether a page's script is the state of its widgets."""
    kind = getattr(script, "attributes", {}).get("type", "")
    return "widget-state+json" in kind


def with_frames(body: str, scripts: list[Any]) -> str:
    """Replace each widget of a page by its frames and a control.

    Parameters
    ----------
    body : str
        The HTML of a page.
    scripts : list
        The page's scripts, the state of its widgets among them.
    """
    states = [
        json.loads(script.attributes["body"])["state"]
        for script in scripts
        if is_state(script)
    ]

    def replace(match: re.Match[str]) -> str:
        model = json.loads(match["view"])["model_id"]
        return as_html(states[0], model)

    return WIDGET_VIEW.sub(replace, body)


def as_html(state: dict[str, Any], model: str) -> str:
    """A slider or a menu with its frames, from a widget's state.

    Raises
    ------
    ExtensionError
        If the widget is something else.
    """

    def read(name: str) -> dict[str, Any]:
        return state[name.removeprefix("IPY_MODEL_")]["state"]

    def below(widget: dict[str, Any]) -> list[dict[str, Any]]:
        return [read(name) for name in widget.get("children", [])]

    found = {}
    parts = below(read(model))
    for part in parts:
        for one in (part, *below(part)):
            found[one["_model_name"]] = one
    stack = found.get("StackModel")
    slider = found.get("SelectionSliderModel")
    menu = found.get("DropdownModel")
    control = slider or menu
    if stack is None or control is None:
        kinds = ", ".join(found) or read(model)["_model_name"]
        raise ExtensionError(
            f"a page can show sliders and menus of frames, and not {kinds}: "
            "see book/_ext/frames.py"
        )
    frames = [one["value"] for one in below(stack)]
    shown = int(stack.get("selected_index") or 0)
    names = [str(one) for one in control["_options_labels"]]
    labels = [html.escape(one) for one in names]
    told = html.escape(control["description"])
    if menu is not None:
        options = "".join(
            f"<option{' selected' if n == shown else ''}>{label}</option>"
            for n, label in enumerate(labels)
        )
        bar = f"<label>{told} <select>{options}</select></label>"
    else:
        bar = (
            f'<label>{told} <input type="range" min="0" '
            f'max="{len(frames) - 1}" step="1" value="{shown}" '
            f'aria-valuetext="{labels[shown]}"></label>'
            f"<output>{labels[shown]}</output>"
        )
    if "PlayModel" in found:
        wait = int(found["PlayModel"]["interval"])
        bar = (
            f'<button type="button" aria-label="play" data-wait="{wait}">'
            f"\u25b6</button>{bar}"
        )
    said = html.escape(json.dumps(names, ensure_ascii=False))
    kind = "menu" if menu is not None else "slider"
    bodies = "".join(
        f'<div class="mm-frame{" shown" if n == shown else ""}">{frame}</div>'
        for n, frame in enumerate(frames)
    )
    return (
        f'<div class="mm-frames {kind}" data-labels="{said}">'
        f'<div class="mm-frames-bar">{bar}</div>'
        f'<div class="mm-stack">{bodies}</div></div>'
    )
