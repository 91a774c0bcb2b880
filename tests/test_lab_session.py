"""What the widgets ask of the engine is what the package computes."""

import json
import math
import re

import pytest
import torch
from test_lab_engine import random_model, without

from minimind_core.book.curve import loss_curve
from minimind_core.book.lab import (
    describe_model,
    distance,
    regret_levels,
    story_picture,
)
from minimind_core.chat import encode_conversation
from minimind_core.generate import generate_tokens
from minimind_core.loading import load_model
from minimind_core.microworld import NotInLanguage, read_story, write_story
from minimind_core.microworld.tape import read_data
from minimind_core.microworld.truth import Truth
from minimind_core.model import MiniMind
from minimind_core.run import read_log
from minimind_core.talk import answer
from minimind_core.tokenizer import encode_text, load_tokenizer

DATA = {"world": read_data("world"), "english": read_data("english")}

START = """
const begin = () => {
  const one = new session.Session(input.data);
  one.load("m", json(input.path));
  return one;
};
const lab = begin();
"""


@pytest.fixture(scope="module")
def scene(small_runs, tmp_path_factory):
    """A random model in float16, its tokenizer, and its stage in a file."""
    tok = load_tokenizer(small_runs / "tokenizer")
    model = random_model(max_position_embeddings=400)
    stage = describe_model(model, tok)
    path = tmp_path_factory.mktemp("session") / "stage.json"
    path.write_text(json.dumps(stage))
    rounded = MiniMind(model.config).eval()
    rounded.load_state_dict(
        {k: v.half().float() for k, v in model.state_dict().items()}
    )
    return rounded, tok, str(path)


@pytest.fixture
def ask(scene, javascript):
    """Run JavaScript in which a session has the model, as `m`."""

    def run(body, **more):
        given = {"path": scene[2], "data": DATA, **more}
        return javascript(START + body, given)

    return run


# Valid to the end; broken in the middle; no text of the world at all.
TEXTS = [
    write_story(91, 3).text,
    write_story(91, 4).text.replace("went", "flew").replace("ran", "flew"),
    "Once upon a time 你好",
]


@torch.no_grad()
def test_a_view_is_the_models_and_the_worlds_numbers(scene, ask):
    model, tok, _ = scene
    found = ask(
        """
return input.texts.map((text) => {
  const ids = lab.begin("m", text);
  lab.view("m", ids.slice(0, 5), {}, 7);
  return [ids, lab.view("m", ids, {}, 7), begin().view("m", ids, {}, 7)];
});
""",
        texts=TEXTS,
    )
    truth = Truth("en", lambda text: encode_text(tok, text))
    for text, (ids, view, fresh) in zip(TEXTS, found, strict=True):
        assert view == fresh  # what was read before makes no difference
        assert ids == [1, *encode_text(tok, text)]
        logprobs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        ours = logprobs[:-1].gather(1, torch.tensor(ids)[1:, None])[:, 0]
        theirs = [token["model"] for token in view["tokens"]]
        assert theirs == pytest.approx(ours.tolist(), abs=1e-3)
        assert view["loss"] == pytest.approx(-float(ours.sum()), abs=1e-2)
        # JSON has no infinity: what cannot be is null there.
        right = truth.read(text).logprobs[:-1]
        seen = [token["truth"] for token in view["tokens"]]
        for there, here in zip(seen, right, strict=True):
            if here == -math.inf:
                assert there is None
            else:
                assert there == pytest.approx(here, abs=1e-9)
        probs = logprobs[-1].exp()
        for row in view["rows"]:
            assert row["model"] == pytest.approx(
                float(probs[row["id"]]), abs=1e-4
            )
            assert row["shaped"] == pytest.approx(row["model"], abs=1e-6)
        assert view["drawn"] in [row["id"] for row in view["rows"]]
        try:
            read_story(text)
        except NotInLanguage as error:
            if error.position < len(text):
                assert view["left"]["reason"] == error.reason
                assert view["left"]["position"] == error.position
        else:
            assert view["left"] is None


