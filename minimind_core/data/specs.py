"""Parse data specifications, such as ``--data``, and open their sources.

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
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from minimind_core.data.ahead import open_files
from minimind_core.data.sources import Files, InMemory, Slice, Source
from minimind_core.errors import DataError
from minimind_core.microworld import (
    LANGUAGES,
    MicroworldConversations,
    MicroworldStories,
)

MICROWORLD = "microworld"
MEMORY = "memory"
ON_BAD_RECORD = ("stop", "skip")


@dataclass(frozen=True)
class DataSpec:
    """A data specification, parsed.

    Attributes
    ----------
    language : str or None
        Language of the microworld; None for other data.
    paths : tuple of Path
        Files; empty for other data.
    part : {"", "tenth", "rest"}
        Every tenth training record of a file, or all the others, written
        ``FILE#tenth`` and ``FILE#rest``, so that two stages can share a
        file. Both have the same held-out records.
    memory : Source or list, optional
        Records in memory. A list is checked in `open_source`, where its
        kind is known.
    on_bad_record : {"stop", "skip"}
        Whether a record that cannot be used is an error, or is left out and
        counted.
    """

    language: str | None
    paths: tuple[Path, ...] = ()
    part: str = ""
    memory: Any = field(default=None, compare=False, repr=False)
    on_bad_record: str = "stop"

    def __post_init__(self) -> None:
        if self.on_bad_record not in ON_BAD_RECORD:
            raise DataError(
                f"on_bad_record must be {' or '.join(ON_BAD_RECORD)}, not "
                f"{self.on_bad_record!r}"
            )

    def names(self) -> list[str]:
        """Names that `parse_data` accepts, to be recorded in the metadata.

        Records in memory are named by their digest, or by the class of
        their source, so that a resumed run can tell them apart from others.
        Only the program that holds them can supply them again.
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
"""Any data specification that `parse_data` accepts."""


def _digest(memory: Any) -> str:
    if not isinstance(memory, list):
        return type(memory).__name__
    digest = hashlib.sha256()
    for record in memory:
        digest.update(json.dumps(record, sort_keys=True).encode())
    return digest.hexdigest()[:16]


def is_file_name(name: str) -> bool:
    """Whether one of `DataSpec.names` is the name of a file."""
    return name.partition(":")[0] not in (MICROWORLD, MEMORY)


def parse_data(data: Data) -> DataSpec:
    """Parse ``microworld``, paths, or records in memory.

    Parameters
    ----------
    data
        ``microworld`` or ``microworld:zh``; one path or several; a `Source`;
        or an iterable of records in the form of ``.jsonl`` lines, which is
        read to its end. A list of strings is a list of paths: wrap
        texts in `data.InMemory`, or write ``{"text": ...}``.

    Raises
    ------
    DataError
        For an unknown language, a path that is not a file, an unsupported
        file format, or an object of an unsupported type.
    """
    if isinstance(data, DataSpec):
        return data
    if hasattr(data, "records") and hasattr(data, "size"):
        return DataSpec(None, memory=data)
    if isinstance(data, str | Path):
        data = [data]
    if not isinstance(data, Iterable) or isinstance(data, bytes | Mapping):
        raise DataError(
            f"data cannot be a {type(data).__name__}: pass {MICROWORLD}, "
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
    """Refuse anything but a readable ``.txt`` or ``.jsonl`` file."""
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
    on_bad_record: str | None = None,
) -> Source:
    """Open the records of a data specification.

    Parameters
    ----------
    data
        See `parse_data`.
    kind : {"text", "conversations", "skill"}
        ``skill`` means the microworld's conversations in a new style; for
        other data it means conversations.
    seed : int
        Seed of the microworld's stream.
    held_out : bool
        Return the records that training never sees: those of another seed,
        or, for finite data, one record in `HELD_OUT_EVERY`.
    on_bad_record : {"stop", "skip"}, optional
        What happens to a record of a file or a list that cannot be used: an
        error, or it is left out and counted in the source's ``left_out``. If
        not given, as `data` says if it is a `DataSpec`, otherwise an error.

    Raises
    ------
    DataError
        For an invalid record, if no record can be used, or if records were to
        be held out of an endless source.
    """
    spec = parse_data(data)
    if on_bad_record is not None:
        spec = replace(spec, on_bad_record=on_bad_record)
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
                f"{type(found).__name__}: is endless, so nothing can be "
                "held out of it; pass validate="
            )
        return found
    source = Slice(found, held_out=held_out)
    if spec.part and not held_out:
        # After the split, so that held-out records are in neither part.
        source = Slice(source, held_out=spec.part == "tenth", every=10)
    return source


def open_records(spec: DataSpec, kind: str) -> Source:
    """Open all records of files or of memory, held-out ones included.

    Parameters
    ----------
    spec : DataSpec
        Anything but the microworld.
    kind : {"text", "conversations", "skill"}
        See `open_source`.

    Raises
    ------
    DataError
        For an invalid record.
    """
    wanted = "text" if kind == "text" else "conversations"
    skip = spec.on_bad_record == "skip"
    if spec.memory is None:
        stamps = tuple(path.stat().st_mtime_ns for path in spec.paths)
        return _open_files(spec.paths, wanted, stamps, skip)
    if isinstance(spec.memory, list):
        return InMemory(spec.memory, wanted, skip=skip)
    found: Source = spec.memory
    return found


@functools.lru_cache(maxsize=4)
def _open_files(
    paths: tuple[Path, ...], kind: str, stamps: tuple[int, ...], skip: bool
) -> Files:
    """Open files; training and validation share one scan of a large file."""
    return open_files(paths, kind, skip)


def tokenizer_texts(
    data: Data,
    chat: Data | None = None,
    count: int = 3000,
    *,
    on_bad_record: str | None = None,
) -> Iterable[str]:
    """Yield the texts on which a tokenizer for this data is trained.

    Parameters
    ----------
    data, chat
        Documents and conversations, see `parse_data`. For the microworld
        `chat` is the microworld as well, if not given.
    count : int
        Maximum number of documents, and of conversations, to read from an
        endless source; files are read to the end.
    on_bad_record : {"stop", "skip"}, optional
        See `open_source`.

    Yields
    ------
    str
    """
    spec = parse_data(data)
    if chat is None and spec.language is not None:
        chat = spec
    source = open_source(spec, "text", on_bad_record=on_bad_record)
    yield from _each(source, count)
    kinds = ("conversations", "skill")
    if chat is None:
        return
    chat = parse_data(chat)
    for kind in kinds if chat.language else kinds[:1]:
        talks = open_source(chat, kind, on_bad_record=on_bad_record)
        for messages in _each(talks, count // 2):
            for message in messages:
                yield f"{message['role']}\n{message.get('content') or ''}"


def _each(source: Source, count: int) -> Iterable[Any]:
    size = count if source.size is None else source.size
    for start in range(0, size, 256):
        yield from source.records(range(start, min(start + 256, size)))
