"""What ``--data`` may say, and the source that it names.

    from minimind_core.data import open_source
    source = open_source("microworld", "text")
    source = open_source(["stories.jsonl"], "text", held_out=True)
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minimind_core.data.sources import Files, Slice, Source
from minimind_core.errors import DataError
from minimind_core.microworld import (
    LANGUAGES,
    MicroworldConversations,
    MicroworldStories,
)

MICROWORLD = "microworld"

@dataclass(frozen=True)
class DataSpec:
    """A data specification, parsed.

    Attributes
    ----------
    language : str or None
        Of the microworld; None for files.
    paths : tuple of Path
        Files; empty for the microworld.
    part : {"", "tenth", "rest"}
        Every tenth record to train on of a file, or all the others, written
        ``FILE#tenth`` and ``FILE#rest``: one file for two stages. What is
        held out is the same for both.
    """

    language: str | None
    paths: tuple[Path, ...] = ()
    part: str = ""

    def names(self) -> list[str]:
        """As `parse_data` takes it back."""
        if self.language is None:
            mark = f"#{self.part}" if self.part else ""
            return [f"{path}{mark}" for path in self.paths]
        plain = self.language == LANGUAGES[0]
        return [MICROWORLD if plain else f"{MICROWORLD}:{self.language}"]

    def __str__(self) -> str:
        return " ".join(self.names())


Data = str | Path | Sequence[str | Path] | DataSpec
"""Whatever `parse_data` understands."""


def parse_data(data: Data) -> DataSpec:
    """Understand ``microworld``, ``microworld:zh`` or paths.

    Raises
    ------
    DataError
        For an unknown language or a path that is no file.
    """
    if isinstance(data, DataSpec):
        return data
    if isinstance(data, str | Path):
        data = [data]
    if not data:
        raise DataError(f"no data: name files, or {MICROWORLD}")
    name, _, language = str(data[0]).partition(":")
    if len(data) == 1 and name == MICROWORLD:
        language = language or LANGUAGES[0]
        if language not in LANGUAGES:
            raise DataError(
                f"{data[0]}: the microworld speaks {', '.join(LANGUAGES)}, "
                f"not {language!r}"
            )
        return DataSpec(language)
    part = str(data[0]).rpartition("#")[2]
    part = part if part in ("tenth", "rest") else ""
    paths = tuple(Path(str(p).removesuffix(f"#{part}")) for p in data)
    for path in paths:
        if not path.is_file():
            raise DataError(
                f"{path}: no such file; --data takes {MICROWORLD}, "
                f"{MICROWORLD}:zh, or .txt and .jsonl files"
            )
    return DataSpec(None, paths, part)


def open_source(
    data: Data,
    kind: str,
    *,
    seed: int = 0,
    held_out: bool = False,
) -> Source:
    """The records of a data specification.

    Parameters
    ----------
    data
        See `parse_data`.
    kind : {"text", "conversations", "skill"}
        ``skill`` is the microworld's new manner of speaking; from files it
        is conversations.
    seed : int
        Of the microworld's stream.
    held_out : bool
        The records that training never sees: another seed, or one record
        of a file in `HELD_OUT_EVERY`.
    """
    spec = parse_data(data)
    if spec.language is not None:
        if kind == "text":
            return MicroworldStories(spec.language, seed, held_out=held_out)
        return MicroworldConversations(
            spec.language, seed, skill=kind == "skill", held_out=held_out
        )
    source = Slice(open_files(spec, kind), held_out=held_out)
    if spec.part and not held_out:
        # After the split, so that what is held out is so from every part.
        source = Slice(source, held_out=spec.part == "tenth", every=10)
    return source


def open_files(spec: DataSpec, kind: str) -> Files:
    """Every record of a specification's files, for training or held out.

    Parameters
    ----------
    spec : DataSpec
        Of files.
    kind : {"text", "conversations", "skill"}
        See `open_source`.
    """
    stamps = tuple(path.stat().st_mtime_ns for path in spec.paths)
    wanted = "text" if kind == "text" else "conversations"
    return _open_files(spec.paths, wanted, stamps)


@functools.lru_cache(maxsize=4)
def _open_files(
    paths: tuple[Path, ...], kind: str, stamps: tuple[int, ...]
) -> Files:
    """Training and validation share one reading of a large file."""
    return Files(paths, kind)


def tokenizer_texts(
    data: Data, chat: Data | None = None, count: int = 3000
) -> Iterable[str]:
    """What a tokenizer for this data is trained on.

    Parameters
    ----------
    data, chat
        Documents and conversations, see `parse_data`. For the microworld
        `chat` is the microworld as well, if not given.
    count : int
        Documents, and as many conversations, to read at most of an endless
        source; files are read to the end.

    Yields
    ------
    str
    """
    spec = parse_data(data)
    if chat is None and spec.language is not None:
        chat = spec
    source = open_source(spec, "text")
    yield from _each(source, count)
    kinds = ("conversations", "skill")
    if chat is None:
        return
    chat = parse_data(chat)
    for kind in kinds if chat.language else kinds[:1]:
        for messages in _each(open_source(chat, kind), count // 2):
            for message in messages:
                yield f"{message['role']}\n{message['content']}"


def _each(source: Source, count: int) -> Iterable[Any]:
    size = count if source.size is None else source.size
    for start in range(0, size, 256):
        yield from source.records(range(start, min(start + 256, size)))
