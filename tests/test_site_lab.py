"""The models in the built pages, used as a reader would use them.

What a widget shows is compared with what the package computes from the same
weights, those that the page loads.
"""

import base64
import itertools
import json
import re

import pytest
import torch
from conftest import DESKTOP, PHONE, ROOT

from minimind_core.book.lab import REGRET_LEVELS, regret_levels
from minimind_core.config import ModelConfig, get_preset
from minimind_core.cost import (
    DEVICES,
    estimate,
    largest_rows,
    needed,
    tokens_of,
)
from minimind_core.export import export_hf
from minimind_core.microworld import NotInLanguage, read_story
from minimind_core.microworld.truth import Truth
from minimind_core.model import MiniMind

PLACE = re.compile(r'<div class=\\?"mm-lab\\?" data-lab=\\?"(\w+)')
CODE = re.compile(r"^```html.*?^```", re.DOTALL | re.MULTILINE)
PLACES = [
    (f"book/{path.stem}.html", kind)
    for path in sorted((ROOT / "book").glob("*.*"))
    if path.suffix in {".md", ".ipynb"}
    for kind in PLACE.findall(CODE.sub("", path.read_text("utf8")))
]
READY = ("home", "cost")  # begin by themselves
ASKED = [place for place in PLACES if place[1] != "home"]
KINDS = {"home", "write", "learn", "look", "talk", "exam", "mask", "cost"}
FIRST = dict(reversed([(kind, name) for name, kind in PLACES]))


def test_each_widget_is_on_some_page():
    assert set(FIRST) == KINDS
    assert [name for name, kind in PLACES if kind == "home"] == [
        "book/index.html"
    ]


# --- the models that the page loads -----------------------------------------


def loaded(site, name):
    """What a page's script hands to the engine."""
    text = (site / "_static" / "live" / f"{name}.js").read_text("utf8")
    return json.loads(text[text.index("] = ") + 4 :].rstrip().rstrip(";"))


@pytest.fixture(scope="module")
def stage(site):
    """A function: a stage's model, with the weights that the page has."""
    from safetensors.torch import load

    def read(name):
        parts = loaded(site, name)
        tensors = load(base64.b64decode(parts["weights"]))
        weights = {
            key: tensor.float() * tensors[f"{key}.scale"][:, None]
            if f"{key}.scale" in tensors else tensor.float()
            for key, tensor in tensors.items()
            if not key.endswith(".scale")
        }  # fmt: skip
        model = MiniMind(ModelConfig(**parts["config"])).eval()
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
        model.load_state_dict(weights)
        return model

    return read


