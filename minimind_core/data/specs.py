"""What ``--data`` may say, and the source that it names.

    from minimind_core.data import open_source
    source = open_source("microworld", "text")
    source = open_source(["stories.jsonl"], "text", held_out=True)
    source = open_source([{"text": "One day Mia met Tom."}], "text")
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minimind_core.data.sources import Files, InMemory, Slice, Source
from minimind_core.errors import DataError
from minimind_core.microworld import (
    LANGUAGES,
    MicroworldConversations,
    MicroworldStories,
)

MICROWORLD = "microworld"
MEMORY = "memory"


@dataclass(frozen=True)
class DataSpec:
    """A data specification, parsed.

    Attributes
    ----------
    language : str or None
        Of the microworld; None for anything else.
    paths : tuple of Path
        Files; empty for anything else.
    part : {"", "tenth", "rest"}
        Every tenth record to train on of a file, or all the others, written
        ``FILE#tenth`` and ``FILE#rest``: one file for two stages. What is
        held out is the same for both.
    memory : Source or list, optional
        Records that the program holds. A list is checked when its kind is
        known, in `open_source`.
    """

    language: str | None
    paths: tuple[Path, ...] = ()
    part: str = ""
    memory: Any = field(default=None, compare=False, repr=False)

    def names(self) -> list[str]:
        """As `parse_data` takes it back.

        Records in memory are named by their digest, or by the class of
        their source, so that a resumed run can tell them apart from others.
        Only the program that holds them can give them again.
        """
        if self.memory is not None:
            return [f"{MEMORY}:{_digest(self.memory)}"]
        if self.language is None:
            mark = f"#{self.part}" if self.part else ""
            return [f"{path}{mark}" for path in self.paths]
        plain = self.language == LANGUAGES[0]
        return [MICROWORLD if plain else f"{MICROWORLD}:{self.language}"]

    def __str__(self) -> str:
        return " ".join(self.names())


Data = (
    str | Path | Sequence[str | Path] | Iterable[Mapping[str, Any]]
    | Iterable[Sequence[Mapping[str, Any]]] | Source | DataSpec
)  # fmt: skip
"""Whatever `parse_data` understands."""


def _digest(memory: Any) -> str:
    if not isinstance(memory, list):
        return type(memory).__name__
    digest = hashlib.sha256()
    for record in memory:
        digest.update(json.dumps(record, sort_keys=True).encode())
    return digest.hexdigest()[:16]


def is_file_name(name: str) -> bool:
    """Whether one of `DataSpec.names` is a file's."""
    return name.partition(":")[0] not in (MICROWORLD, MEMORY)


def parse_data(data: Data) -> DataSpec:
    """Understand ``microworld``, paths, or records in memory.

    Parameters
    ----------
    data
        ``microworld`` or ``microworld:zh``; one path or several; a `Source`;
        or an iterable of records as a line of a ``.jsonl`` file has them,
        which is read to its end. A list of strings is a list of paths: put
        texts in `data.InMemory`, or write ``{"text": ...}``.

    Raises
    ------
    DataError
        For an unknown language, a path that is no file, a file of a kind
        that is not read, or something else altogether.
    """
    if isinstance(data, DataSpec):
        return data
    if hasattr(data, "records") and hasattr(data, "size"):
        return DataSpec(None, memory=data)
    if isinstance(data, str | Path):
        data = [data]
    if not isinstance(data, Iterable) or isinstance(data, bytes | Mapping):
        raise DataError(
            f"data cannot be a {type(data).__name__}: give {MICROWORLD}, "
            "paths, an iterable of records, or a source"
        )
    given: list[Any] = list(data)
    if not given:
        raise DataError(f"no data: name files, or {MICROWORLD}")
    if all(isinstance(one, str | Path) for one in given):
        return _parse_names(given)
    for number, one in enumerate(given):
        if not isinstance(one, Mapping | list | tuple):
            raise DataError(
                f"record {number}: expected a record such as "
                f'{{"text": ...}}, found {type(one).__name__}'
            )
    return DataSpec(None, memory=given)


