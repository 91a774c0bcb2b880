"""Stories as programs over a tape: one program that writes and reads.

A program says sentences. Where a sentence leaves something open, the tape
decides: a `Writer` draws one of the options, and a `Reader` finds out which
one stands in a given text. The options of a choice are prefix-free, so a
text has one derivation at most, and its probability is the product of the
probabilities of its choices: it is exact, and there is nothing to sum over.

The program itself is data, in ``world.json`` and one file for each language,
because the pages of the book run it in JavaScript as well.
"""

from __future__ import annotations

import json
import math
import random
import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib import resources
from itertools import accumulate
from typing import Any, NamedTuple, NoReturn

State = dict[str, str]


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
    reason : str
        Why it cannot stand there, as a sentence in the story's language
        without its full stop.
    """

    def __init__(
        self,
        position: int,
        expected: Sequence[str],
        found: str,
        reason: str = "",
    ) -> None:
        self.position, self.found = position, found
        self.expected = tuple(expected)
        self.reason = reason
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


class Options:
    """The ways a choice can go, by language-independent keys.

    Parameters
    ----------
    keys : sequence of str
    weights : {"ranked", "even"} or sequence of float
        In proportion to the probabilities. Ranked: common ones come first,
        and the n-th weighs 1 / sqrt(n).

    Attributes
    ----------
    keys : tuple of str
    weights, probs, logprobs : tuple of float
        The log-probabilities in nats.
    entropy : float
        In nats.
    """

    def __init__(
        self, keys: Sequence[str], weights: str | Sequence[float]
    ) -> None:
        if weights == "ranked":
            weights = [(n + 1) ** -0.5 for n in range(len(keys))]
        elif weights == "even":
            weights = [1.0] * len(keys)
        self.keys = tuple(keys)
        self.weights = tuple(map(float, weights))
        total = sum(self.weights)
        self.probs = tuple(weight / total for weight in self.weights)
        self.logprobs = tuple(math.log(prob) for prob in self.probs)
        self.entropy = -sum(
            p * q for p, q in zip(self.probs, self.logprobs, strict=True)
        )
        self._limits = list(accumulate(self.probs))
        self._without: dict[tuple[str, ...], Options] = {}

    def without(self, *keys: str) -> Options:
        """The same choice with some options ruled out."""
        if keys not in self._without:
            kept = {
                key: weight
                for key, weight in zip(self.keys, self.weights, strict=True)
                if key not in keys
            }
            self._without[keys] = Options(list(kept), list(kept.values()))
        return self._without[keys]

    def position(self, draw: float) -> int:
        """The option that a uniform number in [0, 1) picks."""
        return min(bisect_right(self._limits, draw), len(self.keys) - 1)


def read_data(name: str) -> Any:
    """Read one of the data files that lie beside this module."""
    file = resources.files(__package__).joinpath(f"{name}.json")
    return json.loads(file.read_text("utf8"))


class World:
    """What can happen, without a word of any language.

    Parameters
    ----------
    data : mapping
        The content of ``world.json``. ``roles`` says how each role is
        decided, the first time that a sentence names it. A role has
        ``keys`` with ``weights``; both may depend, by the roles named in
        ``by``, on what was decided before. Or it is ``like`` another one
        ``without`` the keys that some roles have taken, or is ``among`` the
        keys of some roles, or follows from others without any choice
        (``is``). ``story`` is the list of steps, each a sentence's name, or
        a question mark and a role whose keys name sentences. Where a
        sentence was said, the steps that ``then`` has for it follow.
        ``asked`` says of each kind of question the ways in which it can be
        asked: in which ``plots``, and what is ``known`` beside the state.

    Attributes
    ----------
    story : tuple of str
    then : dict of str to tuple of str
    asked : dict of str to list of dict
    present : tuple of str
        The roles of those who are in a story.
    tables : dict of str to str
        The table of words that each role is said in, if it is not said in
        another form; empty for a role whose keys name sentences.
    """

    def __init__(self, data: Mapping[str, Any]) -> None:
        self.roles: dict[str, Any] = data["roles"]
        self.story = tuple(data["story"])
        self.then = {k: tuple(v) for k, v in data.get("then", {}).items()}
        self.asked: dict[str, list[Any]] = data.get("asked", {})
        self.present = tuple(data.get("present", ()))
        self.tables: dict[str, str] = {}
        for role, how in self.roles.items():
            like = self.roles[how.get("like", role)]
            self.tables[role] = like.get("table", "")
        self._options: dict[str, dict[tuple[str, ...], Options]] = {
            role: {} for role in self.roles
        }
        self._needs = {
            role: how.get("by") or how.get("among") or how.get("without", [])
            for role, how in self.roles.items()
        }

    def options(self, role: str, state: Mapping[str, str]) -> Options:
        """The ways in which a role can be decided.

        Parameters
        ----------
        role : str
        state : mapping of str to str
            What has been decided before.
        """
        known = tuple([state[other] for other in self._needs[role]])
        found = self._options[role].get(known)
        if found is None:
            found = self._make_options(self.roles[role], known)
            self._options[role][known] = found
        return found

    def _make_options(self, how: Any, known: tuple[str, ...]) -> Options:
        if "like" in how:
            return self.options(how["like"], {}).without(*known)
        if "among" in how:
            return Options(known, "even")
        keys = how["keys"]
        if "by" in how:
            keys = keys[" ".join(known)]
        return Options(keys, how["weights"])

    def consequence(self, role: str, state: Mapping[str, str]) -> str | None:
        """What a role must be by what was decided; None if it is open."""
        how = self.roles[role]
        if "is" not in how:
            return None
        known = " ".join(state[other] for other in how["by"])
        return str(how["is"][known])


class Step(NamedTuple):
    """Something that a story says next.

    Attributes
    ----------
    kind : {"text", "field", "sentence", "branch"}
        A literal text; what a role is; a sentence; or one of the sentences
        that a role's keys name.
    name : str
        The text, the role, the sentence or the role.
    table : str
        The table of words that a field is said in.
    """

    kind: str
    name: str
    table: str = ""


class Language:
    """How a world is put into words.

    Parameters
    ----------
    world : World
    data : mapping
        The content of a language's file.

    Attributes
    ----------
    name : str
    words : dict
        Table -> key -> text.
    sentences : dict
        Name -> template. A field is ``{role}`` or ``{role:table}``.
    questions : dict
        Kind -> templates of the question and of its answer.
    greeting, manner : str
        How the new skill's questions and answers are put; ``{}`` stands for
        the plain question or answer.
    reasons : dict
        Templates that say why a text is not in the language.
    """

    def __init__(self, world: World, data: Mapping[str, Any]) -> None:
        self.world = world
        self.name: str = data["name"]
        self.words: dict[str, dict[str, str]] = data["words"]
        self.sentences: dict[str, str] = data["sentences"]
        self.questions: dict[str, tuple[str, str]] = {
            kind: (question, answer)
            for kind, (question, answer) in data.get("questions", {}).items()
        }
        self.greeting: str = data.get("greeting", "{}")
        self.manner: str = data.get("manner", "{}")
        self.reasons: dict[str, Any] = data.get("reasons", {})
        self._steps: dict[str, tuple[Step, ...]] = {}
        self._texts: dict[tuple[str, Options], list[str]] = {}

    def steps(self, sentence: str) -> tuple[Step, ...]:
        """A sentence, cut at its fields, and the steps that follow it."""
        if sentence not in self._steps:
            self._steps[sentence] = (
                *self._cut(self.sentences[sentence]),
                *map(as_step, self.world.then.get(sentence, ())),
            )
        return self._steps[sentence]

    def _cut(self, template: str) -> Iterator[Step]:
        for literal, role, table in split_template(template):
            if literal:
                yield Step("text", literal)
            if role:
                yield Step("field", role, table or self.world.tables[role])

    def fill(self, template: str, state: Mapping[str, str]) -> str:
        """A template with every field taken from a state."""
        text = []
        for literal, role, table in split_template(template):
            text.append(literal)
            if role:
                text.append(self.word(role, table, state[role]))
        return "".join(text)

    def word(self, role: str, table: str, key: str) -> str:
        """The text of a key, in a table or else in that of its role."""
        return self.words[table or self.world.tables[role]][key]

    def texts(self, options: Options, table: str) -> list[str]:
        """The text of each option, in one of the tables of words.

        Without a table the keys name sentences, and the texts are how these
        begin, up to the first field.
        """
        if (table, options) not in self._texts:
            self._texts[table, options] = [
                self.words[table][key] if table else self.steps(key)[0].name
                for key in options.keys
            ]
        return self._texts[table, options]

    def explain(
        self,
        kind: str,
        state: Mapping[str, str],
        sentence: str,
        step: Step,
        expected: Sequence[str],
        text: str,
    ) -> str:
        """Say why a text cannot go on as it does.

        Parameters
        ----------
        kind : {"memory", "choice", "phrase", "long"}
            What it contradicts: something the story has said, the options
            of a choice, the wording of a sentence, or the end.
        state : mapping of str to str
        sentence : str
            What was being said.
        step : Step
            And where in it.
        expected : sequence of str
            What could have stood here.
        text : str
            What stands here instead, to the end of the text.
        """
        reasons = self.reasons
        if not reasons:
            return ""
        if kind == "long":
            return str(reasons["long"])
        if any(one.startswith(text) for one in expected):
            return str(reasons["short"])
        _, role, table = step
        words = self.words.get(table, {})
        near = [key for key, word in words.items() if text.startswith(word)]
        key = max(near, key=lambda k: len(words[k]), default="")
        names = (f"{sentence}.{role}", table, role) if key else ()
        special = reasons[kind] if kind in ("memory", "choice") else {}
        templates = [special[name] for name in names if name in special]
        said = {"expected": expected[0]}
        if templates:
            own = self.world.tables[role] if kind == "choice" else table
            said["found"] = self.words[own][key]
        elif kind == "choice":
            templates = [reasons["word"]]
            said["found"] = text[:12].strip()
        else:
            templates = [reasons["phrase"]]
            nearest = max(expected, key=lambda one: _common(one, text))
            shared = _common(nearest, text)
            said["expected"] = nearest[shared:].strip()
            said["found"] = text[shared : shared + 12].strip()
        if state.get(role) in self.words["person"]:
            said["said"] = self.words["person"][state[role]]
        pieces = []
        for literal, name, form in split_template(templates[0]):
            pieces.append(literal)
            if name in said:
                pieces.append(said[name])
            elif name:
                pieces.append(self.word(name, form, state[name]))
        return "".join(pieces)


@cache
def split_template(template: str) -> tuple[tuple[str, str, str], ...]:
    """Cut ``"He met {friend:introduced}."`` at its fields.

    Returns
    -------
    tuple of (literal, role, table)
        The last literal has no role behind it.
    """
    pieces = re.split(r"\{(\w+):?(\w*)\}", template)
    triples = zip(pieces[::3], pieces[1::3], pieces[2::3], strict=False)
    return (*triples, (pieces[-1], "", ""))


def as_step(name: str) -> Step:
    """A step of a world's ``story`` or ``then``."""
    if name.startswith("?"):
        return Step("branch", name[1:])
    return Step("sentence", name)


