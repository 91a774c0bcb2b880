"""Stories by number, read back, and measured."""

from __future__ import annotations

import math
import random
import statistics
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from types import ModuleType

from minimind_core.microworld import chinese, english
from minimind_core.microworld.tape import (
    Choice,
    NotInLanguage,
    Reader,
    Writer,
)
from minimind_core.microworld.world import tell

_MODULES: dict[str, ModuleType] = {"en": english, "zh": chinese}
LANGUAGES = tuple(_MODULES)


def language_module(language: str) -> ModuleType:
    """The tables of a language.

    Raises
    ------
    ValueError
        For a language the world does not speak.
    """
    if language not in _MODULES:
        raise ValueError(
            f"the microworld speaks {', '.join(LANGUAGES)}, not {language!r}"
        )
    return _MODULES[language]


@dataclass(frozen=True)
class Story:
    """A story and everything that is known about it.

    Attributes
    ----------
    text : str
    logprob : float
        Its exact log-probability, in nats.
    state : dict of str to str
        What happened, the same in every language.
    choices : list of Choice
        Each decision: where in the text, how likely, how uncertain.
    """

    text: str
    logprob: float
    state: dict[str, str]
    choices: list[Choice]

    @property
    def entropy(self) -> float:
        """Summed entropy of the choices along the way, in nats."""
        return sum(choice.entropy for choice in self.choices)


def write_story(seed: int, index: int, language: str = "en") -> Story:
    """The story with a number.

    Parameters
    ----------
    seed, index : int
        The same two give the same events in every language.
    language : {"en", "zh"}

    Returns
    -------
    Story
    """
    module = language_module(language)
    tape = Writer(module.LANGUAGE, random.Random(f"{seed}:{index}"))
    tell(tape)
    return Story(tape.text, tape.logprob, tape.state, tape.choices)


def read_story(text: str, language: str = "en") -> Story:
    """Recover a story's choices and its probability from its text.

    Raises
    ------
    NotInLanguage
        Where the text cannot be the program's.
    """
    tape = Reader(language_module(language).LANGUAGE, text)
    tell(tape)
    tape.finish()
    return Story(text, tape.logprob, tape.state, tape.choices)


def is_valid(text: str, language: str = "en") -> bool:
    """Whether a text is a story of the language."""
    try:
        read_story(text, language)
    except NotInLanguage:
        return False
    return True


def write_stories(
    seed: int,
    start: int,
    count: int,
    language: str = "en",
    workers: int = 1,
) -> list[Story]:
    """Many stories, by several processes if wanted.

    Parameters
    ----------
    seed : int
    start, count : int
        The stories ``start`` to ``start + count - 1``.
    language : {"en", "zh"}
    workers : int
        Processes to share the work out to; the stories are the same.
    """
    if workers == 1:
        return [
            write_story(seed, i, language)
            for i in range(start, start + count)
        ]
    share = math.ceil(count / workers)
    tasks = [
        (seed, at, min(share, start + count - at), language)
        for at in range(start, start + count, share)
    ]
    with ProcessPoolExecutor(workers) as pool:
        parts = pool.map(write_stories, *zip(*tasks, strict=True))
        return [story for part in parts for story in part]


@dataclass(frozen=True)
class Entropy:
    """How much chance there is in a story: what no model can predict.

    Attributes
    ----------
    nats : float
        Per document.
    standard_error : float
    nats_by_surprise : float
        The same quantity from the stories' own log-probabilities, which
        scatter more: an independent check.
    surprise_error : float
        Its standard error.
    bytes : float
        Mean length of a document, UTF-8.
    documents : int
    """

    nats: float
    standard_error: float
    nats_by_surprise: float
    surprise_error: float
    bytes: float
    documents: int


def entropy(
    language: str = "en", documents: int = 2000, seed: int = 0
) -> Entropy:
    """The entropy of the corpus, in nats per document.

    Along a sampled story each choice's entropy is known exactly, so only
    the path is left to chance and the mean has a small error.
    """
    stories = [write_story(seed, i, language) for i in range(documents)]
    known = [story.entropy for story in stories]
    surprise = [-story.logprob for story in stories]
    root = math.sqrt(documents)
    return Entropy(
        statistics.fmean(known),
        statistics.stdev(known) / root,
        statistics.fmean(surprise),
        statistics.stdev(surprise) / root,
        statistics.fmean(len(story.text.encode()) for story in stories),
        documents,
    )
