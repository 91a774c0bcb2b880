"""The catalogue of bugs: where each one was and what it does.

    from minimind_core.book.exhibits import catalogue
    for exhibit in catalogue():
        print(exhibit.key, exhibit.title, exhibit.measure())
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from importlib import import_module

UPSTREAM = "https://github.com/jingyaogong/minimind"
LICENCE = "Apache-2.0"
"""License of the quoted lines."""


class Kind(Enum):
    """What a bug costs, most expensive first.

    A bug with several costs is listed under the most expensive one.

    Attributes
    ----------
    meaning : str
    """

    WRONG = (
        "a wrong result",
        "What the program computes or writes is not what was asked for.",
    )
    TRAINING = (
        "lost training",
        "The steps are computed, but the model learns or keeps less than "
        "it should.",
    )
    DATA = (
        "lost data",
        "Part of the data never reaches the model, or reaches it changed.",
    )
    STOP = (
        "a stop",
        "An error or NaN: the program or a loader stops, and you notice.",
    )
    TIME = (
        "time",
        "The result can be right, but finding or computing it takes longer.",
    )
    LUCK = (
        "nothing, by luck",
        "Another bug compensates for it, as long as that one is not fixed.",
    )

    def __init__(self, label: str, meaning: str) -> None:
        self.label = label
        self.meaning = meaning

    @property
    def rank(self) -> int:
        """0 for the most expensive."""
        return list(Kind).index(self)


class Notice(Enum):
    """What reveals a bug to a user who does not look for it.

    A bug that shows in one way in one case and in another way in another
    is listed under the clearest signal.
    """

    NOTHING = "nothing"
    ODD = "something odd to see"
    ERROR = "an error"

    @property
    def label(self) -> str:
        """In words."""
        return self.value


@dataclass(frozen=True)
class Measured:
    """What a bug did on this machine, beside the correct code.

    Parameters
    ----------
    what : str
        What was measured, in a sentence.
    bug, fix : str
        The results of the original code and of the fixed code.
    holds : bool
        Whether the two differ as claimed.
    labels : tuple of two str
        What to write before the two results.
    """

    what: str
    bug: str
    fix: str
    holds: bool
    labels: tuple[str, str] = ("with the bug", "without it")


@dataclass(frozen=True, kw_only=True)
class Exhibit:
    """One bug: where it was, what it does, and which test prevents it.

    Parameters
    ----------
    key : str
        A short name, unique, as used in links.
    title : str
        Its visible effect, in a few words.
    commit : str
        A commit of upstream that contains it.
    date : str
        Date of that commit, as ``YYYY-MM-DD``.
    place : str
        ``file:line`` at that commit.
    quote : str
        The line or lines at that place, without their indentation;
        omissions are marked by ``...``.
    came : str
        When the bug was introduced, as ``YYYY-MM-DD commit``.
    gone : str
        When upstream fixed it, as ``YYYY-MM-DD commit``, or with a pull
        request in place of the commit; empty if it was still there in the
        last commit that was checked.
    kind : Kind
        What it costs.
    noticed : Notice
        What reveals it.
    cost : str
        Its effect on a user who does not know about it.
    fix : str
        What to do instead.
    measure : callable
        Runs the bug and the correct code, in a second or two.
    test : str
        The test that fails if the package has the bug:
        ``tests/file.py::name``.
    page : str
        The book's page that runs it, such as ``04_precision``.
    """

    key: str
    title: str
    commit: str
    date: str
    place: str
    quote: str
    came: str
    gone: str = ""
    kind: Kind
    noticed: Notice
    cost: str
    fix: str
    measure: Callable[[], Measured]
    test: str
    page: str

    @property
    def url(self) -> str:
        """The line in upstream's repository."""
        file, _, line = self.place.partition(":")
        first = line.split("-")[0]
        return f"{UPSTREAM}/blob/{self.commit}/{file}#L{first}"

    @property
    def came_url(self) -> str:
        """The commit that introduced it."""
        return _change(self.came)

    @property
    def gone_url(self) -> str:
        """The commit or pull request that fixed it, if there is one."""
        return _change(self.gone)

    @property
    def anchor(self) -> str:
        """The anchor on its page."""
        return f"exhibit-{self.key}"

    @property
    def module(self) -> str:
        """The module that holds it."""
        return self.measure.__module__


def _change(moment: str) -> str:
    name = moment.partition(" ")[2]
    if name.startswith("#"):
        return f"{UPSTREAM}/pull/{name[1:]}"
    return f"{UPSTREAM}/commit/{name}" if name else ""


def catalogue() -> tuple[Exhibit, ...]:
    """All exhibits, module by module.

    Raises
    ------
    ValueError
        If two have the same key.
    """
    package = import_module("minimind_core.book.exhibits")
    found: list[Exhibit] = []
    for module in pkgutil.iter_modules(package.__path__):
        name = f"{package.__name__}.{module.name}"
        found += getattr(import_module(name), "EXHIBITS", ())
    keys = [exhibit.key for exhibit in found]
    if len(set(keys)) != len(keys):
        raise ValueError(f"two exhibits have the same key: {sorted(keys)}")
    return tuple(found)