class Tape:
    """What a program runs on.

    Attributes
    ----------
    language : Language
    state : dict of str to str
        What has been decided, role by role.
    choices : list of Choice
    logprob : float
        Of the choices so far, in nats.
    position : int
        How many characters have been said.
    """

    def __init__(self, language: Language) -> None:
        self.language = language
        self.state: State = {}
        self.choices: list[Choice] = []
        self.logprob = 0.0
        self.position = 0
        self.sentence = ""
        # What is still to be said, the next thing last.
        self._todo = [as_step(name) for name in language.world.story[::-1]]
        self._step = self._todo[-1]

    def advance(self) -> tuple[str, Options, list[str]] | None:
        """Say everything up to the next choice.

        Returns
        -------
        role : str
            What has to be decided; give it to `decide`.
        options : Options
        texts : list of str
            The text of each option.

        None is returned instead where the story is over.
        """
        todo, state, language = self._todo, self.state, self.language
        world = language.world
        while todo:
            self._step = todo.pop()
            kind, name, table = self._step
            if kind == "text":
                self._emit(name)
                continue
            if kind == "sentence":
                self.sentence = name
                todo += language.steps(name)[::-1]
                continue
            if kind == "branch" or name not in state:
                known = world.consequence(name, state)
                if known is None:
                    options = world.options(name, state)
                    return name, options, language.texts(options, table)
                state[name] = known
            self._emit(language.words[table][state[name]])
        return None

    def decide(
        self, role: str, options: Options, at: int, start: int
    ) -> None:
        """Settle a choice.

        Parameters
        ----------
        role, options
            From `advance`.
        at : int
            Which of the options it is.
        start : int
            Where its text began.
        """
        key, logprob = options.keys[at], options.logprobs[at]
        self.logprob += logprob
        self.choices.append(
            Choice(start, role, key, logprob, options.entropy)
        )
        self.state[role] = key
        if self._step.kind == "branch":
            # The beginning of the sentence has been said: it was the choice.
            self.sentence = key
            self._todo += self.language.steps(key)[:0:-1]

    def run(self) -> None:
        """Run the whole story."""
        while (choice := self.advance()) is not None:
            role, options, texts = choice
            start = self.position
            self.decide(role, options, self._pick(options, texts), start)

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
            kind = "phrase" if self._step.kind == "text" else "memory"
            self._leave([text], kind)
        self.position += len(text)

    def _pick(self, options: Options, texts: Sequence[str]) -> int:
        for at, text in enumerate(texts):
            if self.text.startswith(text, self.position):
                self.position += len(text)
                return at
        kind = "phrase" if self._step.kind == "branch" else "choice"
        self._leave(texts, kind)

    def _leave(self, expected: Sequence[str], kind: str) -> NoReturn:
        # The first character that differs from the option that comes
        # closest, so that a reader of the error sees the very spot.
        here = self.text[self.position :]
        shared = max(_common(here, text) for text in expected)
        at = self.position + shared
        close = [t[shared:] for t in expected if _common(here, t) == shared]
        reason = self.language.explain(
            kind, self.state, self.sentence, self._step, expected, here
        )
        raise NotInLanguage(at, close, self.text[at : at + 12], reason)

    def finish(self) -> None:
        """The program is over, so the text must be, too."""
        if self.position != len(self.text):
            left = self.text[self.position : self.position + 12]
            reason = self.language.explain(
                "long", self.state, self.sentence, self._step, (), left
            )
            raise NotInLanguage(self.position, ["the end"], left, reason)


def _common(a: str, b: str) -> int:
    """How many characters two strings begin with alike."""
    limit = min(len(a), len(b))
    return next((i for i in range(limit) if a[i] != b[i]), limit)
