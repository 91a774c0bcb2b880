"""Small experiments whose results the book shows.

    from minimind_core.book.studies import get_study
    rates = get_study("learning_rates")    # instantly, or after a minute
    get_studies("binding", "faults")       # two at a time, if not cached

Each study is a function of a preset's name that returns plain numbers.
Results are cached beside the trained stages. The cache key includes a digest
of the code, so that an edit to it recomputes the study. Like stages, they can
be fetched from the published book (`minimind_core.book.published`).
"""

from __future__ import annotations

import os
import pkgutil
from collections.abc import Callable
from functools import lru_cache, partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from minimind_core.book import published
from minimind_core.book.jobs import Job, run_jobs
from minimind_core.book.sizes import require_consent_to_study
from minimind_core.book.stages import Shelf, digest, find_shelf, locked
from minimind_core.errors import ConfigError
from minimind_core.files import read_json, write_json

Study = Callable[[str, bool], Any]

# The stage with which a module's studies begin, unless it is the tokenizer.
BEGINS_WITH = {
    "adapters": "hf", "finetuning": "pretrain", "sampling": "pretrain",
}  # fmt: skip

# Modules that studies use and trained models do not.
USED = ("minimind_core.book.gradients",)


@lru_cache(maxsize=1)
def studies() -> dict[str, Study]:
    """Return all studies by name.

    Raises
    ------
    ValueError
        If two modules have a study of the same name.
    """
    found: dict[str, Study] = {}
    for module in pkgutil.iter_modules(__path__):
        own = import_module(f"{__name__}.{module.name}").STUDIES
        if twice := found.keys() & own.keys():
            raise ValueError(f"two studies are called {sorted(twice)}")
        found |= own
    return found


def stage_for(name: str) -> str:
    """Return the stage that a study begins with."""
    module = studies()[name].__module__.rpartition(".")[2]
    return BEGINS_WITH.get(module, "tokenizer")


def get_study(
    name: str, *, preset: str = "tiny", progress: bool = True
) -> Any:
    """Return the result of a study, from the cache, fetched or computed.

    Parameters
    ----------
    name : str
        One of `studies`.
    preset : str or Size
        The model size to use. A larger one has to be agreed to, see
        `book.sizes`.
    progress : bool
        Print progress lines while it is computed, or where it came from.

    Returns
    -------
    Any
        Numbers, texts, lists and dictionaries of them.

    Raises
    ------
    ConfigError
        For an unknown study, and for one that is not there yet at a larger
        size that nobody agreed to.
    Exception
        What the study raised, with its name in a note.
    """
    shelf = find_shelf(preset, progress=progress)
    file = _file_of(name, preset, shelf)
    with locked(file.parent, file.stem):
        if not _is_there(name, preset, shelf, progress):
            require_consent_to_study(name, preset)
            try:
                result = studies()[name](preset, progress)
            except Exception as error:
                error.add_note(f"in the study {name!r}")
                raise
            _forget_old(file, preset, name)
            write_json(file, {"result": result})
        return read_json(file)["result"]


def get_studies(
    *names: str,
    preset: str = "tiny",
    progress: bool = True,
    jobs: int | None = None,
) -> dict[str, Any]:
    """Return the results of several studies, computing missing ones.

    These models are so small that a second thread helps little. Running two
    studies in two processes, with one thread each, helps more. A script must
    call this below ``if __name__ == "__main__":``, or with ``jobs=1``,
    because the new processes import it.

    Parameters
    ----------
    *names : str
        Names of `studies`.
    preset, progress
        As in `get_study`.
    jobs : int, optional
        How many studies to compute at a time, each in its own process. The
        default is two, or one on a machine with a single core or with a
        GPU, which one model may fill. With 1, this process computes them.

    Returns
    -------
    dict of str to Any
        The results by name.

    Raises
    ------
    ConfigError
        For an unknown study, before anything is computed.
    Exception
        As from `get_study`. Running studies are finished first, and no
        other is started.
    """
    shelf = find_shelf(preset, progress=progress)
    missing = []
    for name in names:
        file = _file_of(name, preset, shelf)
        with locked(file.parent, file.stem):
            if not _is_there(name, preset, shelf, progress):
                missing.append(name)
    if jobs is None:
        alone = torch.cuda.is_available() or (os.cpu_count() or 1) < 2
        jobs = 1 if alone else 2
    if min(jobs, len(missing)) > 1:
        compute = partial(get_study, preset=preset, progress=progress)
        run_jobs(
            {name: Job(partial(compute, name)) for name in missing},
            jobs,
            progress=progress,
        )
    return {
        name: get_study(name, preset=preset, progress=progress)
        for name in names
    }


def entry_name(name: str, preset: str = "tiny") -> str:
    """Return a study's name with a digest of the code of its own.

    Raises
    ------
    ConfigError
        For an unknown study.
    """
    if name not in studies():
        raise ConfigError(
            f"unknown study {name!r}; expected one of {', '.join(studies())}"
        )
    own = digest([_file(studies()[name].__module__), *map(_file, USED)], "")
    return f"{own}-{preset}-{name}"


def _file_of(name: str, preset: str, shelf: Shelf) -> Path:
    """Return the path of a study's cached result."""
    file = f"{shelf.digest}-{entry_name(name, preset)}.json"
    return shelf.base / "studies" / file


def _is_there(name: str, preset: str, shelf: Shelf, progress: bool) -> bool:
    """Whether a result is cached, or was fetched now."""
    file = _file_of(name, preset, shelf)
    if file.exists():
        return True
    entry = f"studies/{entry_name(name, preset)}"
    if not shelf.fetch(entry, file, progress):
        return False
    _forget_old(file, preset, name)
    return True


def _forget_old(newest: Path, preset: str, name: str) -> None:
    """Remove the results of a study that other code has left."""
    for old in newest.parent.glob(f"*-{preset}-{name}.json"):
        if old != newest:
            old.unlink()
            published.origin_of(old).unlink(missing_ok=True)


def _file(module: str) -> Path:
    return Path(import_module(module).__file__ or "")
