"""Records by index: from files, or any other place that can be indexed.

    from pathlib import Path
    from minimind_core.data import Files, Slice
    files = Files([Path("stories.jsonl")], "text")
    training = Slice(files, held_out=False)
    training.records([0, 1])

A file is checked to its last line before anything is trained, and only the
offsets of its records are kept in memory. The microworld's sources, which
have no end, are in `minimind_core.microworld.sources`.
"""

from __future__ import annotations

import array
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from minimind_core.data.records import (
    check_record,
    is_jsonl,
    not_utf8,
    parse_record,
)
from minimind_core.errors import DataError

SEPARATOR = "<|endoftext|>"
PIECE = 1000
"""Longest document, in characters, that plain text is cut into."""
HELD_OUT_EVERY = 20
"""One record of a file in this many is kept for validation."""

class Source(Protocol):
    """Records by index; `size` is None if there is no end."""

    @property
    def size(self) -> int | None:
        """How many there are."""

    def records(self, indices: Sequence[int]) -> list[Any]:
        """The records with these indices."""


class Files:
    """Records of text files, read from the disk when asked for.

    Parameters
    ----------
    paths : sequence of Path
        ``.jsonl`` with one record a line, or plain text.
    kind : {"text", "conversations"}
        What the records must be.

    Raises
    ------
    DataError
        Naming the file and the line of the first record that is wrong.
    """

    def __init__(self, paths: Sequence[Path], kind: str) -> None:
        self.paths, self.kind = tuple(paths), kind
        self.files = array.array("I")
        self.starts = array.array("Q")
        self.lengths = array.array("Q")
        for number, path in enumerate(self.paths):
            pieces = self._lines if is_jsonl(path) else self._pieces
            if not is_jsonl(path) and kind == "conversations":
                raise DataError(
                    f"{path}: conversations come as .jsonl, one "
                    '{"conversations": [...]} a line'
                )
            before = len(self.starts)
            for start, length in pieces(path):
                self.files.append(number)
                self.starts.append(start)
                self.lengths.append(length)
            if len(self.starts) == before:
                raise DataError(f"{path}: empty, nothing to learn from")
        self.size = len(self.starts)

    def _lines(self, path: Path) -> Iterable[tuple[int, int]]:
        start = 0
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    where = f"{path}, line {number}"
                    parse_record(line, self.kind, where)
                    yield start, len(line)
                start += len(line)

    def _pieces(self, path: Path) -> Iterable[tuple[int, int]]:
        """Cut plain text at separator lines, else at blank lines."""
        start = size = characters = 0
        written = False
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    text = line.decode("utf-8")
                except UnicodeDecodeError as error:
                    raise not_utf8(f"{path}, line {number}", error) from None
                ends = text.strip() == SEPARATOR
                size += len(line)
                characters += len(text)
                written |= bool(text.strip()) and not ends
                # A paragraph's end, once there is enough; a line's, when
                # there are no paragraphs.
                blank = not text.strip() and characters > PIECE // 2
                if ends or blank or characters >= PIECE:
                    if written:
                        yield start, size - len(line) * ends
                    start, size, characters = start + size, 0, 0
                    written = False
        if written:
            yield start, size

    def records(self, indices: Sequence[int]) -> list[Any]:
        """The records with these indices, in this order."""
        found = []
        for i in indices:
            path = self.paths[self.files[i]]
            with path.open("rb") as file:
                file.seek(self.starts[i])
                raw = file.read(self.lengths[i])
            if is_jsonl(path):
                found.append(parse_record(raw, self.kind, str(path)))
            else:
                found.append(raw.decode("utf-8-sig").strip("\n"))
        return found


class InMemory:
    """Records that a program already holds.

    Parameters
    ----------
    records : sequence
        A list, or anything else with a length and indices, such as a
        `datasets.Dataset`. Each record is a text or a list of messages, or
        a mapping that holds it under the name of its kind, as a line of a
        ``.jsonl`` file does.
    kind : {"text", "conversations"}

    Raises
    ------
    DataError
        Naming the number of the first record that is wrong.

    Examples
    --------
    >>> source = InMemory(["One day Mia met Tom.", "Tom has a red ball."])
    >>> stream = Rows(source, document_encoder(tokenizer), seq_len=128)
    """

    def __init__(self, records: Sequence[Any], kind: str = "text") -> None:
        self.size = len(records)
        self._records = [
            check_record(records[i], kind, f"record {i}")
            for i in range(self.size)
        ]

    def records(self, indices: Sequence[int]) -> list[Any]:
        """The records with these indices, in this order."""
        return [self._records[i] for i in indices]


class Slice:
    """Part of a finite source: what is trained on, or what is held out.

    Parameters
    ----------
    source : Source
        With an end.
    held_out : bool
        Every `every`-th record if true, all the others if not. A source
        with fewer records holds out its last one.
    every : int
    """

    def __init__(
        self, source: Source, *, held_out: bool, every: int = HELD_OUT_EVERY
    ) -> None:
        assert source.size is not None
        chosen = set(range(every - 1, source.size, every))
        chosen = chosen or {source.size - 1}
        if source.size == 1:
            # Nothing can be spared: validate on what is trained on.
            chosen = {0} if held_out else set()
        self.source = source
        self.indices = [
            i for i in range(source.size) if (i in chosen) == held_out
        ]
        self.size = len(self.indices)

    def records(self, indices: Sequence[int]) -> list[Any]:
        """The records at these places of the part."""
        return self.source.records([self.indices[i] for i in indices])
