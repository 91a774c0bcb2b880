"""From token ids to rows and batches, with a position that can be saved.

    from minimind_core.data import Rows, collate, next_rows
    stream = Rows(source, document_encoder(tokenizer), seq_len=128)
    batch = collate(next_rows(stream, 32), pad_token_id=0)
    stream.state_dict()                     # {"drawn": 64, ...}
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from minimind_core.data.encoding import Encoded, Encoder
from minimind_core.data.sources import Source
from minimind_core.errors import DataError
from minimind_core.model import IGNORE_INDEX


class Row(NamedTuple):
    """One line of a batch, not yet padded."""

    input_ids: list[int]
    labels: list[int]
    document_ids: list[int]


class RowStream(Protocol):
    """An endless stream of rows whose position can be saved."""

    @property
    def skipped(self) -> int:
        """Records so far that had nothing to learn."""

    def next_row(self) -> Row:
        """The next row."""

    def state_dict(self) -> dict[str, Any]:
        """The position."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a position."""


class Rows:
    """Documents laid into rows of at most `seq_len` tokens.

    A document that is longer goes on in the next row: nothing is cut off.

    Parameters
    ----------
    source : Source
        A finite one is shuffled anew each time it starts over.
    encode : Encoder
    seq_len : int
    packed : bool
        Fill each row with several documents (first fit, over a few open
        rows); else one document a row.
    seed : int
        Of the shuffling.

    Attributes
    ----------
    skipped : int
        Records so far that had nothing to learn.
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
        self.drawn = self.skipped = 0
        self.ready: list[Row] = []
        self._order: tuple[int, list[int]] = (-1, [])

    def _index(self, count: int) -> int:
        """Which record comes `count`-th."""
        size = self.source.size
        if size is None:
            return count
        epoch, place = divmod(count, size)
        if self._order[0] != epoch:
            order = list(range(size))
            random.Random(f"{self.seed}:{epoch}").shuffle(order)
            self._order = (epoch, order)
        return self._order[1][place]

    def _refill(self) -> None:
        chunk = range(self.drawn, self.drawn + self.CHUNK)
        encoded = self.encode(
            self.source.records([self._index(count) for count in chunk])
        )
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

    def next_row(self) -> Row:
        """The next row.

        Raises
        ------
        DataError
            If a whole round of records holds nothing to learn.
        """
        start = self.drawn
        while not self.ready:
            self._refill()
            limit = max(self.source.size or 0, 16 * self.CHUNK)
            if not self.ready and self.drawn - start > limit:
                raise DataError(
                    f"none of {self.drawn - start} records has anything to "
                    f"learn within {self.seq_len} tokens: raise --seq-len"
                )
        return self.ready.pop(0)

    def state_dict(self) -> dict[str, Any]:
        """The position: records drawn and rows already laid out."""
        return {
            "drawn": self.drawn,
            "skipped": self.skipped,
            "ready": [list(row) for row in self.ready],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved position."""
        self.drawn, self.skipped = state["drawn"], state["skipped"]
        self.ready = [Row(*row) for row in state["ready"]]


def pack(pieces: Sequence[Encoded], seq_len: int) -> list[Row]:
    """Lay documents into rows, first fit.

    Parameters
    ----------
    pieces : sequence of Encoded
    seq_len : int
        Room in a row; 0 puts each piece in a row of its own.

    Returns
    -------
    list of Row
        The first label of each document is ignored: nothing before it in
        the row can predict it.
    """
    rows: list[Row] = []
    for piece in pieces:
        size = len(piece.input_ids)
        row = next(
            (
                row
                for row in rows[-Rows.OPEN_ROWS :]
                if len(row.input_ids) + size <= seq_len
            ),
            None,
        )
        if row is None:
            row = Row([], [], [])
            rows.append(row)
        number = row.document_ids[-1] + 1 if row.document_ids else 0
        row.input_ids.extend(piece.input_ids)
        row.labels.extend([IGNORE_INDEX, *piece.labels[1:]])
        row.document_ids.extend([number] * size)
    return rows


class Mixture:
    """Two streams as one, so that training on the second keeps the first.

    Parameters
    ----------
    main, replay : RowStream
    share : float
        Of the rows that come from `replay`.
    seed : int
    """

    def __init__(
        self, main: RowStream, replay: RowStream, share: float, seed: int
    ) -> None:
        self.main, self.replay = main, replay
        self.share, self.seed, self.count = share, seed, 0

    @property
    def skipped(self) -> int:
        """Records of both that had nothing to learn."""
        return self.main.skipped + self.replay.skipped

    def next_row(self) -> Row:
        """The next row of one of the two."""
        draw = random.Random(f"{self.seed}:mix:{self.count}").random()
        self.count += 1
        stream = self.replay if draw < self.share else self.main
        return stream.next_row()

    def state_dict(self) -> dict[str, Any]:
        """Both positions."""
        return {
            "count": self.count,
            "main": self.main.state_dict(),
            "replay": self.replay.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from both."""
        self.count = state["count"]
        self.main.load_state_dict(state["main"])
        self.replay.load_state_dict(state["replay"])


def next_rows(stream: RowStream, count: int) -> list[Row]:
    """The next rows of a stream, as one batch."""
    return [stream.next_row() for _ in range(count)]


def count_labels(rows: Iterable[Row]) -> int:
    """How many tokens a batch is trained on."""
    return sum(
        label != IGNORE_INDEX for row in rows for label in row.labels[1:]
    )


def collate(
    rows: Sequence[Row],
    pad_token_id: int,
    device: torch.device | str = "cpu",
) -> dict[str, Tensor]:
    """Rows as tensors, padded on the right to the longest of them.

    Parameters
    ----------
    rows : sequence of Row
    pad_token_id : int
    device

    Returns
    -------
    dict of str to Tensor, shape (batch, time)
        ``input_ids`` and ``labels``; for packed rows also ``document_ids``
        and ``position_ids``, which start over with each document. The time
        is a multiple of 8, which matrix units like.
    """
    time = max(len(row.input_ids) for row in rows)
    time = -(-time // 8) * 8

    def fill(lists: Iterable[list[int]], value: int) -> Tensor:
        padded = [one + [value] * (time - len(one)) for one in lists]
        return torch.tensor(padded).to(device, non_blocking=True)

    batch = {
        "input_ids": fill((r.input_ids for r in rows), pad_token_id),
        "labels": fill((r.labels for r in rows), IGNORE_INDEX),
    }
    if any(row.document_ids[-1] for row in rows):
        batch["document_ids"] = fill((r.document_ids for r in rows), -1)
        batch["position_ids"] = fill(
            (_positions(r.document_ids) for r in rows), 0
        )
    return batch


def _positions(document_ids: list[int]) -> list[int]:
    return [
        place
        for _, group in itertools.groupby(document_ids)
        for place in range(len(list(group)))
    ]
