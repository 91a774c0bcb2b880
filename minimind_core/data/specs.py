"""Parse data specifications, such as ``--data``, and open their sources.

    from minimind_core.data import open_source
    source = open_source("microworld", "text")
    source = open_source(["stories.jsonl.gz"], "text", held_out=True)
    source = open_source(["web.parquet=0.7", "books/=0.3"], "text")
    source = open_source("hf:roneneldan/TinyStories:train[:100000]", "text")
    source = open_source([{"text": "One day Mia met Tom."}], "text")
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from minimind_core.data.ahead import open_files
from minimind_core.data.copies import (
    COMPRESSED,
    READ,
    PlainFile,
    canonical,
    files_below,
    format_of,
    is_hub,
    plain_files,
)
from minimind_core.data.records import KINDS
from minimind_core.data.sources import (
    HELD_OUT_EVERY,
    Chosen,
    Files,
    InMemory,
    Slice,
    Source,
    Weighted,
)
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
        Files and folders, and data sets by their names (``hf:owner/name``);
        empty for other data.
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
    weights : tuple of float
        The share of the records that each path is given, up to a common
        factor, written ``PATH=0.7``; empty if they are read one after the
        other, each record once in an epoch.
    """

    language: str | None
    paths: tuple[Path, ...] = ()
    part: str = ""
    memory: Any = field(default=None, compare=False, repr=False)
    on_bad_record: str = "stop"
    weights: tuple[float, ...] = ()

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
            shares = [f"={weight!r}" for weight in self.weights]
            shares = shares or [""] * len(self.paths)
            return [
                f"{path.as_posix() if is_hub(path) else path}{mark}{share}"
                for path, share in zip(self.paths, shares, strict=True)
            ]
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
    return name.partition(":")[0] not in (MICROWORLD, MEMORY, "hf")


def split_name(name: str | Path) -> tuple[str, str, float | None]:
    """Split one of `DataSpec.names` into path, part and weight.

    Returns
    -------
    path : str
    part : {"", "tenth", "rest"}
    weight : float or None
        None if no weight is given.

    Raises
    ------
    DataError
        For a weight that is not a positive number.
    """
    path, part, weight = str(name), "", None
    found = re.fullmatch(r"(.+)=([-+]?[.\d]+(?:e[-+]?\d+)?|nan|inf)", path)
    if found and not Path(path).exists():
        try:
            weight = float(found[2])
        except ValueError:
            weight = math.nan
        if not 0 < weight < math.inf:
            raise DataError(
                f"{path}: no such file, and {found[2]!r} is no weight; a "
                "weight is a positive number, as in stories.jsonl=0.7"
            )
        path = found[1]
    for one in ("tenth", "rest"):
        if path.endswith(f"#{one}"):
            path, part = path.removesuffix(f"#{one}"), one
    return path, part, weight


