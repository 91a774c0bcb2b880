"""Sources of records: files, memory, or anything that can be indexed.

    from pathlib import Path
    from minimind_core.data import Files, Slice
    files = Files([Path("stories.jsonl")], "text")
    training = Slice(files, held_out=False)
    training.records([0, 1])

A file is checked to its last line before training starts, and only the
offsets of its records are kept in memory. A record that cannot be used is an
error that names its line, or is left out and counted (`LeftOut`). The endless
sources of the microworld are in `minimind_core.microworld.sources`.
"""

from __future__ import annotations

import array
import bisect
import contextlib
import copy
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol, Self

import numpy as np

from minimind_core.data.copies import PlainFile
from minimind_core.data.records import (
    check_record,
    is_jsonl,
    not_utf8,
    parse_record,
    read_lines,
    too_long,
)
from minimind_core.errors import DataError

SEPARATOR = "<|endoftext|>"
PIECE = 1000
"""Longest document, in characters, that plain text is cut into."""
HELD_OUT_EVERY = 20
"""One in this many records of a file is held out for validation."""
OPEN_FILES = 64
"""Files that are open at the same time; systems allow some hundreds."""

POSITIONS = {"files": "I", "starts": "Q", "lengths": "Q"}
"""The arrays that say where the records of files are, and their types."""

_EXAMPLES = {
    "conversations": '{"conversations": [...]}',
    "preference": '{"chosen": [...], "rejected": [...]}',
    "prompt": '{"conversations": [...]}',
}


@dataclass
class LeftOut:
    """The records that a source has left out because they cannot be used.

    Attributes
    ----------
    count : int
    first : list of str
        What is wrong with the first few of them, and where.
    """

    SHOWN = 5

    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, error: DataError) -> None:
        """Count one more."""
        self.count += 1
        if len(self.first) < self.SHOWN:
            self.first.append(str(error))

    def describe(self) -> str:
        """Say how many were left out, and why; empty if none were."""
        if not self.count:
            return ""
        lines = [f"left out {self.count} records that cannot be used:"]
        lines += [f"  {error}" for error in self.first]
        if self.count > len(self.first):
            lines.append(f"  and {self.count - len(self.first)} more")
        return "\n".join(lines)


def left_out(source: Any) -> LeftOut | None:
    """What a source has left out; None if a bad record is an error."""
    found: LeftOut | None = getattr(source, "left_out", None)
    return found


def place_of(source: Any, index: int) -> str:
    """Where a record comes from: its file and line, if it has any."""
    if hasattr(source, "place"):
        return str(source.place(index))
    return f"record {index}"


class Source(Protocol):
    """Records by index; `size` is None for an endless source."""

    @property
    def size(self) -> int | None:
        """Number of records; None if endless."""

    def records(self, indices: Sequence[int]) -> list[Any]:
        """The records with these indices."""


