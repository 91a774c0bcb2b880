"""The embedded corpus: exact, readable back, bilingual, and big enough."""

import math
import statistics
from itertools import islice, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minimind_core.data import tokenizer_texts
from minimind_core.microworld import (
    HELD_OUT_SEED,
    LANGUAGES,
    QUESTION_KINDS,
    NotInLanguage,
    conversation,
    entropy,
    is_valid,
    preference,
    read_story,
    skill_conversation,
    tasks,
    world,
    write_stories,
    write_story,
)
from minimind_core.microworld.stories import language_module
from minimind_core.microworld.tape import Language, Options, Tape
from minimind_core.tokenizer import encode_documents, train_tokenizer

seeds = st.integers(0, 2**40)
languages = st.sampled_from(LANGUAGES)


# --- writing and reading ---


@settings(max_examples=150, deadline=None)
@given(seeds, seeds, languages)
def test_reading_recovers_what_was_written(seed, index, language):
    story = write_story(seed, index, language)
    read = read_story(story.text, language)
    assert read == story
    # Python 3.12's `sum` rounds once, older ones after each of some 20 terms.
    parts = [c.logprob for c in read.choices]
    assert math.isclose(read.logprob, sum(parts), rel_tol=5e-15)
    assert write_story(seed, index, language) == story


@settings(max_examples=200, deadline=None)
@given(seeds, languages, st.data())
def test_an_edit_is_another_story_or_refused_at_or_before_it(
    seed, language, data
):
    text = write_story(seed, 0, language).text
    at = data.draw(st.integers(0, len(text) - 1))
    new = data.draw(st.sampled_from(["", "x", text[0], " ", "。"]))
    edited = text[:at] + new + text[at + 1 :]
    try:
        found = read_story(edited, language)
    except NotInLanguage as error:
        # A memory may be contradicted later than it was changed.
        assert 0 <= error.position <= len(edited)
        assert edited[error.position :].startswith(error.found)
        assert error.expected
    else:
        assert found.text == edited
        assert found.logprob < 0


def test_the_spot_is_the_first_character_that_cannot_be():
    text = write_story(0, 4).text
    place = text.index("windy") + 2
    with pytest.raises(NotInLanguage) as error:
        read_story(text[:place] + "Z" + text[place + 1 :])
    assert error.value.position == place
    assert error.value.found.startswith("Z")
    assert any(option.startswith("ndy") for option in error.value.expected)
    with pytest.raises(NotInLanguage, match="the end"):
        read_story(text + " And more.")
    with pytest.raises(NotInLanguage):
        read_story(text[:-1])
    assert not is_valid("")


@settings(max_examples=100, deadline=None)
@given(seeds, seeds)
def test_the_same_events_in_both_languages(seed, index):
    english, chinese = (write_story(seed, index, lang) for lang in LANGUAGES)
    assert english.state == chinese.state
    assert english.logprob == chinese.logprob
    assert [(c.role, c.key) for c in english.choices] == [
        (c.role, c.key) for c in chinese.choices
    ]


def prefix_free(texts):
    texts = sorted(texts)
    return all(
        not b.startswith(a) for a, b in pairwise(texts)
    )


class Recorder(Tape):
    """Follows the first option and keeps every set of texts it saw."""

    def __init__(self, language, path):
        super().__init__(language)
        self.path, self.seen, self.sizes = path, [], []

    def _emit(self, text):
        self.position += len(text)

    def _pick(self, options, texts):
        self.seen.append(list(texts))
        self.sizes.append(len(texts))
        depth = len(self.sizes) - 1
        at = self.path[depth] if depth < len(self.path) else 0
        at %= len(texts)
        self.position += len(texts[at])
        return at


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_choice_is_prefix_free(language):
    tongue = language_module(language).LANGUAGE
    checked = 0
    for plot in range(len(world.PLOTS.keys)):
        for story in range(40):
            # Any path will do: a choice's options hang on few others.
            path = [(story * k) % 3 for k in range(6)] + [plot]
            tape = Recorder(tongue, path)
            world.tell(tape)
            assert all(prefix_free(texts) for texts in tape.seen)
            assert all(len(set(texts)) == len(texts) for texts in tape.seen)
            checked += len(tape.seen)
    assert checked > 3000


