"""What is known about each bug on show.

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
"""Of the lines that are quoted."""


class Kind(Enum):
    """What a bug costs, the dearest first.

    A bug that costs several things is listed under the dearest.

    Attributes
    ----------
    meaning : str
    """

    WRONG = (
        "a wrong result",
        "What comes out is not what was asked for, and looks like it.",
    )
    TRAINING = (
        "lost training",
        "The steps are paid for, and less is learnt, or kept, than they "
        "were worth.",
    )
    DATA = (
        "lost data",
        "Part of what you have never reaches the model, or not as what it "
        "is.",
    )
    STOP = (
        "a stop",
        "An error or NaN: a run is lost, but you know of it.",
    )
    TIME = (
        "time",
        "What comes out can be right; getting there takes longer.",
    )
    LUCK = (
        "nothing, by luck",
        "Another bug makes up for it, as long as nobody mends that one.",
    )

    def __init__(self, label: str, meaning: str) -> None:
        self.label = label
        self.meaning = meaning

    @property
    def rank(self) -> int:
        """0 for the dearest."""
        return list(Kind).index(self)


class Notice(Enum):
    """What tells you that a bug is there, if you do not look for it."""

    NOTHING = "nothing"
    ODD = "something odd to see"
    ERROR = "an error"

    @property
    def label(self) -> str:
        """In words."""
        return self.value


@dataclass(frozen=True)
class Measured:
    """What a bug did on this machine, beside the right way.

    Parameters
    ----------
    what : str
        What was looked at.
    bug, fix : str
        How it came out as it was written, and put right.
    holds : bool
        Whether the two differ in the way that is claimed.
    """

    what: str
    bug: str
    fix: str
    holds: bool


@dataclass(frozen=True, kw_only=True)
class Exhibit:
    """One bug: where it was, what it does, and what keeps it away.

    Parameters
    ----------
    key : str
        A short name, unique, as used in links.
    title : str
        What it looks like from outside, in a few words.
    commit : str
        Of upstream, where it can be seen.
    date : str
        Of that commit, as ``YYYY-MM-DD``.
    place : str
        ``file:line`` at that commit.
    quote : str
        The line or lines at that place, without their indentation; what
        is left out is marked by ``...``.
    came : str
        When what is wrong first stood there, as ``YYYY-MM-DD commit``.
    gone : str
        When upstream put it right, as ``YYYY-MM-DD commit``, or a pull
        request in place of the commit; empty if it stood there at the last
        commit that was checked.
    kind : Kind
        What it costs.
    noticed : Notice
        What tells of it.
    cost : str
        What it does to somebody who does not know of it.
    fix : str
        What to do instead.
    measure : callable
        Runs the bug and the right way, in a second or two.
    test : str
        The test that fails when the bug is put into the package:
        ``tests/file.py::name``.
    page : str
        The book's page on which it runs, such as ``04_precision``.
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
        """The commit that brought it."""
        return _change(self.came)

    @property
    def gone_url(self) -> str:
        """The commit or pull request that put it right, if there is one."""
        return _change(self.gone)

    @property
    def anchor(self) -> str:
        """Where on its page it is shown."""
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