def test_undo_and_another_branch_are_as_if_read_anew(ask):
    found = ask("""
const ids = lab.begin("m", "One sunny morning, Mia the baker went");
lab.view("m", ids);
const back = lab.view("m", ids.slice(0, -3));
const other = lab.view("m", [...ids.slice(0, -3), 300, 301]);
const anew = begin();
return [
  [back, anew.view("m", ids.slice(0, -3))],
  [other, begin().view("m", [...ids.slice(0, -3), 300, 301])],
];
""")
    for there, anew in found:
        assert there == anew
    assert found[0][0] != found[1][0]


def test_a_seed_repeats_and_the_settings_shape(ask):
    found = ask("""
const text = "One sunny morning,";
const run = (settings, seed) => lab.finish("m", text, settings, seed, 30).ids;
return {
  same: [run({}, 3), run({}, 3)], other: run({}, 4),
  cold: [run({ temperature: 0 }, 1), run({ temperature: 0 }, 2)],
  one: run({ topK: 1 }, 5),
  rows: lab.view("m", lab.begin("m", text), { minP: 0.4 }, 1).rows,
};
""")
    assert found["same"][0] == found["same"][1] != found["other"]
    assert found["cold"][0] == found["cold"][1] == found["one"]
    kept = [row for row in found["rows"] if row["shaped"] > 0]
    most = max(row["model"] for row in found["rows"])
    assert 0 < len(kept) < len(found["rows"])
    assert all(row["model"] >= 0.4 * most - 1e-6 for row in kept)


@torch.no_grad()
def test_greedy_stories_are_the_packages(scene, ask):
    model, tok, _ = scene
    ids = [1, *encode_text(tok, "One foggy night, Leo")]
    theirs = ask(
        'return lab.finish("m", input.text, { temperature: 0 }, 0, 40).ids;',
        text="One foggy night, Leo",
    )
    ours = generate_tokens(
        model, torch.tensor([ids]), max_new_tokens=40, temperature=0.0
    )[0].tolist()
    assert theirs[: len(ids)] == ids
    assert theirs[len(ids) :] == ours[len(ids) :] or theirs == ids + ours


def test_answers_are_the_packages(scene, ask):
    model, tok, _ = scene
    found = ask("""
return [3, 4, 5, 6].flatMap((seed) => {
  const story = lab.story(seed);
  return story.questions.map(({ kind, question }) => {
    const messages = lab.messages(
      kind === "continue" ? { ...story, text: story.begun } : story,
      question, kind);
    return [messages, lab.ask("m", story, question)];
  });
});
""")
    kinds = {there["kind"] for _, there in found}
    assert {"write", "retell", "continue", "pronoun", "met"} <= kinds
    for messages, there in found[::3]:
        assert there["answer"] == answer(
            model, tok, messages, max_new_tokens=140
        )
        assert there["right"] is False  # of a model that knows nothing


def test_the_world_knows_when_an_answer_is_right(ask):
    found = ask("""
const story = lab.story(8);
// A model that always says what is right, or one word less.
const all = [];
for (const { question, answer, kind } of story.questions) {
  if (!answer || kind === "pronoun") continue;
  for (const said of [answer, answer.slice(0, -2)]) {
    const ids = lab.get("m").tokenizer.encode(said);
    let n = 0;
    lab.get("m").model.read = function read() {
      n = 0;
      return next(this);
    };
    const next = (model) => {
      model.logits.fill(0);
      model.logits[ids[n++] ?? 2] = 9;
      return model.logits;
    };
    lab.get("m").model.forward = function forward() { return next(this); };
    all.push([said === answer, lab.ask("m", story, question).right]);
  }
}
return [all, lab.ask("m", story, "What is the meaning of this?").right];
""")
    pairs, nothing = found
    assert len(pairs) > 10
    assert all(wanted == right for wanted, right in pairs)
    assert nothing is None


