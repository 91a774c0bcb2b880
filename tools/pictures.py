"""Take the pictures that show what runs in the pages.

    python tools/pictures.py        # after `make book`; needs Chromium

For readers without scripts, each widget has a picture of itself in use, in
`book/_static/lab`, for light pages and for dark ones, and the README has a
short film of the front page, `book/_static/writing.webp`. (Those that write
stories need no picture: the build puts a story there.)
"""

from __future__ import annotations

import io
import itertools
import shutil
import sys
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Page, sync_playwright

ROOT = Path(__file__).resolve().parents[1]
SITE = ROOT / "_build" / "html" / "book"
STATIC = ROOT / "book" / "_static"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WIDE = {"width": 1280, "height": 900}
FILMED = (60, 1000)  # steps of training: an early model, and the last
PAUSE, MOST, TAKES = 150, 90, 8  # milliseconds between frames; how many
FILM_WIDTH, FILM_HEIGHT = 720, 640
ANSWERED = """() => [...document.querySelectorAll(".lab-answer .verdict")]
    .every(one => one.textContent !== "")"""


def start(page: Page, name: str, kind: str) -> Any:
    """Open a page and begin one of its widgets."""
    page.goto((SITE / f"{name}.html").as_uri())
    place = page.locator(f'.mm-lab[data-lab="{kind}"]').first
    if kind != "home":  # which starts by itself
        place.locator(".lab-start").click()
    place.locator(".lab-source").wait_for()
    # What floats above the page is not a part of the widget.
    page.add_style_tag(content="#pst-back-to-top {display: none !important}")
    return place


def keep(place: Any, kind: str) -> None:
    """Write a picture of a widget as it is, by the theme of its page."""
    picture = Image.open(io.BytesIO(place.screenshot()))
    dark = place.page.evaluate("document.documentElement.dataset.theme")
    ending = "-dark" if dark == "dark" else ""
    out = STATIC / "lab" / f"shown-{kind}{ending}.webp"
    picture.convert("RGB").save(out, quality=80, method=4)
    print(out.relative_to(ROOT), picture.size, out.stat().st_size)


def look(page: Page) -> None:
    """A head's arcs, with another head switched off."""
    place = start(page, "03_transformer", "look")
    page.wait_for_selector(".lab-patch .lab-bar")
    place.get_by_label("head 2 of layer 1 is on").uncheck()
    page.wait_for_timeout(1000)
    place.locator(".lab-story.arcs [role=option]").nth(40).click()
    keep(place, "look")


def talk(page: Page) -> None:
    """A question, and the answers of three models."""
    place = start(page, "01_journey", "talk")
    place.locator(".lab-chips button").nth(2).click()
    page.wait_for_function(ANSWERED)
    keep(place, "talk")


def exam(page: Page) -> None:
    """The marks of the book's model."""
    place = start(page, "08_export", "exam")
    place.get_by_role("button", name="Examine the book").click()
    place.locator("table").wait_for(timeout=120_000)
    keep(place, "exam")


def mask(page: Page) -> None:
    """A choice that lacks some tokens and has others too many."""
    place = start(page, "07_sft", "mask")
    for n in (0, 3, -5, -4):
        place.locator("[role=option]").nth(n).click()
    place.get_by_role("button", name="Compare").click()
    keep(place, "mask")


def film(page: Page) -> None:
    """The front page: an early model writes, and then the last."""
    place = start(page, "index", "home")
    box = place.bounding_box()
    clip = {**box, "height": min(box["height"], FILM_HEIGHT)}
    main = place.locator(".lab-main")
    another = place.get_by_role("button", name="Another story")

    def record() -> list[Image.Image]:
        frames: list[Image.Image] = []
        while len(frames) < MOST:
            frame = Image.open(io.BytesIO(page.screenshot(clip=clip)))
            high = round(FILM_WIDTH * frame.height / frame.width)
            size = (FILM_WIDTH, high)
            frames.append(frame.convert("RGB").resize(size, Image.LANCZOS))
            if main.text_content() == "Again":
                break
            page.wait_for_timeout(PAUSE)
        return frames

    film = []
    for step in FILMED:
        place.get_by_label(f"after {step} steps").check(force=True)
        place.locator(f".lab-said:has-text('{step} steps')").wait_for()
        page.wait_for_timeout(2 * PAUSE)
        take = record()
        for _ in range(TAKES):  # the last model shows what it can
            reason = place.locator(".lab-box .lab-reason").text_content()
            if step == FILMED[0] or not reason:
                break
            another.click()
            take = record()
        film.append(take)
    frames = [frame for take in film for frame in take]
    pauses = [PAUSE] * len(frames)
    pauses[len(film[0]) - 1], pauses[-1] = 1500, 3000
    out = STATIC / "writing.webp"
    frames[0].save(
        out, save_all=True, append_images=frames[1:], loop=0, quality=60,
        duration=pauses, method=4,
    )  # fmt: skip
    print(out.relative_to(ROOT), frames[0].size, out.stat().st_size)


def main() -> None:
    """Take all pictures."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None or not SITE.exists():
        sys.exit("this needs the built book (make book) and Chromium")
    with sync_playwright() as driver:
        chromium = driver.chromium.launch(
            executable_path=browser, args=["--no-sandbox"]
        )
        shown = itertools.product(("light", "dark"), (look, talk, exam, mask))
        for theme, take in (*shown, ("light", film)):
            page = chromium.new_page(viewport=WIDE, color_scheme=theme)
            take(page)
            page.close()
        chromium.close()


if __name__ == "__main__":
    main()
