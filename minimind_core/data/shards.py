"""Token ids in files: a data set is encoded once, and read from the disk.

    from minimind_core.data.shards import tokenize
    source = tokenize(files, document_encoder(tokenizer), folder)
    source.records([5, 0])              # two documents, encoded
    Rows(source, read_encoded, seq_len=512, packed=True)

A folder holds shards, each of them a few arrays in numpy's own format
(``.npy``), which are mapped into memory, and an index with their sizes and
digests. The records keep their order and their number, so that training on
them equals training on the files that they were made from, to the bit.
"""

from __future__ import annotations

import bisect
import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from minimind_core.data.encoding import Encoded, Encoder
from minimind_core.data.sources import LeftOut, Source, left_out, place_of
from minimind_core.errors import ConfigError, DataError
from minimind_core.files import atomic_folder, read_json, write_json
from minimind_core.model import IGNORE_INDEX

FORMAT = 1
"""The layout of a folder. It increases when it changes."""
INDEX = "index.json"
SHARD_TOKENS = 2**25
"""A shard is closed after about so many tokens: 64 MB of them."""
BATCH = 1024
"""Records that are encoded at a time."""
ARRAYS = ("tokens", "starts", "supervised")
"""The arrays of a shard: the ids of all records, one after the other; where
each record starts, and the last one ends; and for each token whether it is
supervised, which is left out if all are."""

Say = Callable[[str], None]
Report = Callable[[int, int], None]


def tokenize(
    source: Source,
    encode: Encoder,
    folder: str | Path,
    *,
    say: Say | None = None,
    every: float = 10.0,
) -> Tokenized:
    """Encode all records of a source into a folder, and open it.

    Parameters
    ----------
    source : Source
        A finite source.
    encode : Encoder
        A record that it returns None for stays in its place, and is None
        when it is read.
    folder : path
        Must not exist. It appears when it is complete; what a killed process
        leaves behind has another name.
    say : callable, optional
        Given a line of text about the progress, every `every` seconds.
    every : float

    Returns
    -------
    Tokenized

    Raises
    ------
    DataError
        For a record that the encoder refuses, with its file and line; or if
        the source is endless.
    OutputError
        If the folder cannot be written.
    """
    size = source.size
    if size is None:
        raise DataError(
            f"{type(source).__name__}: is endless, so it cannot be encoded "
            "ahead"
        )
    with atomic_folder(Path(folder)) as partial:
        shards = write_shards(
            source, encode, partial, range(size), progress(size, say, every)
        )
        write_index(partial, source, shards)
    return Tokenized(folder)


def write_index(
    folder: Path, source: Source, shards: list[dict[str, Any]]
) -> None:
    """Write the index of the shards in a folder."""
    bad = left_out(source)
    write_json(folder / INDEX, {
        "format": FORMAT,
        "records": source.size,
        "shards": shards,
        "left_out": bad and {"count": bad.count, "first": bad.first},
    })  # fmt: skip


def progress(
    size: int, say: Say | None, every: float = 10.0
) -> Report:
    """Return a function that says, now and then, how much is encoded."""
    started = said = time.monotonic()

    def report(records: int, tokens: int) -> None:
        nonlocal said
        now = time.monotonic()
        if say is not None and now - said >= every:
            said = now
            say(
                f"encoding {records:,}/{size:,} records  {tokens:,} tokens  "
                f"{tokens / (now - started):,.0f} tokens/s"
            )

    return report


def write_shards(
    source: Source,
    encode: Encoder,
    folder: Path,
    indices: range,
    report: Report,
    *,
    name: str = "",
) -> list[dict[str, Any]]:
    """Encode some records of a source into shards.

    Parameters
    ----------
    source, encode
        See `tokenize`.
    folder : Path
        An existing folder.
    indices : range
        The records, one after the other.
    report : callable
        Given the numbers of records and tokens so far, after each batch.
    name : str
        The names of the files begin with it.

    Returns
    -------
    list of dict
        Descriptions of the shards, for `write_index`.
    """
    shards: list[dict[str, Any]] = []
    writer = _Writer(folder, f"{name}{0:05d}")
    done = written = 0
    for start in range(indices.start, indices.stop, BATCH):
        batch = range(start, min(start + BATCH, indices.stop))
        for one in _encoded(source, encode, batch):
            writer.add(one)
        done += len(batch)
        report(done, written + writer.tokens)
        if writer.tokens >= SHARD_TOKENS:
            written += writer.tokens
            shards.append(writer.close())
            writer = _Writer(folder, f"{name}{len(shards):05d}")
    shards.append(writer.close())
    return shards


def _encoded(
    source: Source, encode: Encoder, indices: Sequence[int]
) -> list[Encoded | None]:
    """Encode records; of one that is refused, say which it is."""
    records = source.records(indices)
    try:
        return encode(records)
    except DataError:
        for index, record in zip(indices, records, strict=True):
            try:
                encode([record])
            except DataError as error:
                place = place_of(source, index)
                raise DataError(f"{place}: {error}") from None
        raise