@torch.no_grad()
def test_looking_inside_is_what_the_model_does(scene, ask):
    model, tok, _ = scene
    text = write_story(92, 1).text
    found = ask(
        """
return [lab.look("m", input.text), lab.look("m", input.text, [[1, 2]]),
  lab.look("m", input.text)];
""",
        text=text,
    )
    plain, less, again = found
    assert plain == again  # the head is on again
    assert plain["maps"] == less["maps"]
    ids = torch.tensor([[1, *encode_text(tok, text), 2]])

    def losses(net):
        logprobs = net(ids[:, :-1]).logits[0].log_softmax(-1)
        return -logprobs.gather(1, ids[0, 1:, None])[:, 0]

    for there, net in ((plain, model), (less, without(model, 1, head=2))):
        assert there["losses"] == pytest.approx(
            losses(net).tolist(), abs=1e-3
        )
    assert abs(less["loss"] - plain["loss"]) > 0.01
    maps = model.attention_maps(ids[:, :-1])[:, 0]
    for layer, heads in enumerate(plain["maps"]):
        for head, rows in enumerate(heads):
            last = maps[layer, head, len(rows) - 1]
            assert rows[-1] == pytest.approx(last.tolist(), abs=1e-4)


@torch.no_grad()
def test_a_patch_is_an_activation_of_the_other_story(scene, ask):
    model, tok, _ = scene
    found = ask("""
const pair = lab.swap("m", 2);
const names = [` ${pair.hero}`, ` ${pair.friend}`];
const at = lab.begin("m", pair.text).length - 3;
return { pair, at,
  plain: lab.patch("m", pair.text, pair.swapped, null, names),
  other: lab.patch("m", pair.swapped, pair.swapped, null, names),
  patched: lab.patch("m", pair.text, pair.swapped,
    { depth: 2, position: at }, names),
  whole: lab.patch("m", pair.text, pair.swapped,
    { depth: 3, position: at + 2 }, names) };
""")
    pair = found["pair"]
    ids, others = (
        torch.tensor([[1, *encode_text(tok, pair[name])]])
        for name in ("text", "swapped")
    )
    assert ids.shape == others.shape
    hero, friend = pair["hero"], pair["friend"]
    swapped = pair["text"].replace(hero, "\0").replace(friend, hero)
    assert swapped.replace("\0", friend) == pair["swapped"]
    first = [encode_text(tok, f" {one}")[0] for one in (hero, friend)]

    def probs(net, given):
        found = net(given).logits[0, -1].softmax(-1)
        return [float(found[token]) for token in first]

    assert found["plain"] == pytest.approx(probs(model, ids), abs=1e-4)
    assert found["other"] == pytest.approx(probs(model, others), abs=1e-4)
    # After the last layer, at the last token, it is the other's prediction.
    assert found["whole"] == pytest.approx(found["other"], abs=1e-6)
    kept = []
    layer = model.model.layers[1]
    hook = layer.register_forward_hook(lambda m, i, out: kept.append(out))
    model(others)
    hook.remove()

    def patch(module, args, out):
        out = out.clone()
        out[0, found["at"]] = kept[0][0, found["at"]]
        return out

    hook = layer.register_forward_hook(patch)
    ours = probs(model, ids)
    hook.remove()
    assert found["patched"] == pytest.approx(ours, abs=1e-4)


def test_a_conversation_has_the_packages_labels(scene, ask):
    _, tok, _ = scene
    messages = [
        {"role": "user", "content": "Who met <|im_end|> Mia?"},
        {"role": "assistant", "content": "Mia met Max."},
    ]
    found = ask(
        """
lab.cut(json(input.path).tokenizer);
return lab.conversation(input.messages);
""",
        messages=messages,
    )
    ours = encode_conversation(tok, messages)
    assert [token["id"] for token in found] == ours.input_ids
    assert [token["learnt"] for token in found] == [
        label >= 0 for label in ours.labels
    ]
    # What somebody wrote is no special token, whatever it looks like.
    assert [t["text"] for t in found if t["special"]] == [
        "<|im_start|>", "<|im_end|>", "<|im_start|>", "<|im_end|>",
    ]  # fmt: skip


def test_an_exam_counts_what_the_package_counts(scene, ask):
    model, tok, _ = scene
    found = ask("""
return { stories: [1, 2].map((seed) => [lab.story(seed).text,
  lab.examineStory("m", seed)]),
  asked: [1, 2, 3].map((seed) => lab.examineQuestion("m", seed)) };
""")
    for text, there in found["stories"]:
        ids = torch.tensor([[1, *encode_text(tok, text), 2]])
        with torch.no_grad():
            logprobs = model(ids[:, :-1]).logits[0].log_softmax(-1)
        loss = -float(logprobs.gather(1, ids[0, 1:, None]).sum())
        assert there["loss"] == pytest.approx(loss, abs=1e-2)
        assert there["floor"] == pytest.approx(
            -read_story(text).logprob, abs=1e-9
        )
        assert there["count"] == ids.shape[1] - 1
    assert not any(one["right"] for one in found["asked"])


