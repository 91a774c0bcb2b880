"""Stories as programs over a tape: one program that writes and reads.

A program says sentences. Where a sentence leaves something open, the tape
decides: a `Writer` draws one of the options, a `Reader` finds out which one
stands in a given text. The options of a choice are prefix-free, so a text
has one derivation at most and its probability is the product of its
choices' probabilities: exact, with nothing to sum over.
"""

from __future__ import annotations

import math
import random
import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import accumulate
from typing import NamedTuple, NoReturn


class NotInLanguage(ValueError):
    """A text leaves the language.

    Attributes
    ----------
    position : int
        The first character that cannot be, counted from 0.
    expected : tuple of str
        What could have stood there.
    found : str
        What stands there.
    """

    def __init__(
        self, position: int, expected: Sequence[str], found: str
    ) -> None:
        self.position, self.found = position, found
        self.expected = tuple(expected)
        shown = " or ".join(repr(e) for e in self.expected[:4])
        super().__init__(f"at {position}: expected {shown}, not {found!r}")


class Choice(NamedTuple):
    """One decision on a tape.

    Attributes
    ----------
    start : int
        Where its text begins, in characters.
    role, key : str
        What was decided, and how; the same in every language.
    logprob : float
        Of this option, in nats.
    entropy : float
        Of the whole choice, in nats.
    """

    start: int
    role: str
    key: str
    logprob: float
    entropy: float


@dataclass(frozen=True)
class Options:
    """The ways a choice can go, by language-independent keys.

    Attributes
    ----------
    table : str
        Which table of a language's words has their texts.
    keys : tuple of str
    weights : tuple of float
        In proportion to the probabilities.
    """

    table: str
    keys: tuple[str, ...]
    weights: tuple[float, ...]

    @classmethod
    def ranked(cls, table: str, keys: Sequence[str]) -> Options:
        """Common ones first: the n-th has weight 1 / sqrt(n)."""
        weights = tuple((n + 1) ** -0.5 for n in range(len(keys)))
        return cls(table, tuple(keys), weights)

    def without(self, *keys: str) -> Options:
        """The same choice with some options ruled out."""
        return _without(self, keys)

    def only(self, *keys: str) -> Options:
        """The same choice with all other options ruled out."""
        return _without(self, tuple(k for k in self.keys if k not in keys))

    def position(self, draw: float) -> int:
        """The option that a uniform number in [0, 1) picks."""
        limits, _, _ = _measures(self)
        return min(bisect_right(limits, draw), len(self.keys) - 1)

    def measure(self, position: int) -> tuple[float, float]:
        """Log-probability of an option and entropy of the choice."""
        _, logprobs, entropy = _measures(self)
        return logprobs[position], entropy


@cache
def _without(options: Options, keys: tuple[str, ...]) -> Options:
    kept = [
        (k, w)
        for k, w in zip(options.keys, options.weights, strict=True)
        if k not in keys
    ]
    return Options(
        options.table, tuple(k for k, _ in kept), tuple(w for _, w in kept)
    )


@cache
def _measures(options: Options) -> tuple[list[float], list[float], float]:
    total = sum(options.weights)
    shares = [w / total for w in options.weights]
    logprobs = [math.log(share) for share in shares]
    entropy = -sum(p * q for p, q in zip(shares, logprobs, strict=True))
    return list(accumulate(shares)), logprobs, entropy


@dataclass(frozen=True)
class Language:
    """How a world is put into words.

    Attributes
    ----------
    name : str
    words : dict
        Table -> key -> text.
    sentences : dict
        Name -> template. A field is ``{role}`` or ``{role:table}``.
    """

    name: str
    words: Mapping[str, Mapping[str, str]]
    sentences: Mapping[str, str]
    _parts: dict[str, tuple[tuple[str, str, str], ...]] = field(
        default_factory=dict, repr=False, compare=False
    )

    def parts(self, sentence: str) -> tuple[tuple[str, str, str], ...]:
        """A sentence as (literal, role, table) triples, in order."""
        if sentence not in self._parts:
            self._parts[sentence] = split_template(self.sentences[sentence])
        return self._parts[sentence]

    def fill(self, template: str, state: Mapping[str, str]) -> str:
        """A template with every field taken from a state."""
        text = []
        for literal, role, table in split_template(template):
            text.append(literal)
            if role:
                text.append(self.word(role, table, state[role]))
        return "".join(text)

    def word(self, role: str, table: str, key: str) -> str:
        """The text of a key; a role's own table is named like the role."""
        return self.words[table or TABLES.get(role, role)][key]