class Files:
    """Records of text files, read from the disk on access.

    Parameters
    ----------
    paths : sequence of Path or PlainFile
        ``.jsonl`` with one record per line, or plain text. Of other formats
        pass what `copies.plain_files` returns.
    kind : {"text", "conversations", "preference", "prompt"}
        The required kind of records.
    skip : bool
        Leave out a record, or a line of plain text, that cannot be used.

    Attributes
    ----------
    left_out : LeftOut or None
        What was left out; None without `skip`.

    Raises
    ------
    DataError
        Naming the file and the line of the first record that is wrong; or if
        a file has no record that can be used.
    """

    def __init__(
        self,
        paths: Sequence[Path | PlainFile],
        kind: str,
        *,
        skip: bool = False,
    ) -> None:
        self.plain = tuple(
            one if isinstance(one, PlainFile) else PlainFile(one, str(one))
            for one in paths
        )
        self.paths, self.kind = tuple(one.path for one in self.plain), kind
        self.left_out = LeftOut() if skip else None
        self.files = array.array("I")
        self.starts = array.array("Q")
        self.lengths = array.array("Q")
        for number, file in enumerate(self.plain):
            pieces = self._lines if is_jsonl(file.path) else self._pieces
            if not is_jsonl(file.path) and kind != "text":
                raise DataError(
                    f"{file.name}: {kind} must be .jsonl, with one "
                    f"{_EXAMPLES[kind]} per line"
                )
            before, bad = len(self.starts), LeftOut()
            for start, length in pieces(file, bad):
                self.files.append(number)
                self.starts.append(start)
                self.lengths.append(length)
            if len(self.starts) == before:
                if bad.count:
                    raise DataError(
                        f"{file.name}: none of its {bad.count} records can "
                        f"be used; the first error is: {bad.first[0]}"
                    )
                raise DataError(f"{file.name}: empty, no records to train on")
        self.size = len(self.starts)

    def save_positions(self, folder: Path) -> None:
        """Write where the records are into an existing folder."""
        for name in POSITIONS:
            np.save(folder / f"{name}.npy", getattr(self, name))

    @classmethod
    def from_positions(
        cls,
        folder: Path,
        paths: Sequence[PlainFile],
        kind: str,
        left_out: LeftOut | None = None,
    ) -> Files:
        """Open files whose records were found before; nothing is checked.

        Parameters
        ----------
        folder : Path
            Where `save_positions` has written.
        paths, kind
            As they were then.
        left_out : LeftOut, optional

        Raises
        ------
        OSError, ValueError
            If there are no positions in the folder, or they are damaged.
        """
        found = cls.__new__(cls)
        found.plain, found.kind = tuple(paths), kind
        found.paths = tuple(one.path for one in found.plain)
        for name, code in POSITIONS.items():
            values = np.load(folder / f"{name}.npy", allow_pickle=False)
            setattr(found, name, array.array(code, values.tobytes()))
        found.left_out = left_out
        found.size = len(found.starts)
        return found

    def _bad(self, error: DataError, bad: LeftOut) -> None:
        """Leave a record out, or raise what is wrong with it."""
        if self.left_out is None:
            raise error from None
        bad.add(error)
        self.left_out.add(error)

    def _lines(
        self, file: PlainFile, bad: LeftOut
    ) -> Iterator[tuple[int, int]]:
        for number, start, size, line in read_lines(file.path):
            where = file.at(number)
            if line is None:
                self._bad(too_long(where), bad)
            elif line.strip():
                try:
                    parse_record(line, self.kind, where)
                except DataError as error:
                    self._bad(error, bad)
                else:
                    yield start, size

    def _pieces(
        self, file: PlainFile, bad: LeftOut
    ) -> Iterator[tuple[int, int]]:
        """Cut plain text at separator lines, else at blank lines."""
        start = size = characters = 0
        written = False
        for number, begin, length, line in read_lines(file.path):
            where = file.at(number)
            try:
                if line is None:
                    raise too_long(where)
                text = line.decode("utf-8")
            except (DataError, UnicodeDecodeError) as error:
                if isinstance(error, UnicodeDecodeError):
                    error = not_utf8(where, error)
                self._bad(error, bad)
                if written:
                    yield start, size
                start, size, characters = begin + length, 0, 0
                written = False
                continue
            ends = text.strip() == SEPARATOR
            size += length
            characters += len(text)
            written |= bool(text.strip()) and not ends
            # Cut at the end of a paragraph once the piece is long
            # enough, or at a line's if there are no paragraphs.
            blank = not text.strip() and characters > PIECE // 2
            if ends or blank or characters >= PIECE:
                if written:
                    yield start, size - length * ends
                start, size, characters = start + size, 0, 0
                written = False
        if written:
            yield start, size

    def place(self, index: int) -> str:
        """File and line of a record."""
        file, start = self.plain[self.files[index]], self.starts[index]
        number = next(
            (n for n, begin, *_ in read_lines(file.path) if begin >= start), 0
        )
        return file.at(number)

    def records(self, indices: Sequence[int]) -> list[Any]:
        """The records with these indices, in this order."""
        with contextlib.ExitStack() as stack:
            handles: dict[int, BinaryIO] = {}
            return [self._record(i, handles, stack) for i in indices]

    def _record(
        self,
        index: int,
        handles: dict[int, BinaryIO],
        stack: contextlib.ExitStack,
    ) -> Any:
        number = self.files[index]
        file = self.plain[number]
        try:
            if number not in handles:
                if len(handles) == OPEN_FILES:
                    stack.close()
                    handles.clear()
                handles[number] = stack.enter_context(file.path.open("rb"))
            handle = handles[number]
            handle.seek(self.starts[index])
            raw = handle.read(self.lengths[index])
            if is_jsonl(file.path):
                return parse_record(raw, self.kind, file.name)
            return raw.decode("utf-8-sig").strip("\n")
        except (OSError, DataError, UnicodeDecodeError) as error:
            # It could be read when the file was opened.
            raise DataError(
                f"{file.name}: changed while it was in use ({error}); "
                "restore it, and continue with --resume, or start another run"
            ) from None