def test_an_error_is_an_answer_and_the_session_goes_on(ask):
    found = ask("""
return [
  session.serve(lab, [1, "view", ["nobody", [1]]]),
  session.serve(lab, [2, "loadFiles", ["own", "{", "{}", null]]),
  session.serve(lab, [3, "view", ["m", Array(500).fill(5)]]),
  session.serve(lab, [4, "greeting", []]),
];
""")
    assert "nobody" in found[0]["error"]
    assert found[1]["error"]
    assert "400 tokens" in found[2]["error"]
    assert found[3] == {"number": 4, "value": "Hello, my friend. {}"}


def test_memory_stays_flat_over_two_thousand_tokens(ask):
    used = ask("""
const used = [];
for (let round = 0; round < 24; round++) {
  let ids = lab.begin("m", "One sunny morning, Mia");
  for (let n = 0; n < 90; n++) {
    ids = [...ids, lab.view("m", ids, {}, round).drawn];
    if (ids.includes(2)) ids = lab.begin("m", "One rainy night, Tom");
  }
  lab.story(round);
  used.push(process.memoryUsage().heapUsed);
}
return used;
""")
    assert len(used) == 24
    # Of the later half, the least is what cannot be freed.
    assert min(used[12:]) - min(used[:12]) < 8e6, used


def test_a_model_is_as_far_from_the_floor_as_its_log_says(small_runs):
    model, tok = load_model(small_runs / "pretrain")
    last = read_log(small_runs / "pretrain")[-1]
    found = distance(tok)(model)
    # The same texts; some are longer than what this run cuts them to.
    assert found["floor"] == pytest.approx(last["floor"], rel=3e-3)
    assert found["loss"] == pytest.approx(last["validation_loss"], rel=3e-3)


def test_the_points_of_the_curve_lie_on_it():
    history = [
        {"step": 1, "loss": 6.8},
        *(
            {"step": n, "loss": 0.3, "validation_loss": 0.2 + 30 / n,
             "floor": 0.2}
            for n in (100, 200, 300)
        ),
    ]  # fmt: skip
    points = {
        f"step-{n}": {"step": n, "loss": 0.2 + 30 / n, "floor": 0.2}
        for n in (20, 200, 300)
    }
    text = loss_curve(history, points)
    drawn = re.search(r'class="loss"[^>]* d="M([^"]+)"', text)[1]
    line = [tuple(map(float, one.split())) for one in drawn.split("L")]
    assert len(line) == 4  # 20, 100, 200, 300
    spots = re.findall(
        r'data-stage="([^"]+)" style="left:([\d.]+)%"><span class="dot" '
        r'style="top:([\d.]+)%', text,
    )  # fmt: skip
    assert [name for name, *_ in spots] == list(points)
    places = [(float(x), float(y)) for _, x, y in spots]
    assert places == [line[0], line[2], line[3]]
    assert places == sorted(places)  # to the right and down
    floor = re.search(r'class="lab-floor" style="top:([\d.]+)', text)
    assert places[-1][1] < float(floor[1]) < 100  # no point is below it
    assert "the floor, 0.200: no model can do better" in text
    assert "from 1.7 to 0.300 nats per token" in text


def test_a_picture_marks_a_story_as_the_widget_does(scene):
    inf = math.inf
    assert regret_levels([0.0, 0.2, 0.5, 2.0, -1.0, -inf, 0.0]) == [
        "0", "1", "2", "3", "0", "out", "out",
    ]  # fmt: skip
    model, tok, _ = scene
    picture = story_picture(model, tok, "A <random> model")
    assert "A &lt;random&gt; model wrote this" in picture
    assert 'class="given">One</span>' in picture
    assert picture.count('class="first"') == 1  # it knows no rule
    assert "leaves the world" in picture