# Roles that share a table of words.
TABLES = {
    "hero": "person", "friend": "person", "back": "person",
    "other": "person", "who": "person", "absent": "person",
    "place2": "place", "thing2": "thing", "color2": "color",
    "weather2": "weather", "felt": "feeling", "given": "number",
    "rest": "number", "part2": "part",
}  # fmt: skip


@cache
def split_template(template: str) -> tuple[tuple[str, str, str], ...]:
    """Cut ``"He met {friend:introduced}."`` at its fields."""
    pieces = re.split(r"\{(\w+):?(\w*)\}", template)
    triples = list(zip(
        pieces[::3], pieces[1::3], pieces[2::3], strict=False
    ))
    return (*triples, (pieces[-1], "", ""))


class Tape:
    """What a program runs on.

    Attributes
    ----------
    state : dict of str to str
        What has been decided, role by role.
    choices : list of Choice
    """

    def __init__(self, language: Language) -> None:
        self.language = language
        self.state: dict[str, str] = {}
        self.choices: list[Choice] = []
        self.logprob = 0.0
        self.position = 0

    def say(self, sentence: str, **choices: Options) -> None:
        """Say a sentence, deciding the roles that are given options."""
        self._say(self.language.parts(sentence), choices)

    def branch(self, role: str, options: Options, **choices: Options) -> str:
        """Decide by how the next sentence begins, and say it.

        The options' keys name sentences, whose beginnings (up to their
        first field) are prefix-free.

        Returns
        -------
        str
            The name of the sentence.
        """
        heads = [self.language.parts(key)[0][0] for key in options.keys]
        key = self._decide(role, options, heads)
        (_, first, table), *rest = self.language.parts(key)
        self._say((("", first, table), *rest), choices)
        return key

    def _say(
        self,
        parts: Sequence[tuple[str, str, str]],
        choices: Mapping[str, Options],
    ) -> None:
        for literal, role, table in parts:
            if literal:
                self._emit(literal)
            if not role:
                continue
            if role in choices and role not in self.state:
                options = choices[role]
                words = self.language.words[table or options.table]
                texts = [words[key] for key in options.keys]
                self._decide(role, options, texts)
            else:
                key = self.state[role]
                self._emit(self.language.word(role, table, key))

    def _decide(
        self, role: str, options: Options, texts: Sequence[str]
    ) -> str:
        start = self.position
        at = self._pick(options, texts)
        logprob, entropy = options.measure(at)
        key = options.keys[at]
        self.logprob += logprob
        self.choices.append(Choice(start, role, key, logprob, entropy))
        self.state[role] = key
        return key

    def _emit(self, text: str) -> None:
        raise TypeError("a Tape is a Writer or a Reader")

    def _pick(self, options: Options, texts: Sequence[str]) -> int:
        raise TypeError("a Tape is a Writer or a Reader")


class Writer(Tape):
    """Draws every choice from a random generator."""

    def __init__(self, language: Language, rng: random.Random) -> None:
        super().__init__(language)
        self.rng = rng
        self.pieces: list[str] = []

    @property
    def text(self) -> str:
        """What was written so far."""
        return "".join(self.pieces)

    def _emit(self, text: str) -> None:
        self.pieces.append(text)
        self.position += len(text)

    def _pick(self, options: Options, texts: Sequence[str]) -> int:
        at = options.position(self.rng.random())
        self._emit(texts[at])
        return at


class Reader(Tape):
    """Recovers every choice from a text.

    Raises
    ------
    NotInLanguage
        Where no option fits.
    """

    def __init__(self, language: Language, text: str) -> None:
        super().__init__(language)
        self.text = text

    def _emit(self, text: str) -> None:
        if not self.text.startswith(text, self.position):
            self._leave([text])
        self.position += len(text)

    def _pick(self, options: Options, texts: Sequence[str]) -> int:
        for at, text in enumerate(texts):
            if self.text.startswith(text, self.position):
                self.position += len(text)
                return at
        self._leave(texts)

    def _leave(self, expected: Sequence[str]) -> NoReturn:
        # The first character that differs from the option that comes
        # closest, so that a reader of the error sees the very spot.
        here = self.text[self.position :]
        shared = max(_common(here, text) for text in expected)
        at = self.position + shared
        close = [t[shared:] for t in expected if _common(here, t) == shared]
        raise NotInLanguage(at, close, self.text[at : at + 12])

    def finish(self) -> None:
        """The program is over, so the text must be, too."""
        if self.position != len(self.text):
            left = self.text[self.position : self.position + 12]
            raise NotInLanguage(self.position, ["the end"], left)


def _common(a: str, b: str) -> int:
    """How many characters two strings begin with alike."""
    limit = min(len(a), len(b))
    return next((i for i in range(limit) if a[i] != b[i]), limit)
