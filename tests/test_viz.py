"""Figures say what they show; what moves needs no kernel."""

import html
import re

import pytest
from conftest import ROOT

from minimind_core.book import viz
from minimind_core.book.floats import FLOAT16
from minimind_core.data import tokenizer_texts
from minimind_core.microworld import write_story
from minimind_core.model import RMSNorm
from minimind_core.tokenizer import train_tokenizer

HISTORY = [
    {"step": 1, "loss": 6.9},
    {"step": 50, "loss": 1.0, "validation_loss": 0.9, "floor": 0.29},
    {"step": 100, "loss": 0.4, "validation_loss": 0.31, "floor": 0.29},
]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(tokenizer_texts("microworld", count=100), 500)


def test_a_picture_has_its_text_and_its_size():
    figure = viz.plot_loss(HISTORY, vocab_size=1000)
    tag = viz.picture(figure, alt='The loss "falls" onto the floor')
    assert 'aria-label="The loss &quot;falls&quot; onto the floor"' in tag
    assert 'role="img"' in tag and 'width="640"' in tag
    # Letters stay letters, in the page's typeface.
    assert ">optimizer steps</text>" in tag
    assert "DejaVu" not in tag and "var(--fig-font" in tag
    assert len(tag) < 40_000
    with pytest.raises(ValueError, match="say what the picture shows"):
        viz.picture(viz.new_figure()[0], alt="figure 1")


def test_a_picture_takes_the_pages_colours():
    figure, axes = viz.new_figure()
    for name in ("BLUE", "ORANGE", "GREEN", "RED", "PURPLE"):
        axes.plot([0, 1], [0, 1], color=getattr(viz, name), label=name)
    axes.bar([1], [1], color=viz.ORANGE, hatch="//", edgecolor=viz.PAPER)
    axes.text(0, 0, "said without a colour")
    axes.legend()
    tag = viz.picture(figure, "five lines and a bar")
    style = (ROOT / "book" / "_static" / "style.css").read_text("utf8")
    for name in ("blue", "orange", "green", "red", "purple", "ink", "paper"):
        assert f"var(--fig-{name}, #" in tag
        # The page has a value for each, in the light and in the dark.
        assert style.count(f"--fig-{name}: #") == 2
    # No colour of the book stands there as itself, and none is black.
    bare = re.sub(r"var\([^)]*\)", "", tag)
    for colour in (*viz.COLOURS, viz.INK, viz.PAPER, "#000000", "#ffffff"):
        assert colour not in bare, colour
    assert ' fill="#' not in tag


def test_two_pictures_do_not_share_names():
    def names(height):
        figure = viz.plot_lines(
            {"up": ([1, 2], [1, height])}, xlabel="x", ylabel="y"
        )
        tag = viz.picture(figure, "a line going up")
        ids = set(re.findall(r' id="([^"]+)"', tag))
        used = set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', tag))
        assert ids and {a or b for a, b in used} <= ids
        assert "<style" not in tag  # it would hold for the whole page
        return ids

    assert names(3) == names(3)  # a page that is built again is the same
    assert not names(3) & names(4)


def test_the_loss_is_drawn_between_its_limits():
    axes = viz.plot_loss(HISTORY, vocab_size=1000).axes[0]
    levels = [line.get_ydata()[0] for line in axes.lines
              if len(set(line.get_ydata())) == 1]  # fmt: skip
    assert 0.29 in levels
    assert max(levels) == pytest.approx(6.9078, abs=1e-3)
    part = viz.plot_loss(HISTORY, until=50).axes[0]
    assert max(part.lines[0].get_xdata()) == 50
    assert part.get_xlim()[1] > 100  # the frame stays where it is


def test_a_story_is_judged_where_it_leaves_the_world():
    story = write_story(0, 4)
    assert "✓ a valid story" in viz.story_html(story.text)
    at = story.text.index("gardener")
    broken = story.text[:at] + "<b>zebra</b>" + story.text[at:]
    page = viz.story_html(broken)
    assert "✗ leaves the world" in page
    assert "&lt;b&gt;zebra" in page
    kept, wrong = page.split("<mark", 1)
    assert kept.endswith(html.escape(story.text[:at]))
    assert "zebra" in wrong
    # Half of a word is right: the mark begins with the word.
    page = viz.story_html(story.text.replace("gardener", "garage"))
    assert "it could go on with “gardener" in page
    assert page.split("<mark", 1)[1].count("garage") == 1
    assert "✓" in viz.story_html(write_story(0, 4, "zh").text, "zh")


