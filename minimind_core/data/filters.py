"""Filters that decide which records a data set is better off without.

    from minimind_core.data.cleaning import clean
    from minimind_core.data.filters import ExactDuplicates, Languages, Length
    clean(texts, [Length(at_least=20), Languages("en"), ExactDuplicates()])

Each filter here is a rule with its settings. A rule does not change when it
is used: `start` returns a function that remembers what it has seen, so that
the same filter can clean several data sets. What a word is, see `words`.
"""

from __future__ import annotations

import hashlib
import importlib
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, Protocol, cast

from minimind_core.errors import ConfigError


class Removal(NamedTuple):
    """Why a record is removed.

    Attributes
    ----------
    why : str
        A few words, such as ``12 words``. If there is another record to
        compare with, they end where its place is to follow.
    like : int or None
        Number of the earlier record that it is like.
    """

    why: str
    like: int | None = None


Check = Callable[[str, int], Removal | None]
"""Takes the text and the number of a record; None keeps it."""


class Filter(Protocol):
    """What `cleaning.clean` needs of a filter; there is no base class."""

    @property
    def name(self) -> str:
        """Its name in the report."""

    def start(self) -> Check:
        """Return a check that has seen nothing yet."""


# Chinese, Japanese, Thai, Lao, Burmese and Khmer, which are written without
# spaces between words.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf"
    "\u4e00-\u9fff\U00020000-\U0003ffff"
)
_CHARACTER = re.compile(f"[{_UNSPACED}]")
_WORD = re.compile(f"[{_UNSPACED}]|[^\\W_{_UNSPACED}]+")


@lru_cache(maxsize=1)  # because several filters ask for the same text
def words(text: str) -> tuple[str, ...]:
    """Return the words of a text, without punctuation and in lower case.

    A word is a run of letters and digits. In scripts that do not put spaces
    between words, such as Chinese, each character counts as one. In scripts
    whose vowels are combining marks, such as Devanagari, a word is cut there.

    Parameters
    ----------
    text : str
    """
    return tuple(_WORD.findall(text.casefold()))


def ngrams(units: Sequence[str], n: int) -> list[str]:
    """Return all runs of `n` words, each joined by spaces.

    A text with fewer words is one run, so that short texts can be compared.
    If most of the words are single characters of a script without spaces, a
    run has 2 `n` of them, because a Chinese word has about two characters.

    Parameters
    ----------
    units : sequence of str
    n : int
    """
    n *= _scale(units)
    count = max(1, len(units) - n + 1)
    return [" ".join(units[i : i + n]) for i in range(count)]


def _scale(units: Sequence[str]) -> int:
    single = sum(_CHARACTER.match(unit) is not None for unit in units)
    return 2 if 2 * single > len(units) else 1


def _digest(text: str, size: int) -> bytes:
    # Python's own hash differs from process to process.
    return hashlib.blake2b(text.encode(), digest_size=size).digest()


