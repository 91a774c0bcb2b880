"""What can be asked about a story, and when an answer is right.

Everything is made from a story's state, so the right answer is known; it
is checked to the letter, and a story that was asked for by the Reader.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from minimind_core.microworld.stories import (
    NotInLanguage,
    Story,
    language_module,
    read_story,
    write_story,
)
from minimind_core.microworld.world import (
    COLORS,
    FEELINGS,
    PEOPLE,
    PLACES,
    TIMES,
    WEATHER,
    WORLD,
)

State = dict[str, str]

MAIN_KINDS = ("weather", "where", "feeling", "job", "met", "unknown", "write")
"""The kinds that the default fine-tuning is expected to master."""

MORE_KINDS = (
    "time", "before", "first", "now", "color", "lost", "why", "count",
    "found", "drank", "got", "pronoun", "retell", "continue",
)  # fmt: skip

QUESTION_KINDS = MAIN_KINDS + MORE_KINDS

# How often a conversation begins with each kind, where a story allows it. A
# kind that is learnt late is asked often: with equal weights "where" was
# mastered in one training and, with another rounding, never in the next.
_WEIGHTS = {kind: 1.0 for kind in QUESTION_KINDS}
_WEIGHTS |= {
    "write": 8.0, "where": 6.0, "before": 4.0, "time": 4.0, "first": 3.0,
    "now": 3.0, "found": 3.0, "drank": 3.0, "feeling": 2.0, "retell": 0.5,
}  # fmt: skip

# What a single-turn skill conversation asks: what can be asked about every
# story, and what every base that was tried has mastered, for an adapter
# cannot be expected to answer better than its base does.
_SKILL_KINDS = ("weather", "met", "job", "unknown")


@dataclass(frozen=True)
class Conversation:
    """Messages about a story, and what their answers have to be.

    Attributes
    ----------
    messages : list of dict
        ``role`` and ``content``, the right answers included.
    kinds : tuple of str
        One for each assistant turn.
    language : str
    state : dict of str to str
        Of the story it is about.
    """

    messages: list[dict[str, str]]
    kinds: tuple[str, ...]
    language: str
    state: State

    @property
    def answers(self) -> list[str]:
        """The right answers, in order."""
        return [
            m["content"] for m in self.messages if m["role"] == "assistant"
        ]

    def prompt(self, turn: int = 0) -> list[dict[str, str]]:
        """The messages before an answer."""
        return self.messages[: 2 * turn + 1]

    def check(self, turn: int, answer: str) -> bool:
        """Whether an answer is right.

        Parameters
        ----------
        turn : int
            Which of the assistant's turns, from 0.
        answer : str

        Returns
        -------
        bool
            ``write``: any story of the language about that person, place
            and weather. ``continue``: any that goes on to a whole story.
            All others: the known answer, to the letter.
        """
        kind = self.kinds[turn]
        if kind == "continue":
            begun = self.prompt(turn)[-1]["content"].split("\n")[0]
            return self._is_story(begun + answer)
        if kind == "write":
            return self._is_story(answer)
        return answer == self.answers[turn]

    def _is_story(self, text: str) -> bool:
        try:
            found = read_story(text, self.language).state
        except NotInLanguage:
            return False
        return all(
            found[role] == self.state[role]
            for role in ("hero", "place", "weather")
        )


# --- questions -------------------------------------------------------------


def _ways(kind: str, state: State, rng: random.Random) -> list[State]:
    """The ways in which a story allows to ask a kind of question.

    Returns
    -------
    list of dict
        What has to be known for each beside the story's own state.
    """
    if kind == "unknown":
        return [{"absent": rng.choice(absent(state))}]
    return [
        # What is known is a role's key, or a key itself.
        {
            role: state.get(source, source)
            for role, source in way.get("known", {}).items()
        }
        for way in WORLD.asked[kind]
        if state["plot"] in way.get("plots", (state["plot"],))
    ]


def absent(state: State) -> list[str]:
    """Everybody who is not in a story."""
    present = {state.get(role) for role in WORLD.present}
    return [key for key in PEOPLE.keys if key not in present]


def _phrase(
    kind: str, state: State, language: str, rng: random.Random
) -> tuple[str, str] | None:
    """A question and its answer, or None if the story has none."""
    ways = _ways(kind, state, rng)
    if not ways:
        return None
    module = language_module(language)
    known = {**state, **rng.choice(ways)}
    if kind == "unknown":
        kind = rng.choice(("unknown1", "unknown2", "unknown3"))
    question, answer = module.QUESTIONS[kind]
    fill = module.LANGUAGE.fill
    return fill(question, known), fill(answer, known)


def conversation(
    seed: int,
    index: int,
    language: str = "en",
    kinds: tuple[str, ...] | None = None,
    turns: int | None = None,
) -> Conversation:
    """A conversation about a story of its own.

    Parameters
    ----------
    seed, index : int
        A pure function of both: any place of the stream can be reached.
    language : {"en", "zh"}
    kinds : tuple of str, optional
        Ask one question of one of these; else whatever the story allows.
    turns : int, optional
        How many questions; one to three, drawn, if not given.

    Returns
    -------
    Conversation

    Raises
    ------
    ValueError
        For an unknown kind.
    """
    rng = random.Random(f"conversation:{seed}:{index}")
    if kinds is None:
        weights = _WEIGHTS
        turns = turns or rng.choice((1, 2, 3))
    else:
        if unknown := set(kinds) - set(QUESTION_KINDS):
            raise ValueError(f"no question kind {sorted(unknown)}")
        weights = {kind: _WEIGHTS[kind] for kind in kinds}
        turns = turns or 1
    first = rng.choices(list(weights), list(weights.values()))[0]
    story, pair = _story_for(first, language, rng)
    if first == "write":
        return _one(pair[0], story.text, first, story, language)
    if first == "retell":
        asked = f"{story.text}\n{pair[0]}"
        return _one(asked, story.text, first, story, language)
    if first == "continue":
        begun, rest = _cut(story)
        return _one(f"{begun}\n{pair[0]}", rest, first, story, language)
    if first == "pronoun":
        # "What is her job?" needs somebody who was just spoken of.
        met = _phrase("met", story.state, language, rng)
        assert met is not None
        return _several([("met", met), ("pronoun", pair)], story, language)
    chosen = [(first, pair)]
    left = [k for k in weights if k not in (*_WHOLE, first)]
    rng.shuffle(left)
    for kind in left:
        more = _phrase(kind, story.state, language, rng)
        if len(chosen) < turns and more is not None:
            chosen.append((kind, more))
    return _several(chosen, story, language)


_WHOLE = ("write", "retell", "continue", "pronoun")


def _story_for(
    kind: str, language: str, rng: random.Random
) -> tuple[Story, tuple[str, str]]:
    """A story that a kind of question can be asked about."""
    while True:
        story = write_story(rng.getrandbits(48), 0, language)
        if (pair := _phrase(kind, story.state, language, rng)) is not None:
            return story, pair


def _cut(story: Story) -> tuple[str, str]:
    """A story before and after it says who is met."""
    meeting = next(c.start for c in story.choices if c.role == "meeting")
    return story.text[:meeting], story.text[meeting:]


def _one(
    question: str, answer: str, kind: str, story: Story, language: str
) -> Conversation:
    messages = [
        {"role": "user", "content": question},
        {"role": "assistant", "content": answer},
    ]
    return Conversation(messages, (kind,), language, story.state)


def _several(
    asked: list[tuple[str, tuple[str, str]]], story: Story, language: str
) -> Conversation:
    messages = []
    for number, (_, (question, answer)) in enumerate(asked):
        told = question if number else f"{story.text}\n{question}"
        messages.append({"role": "user", "content": told})
        messages.append({"role": "assistant", "content": answer})
    kinds = tuple(kind for kind, _ in asked)
    return Conversation(messages, kinds, language, story.state)


# --- a new skill -----------------------------------------------------------


def skill_conversation(
    seed: int, index: int, language: str = "en"
) -> Conversation:
    """A question answered in a manner the base does not have.

    Somebody greets and asks. The narrator greets back, answers, closes with
    a good word, and knows who they are. Every token of it was learnt before,
    only never in this order: an adapter that leaves the embedding alone
    could not learn to say one that was not. The same question without a
    greeting is one of `conversation`'s, so both manners can be kept.

    Returns
    -------
    Conversation
        Its one kind is ``skill``.
    """
    rng = random.Random(f"skill:{seed}:{index}")
    module = language_module(language)
    kind = rng.choice((*_SKILL_KINDS, "who"))
    story = write_story(rng.getrandbits(48), 0, language)
    if kind == "who":
        question, answer = module.QUESTIONS["who"]
        about_story = rng.random() >= 0.5
    else:
        pair = _phrase(kind, story.state, language, rng)
        assert pair is not None
        question, answer = pair
        about_story = True
    told = module.GREETING.format(question)
    if about_story:
        told = f"{story.text}\n{told}"
    return _one(told, module.MANNER.format(answer), "skill", story, language)


# --- preferences -----------------------------------------------------------


@dataclass(frozen=True)
class Preference:
    """A question with a right and a wrong answer of the same form.

    Attributes
    ----------
    messages : list of dict
        The prompt.
    chosen, rejected : str
    kind : str
    """

    messages: list[dict[str, str]]
    chosen: str
    rejected: str
    kind: str


def preference(seed: int, index: int, language: str = "en") -> Preference:
    """A pair of answers, one of which the story contradicts.

    Returns
    -------
    Preference
        The wrong answer would be right, had one fact been another.
    """
    rng = random.Random(f"preference:{seed}:{index}")
    module = language_module(language)
    kind = rng.choice(tuple(_TURNS_ON))
    options, roles = _TURNS_ON[kind]
    while True:
        story, _ = _story_for(kind, language, rng)
        if roles[0] in story.state:
            break
    state = story.state
    known = {**state, **rng.choice(_ways(kind, state, rng))}
    # What the answer turns on is changed, and nothing else.
    taken = {state.get(role) for role in (*roles, "hero")}
    other = rng.choice([key for key in options.keys if key not in taken])
    turned = [role for role in (*roles, "felt") if role in known]
    changed = {**known, **dict.fromkeys(turned, other)}
    question, answer = module.QUESTIONS[kind]
    fill = module.LANGUAGE.fill
    asked = f"{story.text}\n{fill(question, known)}"
    return Preference(
        [{"role": "user", "content": asked}],
        fill(answer, known),
        fill(answer, changed),
        kind,
    )


# What an answer turns on: the ways it could be, and where that stands.
_TURNS_ON = {
    "weather": (WEATHER, ("weather",)),
    "where": (PLACES, ("place",)),
    "met": (PEOPLE, ("friend",)),
    "time": (TIMES, ("time",)),
    "now": (COLORS, ("color", "color2")),
    "feeling": (FEELINGS, ("feeling",)),
}