def test_a_table_sets_numbers_to_the_right_and_keeps_dates_whole():
    page = viz.show_table(
        [["float32", 3.14159, "2024-08-28"], ["x", "12 %", "–"]],
        ["name", "size", "from 2024-08-28"],
    ).data
    right = re.findall(r'text-align:right[^>]*>([^<]*)', page)
    assert right == ["size", "3.14", "12 %"]
    assert page.count('nowrap">2024-08-28</span>') == 2


def test_the_loss_mask_marks_the_answer_and_its_end(tokenizer):
    talk = [
        {"role": "user", "content": "<b>Who?</b>"},
        {"role": "assistant", "content": "Mia."},
    ]
    page = viz.show_loss_mask(tokenizer, talk).data
    bold = re.findall(r"font-weight:700[^>]*>(.*?)</span>", page)
    assert "".join(bold).replace("␣", " ") == "Mia.&lt;|im_end|&gt;"
    assert "<b>" not in page


def test_source_is_the_packages_own():
    text = viz.show_source(RMSNorm.forward).data
    assert text.startswith("```python\ndef forward(self, x")
    assert "F.rms_norm" in text


def test_files_are_listed_with_their_size(tmp_path):
    (tmp_path / "config.json").write_bytes(b"x" * 2500)
    page = viz.show_files(tmp_path, {"config.json": "the <shape>"}).data
    assert "2.5 kB" in page
    assert "the &lt;shape&gt;" in page


def test_a_slider_is_linked_in_the_browser():
    pytest.importorskip("ipywidgets", minversion="8")
    box = viz.frames_slider(
        ["<p>a</p>", "<p>b</p>"], ["1", "2"], description="step"
    )
    stack = box.children[1]
    assert [child.value for child in stack.children] == [
        "<p>a</p>", "<p>b</p>",
    ]  # fmt: skip
    # jslink: the link is a widget of its own that the page's player runs.
    from ipywidgets.embed import embed_data

    states = embed_data([box])["manager_state"]["state"].values()
    links = [s for s in states if s["model_name"] == "LinkModel"]
    assert len(links) == 2  # player and slider, slider and frames


def test_without_stack_a_running_kernel_turns_the_frames(monkeypatch):
    import ipywidgets

    monkeypatch.delattr(ipywidgets, "Stack")
    box = viz.picker(["a", "b"], ["<p>a</p>", "<p>b</p>"], description="x")
    chooser, shown = box.children
    assert shown.children[0].value == "<p>a</p>"
    chooser.index = 1
    assert shown.children[0].value == "<p>b</p>"


def test_the_chat_box_answers_escaped():
    box = viz.chat_box(lambda text: f"<i>{text}</i>", question="hello")
    field, button, answer = box.children
    button.click()
    assert answer.value == "<p>&lt;i&gt;hello&lt;/i&gt;</p>"
    assert field.value == "hello"


def test_bars_and_maps_carry_names():
    axes = viz.plot_bars({"a": 0.5, "b": 1.0}, label="share").axes[0]
    assert [t.get_text() for t in axes.texts] == ["0.50", "1.00"]
    counts = viz.plot_bars({"a": 10, "b": 7}, label="times").axes[0]
    assert [t.get_text() for t in counts.texts] == ["10", "7"]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["a", "b"]
    import numpy as np

    axes = viz.plot_attention(
        np.eye(3), ["x", "y", "z"], rows=[1, 2]
    ).axes[0]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["y", "z"]
    many = np.zeros((90, 90))
    many[89, 40] = 1.0
    axes = viz.plot_attention(many, [f"t{i}" for i in range(90)]).axes[0]
    named = [int(t.get_text()[1:]) for t in axes.get_xticklabels()]
    assert 40 in named  # what is looked at most has its name
    assert min(np.diff(named)) > 2


def test_lines_differ_in_more_than_colour():
    lines = {str(i): ([1, 2], [i, i + 1]) for i in range(5)}
    figure = viz.plot_lines(
        lines, xlabel="x", ylabel="y", level={"floor": 0.5}, logy=True
    )
    drawn = figure.axes[0].get_lines()[:5]
    assert len({line.get_color() for line in drawn}) == 5
    assert len({str(line.get_linestyle()) for line in drawn[:4]}) == 4
    assert "floor" in [text.get_text() for text in figure.axes[0].texts]
    assert len(figure.axes[0].get_legend().get_texts()) == 5
    viz.picture(figure, "five lines going up")


