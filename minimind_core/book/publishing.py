"""Offer the trained stages and studies of a built book to other machines.

    from minimind_core.book.publishing import publish
    publish("_build/html/_static/stages")     # as a build does at its end

It takes what is in the cache and trains nothing. The counterpart, which
fetches and checks, is `minimind_core.book.published`, which also says what
the format is. What is published of a run is what its readers need: weights,
settings, tokenizer and log. Checkpoints stay at home: they hold optimizer
states in a pickle, and no page reads them.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from minimind_core.book.published import FORMAT, KINDS
from minimind_core.book.stages import (
    STAGES,
    code_digest,
    find_shelf,
    versions,
)
from minimind_core.book.studies import entry_name, studies
from minimind_core.book.studies.adapters import greeting_name
from minimind_core.checkpoint import CHECKPOINTS
from minimind_core.run import is_finished, read_metadata
from minimind_core.version import __version__

SUFFIX = "microworld-0"  # the models that the pages show
TRAINED = ("pretrain", "sft", "lora")

# How an adapter outside the folder of the stages names its base.
BASE = re.compile(r"(?<=\.\./stages/)[0-9a-f]+(?=-microworld-0/)")


def publish(target: str | Path) -> dict[str, int]:
    """Write what is in the cache into the folder of a built book.

    Parameters
    ----------
    target : path
        ``_static/stages`` of the book. What it offered before is removed.

    Returns
    -------
    dict of str to int
        The entries and their bytes, which may share files. Empty if nothing
        was trained by this version of the code, and then nothing is there.
    """
    target = Path(target)
    shutil.rmtree(target, ignore_errors=True)
    digest = code_digest()
    folder = target / digest
    entries: dict[str, Any] = {}
    for name, source in trained():
        files: dict[str, dict[str, Any]] = {}
        for path, data in contents(source, digest):
            sha256 = hashlib.sha256(data).hexdigest()
            files[path] = {"sha256": sha256, "bytes": len(data)}
            folder.mkdir(parents=True, exist_ok=True)
            if not (folder / sha256).exists():
                (folder / sha256).write_bytes(data)
        entries[name] = {"made": made(source), "files": files}
    if entries:
        index = {"format": FORMAT, "code": digest, "entries": entries}
        text = json.dumps(index, indent=1, sort_keys=True) + "\n"
        (folder / "index.json").write_text(text, encoding="utf-8")
    return {
        name: sum(item["bytes"] for item in entry["files"].values())
        for name, entry in entries.items()
    }


def trained() -> Iterator[tuple[str, Path]]:
    """Yield what the pages show and the cache has: its name, its place."""
    shelf = find_shelf(train=True)
    for stage in STAGES:
        source = shelf.stages(SUFFIX) / stage
        if is_finished(source) if stage in TRAINED else source.exists():
            yield f"{SUFFIX}/{stage}", source
    beside = shelf.base / "studies"
    for study in sorted(studies()):
        name = entry_name(study)
        source = beside / f"{shelf.digest}-{name}.json"
        if source.exists():
            yield f"studies/{name}", source
    name = greeting_name("tiny")
    source = beside / f"{shelf.digest}-{name}"
    if is_finished(source):
        yield f"studies/{name}", source


def contents(source: Path, digest: str) -> Iterator[tuple[str, bytes]]:
    """Yield the files of a stage or study, without its checkpoints.

    Parameters
    ----------
    source : path
        A folder, or one file.
    digest : str
        With this the folders of the stages begin where they are fetched.
    """
    if source.is_file():
        yield "result.json", source.read_bytes()
        return
    for file in sorted(source.rglob("*")):
        path = file.relative_to(source)
        if path.parts[0] == CHECKPOINTS or file.suffix not in KINDS:
            continue
        data = file.read_bytes()
        if file.suffix in (".json", ".md"):
            data = BASE.sub(digest, data.decode("utf8")).encode()
        yield path.as_posix(), data


def made(source: Path) -> dict[str, str]:
    """Say when a stage or study was made, and with what.

    Its libraries are those installed here: it would not be in the cache under
    today's name if others had made it.
    """
    moment = source if source.is_file() else newest(source)
    date = datetime.fromtimestamp(moment.stat().st_mtime, UTC).date()
    found = {"date": date.isoformat(), "minimind_core": __version__}
    found |= versions()
    ran = read_metadata(source).get("runtime") if source.is_dir() else None
    if ran:
        found["dtype"] = str(ran["dtype"])
        found["processor"] = str(ran["device_name"])
    return found


def newest(folder: Path) -> Path:
    """Return the file of a folder that was written last."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    return max(files, key=lambda file: file.stat().st_mtime)
