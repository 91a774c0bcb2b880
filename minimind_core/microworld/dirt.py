"""Stories with dirt between them, each labelled with its kind.

    from minimind_core.microworld.dirt import DirtyStories, score
    source = DirtyStories("en", seed=0, shares={"typos": 0.2})
    source.records([0, 1])              # texts, as training reads them
    source.labelled([0, 1])[0].dirt     # "typos", or "" for a clean story

On real data nobody knows which records are bad, so nobody knows how many of
them a filter has found. Here the dirt is put in by a program that writes down
what it did. So a filter has a true precision and a true recall, and what a
kind of dirt costs can be measured as the loss of a model trained on it. The
same seed and index always give the same record.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_left
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from minimind_core.errors import ConfigError
from minimind_core.microworld.metrics import HELD_OUT_SEED
from minimind_core.microworld.stories import (
    LANGUAGES,
    is_valid,
    language_module,
    write_story,
)
from minimind_core.microworld.tape import Language, Options, Writer
from minimind_core.microworld.world import tell

CLEAN = ""
POOL = 50
"""Duplicates are copies of the clean ones among this many first records, as a
few pages of the web are copied thousands of times."""
RETOLD = ("time", "go", "place", "sky", "meeting", "ending", "spot")
"""What a near duplicate may tell differently: details of a few words."""
PRONOUNS = ("sub", "Sub", "obj", "poss")
TRIES = 100

BOILERPLATE = {
    "en": (
        "Please accept all cookies to continue reading.",
        "Subscribe to our newsletter for more stories.",
        "Share this page with your friends.",
        "All rights reserved. See our terms of use.",
        "Click here to go back to the top of the page.",
        "Sign in or create an account to leave a comment.",
    ),
    "zh": (
        "请接受所有缓存后继续阅读。", "订阅我们的邮件，阅读更多故事。",
        "把本页分享给你的朋友。", "版权所有，请看使用条款。",
        "点击这里回到页首。", "登录或注册后发表评论。",
    ),
}  # fmt: skip
"""Sentences that web pages put around their text."""


@dataclass(frozen=True)
class DirtyStory:
    """A record, and what was done to it.

    Attributes
    ----------
    text : str
    dirt : str
        One of `DIRT`, or empty for a clean story.
    origin : int
        Index of the story it was made from: its own, but of a duplicate that
        of the record it copies, and of a contaminated record that of the
        held-out story.
    """

    text: str
    dirt: str
    origin: int


# --- kinds of dirt that change a story -------------------------------------


class _Retelling(Writer):
    """Makes the choices of another story again, except for some."""

    def __init__(
        self,
        language: Language,
        rng: random.Random,
        told: Mapping[str, str],
        anew: Collection[str],
    ) -> None:
        super().__init__(language, rng)
        self.told, self.anew = told, anew

    def _pick(self, options: Options, texts: Sequence[str]) -> int:
        role = self._step.name
        before = self.told.get(role)
        if before in options.keys:
            if role not in self.anew:
                at = options.keys.index(before)
                self._emit(texts[at])
                return at
            if len(options.keys) > 1:
                # Decide differently, not just again.
                other = options.without(before)
                key = other.keys[other.position(self.rng.random())]
                at = options.keys.index(key)
                self._emit(texts[at])
                return at
        return super()._pick(options, texts)


class _Memory(NamedTuple):
    """A place in a story that repeats what the story has said."""

    start: int
    end: int
    table: str


class _Remembering(Writer):
    """Records where a story repeats what it has said."""

    def __init__(self, language: Language, rng: random.Random) -> None:
        super().__init__(language, rng)
        self.memories: list[_Memory] = []
        self._choosing = False

    def _emit(self, text: str) -> None:
        start = self.position
        super()._emit(text)
        kind, _, table = self._step
        if kind == "field" and table not in PRONOUNS and not self._choosing:
            self.memories.append(_Memory(start, self.position, table))

    def _pick(self, options: Options, texts: Sequence[str]) -> int:
        self._choosing = True
        at = super()._pick(options, texts)
        self._choosing = False
        return at


def retell(seed: int, index: int, language: str, rng: random.Random) -> str:
    """Tell a story again with one or two of its details changed.

    What happens, and to whom, stays the same. The result is a valid story.

    Parameters
    ----------
    seed, index : int
        Of the story.
    language : {"en", "zh"}
    rng : random.Random
    """
    story = write_story(seed, index, language)
    # The story may not have all of these; what it has it can tell anew.
    open_roles = [r for r in RETOLD if r in story.state]
    for _ in range(TRIES):
        many = min(len(open_roles), rng.choice((1, 2)))
        anew = rng.sample(open_roles, many)
        tape = _Retelling(
            language_module(language).LANGUAGE, rng, story.state, anew
        )
        tell(tape)
        if tape.text != story.text:
            return tape.text
    raise AssertionError(f"story {index} has only one way to be told")


def contradict(
    seed: int, index: int, language: str, rng: random.Random
) -> str:
    """Let a story contradict what it has said, in one word.

    A name, a thing, a colour or the like that the story repeats is replaced
    by another. The result is no valid story.

    Parameters
    ----------
    seed, index : int
        Of the story.
    language : {"en", "zh"}
    rng : random.Random
    """
    tables = language_module(language).LANGUAGE.words
    tape = _Remembering(
        language_module(language).LANGUAGE, random.Random(f"{seed}:{index}")
    )
    tell(tape)
    text = tape.text
    for _ in range(TRIES):
        place = rng.choice(tape.memories)
        said = text[place.start : place.end]
        others = [w for w in tables[place.table].values() if w != said]
        changed = text[: place.start] + rng.choice(others) + text[place.end :]
        if not is_valid(changed, language):
            return changed
    raise AssertionError(f"story {index} cannot be contradicted")


def _tokens(text: str, language: str) -> list[str]:
    return list(text) if language == "zh" else text.split(" ")


def _joined(tokens: Sequence[str], language: str) -> str:
    return ("" if language == "zh" else " ").join(tokens)


def misspell(text: str, language: str, rng: random.Random) -> str:
    """Make a typo in every sixth word, at least in one.

    Two neighbouring letters change places, or one is missing or doubled. In
    Chinese two neighbouring characters change places.
    """
    tokens = _tokens(text, language)
    if language == "zh":
        pairs = [i for i in range(len(tokens) - 1)
                 if tokens[i] != tokens[i + 1]]  # fmt: skip
        for i in rng.sample(pairs, max(1, len(tokens) // 12)):
            tokens[i], tokens[i + 1] = tokens[i + 1], tokens[i]
    else:
        long = [i for i, t in enumerate(tokens)
                if sum(map(str.isalpha, t)) > 2]  # fmt: skip
        for i in rng.sample(long, min(len(long), max(1, len(tokens) // 6))):
            tokens[i] = _typo(tokens[i], rng)
    found = _joined(tokens, language)
    return found if found != text else misspell(text, language, rng)


def _typo(word: str, rng: random.Random) -> str:
    at = rng.randrange(len(word) - 1)
    kind = rng.randrange(3)
    if kind == 0:
        return word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    return word[:at] + word[at] * (2 * (kind - 1)) + word[at + 1 :]


def shuffle(text: str, language: str, rng: random.Random) -> str:
    """Put the words of a story in random order; in Chinese, characters."""
    tokens = _tokens(text, language)
    while (found := _joined(tokens, language)) == text:
        rng.shuffle(tokens)
    return found


def add_boilerplate(text: str, language: str, rng: random.Random) -> str:
    """Put sentences around a story that web pages have around their text."""
    first, *rest = rng.sample(BOILERPLATE[language], 3)
    return "\n".join((first, text, *rest))


def repeat_line(text: str, language: str, rng: random.Random) -> str:
    """Keep a story's first sentence and repeat it four to eight times."""
    end = "。" if language == "zh" else "."
    line = text[: text.index(end) + 1]
    return "\n".join([line] * rng.randint(5, 9))


