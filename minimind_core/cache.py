"""Where this package keeps what it has computed before, and how.

    from minimind_core.cache import cache_folder, recall, remember
    key = {"processor": "Zen 4", "threads": 2}
    seconds = recall("steps", key)      # None the first time
    remember("steps", key, {"float32": 0.23, "bfloat16": 0.27})

A cache only saves time, so it must never be the reason why something fails.
Reading a damaged entry is like reading a missing one, and an entry that
cannot be written is simply computed again next time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path


def cache_folder() -> Path:
    """The folder of everything that can be computed again.

    Returns
    -------
    Path
        ``$MINIMIND_CACHE`` if it is set, else ``minimind_core`` in the
        user's cache folder: ``~/.cache`` or ``$XDG_CACHE_HOME`` on Linux,
        ``~/Library/Caches`` on a Mac, ``%LOCALAPPDATA%`` on Windows. It may
        not exist yet.
    """
    if chosen := os.environ.get("MINIMIND_CACHE"):
        return Path(chosen).expanduser()
    # On Windows, platformdirs would otherwise put the folder into another
    # one named after an author, and add a third named "Cache".
    return user_cache_path("minimind_core", appauthor=False, opinion=False)


def recall(kind: str, key: Mapping[str, Any]) -> dict[str, Any] | None:
    """Read what `remember` has kept.

    Parameters
    ----------
    kind : str
        A folder of the cache.
    key : mapping
        Everything that the value depends on, as JSON can hold it.

    Returns
    -------
    dict or None
        None if there is no such entry, or if it cannot be read.
    """
    try:
        text = _entry(kind, key).read_text(encoding="utf-8")
        kept = json.loads(text)
        # The key is compared as well, so that a file which was renamed or
        # edited by hand is never taken for another entry.
        if kept["key"] == _plain(key) and isinstance(kept["value"], dict):
            return kept["value"]
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def remember(
    kind: str, key: Mapping[str, Any], value: Mapping[str, Any]
) -> bool:
    """Keep a value for the next process that needs it.

    The file appears complete or not at all, so that two processes can
    remember the same thing at the same time.

    Parameters
    ----------
    kind, key
        As in `recall`.
    value : mapping
        As JSON can hold it.

    Returns
    -------
    bool
        Whether it could be written.
    """
    file = _entry(kind, key)
    text = json.dumps({"key": _plain(key), "value": value}, indent=2) + "\n"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=".partial-", dir=file.parent)
        partial = Path(name)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as stream:
                stream.write(text)
            partial.replace(file)
        finally:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
    except OSError:
        return False
    return True


def _plain(key: Mapping[str, Any]) -> Any:
    """The key as it comes back from a JSON file (tuples become lists)."""
    return json.loads(json.dumps(key, sort_keys=True))


def _entry(kind: str, key: Mapping[str, Any]) -> Path:
    text = json.dumps(key, sort_keys=True)
    name = hashlib.sha256(text.encode()).hexdigest()[:16]
    return cache_folder() / kind / f"{name}.json"