def parse_data(data: Data) -> DataSpec:
    """Parse ``microworld``, paths, or records in memory.

    Parameters
    ----------
    data
        ``microworld`` or ``microworld:zh``; one path or several, each a
        file, a folder or ``hf:owner/name``, and each followed by ``=`` and a
        weight if they are to be mixed; a `Source`;
        or an iterable of records in the form of ``.jsonl`` lines, which is
        read to its end. A list of strings is a list of paths: wrap
        texts in `data.InMemory`, or write ``{"text": ...}``.

    Raises
    ------
    DataError
        For an unknown language, a path that does not exist, an unsupported
        file format, weights for only some of the paths, or an object of an
        unsupported type.
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
    entries = [split_name(one) for one in data]
    for path, _, _ in entries:
        if path.partition(":")[0] == MICROWORLD and not Path(path).exists():
            raise DataError(
                f"{path}: the microworld is endless and cannot be mixed with "
                "other data; name it alone, without a weight"
            )
        if not is_hub(path):
            _check_path(Path(path))
    weights = [weight for *_, weight in entries if weight is not None]
    if weights and len(weights) < len(entries):
        bare = next(path for path, _, weight in entries if weight is None)
        raise DataError(
            f"{bare}: has no weight, but other data has; give each a weight, "
            f"as in {bare}=0.5, or none"
        )
    return DataSpec(
        None,
        tuple(
            Path(canonical(path) if is_hub(path) else path)
            for path, *_ in entries
        ),
        entries[0][1],
        weights=tuple(weights) if len(weights) > 1 else (),
    )


CONVERT = (
    "python -m minimind_core.data.corpora {} --out {}.jsonl "
    "(with --kind conversations for dialogues)"
)
UNPACK = {".xz": "unxz", ".bz2": "bunzip2", ".zip": "unzip"}
TABLES = (".csv", ".tsv", ".arrow", ".xlsx")


def _check_path(path: Path) -> None:
    """Refuse what is not there, and files of other formats."""
    if path.is_dir():
        for one in files_below(path):
            _check_path(one)
        return
    if not path.is_file():
        raise DataError(
            f"{path}: no such file; --data takes {MICROWORLD}, "
            f"{MICROWORLD}:zh, files ({', '.join(READ)}, also with "
            f"{' or '.join(COMPRESSED)}), folders of them, or hf:owner/name"
        )
    kind = format_of(path)
    if kind in UNPACK:
        raise DataError(
            f"{path}: compressed; unpack it first: {UNPACK[kind]} {path}"
        )
    if kind in TABLES:
        how = CONVERT.format(path, path.with_suffix(""))
        if kind != ".csv":
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
    kind : {"text", "conversations", "preference", "prompt", "skill"}
        See `data.records`. ``skill`` means the microworld's conversations in
        a new style; for other data it means conversations.
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
        if kind in ("preference", "prompt"):
            raise DataError(
                f"{spec}: the microworld has no records of the kind {kind!r};"
                " name a file of them"
            )
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
    if spec.weights:
        return _weighted(spec, source, held_out=held_out)
    return source


def _weighted(spec: DataSpec, source: Chosen, *, held_out: bool) -> Source:
    """Mix the records of several paths by their weights.

    The records were held out before, so that they are the same ones whether
    there are weights or not.
    """
    below: Any = source
    numbers: Sequence[int] = range(source.size)
    while isinstance(below, Chosen):
        numbers = [below.indices[i] for i in numbers]
        below = below.source
    owners = [
        number
        for number, path in enumerate(spec.paths)
        for _ in plain_files(path)
    ]
    groups = [owners[below.files[i]] for i in numbers]
    sizes = [groups.count(number) for number in range(len(spec.paths))]
    if held_out:
        # Each once. The first of them, on which a training is validated, are
        # in the ratio of the weights.
        within = [place for size in sizes for place in range(size)]
        when = [
            (within[i] + 0.5) / spec.weights[groups[i]]
            for i in range(source.size)
        ]
        order = sorted(range(source.size), key=when.__getitem__)
        return Chosen(source, order)
    for path, size in zip(spec.paths, sizes, strict=True):
        if not size:
            raise DataError(
                f"{path}: has a weight, but none of its records is left to "
                f"train on: one in {HELD_OUT_EVERY} is held out, and there "
                "are too few; leave it out, or add records"
            )
    return Weighted(source, sizes, spec.weights)


def open_records(spec: DataSpec, kind: str) -> Source:
    """Open all records of files or of memory, held-out ones included.

    Parameters
    ----------
    spec : DataSpec
        Anything but the microworld.
    kind : {"text", "conversations", "preference", "prompt", "skill"}
        See `open_source`.

    Raises
    ------
    DataError
        For an invalid record.
    """
    wanted = "conversations" if kind == "skill" else kind
    if wanted not in KINDS:
        raise DataError(f"unknown kind {kind!r}; expected {', '.join(KINDS)}")
    skip = spec.on_bad_record == "skip"
    if spec.memory is None:
        files = spec_files(spec)
        stamps = tuple(file.path.stat().st_mtime_ns for file in files)
        return _open_files(files, wanted, stamps, skip)
    if isinstance(spec.memory, list):
        return InMemory(spec.memory, wanted, skip=skip)
    found: Source = spec.memory
    return found


def spec_files(spec: DataSpec) -> tuple[PlainFile, ...]:
    """The plain files that hold the records of a specification.

    Compressed files, tables and published data sets are unpacked into the
    cache first (`copies`).

    Raises
    ------
    DataError
        If one of them cannot be read.
    """
    return tuple(one for path in spec.paths for one in plain_files(path))


@functools.lru_cache(maxsize=4)
def _open_files(
    files: tuple[PlainFile, ...],
    kind: str,
    stamps: tuple[int, ...],
    skip: bool,
) -> Files:
    """Open files; training and validation share one scan of a large file."""
    return open_files(files, kind, skip)


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
    # Each record once, whatever its weight.
    spec = replace(parse_data(data), weights=())
    if chat is None and spec.language is not None:
        chat = spec
    source = open_source(spec, "text", on_bad_record=on_bad_record)
    yield from _each(source, count)
    kinds = ("conversations", "skill")
    if chat is None:
        return
    chat = replace(parse_data(chat), weights=())
    for kind in kinds if chat.language else kinds[:1]:
        talks = open_source(chat, kind, on_bad_record=on_bad_record)
        for messages in _each(talks, count // 2):
            for message in messages:
                yield f"{message['role']}\n{message.get('content') or ''}"


def _each(source: Source, count: int) -> Iterable[Any]:
    size = count if source.size is None else source.size
    for start in range(0, size, 256):
        yield from source.records(range(start, min(start + 256, size)))