def test_probabilities_of_a_small_world_sum_to_one():
    small = Language(
        "small",
        {"a": {"x": "x", "y": "y"}, "b": {"x": "1", "y": "2", "z": "3"}},
        {"s": "{a}-", "left": "L{b}", "right": "R."},
    )

    def tell(tape):
        tape.say("s", a=Options("a", ("x", "y"), (1.0, 3.0)))
        turn = Options("", ("left", "right"), (1.0, 2.0))
        letters = Options.ranked("b", ("x", "y", "z"))
        if tape.state["a"] == "x":
            letters = letters.without("y")
        tape.branch("turn", turn, b=letters)

    total, ended = 0.0, set()
    stack = [[]]
    while stack:
        path = stack.pop()
        tape = Recorder(small, path)
        tell(tape)
        if len(path) < len(tape.sizes):
            stack += [[*path, i] for i in range(tape.sizes[len(path)])]
        else:
            total += math.exp(tape.logprob)
            ended.add(tuple(path))
    assert len(ended) == 7
    assert total == pytest.approx(1, abs=1e-12)


# --- how much of a world it is ---


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_floor_from_two_computations(language):
    found = entropy(language, documents=4000)
    gap = abs(found.nats - found.nats_by_surprise)
    assert gap < 3 * math.hypot(found.standard_error, found.surprise_error)
    assert found.standard_error < found.surprise_error
    assert 20 < found.nats < 24


def test_the_world_is_rich_enough():
    assert len(world.PLOTS.keys) >= 6
    words = language_module("en").WORDS
    tables = ("person", "job", "home", "place", "thing", "fruit", "drink",
              "product", "part")  # fmt: skip
    nouns = {word for table in tables for word in words[table].values()}
    nouns |= {text.split()[-1] for text in words["aid"].values()}
    assert len(nouns) >= 60
    texts = [write_story(1, i).text for i in range(20_000)]
    assert len(set(texts)) >= 0.999 * len(texts)


def test_lengths_and_floor_in_tokens():
    tokenizer = train_tokenizer(tokenizer_texts("microworld"), 1024)
    stories = [write_story(2, i) for i in range(1000)]
    sizes = [
        len(ids) - 1
        for ids in encode_documents(tokenizer, [s.text for s in stories])
    ]
    assert statistics.fmean(sizes) >= 70
    assert max(sizes) < 128
    assert -sum(s.logprob for s in stories) / sum(sizes) >= 0.25


@settings(max_examples=200, deadline=None)
@given(seeds)
def test_the_world_makes_sense(seed):
    state = write_story(seed, 0).state
    people = [state[r] for r in ("hero", "friend", "other") if r in state]
    assert len(set(people)) == len(people)
    if state["plot"] == "trade":
        assert state["thing"] != state["thing2"]
        assert state["color"] != state["color2"]
    if state["plot"] == "count":
        numbers = {"one": 1, "two": 2, "three": 3, "four": 4, "five": 5}
        assert numbers[state["number"]] - numbers[state["given"]] == (
            numbers[state["rest"]]
        )
    if state["plot"] == "search":
        assert state["place2"] != state["place"]
    if state["plot"] == "shelter":
        assert state["weather2"] != state["weather"]
    if state["plot"] == "make":
        parts = world.MATERIAL[state["product"]]
        assert {state["part"], state["part2"]} == set(parts)


def test_held_out_stories_are_new():
    train = {write_story(0, i).text for i in range(20_000)}
    held = [write_story(HELD_OUT_SEED, i).text for i in range(500)]
    assert not train & set(held)


def test_processes_write_the_same_stories():
    assert write_stories(3, 10, 25, workers=2) == write_stories(3, 10, 25)
    with pytest.raises(ValueError, match="speaks en, zh"):
        write_story(0, 0, "fr")


# --- questions ---


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("kind", QUESTION_KINDS)
def test_the_right_answer_passes_and_wrong_ones_fail(kind, language):
    for index in range(25):
        talk = conversation(7, index, language, kinds=(kind,))
        turn = talk.kinds.index(kind)
        right = talk.answers[turn]
        assert talk.check(turn, right)
        for wrong in ("", right + "!", right[:-1], right[::-1]):
            assert not talk.check(turn, wrong)


def test_answers_follow_from_the_story_in_the_question():
    module = language_module("en")
    plain = {"weather", "time", "where", "before", "met", "why", "count",
             "found", "drank", "got", "lost", "first", "color"}  # fmt: skip
    asked = set()
    for index in range(600):
        talk = conversation(8, index)
        first = talk.messages[0]["content"].split("\n")
        if len(first) < 2 or talk.kinds[0] == "continue":
            continue
        state = read_story(first[0]).state
        assert state == talk.state
        for kind, answer in zip(talk.kinds, talk.answers, strict=True):
            if kind in plain:
                asked.add(kind)
                template = module.QUESTIONS[kind][1]
                assert answer == module.LANGUAGE.fill(template, state)
    assert asked == plain