class _Writer:
    """Collects the records of one shard, and writes its files."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self.ids: list[npt.NDArray[np.int32]] = []
        self.masks: list[npt.NDArray[np.bool_] | None] = []
        self.sizes: list[int] = []
        self.tokens = 0

    def add(self, one: Encoded | None) -> None:
        """Add a record; of None, only the place is kept."""
        if one is None:
            self.sizes.append(0)
            return
        ids = np.asarray(one.input_ids, dtype=np.int32)
        self.ids.append(ids)
        self.sizes.append(len(ids))
        self.tokens += len(ids)
        all_supervised = one.labels is one.input_ids
        self.masks.append(
            None
            if all_supervised
            else np.asarray(one.labels) != IGNORE_INDEX
        )

    def close(self) -> dict[str, Any]:
        """Write the shard, and describe it."""
        ids = np.concatenate([np.zeros(0, np.int32), *self.ids])
        small = ids.size == 0 or int(ids.max()) < 2**16
        arrays: dict[str, npt.NDArray[Any]] = {
            "tokens": ids.astype(np.uint16 if small else np.int32),
            "starts": np.cumsum([0, *self.sizes], dtype=np.int64),
        }
        if any(mask is not None for mask in self.masks):
            bits = np.concatenate([
                np.ones(len(one), bool) if mask is None else mask
                for one, mask in zip(self.ids, self.masks, strict=True)
            ])  # fmt: skip
            arrays["supervised"] = bits
        files = {}
        for name, values in arrays.items():
            path = self.folder / f"{self.name}.{name}.npy"
            np.save(path, values, allow_pickle=False)
            files[name] = {"file": path.name, "sha256": _digest(path)}
        return {
            "records": len(self.sizes), "tokens": self.tokens, "files": files
        }  # fmt: skip


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Tokenized:
    """A source of encoded records, which `tokenize` has written.

    Parameters
    ----------
    folder : path

    Attributes
    ----------
    size : int
    tokens : int
        Of all records.
    left_out : LeftOut or None
        What the source that was encoded had left out.

    Raises
    ------
    DataError
        If a file is missing, or is not what was written.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        advice = f"delete {folder}, and the data is encoded again"
        try:
            index = read_json(self.folder / INDEX)
        except ConfigError as error:
            raise DataError(f"{error}; {advice}") from None
        if index.get("format") != FORMAT:
            raise DataError(
                f"{self.folder}: format {index.get('format')!r}, expected "
                f"{FORMAT}; {advice}"
            )
        self._shards: list[dict[str, npt.NDArray[Any]]] = []
        self._firsts: list[int] = []
        self.size = self.tokens = 0
        try:
            for shard in index["shards"]:
                self._shards.append({
                    name: self._open(about, advice)
                    for name, about in shard["files"].items()
                    if name in ARRAYS
                })  # fmt: skip
                self._firsts.append(self.size)
                self.size += shard["records"]
                self.tokens += shard["tokens"]
            bad = index["left_out"]
            self.left_out = bad and LeftOut(bad["count"], bad["first"])
        except (KeyError, TypeError, AttributeError):
            raise DataError(
                f"{self.folder / INDEX}: damaged; {advice}"
            ) from None

    def _open(
        self, about: dict[str, str], advice: str
    ) -> npt.NDArray[Any]:  # fmt: skip
        path = self.folder / Path(about["file"]).name
        try:
            whole = _digest(path) == about["sha256"]
        except OSError as error:
            raise DataError(f"{path}: {error}; {advice}") from None
        if not whole:
            raise DataError(
                f"{path}: damaged, it is not what was written; {advice}"
            )
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
        # A plain view: each slice of a memmap takes ten times as long.
        found: npt.NDArray[Any] = mapped.view(np.ndarray)
        return found

    def records(self, indices: Sequence[int]) -> list[Encoded | None]:
        """The encoded records with these indices, as arrays.

        None for one without supervised tokens.
        """
        return [self._record(index) for index in indices]

    def _record(self, index: int) -> Encoded | None:
        number = bisect.bisect_right(self._firsts, index) - 1
        shard = self._shards[number]
        place = index - self._firsts[number]
        starts = shard["starts"]
        start, end = int(starts[place]), int(starts[place + 1])
        if start == end:
            return None
        ids = shard["tokens"][start:end].astype(np.int32)
        if "supervised" not in shard:
            return Encoded(ids, ids)
        supervised = shard["supervised"][start:end]
        return Encoded(ids, np.where(supervised, ids, IGNORE_INDEX))

    def __iter__(self) -> Iterator[Encoded | None]:
        """Iterate over the records in their order."""
        return (self._record(index) for index in range(self.size))


def read_encoded(records: list[Any]) -> list[Encoded | None]:
    """Return encoded records as they are: the encoder for `Tokenized`."""
    return records
