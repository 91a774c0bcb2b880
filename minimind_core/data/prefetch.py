"""Batches that are drawn, padded and pinned while the device computes.

    batches = BatchLoader(stream, prepare, ahead=2)
    batch = batches.next()          # drawn in a thread, in order
    batches.position()              # of the stream, after this batch

A thread suffices: numpy and torch let go of Python's lock while they copy,
and with a compiled model the main thread mostly waits for the GPU.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from minimind_core.data.packing import Row, RowStream, next_rows, snapshot

Position = Callable[[], dict[str, Any]]


@dataclass(frozen=True)
class Batch:
    """What one process computes of a global batch.

    Attributes
    ----------
    micro_batches : list of dict of str to Tensor
        As `collate` returns them, on the CPU.
    tokens, labels : int
        Tokens of the global batch without padding, and those of them that
        are supervised.
    oldest, drawn : Any
        The part of the data that it came from, if the stream knows it.
    skipped : int
        Records that the stream had skipped by then.
    """

    micro_batches: list[dict[str, Tensor]]
    tokens: int
    labels: int
    oldest: Any
    drawn: Any
    skipped: int


Prepare = Callable[[list[Row]], tuple[list[dict[str, Tensor]], int, int]]


class BatchLoader:
    """Draw batches from a stream, ahead of their use if that helps.

    Parameters
    ----------
    stream : RowStream
        From the first batch on nobody else may draw from it.
    size : int
        Rows of a batch.
    prepare : callable
        Takes the rows; returns the micro-batches, the number of tokens and
        the number of supervised tokens.
    ahead : int
        Batches to prepare in advance, in a thread. 0 prepares each when it
        is asked for, without a thread.
    """

    def __init__(
        self, stream: RowStream, size: int, prepare: Prepare, ahead: int
    ) -> None:
        self.stream, self.size, self.prepare = stream, size, prepare
        self._position: Position | None = None
        self._ahead = ahead
        self._ready: deque[tuple[Batch, Position] | Exception] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closing = False

    def _draw(self) -> tuple[Batch, Position]:
        stream = self.stream
        oldest = getattr(stream, "oldest", None)
        rows = next_rows(stream, self.size)
        drawn, skipped = getattr(stream, "drawn", None), stream.skipped
        position = snapshot(stream)
        prepared = self.prepare(rows)
        return Batch(*prepared, oldest, drawn, skipped), position

    def _work(self) -> None:
        found: tuple[Batch, Position] | Exception
        while True:
            try:
                found = self._draw()
            except Exception as error:  # it is raised where it is waited for
                found = error
            with self._changed:
                self._ready.append(found)
                self._changed.notify_all()
                self._changed.wait_for(
                    lambda: self._closing or len(self._ready) < self._ahead
                )
                if self._closing or isinstance(found, Exception):
                    return

    def next(self) -> Batch:
        """Return the next batch.

        Raises
        ------
        DataError
            Or whatever else the stream raised while it was drawn.
        """
        if not self._ahead:
            batch, self._position = self._draw()
            return batch
        if self._thread is None:
            self._closing = False
            # A daemon does not keep a failed program alive.
            self._thread = threading.Thread(
                target=self._work, name="batches", daemon=True
            )
            self._thread.start()
        with self._changed:
            self._changed.wait_for(lambda: self._ready)
            found = self._ready.popleft()
            self._changed.notify_all()
        if isinstance(found, Exception):
            self.close()
            raise found
        batch, self._position = found
        return batch

    def position(self) -> dict[str, Any]:
        """Return the stream's position after the last batch that was used.

        Batches that are prepared and not used do not count, so a resumed
        run gets them again.
        """
        if self._position is None:
            return self.stream.state_dict()
        return self._position()

    def forget(self) -> None:
        """Drop what is prepared, after the stream was moved elsewhere."""
        self.close()
        self._ready.clear()
        self._position = None

    def close(self) -> None:
        """End the thread; what it has prepared is kept for `next`."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
