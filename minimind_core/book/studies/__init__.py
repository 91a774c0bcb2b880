"""Small experiments whose results the book shows.

    from minimind_core.book.studies import get_study
    rates = get_study("learning_rates")    # at once, or after a minute
    get_studies("binding", "faults")       # two at a time, if not there yet

Each is a function of a preset's name that returns plain numbers. A result is
kept beside the trained stages, under the code that it came from: an edit to
that code computes it anew.
"""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import pkgutil
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from minimind_core.book.stages import code_digest, digest, locked
from minimind_core.cache import cache_folder
from minimind_core.errors import ConfigError
from minimind_core.files import read_json, write_json

Study = Callable[[str, bool], Any]

# Modules that studies use and trained models do not.
USED = ("minimind_core.book.gradients",)


@lru_cache(maxsize=1)
def studies() -> dict[str, Study]:
    """All studies by name.

    Raises
    ------
    ValueError
        If two modules have one of the same name.
    """
    found: dict[str, Study] = {}
    for module in pkgutil.iter_modules(__path__):
        own = import_module(f"{__name__}.{module.name}").STUDIES
        if twice := found.keys() & own.keys():
            raise ValueError(f"two studies are called {sorted(twice)}")
        found |= own
    return found


def get_study(
    name: str, *, preset: str = "tiny", progress: bool = True
) -> Any:
    """The result of a study, from the cache or computed now.

    Parameters
    ----------
    name : str
        One of `studies`.
    preset : str
        The size at which it is made.
    progress : bool
        Print progress lines while it is computed.

    Returns
    -------
    Any
        Numbers, texts, lists and dictionaries of them.

    Raises
    ------
    ConfigError
        For an unknown study.
    Exception
        What the study raised, with its name in a note.
    """
    file = _file_of(name, preset)
    with locked(file.parent, file.stem):
        if not file.exists():
            try:
                result = studies()[name](preset, progress)
            except Exception as error:
                error.add_note(f"in the study {name!r}")
                raise
            for old in file.parent.glob(f"*-{preset}-{name}.json"):
                old.unlink()
            write_json(file, {"result": result})
        return read_json(file)["result"]


def get_studies(
    *names: str,
    preset: str = "tiny",
    progress: bool = True,
    jobs: int | None = None,
) -> dict[str, Any]:
    """The results of several studies; what is missing is computed together.

    These models are so small that a second thread gains little. A process
    for each of two studies, with one thread each, gains more. A script must
    call this below ``if __name__ == "__main__":``, or with ``jobs=1``: the
    new processes import it.

    Parameters
    ----------
    *names : str
        Of `studies`.
    preset, progress
        As in `get_study`.
    jobs : int, optional
        How many are computed at a time, each in a process of its own. Two,
        or on a machine with one core or with a GPU one, if not given: the
        model may fill the GPU. With 1 it is this process that computes.

    Returns
    -------
    dict of str to Any
        The results by name.

    Raises
    ------
    ConfigError
        For an unknown study, before anything is computed.
    Exception
        As from `get_study`. Studies that are under way are finished first,
        no other is begun.
    """
    missing = [n for n in names if not _file_of(n, preset).exists()]
    if jobs is None:
        alone = torch.cuda.is_available() or (os.cpu_count() or 1) < 2
        jobs = 1 if alone else 2
    if min(jobs, len(missing)) > 1:
        _compute(missing, preset, progress, jobs)
    return {
        name: get_study(name, preset=preset, progress=progress)
        for name in names
    }


def _compute(
    names: list[str], preset: str, progress: bool, jobs: int
) -> None:
    """Compute studies, each in a process of its own, a few at a time."""
    with ProcessPoolExecutor(
        min(jobs, len(names)),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=torch.set_num_threads,
        initargs=(1,),
    ) as pool:
        running = {
            pool.submit(_timed, name, preset, progress): name
            for name in names
        }
        for number, future in enumerate(as_completed(running), start=1):
            name = running[future]
            try:
                seconds = future.result()
            except Exception:
                pool.shutdown(cancel_futures=True)
                raise
            if progress:
                print(
                    f"study {number}/{len(names)} {name}: {seconds:.0f} s",
                    flush=True,
                )


def _timed(name: str, preset: str, progress: bool) -> float:
    """Compute one study; how many seconds it took."""
    start = time.perf_counter()
    with contextlib.redirect_stdout(_Lines(name)):
        get_study(name, preset=preset, progress=progress)
    return time.perf_counter() - start


class _Lines(io.TextIOBase):
    """Whole lines that say whose they are: two write at a time."""

    def __init__(self, name: str) -> None:
        self.name, self.out, self.begun = name, sys.stdout, ""

    def write(self, text: str) -> int:
        """Pass on what is a whole line by now, and not a bar's in between."""
        *lines, self.begun = (self.begun + text).split("\n")
        for line in lines:
            said = line.rstrip("\r").rpartition("\r")[2].strip()
            if said:
                print(f"  {self.name}: {said}", file=self.out, flush=True)
        return len(text)


def _file_of(name: str, preset: str) -> Path:
    """Where the result of a study is kept, or will be."""
    if name not in studies():
        raise ConfigError(
            f"unknown study {name!r}; there is {', '.join(studies())}"
        )
    own = digest([_file(studies()[name].__module__), *map(_file, USED)], "")
    base = cache_folder() / "studies"
    return base / f"{code_digest()}-{own}-{preset}-{name}.json"


def _file(module: str) -> Path:
    return Path(import_module(module).__file__ or "")