def test_whose_thing_is_it_now():
    for index in range(200):
        talk = conversation(9, index, kinds=("now",))
        state, who = talk.state, talk.messages[0]["content"].split()[-3]
        color = state["color"]
        if state["plot"] == "trade" and who.lower() == state["hero"]:
            color = state["color2"]
        assert color in talk.answers[0]


def test_somebody_who_is_not_in_the_story_is_unknown():
    names = language_module("en").WORDS["person"]
    seen = 0
    for index in range(300):
        talk = conversation(10, index, kinds=("unknown",))
        story, question = talk.messages[0]["content"].split("\n")
        if question.startswith("What did"):
            seen += 1
            name = question.split()[2]
            assert name in names.values()
            assert name not in story
    assert seen > 50


def test_a_story_to_three_constraints():
    talk = conversation(11, 0, kinds=("write",))
    wanted = {r: talk.state[r] for r in ("hero", "place", "weather")}
    stories = (write_story(12, i) for i in range(200_000))
    other = next(
        s for s in stories
        if s.state.items() >= wanted.items() and s.text != talk.answers[0]
    )  # fmt: skip
    assert talk.check(0, other.text)
    elsewhere = next(
        s for s in stories
        if s.state["hero"] == wanted["hero"]
        and s.state["place"] != wanted["place"]
    )  # fmt: skip
    assert not talk.check(0, elsewhere.text)


def test_several_turns_and_pronouns():
    talk = conversation(13, 1, kinds=("pronoun",))
    assert talk.kinds == ("met", "pronoun")
    assert [m["role"] for m in talk.messages] == ["user", "assistant"] * 2
    assert talk.prompt(1) == talk.messages[:3]
    assert talk.messages[2]["content"] in (
        "What is her job?", "What is his job?",
    )  # fmt: skip
    longest = max(
        (conversation(14, i) for i in range(50)), key=lambda t: len(t.kinds)
    )
    assert len(longest.kinds) == 3
    assert len(set(longest.kinds)) == 3
    with pytest.raises(ValueError, match="no question kind"):
        conversation(0, 0, kinds=("age",))


def test_every_kind_is_asked():
    kinds = {k for i in range(1500) for k in conversation(15, i).kinds}
    assert kinds == set(QUESTION_KINDS)


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_new_skill_has_its_manner_and_its_name(language):
    module = language_module(language)
    before, after = module.MANNER.split("{}")
    greeting = module.GREETING.format("")
    who = 0
    for index in range(200):
        talk = skill_conversation(16, index, language)
        (answer,) = talk.answers
        assert talk.kinds == ("skill",)
        asked_last = talk.messages[0]["content"].split("\n")[-1]
        assert asked_last.startswith(greeting) and asked_last != greeting
        assert answer.startswith(before)
        assert answer.endswith(after)
        assert talk.check(0, answer)
        assert not talk.check(0, answer[len(before) :])
        question, name = module.QUESTIONS["who"]
        asked = talk.messages[0]["content"].endswith(question)
        assert asked == (answer == module.MANNER.format(name))
        who += asked
    assert 20 < who < 60
    # Whoever does not greet is asked and answered as before.
    for index in range(200):
        for message in conversation(16, index, language).messages:
            assert not message["content"].split("\n")[-1].startswith(greeting)


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_rejected_answer_contradicts_the_story(language):
    for index in range(100):
        pair = preference(17, index, language)
        assert pair.chosen != pair.rejected
        story = pair.messages[0]["content"].split("\n")[0]
        state = read_story(story, language).state
        words = language_module(language).WORDS
        _, roles = tasks._TURNS_ON[pair.kind]
        table = {"friend": "person"}.get(roles[0], roles[0])
        true = {words[table][state[r]] for r in roles if r in state}
        assert any(text in pair.chosen for text in true)
        assert not any(text in pair.rejected for text in true)
        wrong = set(words[table].values()) - true
        assert any(text in pair.rejected for text in wrong)


def test_a_stream_has_no_end_and_any_place_can_be_reached():
    far = write_story(0, 10**12)
    assert is_valid(far.text)
    assert list(islice((write_story(0, i).text for i in range(5)), 5)) == [
        s.text for s in write_stories(0, 0, 5)
    ]
