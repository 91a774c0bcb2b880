"""A stream of records for the workers of a DataLoader, with a known mistake.

    from torch.utils.data import DataLoader
    from minimind_core.book.workers import Numbers
    list(DataLoader(Numbers(4), num_workers=2, batch_size=None))

A DataLoader starts its workers as processes of their own, which must be able
to import the data set. A class of a notebook cannot be imported everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch.utils.data import IterableDataset, get_worker_info


class Numbers(IterableDataset[int]):
    """The numbers below a limit, one after the other.

    Parameters
    ----------
    limit : int
    shared : bool
        Whether the workers share the numbers. If not, each worker yields all
        of them.
    """

    def __init__(self, limit: int, *, shared: bool = False) -> None:
        super().__init__()
        self.limit, self.shared = limit, shared

    def __iter__(self) -> Iterator[int]:
        """Yield the numbers of the worker that this runs in."""
        first, step = 0, 1
        worker = get_worker_info()
        if self.shared and worker is not None:
            first, step = worker.id, worker.num_workers
        yield from range(first, self.limit, step)