def _parse_names(data: Sequence[str | Path]) -> DataSpec:
    name, _, language = str(data[0]).partition(":")
    if len(data) == 1 and name == MICROWORLD:
        language = language or LANGUAGES[0]
        if language not in LANGUAGES:
            raise DataError(
                f"{data[0]}: the microworld speaks {', '.join(LANGUAGES)}, "
                f"not {language!r}"
            )
        return DataSpec(language)
    if name == MEMORY:
        raise DataError(
            f"{data[0]}: these records were in the memory of another "
            "program, and only their digest is known here; give the data "
            "again, or do without it (--replay 0)"
        )
    part = str(data[0]).rpartition("#")[2]
    part = part if part in ("tenth", "rest") else ""
    paths = tuple(Path(str(p).removesuffix(f"#{part}")) for p in data)
    for path in paths:
        _check_file(path)
    return DataSpec(None, paths, part)


CONVERT = (
    "python -m minimind_core.data.corpora {} --out {}.jsonl "
    "(with --kind conversations for dialogues)"
)
UNPACK = {".gz": "gunzip", ".xz": "unxz", ".bz2": "bunzip2",
          ".zst": "unzstd", ".zip": "unzip"}  # fmt: skip
TABLES = (".parquet", ".csv", ".tsv", ".arrow", ".xlsx")
MAGIC = {b"\x1f\x8b": ".gz", b"PAR1": ".parquet", b"PK\x03\x04": ".zip",
         b"\x28\xb5\x2f\xfd": ".zst"}  # fmt: skip


def _check_file(path: Path) -> None:
    """Refuse what is not a readable ``.txt`` or ``.jsonl`` file."""
    if path.is_dir():
        raise DataError(f"{path}: a folder; name the files in it")
    if not path.is_file():
        raise DataError(
            f"{path}: no such file; --data takes {MICROWORLD}, "
            f"{MICROWORLD}:zh, or .txt and .jsonl files"
        )
    with path.open("rb") as file:
        start = file.read(4)
    kind = path.suffix.lower()
    for magic, name in MAGIC.items():
        kind = name if start.startswith(magic) else kind
    if kind in UNPACK:
        raise DataError(
            f"{path}: compressed; unpack it first: {UNPACK[kind]} {path}"
        )
    if kind in TABLES:
        how = CONVERT.format(path, path.with_suffix(""))
        if kind not in (".parquet", ".csv"):
            how = 'write its text as .jsonl, one {"text": ...} a line'
        raise DataError(
            f"{path}: a table ({kind}), which is not read as text; convert "
            f"it first: {how}"
        )


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
        ``skill`` is the microworld's new style of speaking; from anything
        else it is conversations.
    seed : int
        Of the microworld's stream.
    held_out : bool
        The records that training never sees: another seed, or one record
        in `HELD_OUT_EVERY` of what has an end.

    Raises
    ------
    DataError
        For a record that is wrong, and where records are held out of a
        source without an end.
    """
    spec = parse_data(data)
    if spec.language is not None:
        if kind == "text":
            return MicroworldStories(spec.language, seed, held_out=held_out)
        return MicroworldConversations(
            spec.language, seed, skill=kind == "skill", held_out=held_out
        )
    found = open_records(spec, kind)
    if found.size is None:
        if held_out:
            raise DataError(
                f"{type(found).__name__}: has no end, so nothing can be "
                "held out of it; pass validate="
            )
        return found
    source = Slice(found, held_out=held_out)
    if spec.part and not held_out:
        # After the split, so that what is held out is so from every part.
        source = Slice(source, held_out=spec.part == "tenth", every=10)
    return source


def open_records(spec: DataSpec, kind: str) -> Source:
    """Every record of files or of memory, for training or held out.

    Parameters
    ----------
    spec : DataSpec
        Not of the microworld.
    kind : {"text", "conversations", "skill"}
        See `open_source`.

    Raises
    ------
    DataError
        For a record that is wrong.
    """
    wanted = "text" if kind == "text" else "conversations"
    if spec.memory is None:
        stamps = tuple(path.stat().st_mtime_ns for path in spec.paths)
        return _open_files(spec.paths, wanted, stamps)
    if isinstance(spec.memory, list):
        return InMemory(spec.memory, wanted)
    found: Source = spec.memory
    return found


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
