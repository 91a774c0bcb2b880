"""The world and its stories, without a word of any language.

A world of twelve people who each have a job and a place to go home to. A
story is one of eight plots; each brings a fact that has to be remembered
until the end: who has what, how many are left, where a thing was found. All
of it is data: ``world.json`` says what can happen, and how often.
"""

from __future__ import annotations

from minimind_core.microworld.tape import (
    Language,
    Options,
    Tape,
    World,
    read_data,
)

WORLD = World(read_data("world"))


def _open(role: str) -> Options:
    """The ways to decide a role before anything else is decided."""
    return WORLD.options(role, {})


PEOPLE = _open("hero")
PLACES = _open("place")
WEATHER = _open("weather")
TIMES = _open("time")
COLORS = _open("color")
FEELINGS = _open("feeling")
PLOTS = _open("plot")


def load_language(name: str) -> Language:
    """The world in the words of a data file beside this module.

    Parameters
    ----------
    name : {"english", "chinese"}
    """
    return Language(WORLD, read_data(name))


def tell(tape: Tape) -> None:
    """Run one story on a tape, from the weather to the way home."""
    tape.run()
