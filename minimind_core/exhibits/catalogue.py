"""What is known about each bug on show.

    from minimind_core.exhibits import catalogue
    for exhibit in catalogue():
        print(exhibit.key, exhibit.title)
"""

from __future__ import annotations

import pkgutil
from dataclasses import dataclass
from importlib import import_module

UPSTREAM = "https://github.com/jingyaogong/minimind"


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
    cost : str
        What it does to somebody who does not know of it.
    fix : str
        What to do instead.
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
    cost: str
    fix: str
    test: str
    page: str

    @property
    def url(self) -> str:
        """The line in upstream's repository."""
        file, _, line = self.place.partition(":")
        first = line.split("-")[0]
        return f"{UPSTREAM}/blob/{self.commit}/{file}#L{first}"


def catalogue() -> tuple[Exhibit, ...]:
    """All exhibits, module by module.

    Raises
    ------
    ValueError
        If two have the same key.
    """
    package = import_module("minimind_core.exhibits")
    found: list[Exhibit] = []
    for module in pkgutil.iter_modules(package.__path__):
        name = f"{package.__name__}.{module.name}"
        found += getattr(import_module(name), "EXHIBITS", ())
    keys = [exhibit.key for exhibit in found]
    if len(set(keys)) != len(keys):
        raise ValueError(f"two exhibits have the same key: {sorted(keys)}")
    return tuple(found)