def _require(package: str, what: str) -> Any:
    """Import a package of the extra ``data``."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ConfigError(
            f"{what} need the package {package.partition('.')[0]}, which is "
            "not installed: pip install 'minimind-core[data]'"
        ) from error


def _check_number(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ConfigError(f"{name} must be from {low} to {high}, not {value}")


# --- duplicates ------------------------------------------------------------


@dataclass(frozen=True)
class ExactDuplicates:
    """Remove texts that occurred before.

    Texts are the same if they differ in nothing but white space and in how
    Unicode writes a letter (NFC). The first of them is kept. Of each kept
    text a digest of 16 bytes stays in memory, in all about 110 bytes.
    """

    name: str = "exact duplicates"

    def start(self) -> Check:
        """Return a check that has seen no text yet."""
        seen: dict[bytes, int] = {}

        def check(text: str, number: int) -> Removal | None:
            plain = " ".join(unicodedata.normalize("NFC", text).split())
            first = seen.setdefault(_digest(plain, 16), number)
            return None if first == number else Removal("same as", first)

        return check


@dataclass(frozen=True)
class NearDuplicates:
    """Remove texts that share most of their n-grams with an earlier one.

    The similarity of two texts is the Jaccard index of their sets of word
    n-grams: those in both, divided by those in either. MinHash (A. Broder,
    On the resemblance and containment of documents, 1997) estimates it from
    the smallest of many hashes, and locality-sensitive hashing finds the
    candidates without comparing all pairs; both are those of `datasketch`.
    The estimate has a standard error of at most 0.5 / sqrt(permutations).

    Parameters
    ----------
    threshold : float
        Smallest estimated similarity of duplicates, from 0.1 to 0.95.
    n : int
        Words in an n-gram. One changed word changes `n` of them, so for
        short texts either number should be smaller than for whole pages.
    permutations : int
        Hashes per text. More of them cost time and memory. With the default
        a kept text takes about 6 kB at a threshold of 0.8 and 9 kB at 0.6,
        so a million texts need several gigabytes.
    seed : int
        Of the permutations.

    Raises
    ------
    ConfigError
        For a number outside of its range, or without `datasketch`.
    """

    threshold: float = 0.8
    n: int = 5
    permutations: int = 128
    seed: int = 1
    name: str = "near duplicates"

    def __post_init__(self) -> None:
        _check_number("threshold", self.threshold, 0.1, 0.95)
        _check_number("n", self.n, 1, 100)
        _check_number("permutations", self.permutations, 64, 4096)

    def start(self) -> Check:
        """Return a check that has seen no text yet."""
        sketch = _require("datasketch", "near duplicates")
        # Misses weigh more than false candidates, which are checked below.
        index = sketch.MinHashLSH(
            self.threshold, self.permutations, weights=(0.1, 0.9)
        )
        empty = sketch.MinHash(self.permutations, seed=self.seed)
        kept: dict[int, Any] = {}

        def check(text: str, number: int) -> Removal | None:
            if not words(text):
                return None  # nothing to compare
            found = empty.copy()  # shares the permutations
            grams = sorted(set(ngrams(words(text), self.n)))
            found.update_batch([gram.encode() for gram in grams])
            # Candidates include texts below the threshold, and their order
            # is that of a set.
            similar = [
                (found.jaccard(kept[other]), -other)
                for other in index.query(found)
            ]
            best, first = max(similar, default=(0.0, 0))
            if best >= self.threshold:
                return Removal(f"{best:.2f} like", -first)
            index.insert(number, found, check_duplication=False)
            kept[number] = sketch.LeanMinHash(found)
            return None

        return check


# --- single texts ----------------------------------------------------------


@dataclass(frozen=True)
class Length:
    """Remove texts with too few or too many words.

    Parameters
    ----------
    at_least, at_most : int, optional
        Words, see `words`. Without `at_most` there is no longest. Gopher
        keeps 50 to 100,000 (Rae et al., 2021, table A1).
    """

    at_least: int = 1
    at_most: int | None = None
    name: str = "length"

    def __post_init__(self) -> None:
        most = self.at_most
        if self.at_least < 0 or (most is not None and most < self.at_least):
            raise ConfigError(
                f"lengths from {self.at_least} to {most} words: no text has "
                "such a length"
            )

    def start(self) -> Check:
        """Return the check."""

        def check(text: str, number: int) -> Removal | None:
            count, most = len(words(text)), self.at_most
            if count < self.at_least or (most is not None and count > most):
                return Removal(f"{count} words")
            return None

        return check


class Languages:
    """Remove texts in other languages than these.

    The language is what `py3langid` says of the whole text (Lui and Baldwin,
    langid.py, 2012; retrained). It is not sure of a text of a few words, and
    such a text is kept.

    Parameters
    ----------
    *codes : str
        The languages to keep, as `py3langid` writes them: ``en``, ``zh``.
        It tells Cantonese (``yue``) and Wu (``wuu``) from ``zh``.
    sure : float
        A text is removed only if another language is at least this likely.

    Raises
    ------
    ConfigError
        For a code that it does not know, or without `py3langid`.
    """

    name = "language"

    def __init__(self, *codes: str, sure: float = 0.5) -> None:
        if not codes:
            raise ConfigError("name the languages to keep, such as en")
        _check_number("sure", sure, 0.0, 1.0)
        self.codes = tuple(code.strip() for code in codes)
        self.sure = sure

    def start(self) -> Check:
        """Return the check."""
        identify = _identifier()
        for code in self.codes:
            if code not in identify.labels:
                raise ConfigError(
                    f"unknown language {code!r}; py3langid knows "
                    f"{', '.join(sorted(identify.labels))}"
                )

        def check(text: str, number: int) -> Removal | None:
            found, likely = identify.classify(text)
            if found in self.codes or likely < self.sure:
                return None
            return Removal(f"{found} ({likely:.2f})")

        return check


@lru_cache(maxsize=1)
def _identifier() -> Any:
    langid = _require("py3langid.langid", "filters by language")
    return langid.LanguageIdentifier.from_model_file(
        langid.MODEL_FILE, norm_probs=True
    )


GOPHER = {
    "lines": 0.30, "paragraphs": 0.30,
    "line characters": 0.20, "paragraph characters": 0.20,
    "top 2-gram": 0.20, "top 3-gram": 0.18, "top 4-gram": 0.16,
    "5-grams": 0.15, "6-grams": 0.14, "7-grams": 0.13, "8-grams": 0.12,
    "9-grams": 0.11, "10-grams": 0.10,
}  # fmt: skip
"""Limits of `Repetition`, from Rae et al., Scaling language models: methods,
analysis and insights from training Gopher (2021), table A1."""


def repetition(text: str) -> dict[str, float]:
    """Measure in several ways how much a text repeats itself.

    Parameters
    ----------
    text : str

    Returns
    -------
    dict of str to float
        Shares from 0 to 1, with the names of `GOPHER`. ``lines`` and
        ``paragraphs`` are the share that occurred before, also in
        characters. ``top 2-gram`` is the share of all letters that the most
        frequent pair of words covers, if it occurs twice or more.
        ``5-grams`` is the share of letters within any run of five words that
        occurs twice or more; no letter is counted twice.
    """
    found = {}
    for kind, pieces in (
        ("line", text.splitlines()),
        ("paragraph", re.split(r"\n\s*\n", text)),
    ):
        parts = [piece.strip() for piece in pieces if piece.strip()]
        again = _seen_before(parts)
        found[f"{kind}s"] = len(again) / max(1, len(parts))
        found[f"{kind} characters"] = (
            sum(map(len, again)) / max(1, sum(map(len, parts)))
        )  # fmt: skip
    units = words(text)
    letters, scale = max(1, sum(map(len, units))), _scale(units)
    for n in range(2, 11):
        grams = ngrams(units, n)
        counts = Counter(grams)
        if n < 5:
            # Of equally frequent ones the longest, whatever their order.
            top = max(grams, key=lambda one: (counts[one], len(one)))
            length = len(top) - top.count(" ")
            often = counts[top] if counts[top] > 1 else 0
            found[f"top {n}-gram"] = min(1.0, often * length / letters)
        else:
            covered = bytearray(len(units))
            for i, gram in enumerate(grams):
                if counts[gram] > 1:
                    covered[i : i + n * scale] = b"\1" * n * scale
            inside = sum(
                len(unit)
                for unit, within in zip(units, covered, strict=True)
                if within
            )
            found[f"{n}-grams"] = inside / letters
    return found


def _seen_before(parts: Sequence[str]) -> list[str]:
    seen: set[str] = set()
    again = []
    for part in parts:
        if part in seen:
            again.append(part)
        seen.add(part)
    return again


@dataclass(frozen=True)
class Repetition:
    """Remove texts that repeat themselves.

    Parameters
    ----------
    limits : mapping of str to float, optional
        Largest shares, named as in `GOPHER`; what it does not name is not
        limited. Gopher's own are for pages of at least 50 words, and a
        short text reaches some of them without being bad.

    Raises
    ------
    ConfigError
        For a measure that `repetition` does not have.
    """

    limits: Mapping[str, float] | None = None
    name: str = "repetition"

    def __post_init__(self) -> None:
        for name in self.limits or ():
            if name not in GOPHER:
                raise ConfigError(
                    f"unknown measure {name!r}; expected one of "
                    f"{', '.join(GOPHER)}"
                )

    def start(self) -> Check:
        """Return the check."""
        limits = GOPHER if self.limits is None else self.limits

        def check(text: str, number: int) -> Removal | None:
            found = repetition(text)
            for name, limit in limits.items():
                if found[name] > limit:
                    return Removal(f"{name} {found[name]:.2f}")
            return None

        return check


# --- held-out data ---------------------------------------------------------


class Contamination:
    """Remove records that contain what a model will be examined on.

    Parameters
    ----------
    held_out : iterable of str
        The texts of the held-out set, read once. Their n-grams stay in
        memory, about 130 bytes each.
    n : int
        Words in an n-gram. GPT-3 compared runs of 13 (Brown et al., 2020,
        appendix C).
    share : float
        A record is removed if it contains more than this share of a held-out
        text's n-grams. With 0, one common n-gram is enough, as for GPT-3.
        Texts that are written after a pattern have many in common, and
        need a larger share.

    Notes
    -----
    A held-out text with fewer than `n` words is found only in a record that
    consists of the same words.
    """

    name = "contamination"

    def __init__(
        self, held_out: Iterable[str], *, n: int = 13, share: float = 0.0
    ) -> None:
        _check_number("n", n, 1, 100)
        _check_number("share", share, 0.0, 1.0)
        self.n, self.share = n, share
        self._owners: dict[bytes, list[int]] = {}
        self._sizes: list[int] = []
        for number, text in enumerate(held_out):
            grams = self._grams(text)
            self._sizes.append(len(grams))
            for gram in grams:
                self._owners.setdefault(gram, []).append(number)

    def _grams(self, text: str) -> set[bytes]:
        found = words(text)
        if not found:
            return set()
        return {_digest(gram, 8) for gram in ngrams(found, self.n)}

    def start(self) -> Check:
        """Return the check."""

        def check(text: str, number: int) -> Removal | None:
            shared = Counter(self._owners_of(self._grams(text)))
            shares = [
                (count / self._sizes[owner], -owner)
                for owner, count in shared.items()
            ]
            most, owner = max(shares, default=(0.0, 0))
            if most <= self.share:
                return None
            return Removal(f"{most:.0%} of held-out text {-owner}")

        return check

    def _owners_of(self, grams: set[bytes]) -> Iterator[int]:
        for gram in grams:
            yield from self._owners.get(gram, ())


# --- your own --------------------------------------------------------------


@dataclass(frozen=True)
class Rule:
    """A filter made from a function of the text.

    Parameters
    ----------
    function : callable
        Takes a text; true, or a few words that say why, removes it.
    name : str
        In the report.
    """

    function: Callable[[str], str | bool | None]
    name: str

    def start(self) -> Check:
        """Return the check."""

        def check(text: str, number: int) -> Removal | None:
            why = self.function(text)
            if not why:
                return None
            return Removal(why if isinstance(why, str) else "")

        return check


def as_filter(given: Filter | Callable[[str], str | bool | None]) -> Filter:
    """Return a filter, or make one from a function of the text.

    Raises
    ------
    ConfigError
        If it is neither; also for a filter's class instead of a filter.
    """
    ready = hasattr(given, "start") and hasattr(given, "name")
    if isinstance(given, type) or not (callable(given) or ready):
        shown = given.__name__ if isinstance(given, type) else repr(given)
        raise ConfigError(
            f"{shown} is no filter; give one of minimind_core.data.filters, "
            "such as ExactDuplicates(), or a function of the text"
        )
    if ready:
        return cast(Filter, given)
    function = cast(Callable[[str], str | bool | None], given)
    return Rule(function, getattr(given, "__name__", "rule"))
