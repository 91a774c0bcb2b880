"""Arrange token ids in rows and batches, with a resumable position.

    from minimind_core.data import Rows, collate, next_rows
    stream = Rows(source, document_encoder(tokenizer), seq_len=128)
    batch = collate(next_rows(stream, 32), pad_token_id=0)
    stream.state_dict()                     # {"drawn": 64, "left": 32, ...}

A stream returns rows endlessly. `Rows` makes one from a source of records;
`as_stream` makes one from any iterable of rows or batches, such as a torch
``DataLoader``.
"""

from __future__ import annotations

import array
import random
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
import torch
from torch import Tensor

from minimind_core.data.encoding import Encoded, Encoder, Ids
from minimind_core.data.sources import Source, left_out
from minimind_core.errors import DataError
from minimind_core.model import IGNORE_INDEX


class Row(NamedTuple):
    """One row of a batch, before padding."""

    input_ids: Ids
    labels: Ids
    document_ids: Ids


class RowStream(Protocol):
    """An endless stream of rows whose position can be saved.

    Your own class needs these four members, and no base class.
    """

    @property
    def skipped(self) -> int:
        """Number of records so far without supervised tokens."""

    def next_row(self) -> Row:
        """The next row."""

    def state_dict(self) -> dict[str, Any]:
        """The position, small and serialisable as JSON."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a position."""


