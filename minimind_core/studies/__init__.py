"""Small experiments whose results the book shows.

    from minimind_core.studies import get_study
    rates = get_study("learning_rates")    # at once, or after a minute

Each is a function of a preset's name that returns plain numbers. A result is
kept beside the trained stages, under the code that it came from: an edit to
that code computes it anew.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

from minimind_core.errors import ConfigError
from minimind_core.files import read_json, write_json
from minimind_core.stages import cache_folder, code_digest, digest, locked

Study = Callable[[str, bool], Any]

# Modules that studies use and trained models do not.
USED = ("minimind_core.gradients",)


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
    """
    if name not in studies():
        raise ConfigError(
            f"unknown study {name!r}; there is {', '.join(studies())}"
        )
    study = studies()[name]
    own = digest([_file(study.__module__), *map(_file, USED)], "")
    base = cache_folder() / "studies"
    file = base / f"{code_digest()}-{own}-{preset}-{name}.json"
    with locked(base, file.stem):
        if not file.exists():
            result = study(preset, progress)
            for old in base.glob(f"*-{preset}-{name}.json"):
                old.unlink()
            write_json(file, {"result": result})
        return read_json(file)["result"]


def _file(module: str) -> Path:
    return Path(import_module(module).__file__ or "")