class InMemory:
    """Records that are already in memory.

    Parameters
    ----------
    records : sequence
        A list, or anything else with a length and indices, such as a
        `datasets.Dataset`. Each record is a text or a list of messages, or
        a mapping with the keys of a ``.jsonl`` line.
    kind : {"text", "conversations", "preference", "prompt"}
    skip : bool
        Leave out a record that cannot be used.

    Attributes
    ----------
    left_out : LeftOut or None
        What was left out; None without `skip`.

    Raises
    ------
    DataError
        Naming the number of the first record that is wrong; or if none can
        be used.

    Examples
    --------
    >>> source = InMemory(["One day Mia met Tom.", "Tom has a red ball."])
    >>> stream = Rows(source, document_encoder(tokenizer), seq_len=128)
    """

    def __init__(
        self, records: Sequence[Any], kind: str = "text", *,
        skip: bool = False,
    ) -> None:  # fmt: skip
        self.left_out = LeftOut() if skip else None
        self._records, self._numbers = [], array.array("Q")
        for i in range(len(records)):
            try:
                record = check_record(records[i], kind, f"record {i}")
            except DataError as error:
                if self.left_out is None:
                    raise
                self.left_out.add(error)
            else:
                self._records.append(record)
                self._numbers.append(i)
        self.size = len(self._records)
        if self.left_out and self.left_out.count and not self.size:
            raise DataError(
                f"none of the {self.left_out.count} records can be used; the "
                f"first error is: {self.left_out.first[0]}"
            )

    def place(self, index: int) -> str:
        """Number of a record among those that were given."""
        return f"record {self._numbers[index]}"

    def records(self, indices: Sequence[int]) -> list[Any]:
        """The records with these indices, in this order."""
        return [self._records[i] for i in indices]


class Part:
    """Records of another source, chosen and arranged by their indices.

    A subclass sets `size` and has an ``_index``.

    Parameters
    ----------
    source : Source
    """

    size: int

    def __init__(self, source: Source) -> None:
        self.source, self.left_out = source, left_out(source)

    def _index(self, index: int) -> int:
        """The index in `source`."""
        raise NotImplementedError

    def of(self, source: Source) -> Self:
        """The same part of another source with the same number of records.

        Raises
        ------
        DataError
            If it has another number.
        """
        if source.size != self.source.size:
            raise DataError(
                f"{type(source).__name__} has {source.size} records, not "
                f"{self.source.size}"
            )
        found = copy.copy(self)
        found.source, found.left_out = source, left_out(source)
        return found

    def place(self, index: int) -> str:
        """Where a record of the part comes from."""
        return place_of(self.source, self._index(index))

    def records(self, indices: Sequence[int]) -> list[Any]:
        """The records at these indices of the part, in this order."""
        return self.source.records([self._index(i) for i in indices])


class Chosen(Part):
    """Some records of a source, in an order of their own.

    Parameters
    ----------
    source : Source
    indices : iterable of int
        The indices in `source`.
    """

    def __init__(self, source: Source, indices: Iterable[int]) -> None:
        super().__init__(source)
        self.indices = array.array("Q", indices)  # 8 bytes a record
        self.size = len(self.indices)

    def _index(self, index: int) -> int:
        return self.indices[index]


class Slice(Chosen):
    """The training part of a finite source, or the held-out part.

    Parameters
    ----------
    source : Source
        A finite source.
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
            # Too few records to hold any out: validate on training data.
            chosen = {0} if held_out else set()
        super().__init__(
            source,
            (i for i in range(source.size) if (i in chosen) == held_out),
        )


class Weighted(Part):
    """A finite source in which groups of records have fixed shares.

    A group is a run of neighbouring records, such as those of one file. The
    records of every group are repeated so often that each record comes at
    least once and the groups have the given shares, as `datasets` does with
    ``interleave_datasets(..., stopping_strategy="all_exhausted")``. Shares
    are of records and not of tokens.

    Parameters
    ----------
    source : Source
        A finite source.
    sizes : sequence of int
        Number of records of each group, in their order in `source`.
    weights : sequence of float
        One for each group, none of which is empty. Only their ratios matter.

    Raises
    ------
    DataError
        If the ratios are so far apart that one round would take more than
        `MOST` records.
    """

    MOST = 10**8

    def __init__(
        self, source: Source, sizes: Sequence[int], weights: Sequence[float]
    ) -> None:
        assert sum(sizes) == source.size and all(sizes)
        super().__init__(source)
        self.sizes, total = list(sizes), math.fsum(weights)
        shares = [weight / total for weight in weights]
        round_ = max(n / p for n, p in zip(sizes, shares, strict=True))
        if round_ > self.MOST:
            raise DataError(
                "the weights are too far apart for the numbers of records "
                f"({', '.join(f'{n:,}' for n in sizes)}): until each record "
                f"has come once, {round_:.2g} records would be drawn; choose "
                f"weights for which this is at most {self.MOST:,}"
            )
        # Nobody needs the exact ratio more than each record once.
        self.counts = [
            max(n, round(round_ * p))
            for n, p in zip(sizes, shares, strict=True)
        ]
        self.size = sum(self.counts)
        self._before = [0, *itertools.accumulate(sizes)]
        self._ends = list(itertools.accumulate(self.counts))

    def _index(self, index: int) -> int:
        """The index in `source`."""
        group = bisect.bisect_right(self._ends, index)
        place = index - (self._ends[group] - self.counts[group])
        return self._before[group] + place % self.sizes[group]