def test_a_map_can_carry_its_numbers():
    figure = viz.plot_map(
        [[0.25, 1.0], [0.0, 0.5]], rows=["a", "b"], columns=["c", "d"],
        numbers=True, label="weight", limits=(0, 1),
    )  # fmt: skip
    written = [text.get_text() for text in figure.axes[0].texts]
    assert written == ["0.25", "1", "0", "0.50"]
    assert len(figure.axes) == 2  # the scale beside it
    viz.picture(figure, "two rows of two")


def test_a_bit_field_shows_all_formats_without_a_script():
    page = viz.bit_field(0.1, alt="the bits of a number").data
    assert page.count("<button") == 32 + 16 + 16
    # Rounded to each format's digits, and not more precisely than it is.
    for value in ("0.100000001", "0.0999755859", "0.100097656"):
        assert f"<output>{value}</output>" in page


def test_sizes_are_drawn_over_what_a_format_can_hold():
    figure = viz.plot_sizes(
        {"small": [1e-9, 1e-8], "large": [0.0, 1.0]}, FLOAT16,
        xlabel="size", limits=(-12, 6),
    )  # fmt: skip
    words = [text.get_text().strip() for text in figure.axes[0].texts]
    assert words == ["zero", "digits go"]
    viz.picture(figure, "two groups of sizes")
    axes = viz.plot_formats().axes[0]
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["float32", "float16", "bfloat16"]


def test_shares_add_up_to_their_bars():
    bars = {"a": {"x": 1.0, "y": 2.0}, "b": {"x": 3.0, "y": 0.5}}
    figure = viz.plot_shares(bars, label="GB", limits={"card": 4.0}, top=5)
    (axes,) = figure.axes
    first, second = axes.containers
    assert [bar.get_x() for bar in second] == [1.0, 3.0]
    assert [bar.get_width() for bar in second] == [2.0, 0.5]
    assert [bar.get_hatch() for bar in (first[0], second[0])] == ["", "//"]
    assert [text.get_text() for text in axes.texts] == ["card"]


def test_logarithmic_axes_have_numbers_that_one_reads_at_once():
    def ticks(top):
        figure = viz.plot_lines(
            {"up": ([1, 64], [top / 60, top])}, xlabel="x", ylabel="y",
            logy=True, level={"a level": top},
        )  # fmt: skip
        figure.canvas.draw()
        axes = figure.axes[0]
        low, high = axes.get_ylim()
        shown = [
            label.get_text()
            for label, at in zip(
                axes.get_yticklabels(), axes.get_yticks(), strict=True
            )
            if low <= at <= high
        ]
        name = axes.texts[0]
        assert name.get_window_extent().x0 > axes.bbox.x1  # beside the axes
        viz.picture(figure, "a line going up")
        return shown

    assert ticks(6.0) == ["0.1", "0.2", "0.5", "1", "2", "5"]
    assert ticks(3e12) == ["$10^{11}$", "$10^{12}$"]


def test_a_prediction_keeps_its_answer_folded():
    asked = viz.predict(
        "Which?", choices=["(4, 0)", "(5, 9)"], answer=1, because="So."
    ).data
    question, answer = asked.split("<details>")
    assert "<li>(4, 0)</li><li>(5, 9)</li>" in question
    assert 'data-answer="1"' in question
    assert "<strong>(5, 9)</strong> So." in answer
    assert "<strong>1,024 bytes</strong>" in viz.predict(
        "How many?", answer=1024, unit="bytes"
    ).data
    with pytest.raises(ValueError, match="not the index"):
        viz.predict("Which?", choices=["a", "b"], answer=2)


def test_a_line_keeps_its_colour_among_many():
    # Pictures of few colours once made two reds one red.
    colours = [f"#b3{4 * i:02x}{i:02x}" for i in range(60)]
    figure, axes = viz.new_figure()
    for i, colour in enumerate(colours):
        axes.plot([0, 1], [i, i + 1], color=colour, lw=3)
    tag = viz.picture(figure, "sixty lines of similar colours")
    for colour in colours:
        assert f"stroke: {colour}" in tag
