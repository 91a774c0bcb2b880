"""The microworld in JavaScript is the microworld in Python."""

import math
import random

import pytest

from minimind_core.data import tokenizer_texts
from minimind_core.microworld import (
    LANGUAGES,
    QUESTION_KINDS,
    NotInLanguage,
    conversation,
    is_valid,
    read_story,
    skill_conversation,
    tasks,
    write_story,
)
from minimind_core.microworld.stories import language_module
from minimind_core.microworld.tape import read_data
from minimind_core.microworld.truth import Truth
from minimind_core.tokenizer import encode_text, train_tokenizer

NAMES = {"en": "english", "zh": "chinese"}
DATA = {
    "world": read_data("world"),
    **{code: read_data(name) for code, name in NAMES.items()},
}
COUNT = 500

LOAD = """
const tongue = new world.Language(
  new world.World(input.data.world), input.data[input.language]);
"""


def broken(text, rng, tables):
    """A text that is near a story, and seldom one."""
    at = rng.randrange(len(text))
    way = rng.randrange(9)
    if way == 0:
        return text[:at]
    if way == 1:
        return text[:at] + rng.choice("aZ。 ,她") + text[at + 1 :]
    if way == 2:  # two stories in one
        return text[:at] + write_story(1, at).text[at:]
    if way == 3:
        return text + text[at:]
    # One of a table's words in another one's place.
    swaps = [
        (old, new)
        for words in tables
        for old in words.values() if old in text
        for new in words.values() if new != old
    ]  # fmt: skip
    old, new = rng.choice(swaps)
    head, _, tail = text.rpartition(old)
    return head + new + tail


def texts_of(language):
    tables = list(DATA[language]["words"].values())
    rng = random.Random(language)
    whole = [write_story(41, i, language).text for i in range(COUNT)]
    return whole + [broken(text, rng, tables) for text in whole]


@pytest.mark.parametrize("language", LANGUAGES)
def test_both_read_alike_what_is_whole_and_what_is_broken(
    language, javascript
):
    texts = texts_of(language)
    found = javascript(
        LOAD
        + """
return input.texts.map((text) => {
  const { left, ...story } = world.readStory(text, tongue);
  const total = world.logProbability(text, tongue);
  check(left ? total === -Infinity : total === story.logprob, text);
  return left ? { position: left.position, expected: left.expected,
    found: left.found, reason: left.reason } : story;
});
""",
        {"data": DATA, "language": language, "texts": texts},
    )
    valid = reasons = 0
    for text, theirs in zip(texts, found, strict=True):
        try:
            story = read_story(text, language)
        except NotInLanguage as error:
            assert theirs == {
                "position": error.position, "found": error.found,
                "expected": list(error.expected), "reason": error.reason,
            }  # fmt: skip
            reasons += 1
            continue
        valid += 1
        assert theirs["logprob"] == pytest.approx(story.logprob, abs=1e-9)
        assert theirs["state"] == story.state
        assert [
            (c["start"], c["role"], c["key"]) for c in theirs["choices"]
        ] == [(c.start, c.role, c.key) for c in story.choices]
        for ours, other in zip(story.choices, theirs["choices"], strict=True):
            assert other["logprob"] == pytest.approx(ours.logprob, abs=1e-12)
    assert valid >= COUNT
    assert reasons > 0.8 * COUNT


@pytest.mark.parametrize("language", LANGUAGES)
def test_javascript_writes_stories_of_the_world(language, javascript):
    found = javascript(
        LOAD
        + """
const random = new sampling.Random(3);
return Array.from({ length: 2000 },
  () => world.writeStory(tongue, () => random.next()));
""",
        {"data": DATA, "language": language},
    )
    for story in found[:200]:
        ours = read_story(story["text"], language)
        assert ours.state == story["state"]
        assert ours.logprob == pytest.approx(story["logprob"], abs=1e-9)
    assert all(is_valid(story["text"], language) for story in found)
    trades = sum(s["state"]["plot"] == "trade" for s in found)
    assert abs(trades - 2000 * 3 / 18) < 5 * math.sqrt(2000 / 6 * 5 / 6)
    mean = sum(s["logprob"] for s in found) / 2000
    theirs = [write_story(42, i, language).logprob for i in range(2000)]
    assert mean == pytest.approx(sum(theirs) / 2000, abs=0.2)