def cut_off(text: str, language: str, rng: random.Random) -> str:
    """Keep the first few words of a story: 3 to 8, or 6 to 16 characters."""
    many = rng.randint(6, 16) if language == "zh" else rng.randint(3, 8)
    return _joined(_tokens(text, language)[:many], language)


_CHANGES: dict[str, Callable[[str, str, random.Random], str]] = {
    "typos": misspell, "shuffled": shuffle, "boilerplate": add_boilerplate,
    "repeated line": repeat_line, "fragment": cut_off,
}  # fmt: skip
_COPIES = ("duplicate", "near duplicate")
DIRT = (
    *_COPIES, "contradiction", "other language", *_CHANGES, "held out",
)  # fmt: skip
"""The kinds of dirt. ``held out`` is a copy of a story on which models are
examined; the other names say what they are."""


# --- the source ------------------------------------------------------------


class DirtyStories:
    """The microworld's stories with dirt between them: an endless source.

    Parameters
    ----------
    language : {"en", "zh"}
    seed : int
        Of the stream. Its clean records are those of `MicroworldStories` at
        the same indices.
    shares : mapping of str to float
        Kind of dirt -> share of the records; they add up to at most 1, and
        the rest is clean, and so is the first record.
    pool : int
        Duplicates are copies of the clean ones among this many first
        records.
    held_out : int
        Models are examined on so many held-out stories. A record that is
        contaminated copies the one at its own index, or that modulo this
        number.

    Raises
    ------
    ConfigError
        For an unknown kind, or shares that do not fit.
    """

    size = None

    def __init__(
        self,
        language: str = "en",
        seed: int = 0,
        shares: Mapping[str, float] | None = None,
        *,
        pool: int = POOL,
        held_out: int = 200,
    ) -> None:
        language_module(language)
        self.language, self.seed = language, seed
        self.shares = dict(shares or {})
        self.pool, self.held_out = pool, held_out
        for kind, share in self.shares.items():
            if kind not in DIRT:
                raise ConfigError(
                    f"unknown dirt {kind!r}; one of {', '.join(DIRT)}"
                )
            if not 0 <= share <= 1:
                raise ConfigError(f"{kind}: a share cannot be {share}")
        if math.fsum(self.shares.values()) > 1 + 1e-9:
            raise ConfigError("the shares add up to more than 1")

    def kind(self, index: int) -> str:
        """Kind of dirt of a record; empty for a clean one."""
        if index == 0:
            return CLEAN  # so that a duplicate has something to copy
        draw = random.Random(f"kind:{self.seed}:{index}").random()
        for name, share in self.shares.items():
            if draw < share:
                return name
            draw -= share
        return CLEAN

    @cached_property
    def _pool(self) -> list[int]:
        """The clean ones among the first records, which are copied."""
        return [i for i in range(self.pool) if not self.kind(i)]

    def labelled(self, indices: Sequence[int]) -> list[DirtyStory]:
        """The records with these indices, with what was done to them."""
        return [self._record(i) for i in indices]

    def records(self, indices: Sequence[int]) -> list[str]:
        """The texts of the records with these indices."""
        return [self._record(i).text for i in indices]

    def _record(self, index: int) -> DirtyStory:
        kind, language = self.kind(index), self.language
        rng = random.Random(f"dirt:{self.seed}:{index}")
        origin, seed = index, self.seed
        if kind in _COPIES:
            before = bisect_left(self._pool, index)
            origin = self._pool[rng.randrange(before)]
        elif kind == "held out":
            origin, seed = index % self.held_out, seed + HELD_OUT_SEED
        if kind == "near duplicate":
            text = retell(seed, origin, language, rng)
        elif kind == "contradiction":
            text = contradict(seed, origin, language, rng)
        elif kind == "other language":
            other = next(one for one in LANGUAGES if one != language)
            text = write_story(seed, origin, other).text
        else:
            text = write_story(seed, origin, language).text
            if kind in _CHANGES:
                text = _CHANGES[kind](text, language, rng)
        return DirtyStory(text, kind, origin)


# --- how good a filter is --------------------------------------------------


class Score(NamedTuple):
    """How well a filter finds one kind of dirt.

    Attributes
    ----------
    precision : float or None
        Share of the removed records that are of this kind; None if nothing
        was removed.
    recall : float or None
        Share of the records of this kind that were removed; None if there
        are none.
    removed, of_kind, right : int
        Records removed, of this kind, and both.
    """

    precision: float | None
    recall: float | None
    removed: int
    of_kind: int
    right: int


def score(
    labels: Sequence[str], removed: Collection[int], target: Collection[str]
) -> Score:
    """Compare what a filter removed with what it should have removed.

    Parameters
    ----------
    labels : sequence of str
        Kind of dirt of each record.
    removed : collection of int
        Indices of the records that the filter removed.
    target : collection of str
        The kinds that it should remove.
    """
    of_kind = {i for i, label in enumerate(labels) if label in target}
    right = len(of_kind & set(removed))
    return Score(
        right / len(removed) if removed else None,
        right / len(of_kind) if of_kind else None,
        len(removed), len(of_kind), right,
    )  # fmt: skip
