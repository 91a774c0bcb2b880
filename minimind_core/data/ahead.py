"""What large files need is prepared once, and kept in the cache.

    from minimind_core.data.ahead import encode_ahead
    rows = Rows(*encode_ahead(source, spec, encode, key), seq_len=512)

A small file is checked and encoded while it is used. For a large one, two
things are kept: where its records are, so that it need not be checked again,
and its token ids. Both are found by the files' names, sizes and times of
change. They do not alter what is trained: the same records come in the same
order, with the same ids.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from minimind_core.cache import cache_folder
from minimind_core.data.copies import PlainFile
from minimind_core.data.encoding import Encoder
from minimind_core.data.parallel import tokenize_files
from minimind_core.data.shards import Say, Tokenized, read_encoded
from minimind_core.data.sources import Files, LeftOut, Part, Source
from minimind_core.errors import DataError, OutputError
from minimind_core.files import atomic_folder, read_json, write_json

LARGE = 2**24
"""Files of together at least so many bytes are prepared ahead: 16 MiB."""
FORMAT = 1


def is_large(paths: Sequence[Path]) -> bool:
    """Whether files are worth preparing."""
    return sum(path.stat().st_size for path in paths) >= LARGE


def _folder(kind: str, paths: Sequence[Path], key: Mapping[str, Any]) -> Path:
    """Where what belongs to these files is kept."""
    stats = [(str(path.resolve()), path.stat()) for path in paths]
    whole = {
        "format": FORMAT,
        "files": [[name, s.st_size, s.st_mtime_ns] for name, s in stats],
        **key,
    }
    text = json.dumps(whole, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return cache_folder() / kind / f"{paths[0].name}-{digest}"


def open_files(plain: Sequence[PlainFile], kind: str, skip: bool) -> Files:
    """Open files, and remember where the records of large ones are.

    Parameters
    ----------
    plain, kind, skip
        See `Files`.
    """
    paths = [one.path for one in plain]
    if not is_large(paths):
        return Files(plain, kind, skip=skip)
    folder = _folder("files", paths, {"kind": kind, "skip": skip})
    found = _recall(folder, plain, kind, skip)
    if found is None:
        found = Files(plain, kind, skip=skip)
        _remember(found, folder)
    return found


def _remember(files: Files, folder: Path) -> None:
    bad = files.left_out
    try:
        with atomic_folder(folder) as partial:
            files.save_positions(partial)
            write_json(partial / "left_out.json", {
                "count": bad.count if bad else 0,
                "first": bad.first if bad else [],
            })  # fmt: skip
    except (OutputError, OSError):
        pass  # the cache is full or read-only, and the files are open


def _recall(
    folder: Path, plain: Sequence[PlainFile], kind: str, skip: bool
) -> Files | None:
    if not folder.is_dir():
        return None
    try:
        kept = read_json(folder / "left_out.json")
        bad = LeftOut(int(kept["count"]), list(kept["first"]))
        return Files.from_positions(
            folder, plain, kind, bad if skip else None
        )
    except (OSError, ValueError, KeyError, TypeError, DataError):
        return None  # damaged: the files are read again


def encode_ahead(
    source: Source,
    encode: Encoder,
    *,
    key: Mapping[str, Any],
    say: Say | None = None,
) -> tuple[Source, Encoder]:
    """Encode large files once, and return what takes their place.

    Parameters
    ----------
    source : Source
        As `open_source` returns it.
    encode : Encoder
    key : mapping
        What the ids depend on besides the files: the tokenizer's digest, and
        the encoder's options. Must be valid JSON.
    say : callable, optional
        Given a line of text about the progress.

    Returns
    -------
    source, encode
        Encoded records in the same order, with an encoder that returns them
        as they are. For small files, and for anything but files, the
        arguments.

    Raises
    ------
    DataError
        For a record that cannot be encoded, or damaged files of tokens.
    OutputError
        If the cache cannot be written.
    """
    files = source
    parts: list[Part] = []
    while isinstance(files, Part):
        parts.append(files)
        files = files.source
    if not isinstance(files, Files) or not is_large(files.paths):
        return source, encode
    skip = files.left_out is not None
    folder = _folder(
        "tokens", files.paths, {"kind": files.kind, "skip": skip, **key}
    )
    if folder.is_dir():
        found = Tokenized(folder)
    else:
        try:
            found = tokenize_files(files, encode, folder, say=say)
        except OutputError:
            if not folder.is_dir():
                raise
            # Another process has encoded the same data meanwhile.
            found = Tokenized(folder)
    found.left_out = files.left_out
    encoded: Source = found
    for one in reversed(parts):
        encoded = one.of(encoded)
    return encoded, read_encoded