@pytest.mark.parametrize("language", LANGUAGES)
def test_both_ask_and_check_alike(language, javascript):
    talks = [
        conversation(45, i, language, kinds=(kind,))
        for i in range(15)
        for kind in QUESTION_KINDS
    ]
    skills = [skill_conversation(46, i, language) for i in range(60)]
    turns = []
    for talk in [*talks, *skills]:
        text = write_story(47, len(turns), language).text
        asked = talk.messages[0]["content"].split("\n")
        if talk.kinds[0] == "continue" or len(asked) > 1:
            text = asked[0]
        for turn, kind in enumerate(talk.kinds):
            question = talk.prompt(turn)[-1]["content"].split("\n")[-1]
            right = talk.answers[turn]
            wrong = [right + "!", right[::-1], "", right[:-1], text]
            turns.append({
                "kind": kind, "question": question, "text": text,
                "state": talk.state, "right": right, "wrong": wrong,
                "marks": [talk.check(turn, one) for one in wrong],
            })
    found = javascript(
        LOAD
        + """
return input.turns.map(({ text, state, question, right, wrong }) => {
  const asked = questions.findQuestion(question, state, tongue);
  if (!asked) return null;
  const story = { text, state };
  const marks = [right, ...wrong].map(
    (said) => questions.checkAnswer(asked, said, story, tongue));
  return { kind: asked.kind, answer: asked.answer, marks };
});
""",
        {"data": DATA, "language": language, "turns": turns},
    )
    kinds = set()
    for ours, theirs in zip(turns, found, strict=True):
        assert theirs, ours
        assert theirs["kind"] == ours["kind"]
        assert theirs["marks"] == [True, *ours["marks"]]
        if ours["kind"] not in ("write", "retell", "continue"):
            assert theirs["answer"] == ours["right"]
        kinds.add(ours["kind"])
    assert kinds == {*QUESTION_KINDS, "skill"}


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_question_that_can_be_asked_is_listed(language, javascript):
    stories = [write_story(48, i, language) for i in range(60)]
    found = javascript(
        LOAD
        + """
return input.states.map((state) => questions.questionsAbout(state, tongue)
  .map(({ kind, question, answer }) => [kind, question, answer]));
""",
        {
            "data": DATA, "language": language,
            "states": [story.state for story in stories],
        },
    )  # fmt: skip
    tongue = language_module(language).LANGUAGE
    rng = random.Random(0)

    def texts(name, known):
        return [tongue.fill(text, known) for text in tongue.questions[name]]

    for story, theirs in zip(stories, found, strict=True):
        state, ours = story.state, set()
        for kind in set(QUESTION_KINDS) - {"unknown"}:
            for way in tasks._ways(kind, state, rng):
                ours.add((kind, *texts(kind, state | way)))
        for absent in tasks.absent(state):
            for name in ("unknown1", "unknown2", "unknown3"):
                known = state | {"absent": absent}
                ours.add(("unknown", *texts(name, known)))
        assert {tuple(one) for one in theirs} == ours
        assert len(theirs) == len(ours)


@pytest.fixture(scope="module", params=LANGUAGES)
def under_tokens(request, tmp_path_factory):
    """A language, its truth, and a tokenizer's folder."""
    data = {"en": "microworld", "zh": "microworld:zh"}[request.param]
    folder = tmp_path_factory.mktemp("tokens") / request.param
    texts = tokenizer_texts(data, count=1000)
    tokenizer = train_tokenizer(texts, 1024, out=folder)
    truth = Truth(request.param, lambda text: encode_text(tokenizer, text))
    return truth, folder / "tokenizer.json"


def test_both_know_the_same_truth_of_each_token(under_tokens, javascript):
    truth, path = under_tokens
    texts = [
        write_story(43, i, truth.language).text for i in range(40)
    ] + texts_of(truth.language)[COUNT : COUNT + 40]
    found = javascript(
        LOAD
        + """
const cutter = new tokenizer.Tokenizer(json(input.path));
const truth = new world.Truth(tongue, (text) => cutter.encode(text));
return input.texts.map((text) => {
  const { tokens, logprobs, left } = truth.read(text);
  let place = truth.start(), total = 0;
  for (const token of tokens) {
    const probs = [...place.probs().values()];
    if (probs.length === 0) break;
    const sum = probs.reduce((a, b) => a + b);
    check(close(sum, 1, 1e-12), `the probabilities sum to ${sum}`);
    place = place.after(token);
  }
  const before = tokens.slice(0, 9);
  return { tokens, probs: logprobs.map(Math.exp), left: left !== null,
    next: [...truth.nextTokenProbabilities(before)] };
});
""",
        {
            "data": DATA, "language": truth.language, "texts": texts,
            "path": str(path),
        },
    )  # fmt: skip
    for text, theirs in zip(texts, found, strict=True):
        ours = truth.read(text)
        assert theirs["tokens"] == ours.tokens
        assert theirs["left"] == (ours.left is not None)
        ourselves = [math.exp(p) for p in ours.logprobs]
        assert theirs["probs"] == pytest.approx(ourselves, rel=1e-9)
        if ours.left is None:
            total = math.fsum(map(math.log, theirs["probs"]))
            exact = read_story(text, truth.language).logprob
            assert total == pytest.approx(exact, abs=1e-9)
        place = truth.start()
        for token in ours.tokens[:9]:
            place = place.after(token)
        assert dict(theirs["next"]) == pytest.approx(place.probs(), rel=1e-9)


def test_a_beginning_has_a_truth_wherever_a_word_ends(under_tokens):
    """Elsewhere it may not: ``Mi`` is not cut as the start of ``Mia`` is."""
    truth, _ = under_tokens
    asked = 0
    for index in range(20):
        text = write_story(44, index, truth.language).text
        ids = truth._encode(text)
        gap = " " if truth.language == "en" else "，"
        end = 0
        for word in text.split(gap)[:-1]:
            end += len(word)
            begun = truth._encode(text[:end])
            assert begun == ids[: len(begun)]
            place = truth.start()
            for token in begun:
                place = place.after(token)
            assert ids[len(begun)] in place.probs()
            asked += 1
            end += len(gap)
    assert asked > 60