class Rows:
    """A stream of rows of at most `seq_len` tokens, made from documents.

    A longer document continues in the next row, so that none of it is lost.

    Parameters
    ----------
    source : Source
        A finite source is reshuffled in every epoch.
    encode : Encoder
    seq_len : int
    packed : bool
        Put several documents into each row (first fit, over a few open
        rows) instead of one document per row.
    seed : int
        Seed of the shuffling.

    Attributes
    ----------
    skipped : int
        Number of records so far without supervised tokens, and of those that
        the source has left out (`LeftOut`).
    """

    CHUNK = 64
    OPEN_ROWS = 16

    def __init__(
        self,
        source: Source,
        encode: Encoder,
        *,
        seq_len: int,
        packed: bool = False,
        seed: int = 0,
    ) -> None:
        if source.size == 0:
            raise DataError("no records are left to train on")
        self.source, self.encode = source, encode
        self.seq_len, self.packed, self.seed = seq_len, packed, seed
        self.drawn = 0
        bad = left_out(source)
        self.skipped = bad.count if bad else 0
        self._refused: DataError | None = None
        self.ready: list[Row] = []
        self._order: tuple[int, Sequence[int]] = (-1, [])

    @property
    def oldest(self) -> int:
        """Index, in drawing order, of the first record with rows left."""
        return self.drawn - self.CHUNK * bool(self.ready)

    def _index(self, count: int) -> int:
        """The index of the record that is drawn `count`-th."""
        size = self.source.size
        if size is None:
            return count
        epoch, place = divmod(count, size)
        if self._order[0] != epoch:
            order = array.array("Q", range(size))  # 8 bytes a record
            random.Random(f"{self.seed}:{epoch}").shuffle(order)
            self._order = (epoch, order)
        return self._order[1][place]

    def _refill(self) -> None:
        chunk = range(self.drawn, self.drawn + self.CHUNK)
        encoded = self._encode([self._index(count) for count in chunk])
        self.drawn += self.CHUNK
        self.skipped += sum(one is None for one in encoded)
        pieces = [
            Encoded(
                one.input_ids[at : at + self.seq_len],
                one.labels[at : at + self.seq_len],
            )
            for one in encoded
            if one is not None
            for at in range(0, len(one.input_ids), self.seq_len)
        ]
        # One token alone predicts nothing.
        pieces = [piece for piece in pieces if len(piece.input_ids) > 1]
        self.ready += pack(pieces, self.seq_len if self.packed else 0)

    def _encode(self, indices: Sequence[int]) -> list[Encoded | None]:
        """Encode records; of one that is refused, say which it is."""
        records = self.source.records(indices)
        try:
            return self.encode(records)
        except DataError:
            if not hasattr(self.source, "place"):
                raise
        found: list[Encoded | None] = []
        for index, record in zip(indices, records, strict=True):
            try:
                found += self.encode([record])
            except DataError as error:
                if left_out(self.source) is None:
                    place = self.source.place(index)
                    raise DataError(f"{place}: {error}") from None
                self._refused = error
                found.append(None)
        return found

    def next_row(self) -> Row:
        """The next row.

        Raises
        ------
        DataError
            If no record of a whole epoch has supervised tokens.
        """
        start = self.drawn
        while not self.ready:
            self._refill()
            limit = max(self.source.size or 0, 16 * self.CHUNK)
            if not self.ready and self.drawn - start > limit:
                if self._refused:
                    raise DataError(
                        f"none of {self.drawn - start} records can be used; "
                        f"the last error is: {self._refused}"
                    )
                raise DataError(
                    f"none of {self.drawn - start} records has a supervised "
                    f"token within {self.seq_len} tokens: raise --seq-len"
                )
        return self.ready.pop(0)

    def state_dict(self) -> dict[str, Any]:
        """The position: the records drawn, and those with rows left.

        Rows that are laid out but not yet taken are not stored, because they
        can be rebuilt from their records.
        """
        return self.snapshot()()

    def snapshot(self) -> Callable[[], dict[str, Any]]:
        """Keep the position of this moment, and compute `state_dict` later.

        A stream that is read ahead is asked for this after each batch, and
        hardly any of the positions is ever saved.
        """
        ready = list(self.ready)
        numbers = {
            "drawn": self.drawn,
            "skipped": self.skipped,
            "left": len(ready),
            "size": self.source.size,
        }
        return lambda: {**numbers, "check": _check(ready)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved position.

        Raises
        ------
        DataError
            If the source no longer holds the same records.
        """
        if state["size"] != self.source.size:
            raise DataError(
                f"the data holds {self.source.size} records, but there were "
                f"{state['size']} when the position was saved: restore the "
                "data, or start another run"
            )
        self.drawn, left = state["drawn"], state["left"]
        self.ready = []
        if left:
            self.drawn -= self.CHUNK
            self._refill()
            self.ready = self.ready[-left:]
        if _check(self.ready) != state["check"]:
            raise DataError(
                f"records {self.drawn - self.CHUNK} to {self.drawn - 1} of "
                "the data, counted in the order of training, are not what "
                "they were when the position was saved, or are encoded "
                "differently: restore the data, or start another run"
            )
        self.skipped = state["skipped"]


def _check(rows: Sequence[Row]) -> int:
    """A checksum that detects changed data."""
    lists = [tuple(map(_listed, row)) for row in rows]
    return zlib.crc32(repr(lists).encode())


def _listed(ids: Ids) -> list[int]:
    return ids if isinstance(ids, list) else ids.tolist()


def pack(pieces: Sequence[Encoded], seq_len: int) -> list[Row]:
    """Pack documents into rows by first fit.

    Parameters
    ----------
    pieces : sequence of Encoded
    seq_len : int
        Tokens per row; 0 puts each piece in its own row.

    Returns
    -------
    list of Row
        The first label of each document is ignored: nothing before it in
        the row can predict it.
    """
    rows: list[list[Encoded]] = []
    rooms: list[int] = []
    for piece in pieces:
        size = len(piece.input_ids)
        first = max(0, len(rows) - Rows.OPEN_ROWS)
        for number in range(first, len(rows)):
            if rooms[number] >= size:
                rows[number].append(piece)
                rooms[number] -= size
                break
        else:
            rows.append([piece])
            rooms.append(seq_len - size)
    return [_row(row) for row in rows]


def _row(pieces: Sequence[Encoded]) -> Row:
    """Put documents one after the other."""
    sizes = [len(piece.input_ids) for piece in pieces]
    if all(isinstance(piece.input_ids, list) for piece in pieces):
        row = Row([], [], [])
        for number, (piece, size) in enumerate(
            zip(pieces, sizes, strict=True)
        ):
            row.input_ids.extend(piece.input_ids)  # type: ignore[union-attr]
            row.labels.extend(  # type: ignore[union-attr]
                [IGNORE_INDEX, *piece.labels[1:]]
            )
            row.document_ids.extend(  # type: ignore[union-attr]
                [number] * size
            )
        return row
    labels = np.concatenate([piece.labels for piece in pieces])
    labels[np.cumsum([0, *sizes[:-1]])] = IGNORE_INDEX
    return Row(
        np.concatenate([piece.input_ids for piece in pieces]),
        labels,
        np.repeat(np.arange(len(pieces), dtype=np.int32), sizes),
    )


class Mixture:
    """A random mixture of two streams, used to replay earlier data.

    Parameters
    ----------
    main, replay : RowStream
    share : float
        Share of the rows that come from `replay`.
    seed : int
    """

    def __init__(
        self, main: RowStream, replay: RowStream, share: float, seed: int
    ) -> None:
        self.main, self.replay = main, replay
        self.share, self.seed, self.count = share, seed, 0

    @property
    def skipped(self) -> int:
        """Records of both streams without supervised tokens."""
        return self.main.skipped + self.replay.skipped

    @property
    def drawn(self) -> dict[str, Any]:
        """Records drawn from each stream that counts them."""
        return {
            "main": getattr(self.main, "drawn", None),
            "replay": getattr(self.replay, "drawn", None),
        }

    @property
    def oldest(self) -> dict[str, Any]:
        """`Rows.oldest` of each stream that has it."""
        return {
            "main": getattr(self.main, "oldest", None),
            "replay": getattr(self.replay, "oldest", None),
        }

    def next_row(self) -> Row:
        """The next row, from one of the two streams."""
        draw = random.Random(f"{self.seed}:mix:{self.count}").random()
        self.count += 1
        stream = self.replay if draw < self.share else self.main
        return stream.next_row()

    def state_dict(self) -> dict[str, Any]:
        """The positions of both streams."""
        return self.snapshot()()

    def snapshot(self) -> Callable[[], dict[str, Any]]:
        """Keep the position of this moment, see `Rows.snapshot`."""
        count = self.count
        main, replay = snapshot(self.main), snapshot(self.replay)
        return lambda: {"count": count, "main": main(), "replay": replay()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue both streams from saved positions."""
        self.count = state["count"]
        self.main.load_state_dict(state["main"])
        self.replay.load_state_dict(state["replay"])


class Batches:
    """A stream from any iterable of rows or batches.

    Parameters
    ----------
    items : iterable
        A list, a torch ``Dataset`` or ``DataLoader``, or any other iterable.
        It is restarted at its end. An item is a `Row`, an
        `Encoded`, a list of token ids, or a mapping with ``input_ids`` and,
        unless every token is supervised, ``labels``: lists or tensors of
        one row, or of a batch of rows. Padding is removed if there is
        an ``attention_mask``.

    Notes
    -----
    The trainer takes as many rows at a time as its config specifies,
    regardless of how many are in an item. A saved position is a number of
    items. To continue from it, the iterable is restarted and that many items
    are skipped, which is exact only if it yields the same items in the same
    order. A shuffling ``DataLoader`` does this only with a generator that
    has been reseeded.
    """

    skipped = 0

    def __init__(self, items: Iterable[Any]) -> None:
        self.items = items
        self.drawn = 0
        self.ready: list[Row] = []
        self._iterator: Iterator[Any] = iter(())

    @property
    def oldest(self) -> int:
        """Index, in drawing order, of the first item with rows left."""
        return self.drawn - bool(self.ready)

    def _begin(self) -> Iterator[Any]:
        items: Any = self.items
        if hasattr(items, "__iter__"):
            return iter(items)
        # A torch Dataset has only a length and indices, and need not raise
        # IndexError at its end.
        return (items[i] for i in range(len(items)))

    def _next_item(self) -> Any:
        for item in self._iterator:
            self.drawn += 1
            return item
        self._iterator = self._begin()
        for item in self._iterator:
            self.drawn += 1
            return item
        raise DataError(
            f"the data ended after {self.drawn} items; pass an iterable that "
            "can be restarted, such as a list, or an endless one"
            if self.drawn
            else "the data holds no items to train on"
        )

    def next_row(self) -> Row:
        """The next row.

        Raises
        ------
        DataError
            If an item cannot be understood, or there are no more.
        """
        tried = 0
        while not self.ready:
            item = self._next_item()
            self.ready = _rows_of(item, f"item {self.drawn} of the data")
            tried += 1
            if not self.ready and tried > 10_000:
                raise DataError(
                    f"none of {tried} items has a row of two tokens or more"
                )
        return self.ready.pop(0)

    def state_dict(self) -> dict[str, Any]:
        """The position: items drawn, and rows left of the last one."""
        return self.snapshot()()

    def snapshot(self) -> Callable[[], dict[str, Any]]:
        """Keep the position of this moment, see `Rows.snapshot`."""
        drawn, ready = self.drawn, list(self.ready)
        return lambda: {
            "drawn": drawn, "left": len(ready), "check": _check(ready)
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved position.

        Raises
        ------
        DataError
            If the iterable does not give the same items again.
        """
        self.drawn, self.ready = 0, []
        self._iterator = self._begin()
        while self.drawn < state["drawn"]:
            item = self._next_item()
        if state["left"]:
            rows = _rows_of(item, f"item {self.drawn} of the data")
            self.ready = rows[-state["left"] :]
        if _check(self.ready) != state["check"]:
            raise DataError(
                f"item {self.drawn} of the data is not what it was when the "
                "position was saved: give the same items in the same order"
            )


def snapshot(stream: RowStream) -> Callable[[], dict[str, Any]]:
    """Keep a stream's position, to be asked for later.

    Parameters
    ----------
    stream : RowStream
        If it has no method `snapshot` of its own, as `Rows` has, its
        `state_dict` is called now.
    """
    own = getattr(stream, "snapshot", None)
    if own is not None:
        found: Callable[[], dict[str, Any]] = own()
        return found
    state = stream.state_dict()
    return lambda: state


def as_stream(data: RowStream | Iterable[Any]) -> RowStream:
    """Turn user data into a stream of rows.

    Parameters
    ----------
    data : RowStream or iterable
        A stream is returned as it is; for an iterable see `Batches`.

    Raises
    ------
    DataError
        If it is neither.
    """
    if hasattr(data, "next_row"):
        return cast(RowStream, data)
    if hasattr(data, "__iter__") or hasattr(data, "__getitem__"):
        return Batches(data)
    raise DataError(
        f"a {type(data).__name__} is neither a stream of rows (Rows, "
        "Mixture) nor an iterable of rows or batches"
    )


def _rows_of(item: Any, where: str) -> list[Row]:
    """The rows in an item of `Batches`."""
    if isinstance(item, Row):
        return [item]
    if isinstance(item, Encoded):
        item = item._asdict()
    elif not isinstance(item, Mapping):
        item = {"input_ids": item}
    ids = _lists(item.get("input_ids"), where)
    labels = ids
    if item.get("labels") is not None:
        labels = _lists(item["labels"], where)
    masks = [[1] * len(row) for row in ids]
    if item.get("attention_mask") is not None:
        masks = _lists(item["attention_mask"], where)
    rows = []
    try:
        for mine, targets, mask in zip(ids, labels, masks, strict=True):
            kept = [
                pair
                for pair, m in zip(
                    zip(mine, targets, strict=True), mask, strict=True
                )
                if m
            ]
            rows.append(Encoded([a for a, _ in kept], [b for _, b in kept]))
    except ValueError:
        raise DataError(
            f"{where}: input_ids, labels and attention_mask must have the "
            "same shape"
        ) from None
    # One token alone predicts nothing.
    return pack([row for row in rows if len(row.input_ids) > 1], 0)


def _lists(values: Any, where: str) -> list[list[int]]:
    """One row or several, as a list of rows."""
    if hasattr(values, "tolist"):
        values = values.tolist()
    if not isinstance(values, list | tuple) or not values:
        raise DataError(
            f"{where}: expected a row or a mapping with token ids in "
            f"'input_ids', found {type(values).__name__}"
        )
    rows = values if isinstance(values[0], list | tuple) else [values]
    for row in rows:
        for token in row:
            if type(token) is not int:
                raise DataError(
                    f"{where}: token ids are integers, not {token!r}"
                )
    return [list(row) for row in rows]


def next_rows(stream: RowStream, count: int) -> list[Row]:
    """The next rows of a stream, as one batch."""
    return [stream.next_row() for _ in range(count)]


def count_labels(rows: Iterable[Row]) -> int:
    """Count the supervised tokens, at which the loss is computed."""
    return sum(map(_supervised, rows))


def _supervised(row: Row) -> int:
    labels = row.labels[1:]
    if isinstance(labels, list):
        return len(labels) - labels.count(IGNORE_INDEX)
    return int(np.count_nonzero(labels != IGNORE_INDEX))


def count_tokens(rows: Iterable[Row]) -> int:
    """Count the tokens that a model reads, without padding."""
    return sum(len(row.input_ids) for row in rows)


def collate(
    rows: Sequence[Row],
    pad_token_id: int,
    device: torch.device | str = "cpu",
    *,
    length: int = 0,
) -> dict[str, Tensor]:
    """Collate rows into tensors, padded on the right to the longest row.

    Parameters
    ----------
    rows : sequence of Row
    pad_token_id : int
    device
    length : int
        Pad to at least this many tokens.

    Returns
    -------
    dict of str to Tensor, shape (batch, time)
        ``input_ids`` and ``labels``; for packed rows also ``document_ids``
        and ``position_ids``, which start over with each document. The time
        is a multiple of 8, which suits matrix units. The ``document_ids``
        stay on the CPU: a GPU would have to be waited for to tell where the
        documents begin.
    """
    time = max(length, *(len(row.input_ids) for row in rows))
    time = -(-time // 8) * 8

    def fill(lists: Iterable[Ids], value: int) -> Tensor:
        padded = np.full((len(rows), time), value, dtype=np.int64)
        for line, ids in zip(padded, lists, strict=True):
            line[: len(ids)] = ids
        return torch.from_numpy(padded)

    batch = {
        "input_ids": fill((row.input_ids for row in rows), pad_token_id),
        "labels": fill((row.labels for row in rows), IGNORE_INDEX),
    }
    if any(row.document_ids[-1] for row in rows):
        documents = fill((row.document_ids for row in rows), -1)
        batch["document_ids"] = documents
        batch["position_ids"] = _positions(documents)
    return send(batch, device)


def _positions(documents: Tensor) -> Tensor:
    """Number the tokens of each document; 0 for padding."""
    places = torch.arange(documents.size(1))
    begins = torch.zeros_like(documents)
    begins[:, 1:] = (documents[:, 1:] != documents[:, :-1]) * places[1:]
    positions = places - begins.cummax(1).values
    return positions.masked_fill(documents < 0, 0)


def pin(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Move a batch to pinned memory, from which a GPU copies by itself."""
    return {
        name: tensor if name == "document_ids" else tensor.pin_memory()
        for name, tensor in batch.items()
    }


def send(
    batch: dict[str, Tensor], device: torch.device | str
) -> dict[str, Tensor]:
    """Send a batch to a device; ``document_ids`` stay, see `collate`."""
    cuda = torch.device(device).type == "cuda"

    def move(tensor: Tensor) -> Tensor:
        if cuda:
            # From pinned memory the copy is asynchronous, and torch keeps
            # that memory alive until it is done. From other memory, an
            # asynchronous copy could happen after the tensor was freed.
            tensor = tensor if tensor.is_pinned() else tensor.pin_memory()
            return tensor.to(device, non_blocking=True)
        return tensor.to(device)

    return {
        name: tensor if name == "document_ids" else move(tensor)
        for name, tensor in batch.items()
    }
