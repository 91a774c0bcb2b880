"""The exact distribution over the next token, beside a model's own.

    from minimind_core.microworld.truth import Truth
    truth = Truth("en", lambda text: encode_text(tokenizer, text))
    here = truth.start()                       # before the first token
    here.probs()                               # token -> probability
    here = here.after(token)                   # one token further

The world says how likely each story is, but a model sees tokens. It is
trained on the tokens that the tokenizer cuts a whole story into, so what
the truth gives a token is this: of all stories whose tokens begin with
those seen so far, weighted by how likely they are, the share that goes on
with this token. It is exact, and over the vocabulary it sums to one.

Two things make this more than a look at the grammar. A token may end within
an option (``under a bench`` has several), so that one has to sum over the
options that share the beginning. And how a word is cut depends on all of
it: byte-level BPE splits a text into words first (a run of letters with the
space before it, or a run of punctuation) and cuts each word on its own. So
the truth goes from word to word: it lists every word that may come next with
its probability, lets the tokenizer cut it, and keeps those that agree with
the tokens seen so far. In Chinese a word is everything up to the next
punctuation mark: a few hundred ways at most.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from minimind_core.microworld.stories import (
    NotInLanguage,
    language_module,
    read_story,
)
from minimind_core.microworld.tape import Language, Options, Tape

# How byte-level BPE splits a text into words, for what the world can say:
# its texts have no apostrophe and no space that stands alone.
_WORD = re.compile(r" ?[^\W\d_]+| ?\d+| ?[^\s\w]+|\s+")


class _Branch(Tape):
    """One of the stories that are still possible.

    Attributes
    ----------
    prob : float
        Of the choices made since the truth last counted.
    ahead : str
        What it says beyond the words that were counted.
    choice : tuple or None
        What it has to decide next, see `Tape.advance`.
    """

    def __init__(self, language: Language) -> None:
        super().__init__(language)
        self.prob, self.ahead = 1.0, ""
        self.choice = self.advance()

    def _emit(self, text: str) -> None:
        self.ahead += text

    def decided(self) -> Iterator[_Branch]:
        """This branch with its next choice made, in all ways."""
        assert self.choice is not None
        role, options, texts = self.choice
        for at, text in enumerate(texts):
            yield self._with(role, options, at, text)

    def _with(
        self, role: str, options: Options, at: int, text: str
    ) -> _Branch:
        new = _Branch.__new__(_Branch)
        new.__dict__.update(self.__dict__)
        new.state, new._todo = dict(self.state), list(self._todo)
        new.choices = []
        new.prob = self.prob * options.probs[at]
        new.ahead = self.ahead + text
        new.decide(role, options, at, 0)
        new.choice = new.advance()
        return new

    def beyond(self, word: str) -> _Branch:
        """This branch after one more word was counted."""
        new = _Branch.__new__(_Branch)
        new.__dict__.update(self.__dict__)
        new.ahead = self.ahead[len(word) :]
        return new


def _next_words(branches: Sequence[_Branch]) -> dict[str, list[_Branch]]:
    """Every word that may come next, with the branches that say it.

    The empty word stands for the end of the story.
    """
    found: dict[str, list[_Branch]] = {}
    stack = list(branches)
    while stack:
        branch = stack.pop()
        match = _WORD.match(branch.ahead)
        word = match[0] if match else ""
        # A word that reaches the end of what is known may go on.
        if branch.choice is not None and len(word) == len(branch.ahead):
            stack += branch.decided()
        else:
            found.setdefault(word, []).append(branch.beyond(word))
    return found


class _Way(NamedTuple):
    """A word that the tokens so far may be within."""

    prob: float
    tokens: tuple[int, ...]  # of the word, those still to come
    branches: list[_Branch]  # after the word


class Place:
    """Somewhere in a text, and what may follow. See `Truth.start`."""

    def __init__(self, truth: Truth, ways: Sequence[_Way]) -> None:
        self._truth = truth
        self._ways: list[_Way] = []
        for way in ways:
            if way.tokens:
                self._ways.append(way)
            else:
                self._ways += truth._ways(way.branches, way.prob)

    def probs(self) -> dict[int, float]:
        """The probability of each token that can come next.

        Returns
        -------
        dict of int to float
            Sums to one; empty where the text has left the world, or the
            story has ended.
        """
        total = sum(way.prob for way in self._ways)
        found: dict[int, float] = {}
        for way in self._ways:
            token = way.tokens[0]
            found[token] = found.get(token, 0.0) + way.prob / total
        return found

    def after(self, token: int) -> Place:
        """The place one token further.

        Parameters
        ----------
        token : int
            If it cannot come here, the place has nothing that follows.
        """
        if token == self._truth.eos:
            return Place(self._truth, [])
        kept = [way for way in self._ways if way.tokens[0] == token]
        total = sum(way.prob for way in kept)
        return Place(self._truth, [
            _Way(way.prob / total, way.tokens[1:], way.branches)
            for way in kept
        ])  # fmt: skip


@dataclass(frozen=True)
class TokenTruth:
    """What the truth gives each token of a text.

    Attributes
    ----------
    tokens : list of int
    logprobs : list of float
        Of each token after those before it, in nats; minus infinity from
        the token with which the text leaves the world.
    left : NotInLanguage or None
        Where and why the text leaves the world.
    """

    tokens: list[int]
    logprobs: list[float]
    left: NotInLanguage | None


class Truth:
    """The distribution that a model of the world's stories should learn.

    Parameters
    ----------
    language : {"en", "zh"}
    encode : callable
        Text to token ids, without any special token.
    eos : int
        The token that ends a story.
    """

    def __init__(
        self,
        language: str,
        encode: Callable[[str], list[int]],
        eos: int = 2,
    ) -> None:
        self.language, self.eos = language, eos
        self._encode = encode
        self._cuts: dict[str, tuple[int, ...]] = {"": (eos,)}

    def _cut(self, word: str) -> tuple[int, ...]:
        if word not in self._cuts:
            self._cuts[word] = tuple(self._encode(word))
        return self._cuts[word]

    def _ways(
        self, branches: Sequence[_Branch], prob: float
    ) -> Iterator[_Way]:
        total = sum(branch.prob for branch in branches)
        for word, after in _next_words(branches).items():
            share = sum(branch.prob for branch in after) / total
            yield _Way(prob * share, self._cut(word), after)

    def start(self) -> Place:
        """The place before a story's first token."""
        begun = _Branch(language_module(self.language).LANGUAGE)
        return Place(self, [_Way(1.0, (), [begun])])

    def read(self, text: str) -> TokenTruth:
        """What the truth gives each token of a text, and the end.

        Parameters
        ----------
        text : str
            Whole; a text that stops early is given an end that cannot be.

        Returns
        -------
        TokenTruth
            The last token is the end. The log-probabilities of a story's
            tokens add up to that of the story.
        """
        tokens = [*self._encode(text), self.eos]
        logprobs, place = [], self.start()
        for token in tokens:
            prob = place.probs().get(token, 0.0)
            logprobs.append(math.log(prob) if prob else -math.inf)
            place = place.after(token)
        try:
            read_story(text, self.language)
        except NotInLanguage as error:
            return TokenTruth(tokens, logprobs, error)
        return TokenTruth(tokens, logprobs, None)