@pytest.fixture(scope="module")
def cut(site):
    """A function: text to ids, with the tokenizer that the page has."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    parts = loaded(site, "tokenizer")["model"]
    merges = [
        tuple(m) if isinstance(m, list) else tuple(m.split(" "))
        for m in parts["merges"]
    ]
    cutter = Tokenizer(models.BPE(vocab=parts["vocab"], merges=merges))
    cutter.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return lambda text: cutter.encode(text).ids


def start(page, kind, by="mouse"):
    """Begin a widget; returns its place, when it is there."""
    place = page.locator(f'.mm-lab[data-lab="{kind}"]').first
    button = place.locator(".lab-start")
    if kind in READY:
        place.scroll_into_view_if_needed()
        place.locator(".lab-source").wait_for(timeout=60_000)
        return place
    button.scroll_into_view_if_needed()
    if by == "keys":
        button.focus()
        page.keyboard.press("Enter")
    elif by == "finger":
        button.tap()
    else:
        button.click()
    place.locator(".lab-source").wait_for(timeout=60_000)
    return place


def told(place):
    """The text of a story that a place shows, without the mark of its end."""
    text = place.locator(".lab-box .lab-story").first.text_content()
    return text.removesuffix(" \u220e")


SHOWN = """([said]) => document.querySelector(
    ".lab-box .lab-story").textContent === said"""
SAID = """([kind, said]) => document.querySelector(
    `[data-lab=${kind}] .lab-total`).textContent.includes(said)"""


def wait(page, condition, *given):
    page.wait_for_function(condition, arg=list(given), timeout=60_000)


# --- every place ------------------------------------------------------------


@pytest.mark.parametrize(("name", "kind"), ASKED)
def test_nothing_is_loaded_until_it_is_asked_for(
    name, kind, server, site, visit
):
    """From a server and from a disk, on a phone, in the dark."""
    for base in (server, site.as_uri()):
        page = visit(f"{base}/{name}", size=PHONE, theme="dark")
        page.mouse.wheel(0, 800)
        page.mouse.move(30, 30)
        page.wait_for_timeout(300)
        assert not [u for u in page.asked if re.search(
            r"live/(?!index|page)", u)]  # fmt: skip
        place = start(page, kind)
        assert not page.complaints
        known = {base.split(":")[0], "blob"}
        assert {url.split(":")[0] for url in page.asked} <= known
        assert all(
            url.startswith((base, "blob:")) for url in page.asked
        )
        wide = "document.documentElement.scrollWidth > innerWidth"
        assert not page.evaluate(wide)
        box = place.bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 391


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_axe_finds_nothing_serious(kind, theme, server, visit):
    page = visit(f"{server}/{FIRST[kind]}", theme=theme)
    start(page, kind)
    page.wait_for_timeout(1500)
    page.add_script_tag(path=ROOT / "_build" / "vendor" / "axe-core" /
                        "axe.min.js")  # fmt: skip
    found = page.evaluate(
        """async (kind) => (await axe.run(`.mm-lab[data-lab="${kind}"]`))
            .violations.filter(one => ["serious", "critical"].includes(
                one.impact)).map(one => [one.id, one.nodes[0].html])""",
        kind,
    )
    assert not found


PAPER = {"light": "rgb(251, 250, 247)", "dark": "rgb(21, 25, 28)"}


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_without_scripts_a_sentence_and_a_picture(kind, theme, site, visit):
    """In the colours that the system asks for, and so is the picture."""
    page = visit(
        f"{site.as_uri()}/{FIRST[kind]}", theme=theme,
        java_script_enabled=False,
    )  # fmt: skip
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert paper == PAPER[theme]
    place = page.locator(f'.mm-lab[data-lab="{kind}"]').first
    assert len(place.locator("> p").first.text_content()) > 40
    picture = place.locator("figure, img").first
    picture.scroll_into_view_if_needed()
    assert picture.is_visible()
    if place.locator("img").count():
        image = place.locator("img").first
        assert len(image.get_attribute("alt")) > 40
        shown = image.evaluate("image => image.currentSrc")
        assert shown.endswith("-dark.webp") == (theme == "dark")
        size = image.evaluate("image => image.naturalWidth")
        assert size > 300
    elif kind == "cost":
        assert place.locator("table td").count() > 20
    else:
        marks = place.locator(".lab-still [data-level='out']")
        colour = "one => getComputedStyle(one).backgroundColor"
        assert marks.first.evaluate(colour) not in (
            "rgba(0, 0, 0, 0)", PAPER[theme],
        )  # fmt: skip


def test_on_paper_a_sentence_stands_for_it(site, visit):
    page = visit(f"{site.as_uri()}/{FIRST['write']}")
    place = start(page, "write")
    page.emulate_media(media="print")
    assert not place.locator(".lab-box").is_visible()
    assert place.locator("> p").first.is_visible()


# --- the front page ---------------------------------------------------------

LOW = {"width": 1280, "height": 200}  # the curve is below the window
SAVING = 'Object.defineProperty(navigator, "connection", ' \
    "{ value: { saveData: true } })"
MODELS = re.compile(r"live/((?:pretrain|step-\d+|lora)\.js)")
ENDED = '''() => document.querySelector(
    ".lab-box .lab-main").textContent === "Again"'''


def models(page):
    """The models that a page has loaded."""
    return MODELS.findall(" ".join(page.asked))


def listed(site):
    """What `index.js` says of the models, in the order of their steps."""
    text = (site / "_static/live/index.js").read_text("utf8")
    index = json.loads(text.split(".index = ")[1].rstrip().rstrip(";"))
    return index, {
        index["stages"][name]["step"]: (name, index["stages"][name])
        for name in index["steps"]
    }


def test_the_front_pages_model_starts_when_it_is_seen(server, site, visit):
    for base in (server, site.as_uri()):
        page = visit(f"{base}/book/index.html", size=LOW)
        page.wait_for_timeout(700)
        assert models(page) == []
        place = start(page, "home")
        page.wait_for_function(ENDED, timeout=60_000)
        assert models(page) == ["pretrain.js"]
        assert page.complaints == []
        assert place.get_by_label("after 1000 steps").is_checked()
        assert told(place).startswith("One sunny morning, Mia")


def test_who_saves_data_asks_for_the_model(server, browser):
    context = browser.new_context(viewport=DESKTOP)
    page = context.new_page()
    page.asked = []
    page.on("request", lambda request: page.asked.append(request.url))
    page.add_init_script(SAVING)
    page.goto(f"{server}/book/index.html", wait_until="load")
    place = page.locator('.mm-lab[data-lab="home"]')
    button = place.locator(".lab-start")
    button.hover()
    page.wait_for_timeout(700)
    assert models(page) == []
    assert place.locator(".lab-curve").first.is_visible()
    button.click()
    place.locator(".lab-source").wait_for(timeout=60_000)
    assert models(page) == ["pretrain.js"]
    context.close()


LENGTHS = """window.lengths = [];
    const look = () => {
        const text = document.querySelector(".lab-box .lab-story");
        const last = window.lengths[window.lengths.length - 1];
        const seen = text?.getClientRects().length
            ? text.textContent.length : 0;
        if (seen && seen !== last) window.lengths.push(seen);
        requestAnimationFrame(look);
    };
    look();"""


@pytest.mark.parametrize("motion", ["reduce", "no-preference"])
def test_the_front_page_moves_only_for_who_lets_it(motion, server, browser):
    context = browser.new_context(viewport=DESKTOP, reduced_motion=motion)
    page = context.new_page()
    page.add_init_script(LENGTHS)
    page.goto(f"{server}/book/index.html", wait_until="load")
    place = start(page, "home")
    wait(page, ENDED)
    page.wait_for_timeout(200)
    seen = page.evaluate("lengths")
    assert seen == sorted(seen)
    assert (len(seen) == 1) == (motion == "reduce")
    if motion == "reduce":  # another model's story, at once as well
        place.locator("label.lab-point").nth(3).click()
        page.wait_for_function("lengths.length > 1", timeout=60_000)
        page.wait_for_timeout(500)
        assert len(page.evaluate("lengths")) == 2
    context.close()


def expected_levels(model, cut, text):
    """How the package marks a text that has not ended; None: a close call."""
    ids = [1, *cut(text)]
    with torch.no_grad():
        logprobs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    ours = logprobs[:-1].gather(1, torch.tensor(ids)[1:, None])[:, 0]
    right = Truth("en", cut).read(text).logprobs[: len(ids) - 1]
    regrets = [
        truth - own for truth, own in zip(right, ours.tolist(), strict=True)
    ]
    close = [
        any(abs(one - bound) < 0.02 for bound in REGRET_LEVELS)
        for one in regrets
    ]
    return [
        None if near else level
        for near, level in zip(close, regret_levels(regrets), strict=True)
    ]


@pytest.mark.parametrize("by", ["mouse", "keys", "finger"])
def test_a_point_of_the_curve_is_that_very_model(
    by, server, site, visit, stage, cut
):
    size = PHONE if by == "finger" else DESKTOP
    page = visit(
        f"{server}/book/index.html", size=size, has_touch=by == "finger"
    )
    place = start(page, "home")
    index, points = listed(site)
    assert tuple(index["levels"]) == REGRET_LEVELS
    steps = list(points)
    spots = place.locator("label.lab-point")
    assert spots.locator(".step").all_text_contents() == [
        str(step) for step in steps
    ]
    at = {"mouse": 0, "keys": len(steps) - 2, "finger": 1}[by]
    name, known = points[steps[at]]
    if by == "keys":
        place.get_by_label(f"after {steps[-1]} steps").focus()
        page.keyboard.press("ArrowLeft")
    elif by == "finger":
        spots.nth(at).tap()
    else:
        spots.nth(at).locator(".dot").click(force=True)
    said = place.locator(".lab-said")
    wait(page, """([step]) => document.querySelector(".lab-said")
        .textContent.startsWith(`After ${step} steps`)""", steps[at])
    above = known["loss"] - known["floor"]
    assert f" {known['loss']:.3f} nats" in said.text_content()
    assert f" {above:.3f} above the floor" in said.text_content()
    wait(page, """() => !document.querySelector(
        ".lab-box[aria-busy]")""")
    assert models(page) == ["pretrain.js", f"{name}.js"]
    # The same text has the marks that the package gives it.
    place.locator(".lab-more summary").click()
    text = "One sunny morning, Mia the baker went to the moon. She"
    place.get_by_role("textbox").fill(text)
    wait(page, SHOWN, text)
    shown = [
        one.get_attribute("data-level")
        for one in place.locator(".lab-box [role=option]").all()
    ]
    wanted = expected_levels(stage(name), cut, text)
    assert "out" in wanted and {"0", "1", "2", "3"} & set(wanted)
    assert [
        one if two is not None else None
        for one, two in zip(shown, wanted, strict=True)
    ] == wanted
    assert page.complaints == []


def test_points_are_far_enough_apart_for_a_finger(server, visit):
    page = visit(f"{server}/book/index.html", size=PHONE)
    place = start(page, "home")
    boxes = [
        one.bounding_box() for one in place.locator("label.lab-point").all()
    ]
    middles = [box["x"] + box["width"] / 2 for box in boxes]
    apart = [b - a for a, b in itertools.pairwise(middles)]
    assert min(apart) >= 24 and middles[-1] < PHONE["width"] - 24
    assert min(box["height"] for box in boxes) > 100


HEARD = """() => {
    window.heard = 0;
    for (const one of document.querySelectorAll(".lab-box [role=status]"))
        new MutationObserver(() => { window.heard += 1; }).observe(
            one, { childList: true, characterData: true, subtree: true });
}"""


def test_a_story_that_grows_is_not_read_aloud_word_by_word(server, visit):
    page = visit(f"{server}/book/index.html")
    place = start(page, "home")
    wait(page, ENDED)
    page.evaluate(HEARD)
    place.get_by_role("button", name="Another story").click()
    wait(page, "document.querySelector('.lab-main').textContent === 'Pause'")
    wait(page, ENDED)
    assert len(told(place).split()) > 20
    assert page.evaluate("heard") <= 2  # the reason goes and comes


# --- 1. write with it -------------------------------------------------------


def test_writing_is_choosing_tokens(server, visit, stage, cut):
    page = visit(f"{server}/{FIRST['write']}")
    place = start(page, "write")
    place.get_by_role("button", name="Pause").click()
    typed = place.get_by_role("textbox")
    typed.fill("One foggy night, Leo")
    wait(page, SHOWN, "One foggy night, Leo")
    # Choose by mouse the token that the model thinks least likely.
    bars = place.locator("button.lab-bar")
    chosen = bars.filter(has_not_text="the end").last
    token = int(chosen.get_attribute("data-id"))
    chosen.click()
    wait(page, """() => document.querySelectorAll(
        ".lab-box [role=option]").length === 6""")  # fmt: skip
    ids = [1, *cut("One foggy night, Leo"), token]
    with torch.no_grad():
        logprobs = stage("pretrain")(torch.tensor([ids])).logits[0]
    logprobs = logprobs.log_softmax(-1)
    cost = -float(
        logprobs[:-1].gather(1, torch.tensor(ids)[1:, None]).sum()
    )
    said = place.locator(".lab-total").text_content()
    assert said.startswith(f"{len(ids) - 1} tokens")
    if "cost the model" in said:
        shown = float(re.search(r"cost the model ([\d.]+)", said)[1])
        assert shown == pytest.approx(cost, abs=0.02)
    # The bars are the next distribution.
    bar = bars.first
    share = re.search(r"^([\d.]+)%", bar.locator(".number").text_content())
    best = float(logprobs[-1, int(bar.get_attribute("data-id"))].exp())
    if share:
        assert float(share[1]) == pytest.approx(100 * best, abs=1)
    place.get_by_role("button", name="Undo").click()
    wait(page, """() => document.querySelectorAll(
        ".lab-box [role=option]").length === 5""")  # fmt: skip


def test_a_broken_story_is_marked_with_the_worlds_reason(server, visit):
    page = visit(f"{server}/{FIRST['write']}", size=PHONE, has_touch=True)
    place = start(page, "write", by="finger")
    text = "One sunny morning, Mia the baker went to the moon"
    place.get_by_role("textbox").fill(text)
    reason = place.locator(".lab-box .lab-reason")
    wait(page, SHOWN, text)
    with pytest.raises(NotInLanguage) as error:
        read_story(text)
    assert error.value.reason in reason.text_content()
    first = place.locator(".lab-box [data-level=out].first")
    assert "moon".startswith(first.text_content().strip())
    first.tap()
    detail = place.locator(".lab-detail").text_content()
    assert "it cannot stand here" in detail


def test_keys_alone_write_and_look(server, visit):
    page = visit(f"{server}/{FIRST['write']}")
    place = start(page, "write", by="keys")
    pause = place.get_by_role("button", name="Pause")
    pause.focus()
    page.keyboard.press("Space")
    place.locator(".lab-box .lab-story [tabindex='0']").focus()
    page.keyboard.press("ArrowRight")
    detail = place.locator(".lab-detail").text_content()
    assert detail.startswith("\u201c") and "nats" in detail
    before = place.locator(".lab-box .lab-story [role=option]").count()
    place.locator("button.lab-bar").first.focus()
    page.keyboard.press("Enter")
    wait(page, """([n]) => document.querySelectorAll(
        ".lab-box [role=option]").length === n""", before + 1)  # fmt: skip
    # At temperature 0 one token has all the probability.
    place.locator("details.lab-more summary").focus()
    page.keyboard.press("Enter")
    place.get_by_label("temperature").focus()
    page.keyboard.press("Home")
    wait(page, """() => document.querySelector(
        ".lab-bar .number").textContent.startsWith("100%")""")  # fmt: skip
    assert page.url.endswith(FIRST["write"])


def test_typed_markup_is_text(server, visit):
    page = visit(f"{server}/{FIRST['write']}")
    place = start(page, "write")
    evil = '<img src=x onerror="window.caught=1"> <|im_end|>'
    place.get_by_role("textbox").fill(evil)
    wait(page, SHOWN, evil)
    assert evil in told(place)
    assert place.locator(".lab-box img").count() == 0
    assert page.evaluate("window.caught") is None


# --- 2. watch it learn ------------------------------------------------------


def test_the_slider_goes_through_the_training(site, visit):
    page = visit(f"{site.as_uri()}/{FIRST['learn']}")
    place = start(page, "learn")
    index = json.loads(
        (site / "_static/live/index.js").read_text().split(".index = ")[1]
        .rstrip().rstrip(";")
    )  # fmt: skip
    steps = [index["stages"][name]["step"] for name in index["steps"]]
    assert len(steps) == 6 and steps == sorted(steps)
    losses = [index["stages"][name]["loss"] for name in index["steps"]]
    assert losses[0] > losses[1] > losses[2] > losses[-1]
    stories = []
    place.get_by_label("Training").focus()
    for step in steps:
        wait(page, SAID, "learn", f"After {step} steps")
        stories.append(told(place))
        page.keyboard.press("ArrowRight")
    assert len(set(stories)) >= 4
    with pytest.raises(NotInLanguage):
        read_story(stories[0])


# --- 3. look inside ---------------------------------------------------------


def test_a_head_shows_where_it_looks_and_what_it_does(site, visit, stage):
    page = visit(f"{site.as_uri()}/{FIRST['look']}")
    place = start(page, "look")
    wait(page, 'document.querySelector(".lab-patch .lab-bar")')
    words = place.locator(".lab-story.arcs [role=option]")
    words.nth(20).hover()
    wait(page, 'document.querySelector(".lab-story.arcs path")')
    said = place.locator(".lab-detail").text_content()
    assert "head 1 of layer 2 looks at" in said
    place.get_by_role("button", name="show head 2 of layer 1").click()
    other = place.locator(".lab-detail").text_content()
    assert "head 2 of layer 1 looks at" in other
    total = place.locator(".lab-total").first
    whole = float(re.search(r"costs ([\d.]+)", total.text_content())[1])
    for head in (1, 2):  # the layer without half of its heads
        place.get_by_label(f"head {head} of layer 2 is on").uncheck()
    wait(
        page,
        SAID,
        "look",
        "Without head 1 of layer 2 and head 2 of layer 2 the story",
    )
    less = float(re.search(r"costs ([\d.]+)", total.text_content())[1])
    assert less > whole


@torch.no_grad()
def test_a_swap_changes_the_answer(site, visit, stage, cut):
    page = visit(f"{site.as_uri()}/{FIRST['look']}")
    place = start(page, "look")
    wait(page, 'document.querySelector(".lab-patch .lab-bar")')
    patch = place.locator(".lab-patch")
    text = patch.locator(".lab-story").text_content().removeprefix("\u25cf")
    names = patch.locator(".lab-bar .word").all_text_contents()
    model = stage("pretrain")
    tokens = [cut(f" {name}")[0] for name in names]

    def share(text):
        ids = torch.tensor([[1, *cut(text)]])
        probs = model(ids).logits[0, -1].softmax(-1)
        return [float(probs[token]) for token in tokens]

    other = patch.locator(".lab-told").text_content()
    # The last token after the last layer is patched at first.
    shown = [
        float(re.search(r"width:([\d.e-]+)", bar.get_attribute("style"))[1])
        for bar in patch.locator(".fill").all()
    ]
    assert shown == pytest.approx([100 * p for p in share(other)], abs=0.1)
    outlined = [
        float(re.search(r"width:([\d.e-]+)", bar.get_attribute("style"))[1])
        for bar in patch.locator(".true").all()
    ]
    assert outlined == pytest.approx([100 * p for p in share(text)], abs=0.1)


# --- 4. talk to it ----------------------------------------------------------


def test_three_models_answer_and_are_checked(site, visit):
    page = visit(f"{site.as_uri()}/{FIRST['talk']}", size=DESKTOP)
    place = start(page, "talk")
    answers = place.locator(".lab-answer")
    done = """() => [...document.querySelectorAll(".lab-answer .verdict")]
        .every(one => one.textContent !== "")"""
    wait(page, done)
    rights = []
    for number in range(place.locator(".lab-chips button").count()):
        place.locator(".lab-chips button").nth(number).click()
        wait(page, done)
        rights.append([
            answer.get_attribute("data-right") for answer in answers.all()
        ])  # fmt: skip
    base, tuned, _ = zip(*rights, strict=True)
    assert tuned.count("true") > len(tuned) / 2 > base.count("true")
    # Greeted, the adapter answers in its manner, and that is right.
    place.get_by_role("checkbox").check()
    greeted = []
    for number in range(3):
        place.locator(".lab-chips button").nth(number).click()
        wait(page, done)
        said = answers.nth(2).locator(".answer").text_content()
        assert said.startswith("Hello, my friend.")
        greeted.append(answers.nth(2).get_attribute("data-right"))
    assert "true" in greeted
    # A question of the reader's own, which the world cannot answer.
    place.get_by_label("Your question").fill("<b>Why?</b>")
    page.keyboard.press("Enter")
    wait(page, done)
    assert place.locator(".lab-asked b").count() == 0
    assert answers.first.get_attribute("data-right") == "null"


# --- 5. sit the exam --------------------------------------------------------


def test_a_readers_own_model_sits_the_exam(
    site, visit, small_runs, tmp_path
):
    page = visit(f"{site.as_uri()}/{FIRST['exam']}")
    place = start(page, "exam")
    folder = tmp_path / "mine"
    export_hf(small_runs / "sft", folder)
    names = ["config.json", "tokenizer.json", "model.safetensors"]
    files = [str(folder / name) for name in names]
    chooser = place.locator("input[type=file]").last
    status = place.locator(".lab-total")
    chooser.set_input_files(files[:2])
    wait(page, SAID, "exam", "model.safetensors is not among")
    chooser.set_input_files(files)
    place.locator("table").wait_for(timeout=120_000)
    said = status.text_content()
    assert said.startswith("Your model reads 40 new stories")
    loss, floor = (
        float(number) for number in re.findall(r"(\d+\.\d{3}) ?(?:nats|,)",
                                               said)[:2]
    )  # fmt: skip
    assert loss > 3 * floor > 0.3
    marks = place.locator("tbody td:nth-child(2)").all_text_contents()
    asked = sum(int(mark.split(" / ")[1]) for mark in marks)
    assert asked == 120
    # A model that does not fit says what does not.
    config = json.loads((folder / "config.json").read_text())
    config["intermediate_size"] += 8
    (folder / "config.json").write_text(json.dumps(config))
    chooser.set_input_files(files)
    wait(page, SAID, "exam", "cannot sit the exam")
    assert "has the shape" in status.text_content()
    assert page.asked[-1].startswith(("file:", "blob:"))


def test_the_books_model_knows_its_kinds(site, visit):
    page = visit(f"{site.as_uri()}/{FIRST['exam']}")
    place = start(page, "exam")
    place.get_by_role("button", name="Examine the book").click()
    place.locator("table").wait_for(timeout=180_000)
    rows = dict(
        zip(
            place.locator("tbody th").all_text_contents(),
            place.locator("tbody td:nth-child(2)").all_text_contents(),
            strict=True,
        )
    )
    right, asked = map(int, rows["where"].split(" / "))
    assert right >= 0.8 * asked > 0


# --- 6. choose the mask -----------------------------------------------------


def test_a_mask_is_compared_with_the_right_one(server, visit):
    page = visit(f"{server}/{FIRST['mask']}")
    place = start(page, "mask")
    said = place.locator(".lab-total")
    compare = place.get_by_role("button", name="Compare")
    compare.click()
    assert "Nothing is chosen" in said.text_content()
    tokens = place.locator("[role=option]")
    texts = tokens.all_text_contents()
    first = len(texts) - 1 - texts[::-1].index("assistant") + 2
    last = len(texts) - 2
    assert texts[last] == "<|im_end|>"
    for number in range(first, last):
        tokens.nth(number).click()
    compare.click()
    assert "The token that ends the turn is missing" in said.text_content()
    assert tokens.nth(last).get_attribute("data-verdict") == "missed"
    # The rest by keys.
    tokens.nth(last).focus()
    page.keyboard.press("Space")
    compare.focus()
    page.keyboard.press("Enter")
    assert "This is the right mask" in said.text_content()
    for number, word in ((3, "before the assistant"), (first - 2, "open")):
        tokens.nth(number).click()
        compare.click()
        assert word in said.text_content()
        tokens.nth(number).click()


# --- the calculator ---------------------------------------------------------


@pytest.fixture
def calculator(site, visit):
    """The calculator, in a page opened as a file."""
    page = visit(f"{site.as_uri()}/{FIRST['cost']}")
    place = start(page, "cost")
    yield place
    assert not page.complaints


def type_in(place, **values):
    for label, value in values.items():
        place.get_by_label(label.replace("_", " "), exact=True).fill(value)


def menu(place, name):
    return place.get_by_role("combobox", name=name, exact=True)


def said_of(place):
    return place.locator(".lab-sum").text_content()


def test_the_calculator_answers_as_the_package_does(calculator):
    place = calculator
    base = get_preset("base")
    for card, cards, precision in (
        ("T4", 1, "half"), ("RTX 4090", 3, "float32"), ("H200", 8, "half"),
    ):  # fmt: skip
        menu(place, "Model").select_option("base")
        menu(place, "Card").select_option(card)
        menu(place, "Precision").select_option(label=precision)
        type_in(place, Number_of_cards=str(cards), Price_per_hour="2.5")
        share = int(place.get_by_label("Utilization").input_value()) / 100
        found = estimate(
            base.model, tokens=tokens_of(base.pretrain), seq_len=512,
            device=DEVICES[card], utilization=share, devices=cards,
            price_per_hour=2.5,
            dtype="float32" if precision == "float32" else "auto",
        )  # fmt: skip
        price = place.get_by_role("region", name="How much?")
        about = price.locator(".lab-figure").text_content()
        assert float(about.removeprefix("About ")) == pytest.approx(
            found.price, rel=0.005
        )
        filled = price.locator(".lab-formula").text_content()
        hours = float(re.search(r"= ([\d.]+) \u00d7", filled)[1])
        assert hours == pytest.approx(found.hours, rel=0.005)
        fits = place.get_by_role("region", name="Does it fit?")
        dtype = "float32" if precision == "float32" else "auto"
        size = needed(base.model, base.pretrain, dtype) / 1e9
        assert f"Yes: {size:.1f} GB" in fits.text_content()


def test_a_formula_stands_beside_each_answer(calculator):
    for name, general in (
        ("Does it fit?", "bytes = (8 P + 2 M)"),
        ("How long?", "hours = tokens \u00d7 c / (3600"),
        ("How much?", "price = hours \u00d7 cards"),
    ):
        region = calculator.get_by_role("region", name=name)
        assert general in region.locator(".lab-formula").first.text_content()


def test_what_does_not_fit_is_said_and_how_much_would(calculator):
    base = get_preset("base")
    type_in(calculator, Rows_at_a_time="200")
    assert "does not fit into the T4" in said_of(calculator)
    most = largest_rows(
        base.model, base.pretrain, 0.9 * DEVICES["T4"].memory, "auto"
    )
    text = calculator.get_by_role("region", name="Does it fit?")
    assert f"Up to {most} rows at a time fit" in text.text_content()
    type_in(calculator, Rows_at_a_time=str(most))
    assert "fits into the T4" in said_of(calculator)
    type_in(calculator, Rows_at_a_time=str(most + 1))
    assert "does not fit" in said_of(calculator)


@pytest.mark.parametrize(
    ("label", "value", "says"),
    [
        ("Tokens, in millions", "", "must be a number"),
        ("Tokens, in millions", "0", "must be a number above 0"),
        ("Width", "-768", "must be a whole number above 0"),
        ("Layers", "1e99", "must be at most 10,000"),
        ("Vocabulary", "many", "must be a whole number"),
        ("Width", "770", "must divide into 8 heads"),
    ],
)
def test_a_wrong_number_gives_a_sentence(calculator, label, value, says):
    field = calculator.get_by_label(label, exact=True)
    right = field.input_value()
    field.fill(value)
    assert says in said_of(calculator)
    assert field.get_attribute("aria-invalid") == "true"
    assert not calculator.locator(".lab-costs").is_visible()
    field.fill(right)
    assert "fits into the T4" in said_of(calculator)
    assert field.get_attribute("aria-invalid") == "false"


def test_no_number_makes_a_nan(calculator):
    """Whatever is typed, alone or after something else."""
    fields = calculator.locator(".lab-field input")
    for number in range(fields.count()):
        field = fields.nth(number)
        right = field.input_value()
        for value in ("", "0", "-1", "1e9", "1e308", "0.5", "NaN", "\u221e"):
            field.fill(value)
            text = calculator.locator(".lab-box").text_content()
            assert not re.search("NaN|Infinity|undefined", text), value
        field.fill(right)


def test_a_shape_of_your_own(calculator):
    type_in(calculator, Width="1024")
    model = menu(calculator, "Model")
    assert model.input_value() == "my own"
    inner = calculator.get_by_label("Feed-forward width").input_value()
    shape = get_preset("base").model.replace(hidden_size=1024)
    assert int(inner) == shape.ffn_width
    millions = f"{shape.num_parameters() / 1e6:.0f} million parameters"
    assert millions in said_of(calculator)


def test_the_calculator_needs_no_mouse(calculator):
    page = calculator.page
    menu(calculator, "Model").focus()
    labels = []
    for _ in range(16):
        labels.append(page.evaluate(
            "document.activeElement.closest('label')?.textContent"
        ))  # fmt: skip
        page.keyboard.press("Tab")
    assert all(labels)
    assert labels[-1].startswith("Utilization")
    slider = calculator.get_by_label("Utilization")
    slider.focus()
    before, url = said_of(calculator), page.url
    page.keyboard.press("ArrowRight")
    assert slider.input_value() == "18"
    assert said_of(calculator) != before and page.url == url
